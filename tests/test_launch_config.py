"""What the scripts share: the log in the work folder, time by phase, colours."""

import logging
import subprocess
import sys

import pytest

from launch import config, console, logs
from psaq_jax import progress
from tests import jobs


def test_the_log_has_the_command_what_was_said_and_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch/quantize.py", "--config.a=(3, 4)"])
    for _ in range(2):
        with logs.logged(tmp_path):
            logs.LOG.info("said")
            logging.getLogger("another").warning("warned")
    logs.LOG.info("afterwards")
    text = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert text == ["INFO launch/quantize.py '--config.a=(3, 4)'", "INFO said", "WARNING warned", "INFO finished"] * 2
    assert "said" not in capsys.readouterr().err


def test_the_log_tells_how_a_run_ended(tmp_path):
    with pytest.raises(SystemExit), logs.logged(tmp_path):
        sys.exit(143)
    assert (
        (tmp_path / "log.txt")
        .read_text()
        .endswith("INFO stopped with exit code 143; the same command goes on from here\n")
    )


TALKS = """
from launch import config, console, logs
def main():
    for done in (1, 2):
        console.bar("title")(done, 2)
    print(console.color(), "x" * 10**6)  # more than a pipe holds
config.run(main)
"""


@pytest.mark.parametrize(
    ("redirection", "code"), [("| head -0", 141), ("| cat", 0), ("2>&-", 0), (">&-", 0), ("2>&- >&-", 0)]
)
def test_consoles_that_are_closed(redirection, code):
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {redirection}', "bash", sys.executable, "-c", TALKS]
    done = subprocess.run(command, timeout=600, **jobs.settings())
    assert done.returncode == code and "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr


@pytest.mark.parametrize("letters", [1, 10**6])  # the error comes when all is flushed, or while it is printed
def test_an_output_on_a_full_disk_is_one_line(letters):
    talks = f"from launch import config\ndef main(): print('x' * {letters})\nconfig.run(main)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", talks], timeout=600, **jobs.settings() | {"stdout": full})
    assert done.returncode == 2, done.stderr
    full = "error: a disk is full ([Errno 28] No space left on device)"
    assert done.stderr == f"{full}; free some space and start the same command again\n"


@pytest.mark.parametrize(
    "raises",
    [
        "jax.errors.JaxRuntimeError('INTERNAL: Error dispatching computation: Out of memory allocating 12 bytes.')",
        "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.')",
        "MemoryError()",
    ],
)
def test_memory_that_is_not_enough_is_one_line(raises):
    talks = f"import jax\nfrom launch import config\ndef main(): raise {raises}\nconfig.run(main)"
    done = subprocess.run([sys.executable, "-c", talks], timeout=600, **jobs.settings())
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: memory is not enough (")
    assert "; take fewer images at once (batch_size, synthesis.group_size), or a smaller model" in line


def test_python_without_assertions_is_refused():
    """Flax's interceptors leak tracers there."""
    talks = "from launch import config\nconfig.run(lambda: print('not reached'))"
    done = subprocess.run([sys.executable, "-O", "-c", talks], timeout=600, **jobs.settings())
    assert done.returncode == 2 and done.stderr.startswith("error: Python runs with -O") and not done.stdout


@pytest.mark.parametrize(("error", "code"), [("InputError", 2), ("TryAgain", 75)])
def test_errors_have_their_code_also_where_their_line_finds_no_place(error, code):
    refuses = f"from launch import config; from psaq_jax import errors\ndef main(): raise errors.{error}('bad')\n"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{refuses}config.run(main)"], timeout=600, **jobs.settings() | {"stderr": full}
        )
    assert done.returncode == code


def test_errors_have_a_line_for_themselves_below_an_open_bar():
    refuses = "from launch import config, console\ndef main(bar): bar(1, 2); raise config.InputError('bad')\n"
    refuses += "config.run(lambda: main(console.bar('title')))"
    done = subprocess.run([sys.executable, "-c", refuses], timeout=600, **jobs.settings())
    *_, bar, line = done.stderr.splitlines()
    assert done.returncode == 2 and bar.startswith("title: ") and line == "error: bad", done.stderr


def test_phases_add_up():
    spent = logs.Stopwatch()
    for phase in ("a", "b", "a"):
        spent(phase)
    assert list(spent.seconds) == ["a", "b"] and all(0 <= seconds < 60 for seconds in spent.seconds.values())


def test_a_phase_has_the_seconds_since_the_one_before(monkeypatch):
    times = iter([10.0, 13.0, 15.0, 16.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(times))
    spent = logs.Stopwatch()
    for phase in ("a", "b", "a"):
        spent(phase)
    assert spent.seconds == {"a": 4, "b": 2}


def test_a_bar_begins_with_what_was_done(capsys):
    """By an earlier run: what is left is estimated from this one's pace alone."""
    bar = console.ProgressBar("title")
    bar(5, 10)
    assert (bar.bar.initial, bar.bar.n, bar.bar.total) == (5, 5, 10) and bar.bar in progress.open_bars
    bar(7, 10)
    assert bar.bar.n == 7
    bar(10, 10)
    assert bar.bar.n == 10 and bar.bar not in progress.open_bars and "title: 100%" in capsys.readouterr().err


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/folder/launch/quantize.py", "--workdir=a b", "--quiet"])
    assert config.command() == "python -m launch.quantize '--workdir=a b' --quiet"


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # empty is not set, says no-color.org
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours(monkeypatch, terminal, environment, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert console.color() is expected


def test_recipe_fields_make_the_default_recipe():
    fields = config.recipe_fields(softmax="uniform").to_dict()
    assert config.DefaultRecipe(**fields) == config.DefaultRecipe(softmax="uniform")
