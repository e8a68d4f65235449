"""Two processes on this machine: the results of one; and none waits for a dead one."""

import json
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from psaq_jax import distributed
from psaq_jax.errors import InputError
from tests import jobs

SMALL = ("--config.synthesis.num_images=12", "--config.synthesis.group_size=4", "--config.synthesis.iterations=4")


def start(processes, workdir, *arguments, script="quantize", last=(), killed=True, **environment):
    """The processes of one job, as a user starts them; `last`: more arguments of the last one alone; `killed`: they may
    be, while they write what they have compiled.
    """
    shared = workdir.parents[1]  # by the tests
    command = [
        sys.executable, "-m", f"launch.{script}", "--config=configs/demo.py", "--quiet", f"--workdir={workdir}",
        f"--config.model={jobs.shallow(shared)}", *map(str, arguments),
    ]  # fmt: skip
    cluster = [f"--coordinator_address=127.0.0.1:{jobs.free_port()}", f"--num_processes={processes}"]
    pipes = jobs.settings(shared / "cache" if killed else None)
    pipes["env"] |= {name: str(value) for name, value in environment.items()}
    several = [[*cluster, f"--process_id={i}"] for i in range(processes)] if processes > 1 else [[]]
    several[-1] += map(str, last)
    return [subprocess.Popen([*command, *flags], **pipes) for flags in several]


def outputs(running):
    found = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), found
    return [out for out, _ in found]


