"""A synthesis that is killed goes on from its last checkpoint and ends with the same bits."""

import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.synthesis import chunks
from psaq_jax.synthesis.checkpointing import Checkpoints, WaveProgress, open_checkpoints
from psaq_jax.synthesis.config import SynthesisConfig
from tests import jobs
from tests.damages import DAMAGES
from tests.golden_files import reference_vit

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = SynthesisConfig(num_images=6, group_size=2, iterations=8)


class Killed(Exception):
    pass


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(chunks, "LONGEST_CHUNK", 2)
    return reference_vit(1)


def finish(model, directory):
    """(result, ticks of the progress bar) of the run that goes on from a folder."""
    checkpoints, steps = Checkpoints(directory, every_seconds=0), []
    result = psaq_jax.synthesize(
        model, CONFIG, seed=1, progress=lambda done, _: steps.append(done), checkpoints=checkpoints
    )
    checkpoints.close()
    return result, steps


@pytest.mark.parametrize("at, first", [(2, 4), (8, 8), (10, 12), (14, 16), (22, 24)])  # a wave's end is kept later
def test_an_interrupted_run_ends_with_the_same_bits(model, tmp_path, monkeypatch, at, first):
    whole = psaq_jax.synthesize(model, CONFIG, seed=1)

    def interrupt(done, total):
        if done == at:
            raise Killed

    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    with pytest.raises(Killed):
        psaq_jax.synthesize(model, CONFIG, seed=1, progress=interrupt, checkpoints=checkpoints)
    checkpoints.close()
    restore = Checkpoints.restore

    def restored(self, *wave):
        saved = restore(self, *wave)
        return saved and saved._replace(seconds=saved.seconds + 1000)

    monkeypatch.setattr(Checkpoints, "restore", restored)
    result, steps = finish(model, tmp_path)
    assert steps[0] == first, "went on from the checkpoint, not from the start"
    assert result.seconds > 1000, "what the wave had taken before counts too"
    np.testing.assert_array_equal(result.images, whole.images)
    np.testing.assert_array_equal(result.labels, whole.labels)
    for name, values in whole.history.items():
        np.testing.assert_array_equal(result.history[name], values)


def test_a_wave_of_another_width_makes_room_for_the_one_under_way(tmp_path):
    """As after a machine with half as many devices: its checkpoints count, though it has done fewer iterations."""

    def progress(iteration, groups):
        return WaveProgress(0, iteration, 1.0, {"variables": np.zeros((groups, 2))})

    for groups, iteration in ((8, 900), (4, 500)):
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.restore(0, groups) is None
        checkpoints.save(progress(iteration, groups))
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(0, 4).iteration == 500
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's other reads under way
def test_a_damaged_checkpoint_is_dropped_and_its_wave_made_again(model, tmp_path, caplog):
    whole, checkpoints = psaq_jax.synthesize(model, CONFIG, seed=1), Checkpoints(tmp_path / "whole", every_seconds=0)

    def interrupt(done, total):
        if done == 10:
            raise Killed

    with pytest.raises(Killed):
        psaq_jax.synthesize(model, CONFIG, seed=1, progress=interrupt, checkpoints=checkpoints)
    checkpoints.close()
    data = max((tmp_path / "whole").rglob("d/*"), key=lambda path: path.stat().st_size)  # one of up to three
    (group,) = (tmp_path / "whole").glob("groups_*.npz")
    cases = [(data, damage, 10) for damage in DAMAGES] + [(group, damage, 2) for damage in DAMAGES if damage != "gone"]
    for i, (path, damage, first) in enumerate(cases):
        shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        DAMAGES[damage](tmp_path / str(i) / path.relative_to(tmp_path / "whole"))
        caplog.clear()
        result, steps = finish(model, tmp_path / str(i))
        assert steps[0] == first, "what is whole was kept"
        assert "is missing or damaged; what needs it is made again" in caplog.text
        np.testing.assert_array_equal(result.images, whole.images)
        for name, values in whole.history.items():
            np.testing.assert_array_equal(result.history[name], values)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's other reads under way
