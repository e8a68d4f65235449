"""The cloud's task files: valid to SkyPilot's own parser, and a dry run says what would happen."""

import importlib
import itertools
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from psaq_jax.config import JobConfig, from_mapping

ROOT = pathlib.Path(__file__).parent.parent
CLOUD = ROOT / "launch" / "cloud"
TASKS = sorted(CLOUD.glob("*.yaml"))
CLUSTER = {"CLUSTER": "c", "ZONE": "z", "PROJECT": "p"}


def launch(*arguments, **environment):
    command = ["bash", str(CLOUD / "launch.sh"), *arguments]
    environment = {"PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_skypilot_accepts_the_task(path):
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot")
    task = sky.Task.from_yaml_config(yaml.safe_load(path.read_text()), env_overrides=[("WORKDIR", "gs://bucket/run")])
    assert all(resources.use_spot for resources in task.resources)
    assert task.envs["WORKDIR"] == "gs://bucket/run"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_tasks_run_what_there_is(path):
    task = yaml.safe_load(path.read_text())
    assert (ROOT / "launch" / f"{task['envs']['JOB']}.py").exists()
    config, *overrides = shlex.split(task["envs"]["FLAGS"])
    module = config.removeprefix("--config=").removesuffix(".py").replace("/", ".")
    settings = importlib.import_module(module).get_config().to_dict()
    from_mapping(JobConfig, settings | dict(x.removeprefix("--config.").split("=", 1) for x in overrides))
    assert '--workdir="$WORKDIR"' in task["run"] and (ROOT / task["setup"].split()[1]).exists()
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 143]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_command_and_the_task(path):
    done = launch("--dryrun", path.stem, "gs://bucket/run", "--config=configs/demo.py", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("sky jobs launch") and "WORKDIR=gs://bucket/run" in first
    assert "--config=configs/demo.py" in first and "--config.seed=1" in first
    assert any("launch/cloud/setup.sh" in line for line in rest)


def test_a_dry_run_of_a_pod_prints_the_command():
    done = launch("--dryrun", "gke", "gs://bucket/My_run", "--config=configs/demo.py", **CLUSTER, TPU_TYPE="v6e-64")
    assert done.returncode == 0 and done.stdout.startswith("xpk workload create --cluster c --zone z --project p"), done
    for part in ("psaq-my-run", "--tpu-type v6e-64", "--restart-on-exit-codes 75", "--distributed=on"):
        assert part in done.stdout


@pytest.mark.parametrize(
    "workdir, name",
    [
        ("gs://b/Ü_x.y", "psaq----x-y"),
        ("gs://b/a-run-with-a-very-long-name", "psaq-a-run-with-a-very-long-na"),
        ("gs://b/a-run-with-a-very-long-é", "psaq-a-run-with-a-very-long"),
    ],
)
def test_pods_have_names_that_kubernetes_takes(workdir, name):
    command = shlex.split(launch("--dryrun", "gke", workdir, **CLUSTER).stdout)
    assert command[command.index("--workload") + 1] == name


@pytest.mark.parametrize("target", [*(path.stem for path in TASKS), "gke"])
def test_only_jobs_that_run_there_are_started(target):
    """Several processes: those that `launch.config.run` lets share the work."""
    several, one = {"evaluate", "quantize", "synthesize"}, {"distill", "sweep"}

    def accepted(*flags):
        command = "--dryrun", target, "gs://b/x"
        jobs = several | one | {"nosuch", "config", "curve", "train_demo", "a b"}
        return {job for job in jobs if launch(*command, *flags, JOB=job, **CLUSTER).returncode == 0}

    there = several | one if target in ("gpu", "tpu") else several
    assert accepted("--config=configs/demo.py") == there
    assert accepted() == there & {"synthesize", "quantize", "distill"}, "whose flags can be left out"


def test_flags_of_xla_reach_the_machine():
    command = shlex.split(launch("--dryrun", "gpu", "gs://b/x", XLA_FLAGS="--a=true --b=true").stdout.splitlines()[0])
    assert "XLA_FLAGS=--a=true --b=true" in command
    assert "XLA_FLAGS" not in launch("--dryrun", "gpu", "gs://b/x").stdout


FLAGS = "--config=configs/demo.py", "--config.quantization.bits=('w8a8','w6a6')", "--config.data=folder:/a b"


@pytest.mark.parametrize("target", [*(path.stem for path in TASKS), "gke"])
def test_flags_reach_the_job_as_they_were_given(target, tmp_path):
    """What the machine would run is run, with programs that only print what they get."""
    for name, text in (("launch/cloud/setup.sh", ""), (".venv/bin/python", "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    command = shlex.split(launch("--dryrun", target, "gs://bucket/my run", *FLAGS, **CLUSTER).stdout.splitlines()[0])
    if target == "gke":
        script, environment = command[command.index("--command") + 1], {}
    else:
        script = yaml.safe_load((CLOUD / f"{target}.yaml").read_text())["run"]
        environment = dict(x.split("=", 1) for flag, x in itertools.pairwise(command) if flag == "--env")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[:5] == ["-m", "launch.synthesize", *FLAGS], done.stderr
    assert "--workdir=gs://bucket/my run" in done.stdout.splitlines()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("gpu",), "expected .--dryrun. gpu"),
        (("gpu", "/here"), "gs://BUCKET/RUN"),
        (("cpu", "gs://b/x"), "found the target 'cpu'"),
        (("gke", "gs://b/x"), "CLUSTER"),
        (("gpu", "gs://"), "gs://BUCKET/RUN"),
    ],
)
def test_a_bad_command_is_told(arguments, message):
    done = launch("--dryrun", *arguments)
    assert done.returncode == 2 and re.search(f"^launch.sh: .*{message}", done.stderr), done.stderr


@pytest.mark.parametrize("slices", ["0", "-1", "1.5", "two"])
def test_slices_are_counted(slices):
    done = launch("--dryrun", "gke", "gs://b/x", **CLUSTER, SLICES=slices)
    assert (done.returncode, done.stdout) == (2, "") and f"found SLICES={slices}, expected" in done.stderr
    assert "--num-slices 3 " in launch("--dryrun", "gke", "gs://b/x", **CLUSTER, SLICES="3").stdout


def test_a_dry_run_behind_the_target_starts_nothing(tmp_path):
    (tmp_path / "sky").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "sky").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    assert launch("gpu", "gs://b/x", "--config=configs/demo.py", PATH=path).stdout == "started\n"
    done = launch("gpu", "gs://b/x", "--config=configs/demo.py", "--dryrun", PATH=path)
    assert (done.returncode, done.stdout) == (2, "") and "give --dryrun before the target" in done.stderr


@pytest.mark.parametrize("path", sorted(CLOUD.glob("*.sh")), ids=lambda path: path.stem)
def test_scripts_are_sound_shell(path):
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
