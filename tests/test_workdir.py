"""A job's folder: one job at a time, of one configuration."""

import json

import pytest

from psaq_jax.errors import InputError
from psaq_jax.workdir import open_workdir

CONFIG = {"model": "m", "synthesis": {"iterations": 10, "jitter": (1.0, 2.0)}}


def test_the_same_config_opens_again(tmp_path):
    for _ in range(2):
        with open_workdir(tmp_path / "run", CONFIG) as path:
            assert json.loads((path / "config.json").read_text())["synthesis"]["jitter"] == [1.0, 2.0]


def test_another_config_is_refused_with_the_field(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        pass
    changed = CONFIG | {"synthesis": CONFIG["synthesis"] | {"iterations": 11}}
    with pytest.raises(InputError, match="synthesis.iterations is 10 there and 11 now"):
        with open_workdir(tmp_path, changed):
            pass


def test_a_second_run_at_once_is_refused(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        with pytest.raises(InputError, match="another run is at work there"):
            with open_workdir(tmp_path, CONFIG):
                pass


def test_a_file_in_its_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        with open_workdir(tmp_path / "file", CONFIG):
            pass