def test_a_checkpoint_that_cannot_be_read_now_stays(tmp_path):
    progress = WaveProgress(0, 5, 1.0, {"variables": np.ones((2, 4, 8, 8, 3), np.float32)})
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    checkpoints.save(progress)
    checkpoints.close()
    data = [path for path in tmp_path.rglob("d/*") if path.parent.parent.name == "default"]
    assert data
    for path in data:  # a link to itself: as with a failing disk, it is there and opening it fails
        path.rename(tmp_path / path.name)
        path.symlink_to(path)
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    with pytest.raises(TryAgain, match=r"cannot be read \(Too many levels of symbolic links\); nothing was removed"):
        checkpoints.restore(0, 2)
    for path in data:
        path.unlink()
        (tmp_path / path.name).rename(path)
    np.testing.assert_array_equal(checkpoints.restore(0, 2).arrays["variables"], progress.arrays["variables"])
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's other reads under way
def test_of_two_checkpoints_the_older_one_stands_in_for_a_damaged_newer_one(tmp_path):
    """As after a kill between the newer one's last file and the older one's removal."""
    folder = tmp_path / "run" / "running"

    def progress(iteration):
        return WaveProgress(0, iteration, 1.0, {"variables": np.full((2, 4, 8, 8, 3), iteration, np.float32)})

    for iteration in (50, 75):
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(progress(iteration))
        checkpoints.close()
        shutil.copytree(folder, tmp_path / "kept", dirs_exist_ok=True)
    shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
    for path in (folder / "75").rglob("d/*"):
        path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.restore(0, 2).iteration == 50
    checkpoints.forget_tree()
    checkpoints.save(progress(25))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.restore(0, 2).iteration == 25
    checkpoints.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_very_end_is_not_lost(tmp_path, monkeypatch, capsys, number):
    """As while the last save is waited for."""
    waited_for, before = Checkpoints.close, signal.signal(number, signal.default_int_handler)  # a shell may ignore it

    def close(checkpoints):
        monkeypatch.undo()
        signal.raise_signal(number)
        waited_for(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", close)
    try:
        with pytest.raises(SystemExit) as ended:
            with open_checkpoints(tmp_path):
                pass
            pytest.fail("the job went on")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number and f"stopped by {number.name}" in capsys.readouterr().err


def test_checkpoints_of_other_settings_are_refused(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    psaq_jax.synthesize(model, CONFIG, seed=1, checkpoints=checkpoints)
    fewer = dataclasses.replace(CONFIG, iterations=2)
    other = model.replace(params=jax.tree.map(lambda x: 2 * x, model.params))
    for given, config, seed, found in (
        (model, CONFIG, 2, "holds checkpoints of seed 1, which is 2 now; choose another folder"),
        (model, fewer, 1, f"synthesis.iterations {CONFIG.iterations}, which is 2 now"),
        (other, CONFIG, 1, f"of model '{model.fingerprint()}', which is"),
    ):
        with pytest.raises(InputError, match=found):
            psaq_jax.synthesize(given, config, seed=seed, checkpoints=checkpoints)
    checkpoints.close()


def test_groups_that_only_another_job_needed_are_left_out(model, tmp_path):
    """As after launch.quantize without data, which makes a group more to compare on."""
    more, checkpoints = dataclasses.replace(CONFIG, num_images=8), Checkpoints(tmp_path, every_seconds=0)
    whole = psaq_jax.synthesize(model, more, seed=1, checkpoints=checkpoints)
    for count in (6, 2):
        found = psaq_jax.synthesize(
            model, dataclasses.replace(CONFIG, num_images=count), seed=1, checkpoints=checkpoints
        )
        np.testing.assert_array_equal(found.images, whole.images[:count])
    parts = list(checkpoints.groups.read())
    in_one = Checkpoints(tmp_path / "in_one")  # as of four devices
    in_one.groups.keep({name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
                  | {"first": np.int64(0), "seconds": np.float64(1)})  # fmt: skip
    found = psaq_jax.synthesize(model, CONFIG, seed=1, checkpoints=in_one)
    np.testing.assert_array_equal(found.images, whole.images[:6])
    np.testing.assert_array_equal(found.history["loss"].shape, (CONFIG.iterations,))
    for each in (in_one, checkpoints):
        each.close()


def command(workdir):
    fields = ("num_images=4", "group_size=2", "iterations=400")
    return [
        sys.executable, "-m", "launch.synthesize", "--config=configs/demo.py", f"--workdir={workdir}",
        f"--config.model={jobs.shallow(workdir.parent)}", "--quiet", "--checkpoint_seconds=0",
        *(f"--config.synthesis.{field}" for field in fields),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(the images that interrupted jobs must end with, what these are started with)."""
    folder = tmp_path_factory.mktemp("jobs")
    settings = jobs.settings(folder / "cache")
    subprocess.run(command(folder / "whole"), check=True, timeout=600, **settings)
    return folder / "whole" / "images", settings


@pytest.fixture
def interruptible():
    """Processes hear Ctrl-C as in a terminal: a shell's background jobs, which tests may be, leave it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_killed_processes_end_with_the_same_bits(uninterrupted, tmp_path):
    """Eight SIGKILLs, a SIGTERM and a Ctrl-C at random moments, some while a checkpoint is being written."""
    (whole, settings), rng, kills = uninterrupted, random.Random(0), 0
    running = tmp_path / "killed" / "checkpoints" / "running"
    while kills < 10:
        process = subprocess.Popen(command(tmp_path / "killed"), **settings)
        before = {path.name for path in running.glob("*")}
        while process.poll() is None and {path.name for path in running.glob("*")} == before:
            time.sleep(0.005)  # until this process writes its first checkpoint
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is not None:
            process.communicate()
            break  # it finished before its turn came
        sent = {5: signal.SIGTERM, 7: signal.SIGINT}.get(kills, signal.SIGKILL)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=600)
        if sent != signal.SIGKILL:
            assert process.returncode == 128 + sent and f"stopped by {sent.name}; the same command goes on" in errors
        assert "Traceback" not in errors
        kills += 1
    assert kills == 10
    subprocess.run(command(tmp_path / "killed"), check=True, timeout=600, **settings)
    for name in ("synthesized.npy", "labels.npy"):
        assert (tmp_path / "killed" / "images" / name).read_bytes() == (whole / name).read_bytes()
    page = (tmp_path / "killed" / "report.html").read_text()
    for part in ("4 images were made by 400 iterations", "noise image 4", "Synthesis loss by term", "Patch similarity"):
        assert part in page, part
    assert "Float against each setting" not in page


def test_a_full_disk_stops_with_one_line_and_keeps_the_last_checkpoint(uninterrupted, tmp_path):
    """A run is killed; started again where no file may grow beyond 20 kB, it stops; with space it ends as ever."""
    whole, settings = uninterrupted
    running = tmp_path / "full" / "checkpoints" / "running"
    process = subprocess.Popen(command(tmp_path / "full"), **settings)
    while process.poll() is None and not [path for path in running.glob("*") if path.name.isdecimal()]:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = [path.name for path in running.iterdir() if path.name.isdecimal()]
    little_space = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash"]
    full = subprocess.run([*little_space, *command(tmp_path / "full")], timeout=600, **settings)
    errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert full.returncode == 2 and len(errors) == 1 and "Traceback" not in full.stderr, full.stderr
    assert "a checkpoint cannot be written (File too large); the last one is whole" in errors[0]
    assert [path.name for path in running.iterdir() if path.name.isdecimal()] == before
    subprocess.run(command(tmp_path / "full"), check=True, timeout=600, **settings)
    name = "synthesized.npy"
    assert (tmp_path / "full" / "images" / name).read_bytes() == (whole / name).read_bytes()
