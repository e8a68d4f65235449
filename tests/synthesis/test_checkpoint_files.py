"""Checkpoints by themselves, without a synthesis: which wave they are of, when they are due, what goes with them."""

import signal

import numpy as np
import pytest

from psaq_jax.synthesis import checkpointing
from psaq_jax.synthesis.checkpointing import Checkpoints, WaveProgress, open_checkpoints


def wave(first, iteration=5, groups=2):
    return WaveProgress(first, iteration, 1.5, {"variables": np.full((groups, 2), iteration, np.float32)})


def saved(folder, progress):
    checkpoints = Checkpoints(folder)
    checkpoints.save(progress)
    checkpoints.close()
    return Checkpoints(folder)


def test_a_wave_comes_back_as_it_was(tmp_path):
    checkpoints = saved(tmp_path, wave(4))
    found = checkpoints.restore(4, 2)
    assert found[:3] == (4, 5, 1.5) and list(found.arrays) == ["variables"]
    np.testing.assert_array_equal(found.arrays["variables"], wave(4).arrays["variables"])
    checkpoints.close()


@pytest.mark.parametrize("first", [2, 6])
def test_a_wave_of_as_many_groups_is_not_taken_for_another(tmp_path, first):
    """It is removed: of a later one, with a larger step, Orbax would save nothing before it."""
    checkpoints = saved(tmp_path, wave(4))
    assert checkpoints.restore(first, 2) is None and checkpoints.restore(4, 2) is None
    checkpoints.save(wave(first, 1))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(first, 2).iteration == 1
    checkpoints.close()


def test_the_next_wave_counts_from_its_first_iteration_on(tmp_path):
    """Whatever the one before had done by its end."""
    checkpoints = saved(tmp_path, wave(0, 10**6))
    checkpoints.save(wave(1, 1))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(1, 2).iteration == 1
    checkpoints.close()


@pytest.mark.parametrize("stopping, unfinished, seconds, iterations", [
    (False, True, 59, []), (False, True, 60, [5]), (False, False, 60, []), (True, False, 0, [5]), (True, True, 0, [5]),
])  # fmt: skip
def test_a_wave_is_saved_when_it_is_time_or_the_job_is_to_stop(
    tmp_path, monkeypatch, stopping, unfinished, seconds, iterations
):
    """What is finished is kept elsewhere. From the last save on another 60 s go by."""
    now = [1000.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])
    checkpoints, saves = Checkpoints(tmp_path, every_seconds=60), []
    monkeypatch.setattr(checkpoints, "save_tree", lambda step, tree, save=checkpoints.save_tree: (
        saves.append(int(tree["iteration"])), save(step, tree)))  # fmt: skip
    now[0] += seconds
    if stopping:
        checkpoints.stop(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            checkpoints.meet(unfinished, lambda: wave(0))
        assert ended.value.code == 143
    else:
        checkpoints.meet(unfinished, lambda: wave(0))
        assert checkpoints.due() == (seconds >= 60 and not iterations)
    assert saves == iterations
    checkpoints.close()


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request):
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def test_what_is_ignored_stays_ignored(tmp_path, number):
    """As Ctrl-C of a job that runs under nohup or behind &."""
    signal.signal(number, signal.SIG_IGN)
    with open_checkpoints(tmp_path) as checkpoints:
        signal.raise_signal(number)
        assert not checkpoints.stopping() and signal.getsignal(number) is signal.SIG_IGN
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_second_ctrl_c_ends_at_once(tmp_path, number, capsys):
    """A second SIGTERM waits for the end of the chunk as the first does."""
    signal.signal(number, signal.default_int_handler)
    at_once = pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else pytest.raises(SystemExit)
    with at_once, open_checkpoints(tmp_path) as checkpoints:
        signal.raise_signal(number)
        assert checkpoints.stopping()
        signal.raise_signal(number)
    assert ("Ctrl-C again stops at once" in capsys.readouterr().err) == (number == signal.SIGINT)
