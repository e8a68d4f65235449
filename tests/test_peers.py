"""The connections between processes, without JAX: process 0's end here, in a process of its own as it ends that."""

import socket
import subprocess
import sys

import pytest

from psaq_jax import peers
from psaq_jax.errors import InputError
from tests import jobs

ENDS = """
import socket, sys, time
from psaq_jax import peers, progress, temporary
class Bar:
    def close(self):
        print("a bar", file=sys.stderr)
progress.open_bars.add(Bar())
own = temporary.folder()
(own.__enter__() / "file").write_text("")
with peers.Listener(sys.argv[2]) as listener:
    host, port, secret = listener.where.split()
    with socket.create_connection((host, int(port))) as other:
        other.sendall(f"{secret} 1\\n{sys.argv[1]}".encode())  # all before process 0 reads
    peers.connect(listener.where, 0, 2, listener)
time.sleep(30)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("last_words", "code"), [("1 2\n", 2), ("", 75), ("1", 75), ("1 7", 75)])
def test_what_a_process_says_at_once_is_heard(last_words, code, host, tmp_path):
    """Bad input right after the start is no loss, which a cloud would answer with the same command."""
    jobs.free_port(host)
    settings = jobs.settings()
    settings["env"]["TMPDIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", ENDS, last_words, host], timeout=60, **settings)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("a bar\nerror: process 1 of this run ended early (its own log says why)")
    assert ("; the same command on all machines goes on from the last checkpoint" in done.stderr) == (code == 75)
    jobs.wait_until_empty(tmp_path)


def test_a_process_whose_words_find_no_place_ends_all_the_same():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", ENDS, "", "127.0.0.1"]
        done = subprocess.run(command, timeout=60, **jobs.settings() | {"stderr": full})
    assert done.returncode == 75


def test_who_did_not_come_is_named(monkeypatch):
    monkeypatch.setattr(peers, "PATIENCE", 0)
    with peers.Listener("127.0.0.1") as listener:
        with pytest.raises(InputError, match=r"process 1 and process 0 at 127\.0\.0\.1:\d+ cannot connect"):
            peers.connect(listener.where, 0, 2, listener)


def test_of_several_that_who_did_not_come_is_named(monkeypatch):
    """Process 1 is there before anybody looks."""
    monkeypatch.setattr(peers, "PATIENCE", 0.2)
    with peers.Listener("127.0.0.1") as listener:
        host, port, secret = listener.where.split()
        with socket.create_connection((host, int(port))) as there:
            there.sendall(f"{secret} 1\n".encode())
            with pytest.raises(InputError, match=r"process 2 and process 0 at .* cannot connect"):
                peers.connect(listener.where, 0, 3, listener)


@pytest.mark.parametrize("said", ["{wrong} 1\n", "{secret}\n", "{secret} -1\n", "{secret} one\n", "GET / HTTP/1.1\r\n"])
def test_strangers_at_the_door_are_no_processes(said):
    with peers.Listener("127.0.0.1") as listener:
        host, port, secret = listener.where.split()
        stranger, other = (socket.create_connection((host, int(port))) for _ in range(2))
        with stranger, other:
            stranger.sendall(said.format(wrong="0" * len(secret), secret=secret).encode())
            other.sendall(f"{secret} 1\n".encode())
            found = {}
            listener.accept(found, 1)
            assert list(found) == [1] and found[1].getpeername()[1] == other.getsockname()[1]  # their ports
            found[1].close()
