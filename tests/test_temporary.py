"""Temporary folders go with their process, also where that is killed."""

import signal
import subprocess
import sys

import pytest

from psaq_jax import temporary
from tests import jobs

OPENS = """
import time
from psaq_jax import temporary
with temporary.folder() as folder:
    (folder / "file").write_text("1")
    print("made", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_gone_after_the_block_also_where_it_fails():
    with pytest.raises(ZeroDivisionError), temporary.folder() as folder:
        (folder / "file").write_text("1")
        raise ZeroDivisionError
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_none(tmp_path, number):
    settings = jobs.settings()
    settings["env"]["TMPDIR"] = str(tmp_path)
    with subprocess.Popen([sys.executable, "-c", OPENS], **settings) as process:
        assert process.stdout.readline() == "made\n"
        process.send_signal(number)
    assert process.returncode == -number
    jobs.wait_until_empty(tmp_path)
