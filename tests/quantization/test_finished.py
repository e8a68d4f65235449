"""What was computed before a kill comes back, of the same settings and inputs alone."""

import numpy as np
import pytest

from psaq_jax.quantization.finished import finished

INPUTS = {"x": np.arange(3, dtype=np.float32)}


def run(folder, settings="a", inputs=INPUTS):
    """(what came, whether it was computed)."""
    computed = []

    def compute():
        computed.append(True)
        return {"sum": np.float32([inputs["x"].sum(), len(settings)])}

    like = {"sum": np.zeros(2, np.float32)}
    return finished(folder, settings, inputs, like, compute)["sum"].tolist(), bool(computed)


def test_the_same_is_not_computed_twice(tmp_path):
    assert run(tmp_path) == ([3, 1], True)
    assert run(tmp_path) == ([3, 1], False)


@pytest.mark.parametrize("changed", [{"settings": "ab"}, {"inputs": {"x": np.float32([0, 1, 3])}}])
def test_another_setting_or_input_is_computed(tmp_path, changed):
    run(tmp_path)
    expected = [3, 2] if "settings" in changed else [4, 1]
    assert run(tmp_path, **changed) == (expected, True)
    assert run(tmp_path) == ([3, 1], False), "and leaves what was there"


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(None) == run(None) == ([3, 1], True)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_computed_anew(tmp_path):
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert run(tmp_path) == ([3, 1], True)
    assert run(tmp_path) == ([3, 1], False)