def test_two_processes_give_what_one_gives(tmp_path):
    """3 groups over 2 processes; images, ranges (in the artefacts), top-1: all equal, bit for bit.

    And once more behind the models that process 0 has saved, as after a kill: its folder alone has them.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(11) % 10)
    few = (f"--config.data=npz:{tmp_path / 'data.npz'}", "--config.quantization.bits=('w4a8',)")
    few += ("--config.calibration=('synthesized','noise')", "--config.quantization.recipe=paper")

    def run(processes, name):
        return outputs(start(processes, tmp_path / name, *few, *SMALL, killed=False))

    run(1, "one")
    first, second = run(2, "two")
    assert "agreement" in first and "agreement" not in second
    runs = sorted(path.name for path in (tmp_path / "one" / "quantized").iterdir())
    for name in ("images/synthesized.npy", *(f"quantized/{run}/model.safetensors" for run in runs)):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["runs"] == two["runs"] and one["float"]["top1"] == two["float"]["top1"]
    assert one["float"]["examples"] == two["float"]["examples"] == 11
    run(2, "two")
    assert json.loads((tmp_path / "two" / "results.json").read_text())["runs"] == one["runs"]


def test_what_one_process_refuses_ends_all_as_refused(tmp_path):
    """75 would make a cloud start the same command again and again."""
    (tmp_path / "run").write_text("no folder")
    running = start(2, tmp_path / "run", *SMALL, script="synthesize", TMPDIR=tmp_path)
    errors = [process.communicate(timeout=600)[1].strip() for process in running]
    assert [process.returncode for process in running] == [2, 2], errors
    assert "cannot be written (File exists)" in errors[0]
    assert errors[1].endswith("error: process 0 of this run ended early (its own log says why)")
    jobs.wait_until_empty(tmp_path)


def test_no_evaluation_merges_different_data(tmp_path):
    images = np.zeros((4, 32, 32, 3), np.uint8)
    for name, label in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.full(4, label))
    data, other = (f"--config.data=npz:{tmp_path / name}.npz" for name in "ab")
    running = start(2, tmp_path / "run", data, script="evaluate", last=[other])
    errors = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2], errors
    assert "run differs between the processes; start all of them" in "".join(errors)  # or that another has said so
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_process_alone_on_its_machine_gets_all_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert distributed.own_devices() is None  # JAX's own choice: all where there is no cluster
    for tasks, wanted in (("2", range(4)), ("8", None)):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
        assert distributed.own_devices() == wanted
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    for processes, wanted in (("1", range(4)), ("4", None)):
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", processes)
        assert distributed.own_devices() == wanted


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_ends_with_one_line(tmp_path, killed):
    endless = ("--config.synthesis.iterations=100000", "--checkpoint_seconds=0")
    running = start(2, tmp_path / "run", *endless, script="synthesize")
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "run" / "checkpoints").glob("running/[1-9]*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # until both are at work
            assert [process.poll() for process in running] == [None, None]
        running[killed].send_signal(signal.SIGKILL)
        _, error = running[1 - killed].communicate(timeout=60)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert running[1 - killed].returncode == 75
    assert len(lines) == 1 and f"process {killed} of this run ended early" in lines[0], error


def test_sigterm_ends_a_process_at_once_where_nothing_is_to_be_saved():
    script = "import time; from psaq_jax import distributed as d; d.start('on', '127.0.0.1:{}', 2, {}); "
    script += "print('joined', flush=True); time.sleep(300)"
    port, settings = jobs.free_port(), jobs.settings()
    running = [subprocess.Popen([sys.executable, "-c", script.format(port, own)], **settings) for own in range(2)]
    try:
        for process in running:
            assert any(line == "joined\n" for line in process.stdout)
        running[1].send_signal(signal.SIGTERM)
        _, errors = (process.communicate(timeout=60)[1] for process in (running[1], running[0]))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [75, -signal.SIGTERM], errors
    assert "process 1 of this run ended early" in errors


@pytest.mark.parametrize("own", [0, 1])
def test_nobody_waits_for_one_that_never_comes(own):
    address = f"127.0.0.1:{jobs.free_port()}"
    script = f"from psaq_jax import distributed as d; d.PATIENCE = 2; d.start('on', '{address}', 2, {own})"
    done = subprocess.run([sys.executable, "-c", script], timeout=60, **jobs.settings())
    assert done.returncode == 75 and "not all processes of this run came within 2 s" in done.stderr


def test_processes_meet_at_an_ipv6_address():
    script = "from psaq_jax import distributed as d; d.start('on', '[::1]:{}', 2, {}); d.check_same('', ''); d.finish()"
    port, settings = jobs.free_port("::1"), jobs.settings()
    running = [subprocess.Popen([sys.executable, "-c", script.format(port, own)], **settings) for own in range(2)]
    outputs(running)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    """SIGTERM to one of two processes stops both, their state saved; the same command goes on from there."""
    more = ("--config.synthesis.num_images=4", "--config.synthesis.group_size=2", "--config.synthesis.iterations=500")
    outputs(start(1, tmp_path / "whole", *more, script="synthesize"))
    running = start(2, tmp_path / "run", *more, "--checkpoint_seconds=0.2", script="synthesize")
    while not list((tmp_path / "run" / "checkpoints").glob("running/[1-9]*")) and None in [p.poll() for p in running]:
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], errors
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("running/[1-9]*"))
    running = start(2, tmp_path / "run", *more, "--noquiet", script="synthesize")
    errors = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert int(re.search(r"(\d+)/500", errors[0])[1]) > saved, "went on from the checkpoint, not from the start"
    for name in ("synthesized.npy", "labels.npy"):
        whole = (tmp_path / "whole" / "images" / name).read_bytes()
        assert (tmp_path / "run" / "images" / name).read_bytes() == whole


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("auto", "127.0.0.1:1", None, None), "--num_processes, --process_id missing"),
        (("off", "127.0.0.1:1", 2, 0), "--distributed=off"),
        (("on",), "the processes cannot find each other"),
        *(
            (("auto", address, 2, 0), f"--coordinator_address is {re.escape(repr(address))}, expected HOST:PORT")
            for address in ("", "127.0.0.1", "[::1]:70000", "host:0", "host:xx", "::1:8476", ":8476", "[::1]")
        ),
    ],
)
def test_half_a_cluster_is_refused(arguments, message):
    """In a process whose JAX has begun already, which `jax.distributed` refuses like a cluster that is not there."""
    jax.numpy.zeros(1)
    with pytest.raises(InputError, match=message):
        distributed.start(*arguments)


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # a shell in an allocation, not a step
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_clusters_are_found_by_their_variables(monkeypatch, environment, several):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.in_cluster() == several


@pytest.mark.parametrize("processes", range(1, 6))
def test_everything_has_a_process_and_no_process_has_nothing(processes, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: processes)
    for things in range(1, 12):
        parts, shares = [], []
        for own in range(processes):
            monkeypatch.setattr(distributed, "index", lambda own=own: own)
            parts.append(list(distributed.own_part(things)))
            shares.append(distributed.share(list(range(things))))
        too_few = things < processes
        assert sum(parts, []) == list(range(things)) * (processes if too_few else 1)
        assert [part[0] for part in shares] == [own if own < things else 0 for own in range(processes)]
        assert sorted(sum(shares[:things], [])) == list(range(things))


def test_alone_nothing_is_exchanged():
    rows = np.arange(3.0)
    assert distributed.gather(rows) is rows and distributed.any_of(False, True) == (False, True)
    assert distributed.share([1, 2, 3]) == [1, 2, 3] and distributed.own_part(5) == range(5)
    for texts in (["a", "b"], ["caf\udce9.png: broken", "\ud800", "日本"], []):  # a file's name may be any bytes
        assert distributed.gather_texts(texts) == texts
    assert list(distributed.each_from_first([{"a": rows}])) == [{"a": rows}]
