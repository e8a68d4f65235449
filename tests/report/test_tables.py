"""The console table, its Markdown twin, and the sentence below it."""

import re

import pytest

from psaq_jax.report import results_table, summary_line
from psaq_jax.report.settings import settings
from psaq_jax.report.tables import markdown_table
from tests.report.samples import results, runs


def test_table_of_one_seed():
    lines = results_table(results()).splitlines()
    assert lines[0] == "bundled:fashion_mnist_vit · recipe paper · 10,000 images"
    assert lines[2].split("  ") and lines[2].split()[:2] == ["bits", "calibration"]
    assert [line.split() for line in lines[4:8]] == [
        ["float", "91.30"],
        ["w8a8", "synthesized", "88.00", "3.30", "91.00"],
        ["noise", "89.00", "2.30", "92.00"],
        ["real", "89.50", "1.80", "92.50"],
    ]
    assert len(lines) == 4 + 1 + 6


def test_columns_line_up():
    lines = results_table(results(seeds=(0, 1))).splitlines()[3:]
    ends = [[match.end() for match in re.finditer(r"[-\d.]+(?= |$)", line)][-1] for line in lines[2:]]
    assert len(set(ends)) == 1


def test_several_seeds_give_mean_and_sample_deviation():
    text = results_table(results(seeds=(0, 1, 2)))
    assert "88.50 ± 0.50" in text and "2.80 ± 0.50" in text
    assert "3 seeds, mean ± standard deviation" in text


def test_without_labels_only_agreement_is_shown():
    text = results_table(results(labelled=False))
    assert "agreement" in text and "top-1" not in text and "lost" not in text and "float" not in text
    assert "· 32 synthesized images that no calibration saw" in text
    assert "· no labelled images" in results_table({"runs": runs(labelled=False)})


def test_no_runs():
    assert "float" in results_table({"model": "m", "float": {"top1": 90.0, "examples": 10}, "runs": []})
    assert results_table({"model": "m", "runs": []})


def test_several_recipes_get_a_column():
    both = results()
    both["runs"] += [run | {"recipe": "default"} for run in runs()]
    lines = results_table(both).splitlines()
    assert lines[2].split()[0] == "recipe"
    assert sum(line.startswith("default") for line in lines) == 2


def test_color_only_when_asked():
    assert "\033" not in results_table(results())
    colored = results_table(results(), color=True)
    assert "\033[" in colored
    assert re.sub(r"\033\[\d+m", "", colored) == results_table(results())


@pytest.mark.parametrize("top1, color", [(90.5, 32), (90.0, 33), (86.5, 33), (86.0, 31)])
def test_colours_tell_what_is_lost(top1, color):
    """Of 91.3: up to 1 point green, up to 5 yellow, more red."""
    found = results(calibrations=("synthesized",), bits=("w8a8",), synthesized=top1)
    assert results_table(found, color=True).splitlines()[-1].startswith(f"\033[{color}m")


def test_control_characters_of_names_do_not_reach_the_console():
    named = results() | {"model": "a\033[2Jb\nc"}
    text = results_table(named)
    assert "\033" not in text and "a?[2Jb?c" in text


def test_markdown():
    lines = markdown_table(results()).splitlines()
    assert lines[0] == "| bits | calibration | top-1 % | points lost | agreement % |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: |"
    assert lines[3] == "| w8a8 | synthesized | 88.00 | 3.30 | 91.00 |"
    piped = results()
    piped["runs"][0]["calibration"] = "a|b<c"
    assert "a\\|b&lt;c" in markdown_table(piped)


def test_settings_keep_order_and_gather_seeds():
    found = settings(results(seeds=(3, 5)))
    assert [(s.bits, s.calibration) for s in found][:4] == [
        ("w8a8", "synthesized"), ("w8a8", "noise"), ("w8a8", "real"), ("w4a8", "synthesized"),
    ]  # fmt: skip
    assert found[0].seeds == (3, 5)
    assert found[0].top1.values == (89.5, 90.5)
    assert settings(results())[0].top1.deviation is None


@pytest.mark.parametrize(
    "levels, said, not_said",
    [
        (
            {"synthesized": 88.0},
            ["1.00 points below noise", "does not collapse", "not what synthesized"],
            ["above"],
        ),
        ({"synthesized": 90.0}, ["1.00 points above noise", "does not collapse"], ["below"]),
        ({"synthesized": 89.0}, ["level with noise"], ["above", "below"]),
        (
            {"noise": 20.0},
            ["68.00 points above noise", "noise loses up to 69.5 points more than real images do", "win back 68.0"],
            ["collapse as"],
        ),
        ({"noise": 20.0, "synthesized": 91.0}, ["71.00 points above noise", "win back 69.5"], ["win back 71"]),
        (
            {"noise": 20.0, "synthesized": 15.0},
            ["5.00 points below", "do not everywhere do better"],
            ["win back"],
        ),
        (
            {"noise": 20.0, "synthesized": 28.0, "real": 21.0},
            ["8.00 points above noise", "at most 1.0 points more than real", "lose up to 72.3 themselves", "bits cost"],
            ["as in the paper", "win back", "does not collapse", "works without data"],
        ),
        (
            {"noise": 79.5},
            ["noise loses up to 10.0 points more than real images do, as in the paper", "win back 8.5"],
            ["does not collapse"],
        ),
        ({"noise": 79.75}, ["at most 9.8 points more than real images do and does not collapse"], ["in the paper;"]),
        (
            {"noise": 20.0, "calibrations": ("synthesized", "noise")},
            ["noise loses up to 68.0 points more than synthesized images do, as in the paper;"],
            ["win back"],
        ),
        (
            {"noise": 60.0, "synthesized": 50.0, "calibrations": ("synthesized", "noise")},
            ["10.00 points below noise", "synthesized images no less, and only real ones would tell"],
            ["does not collapse", "works without data"],
        ),
        (
            {"noise": 70.0, "synthesized": 71.0, "seeds": (0, 4)},
            ["within the spread of seeds", "not everywhere do better by more than the spread of seeds"],
            ["win back"],
        ),
    ],
    ids=[
        "below",
        "above",
        "level",
        "collapse-recovered",
        "more-than-recovered",
        "collapse-not-recovered",
        "few-bits-cost-as-much",
        "just-a-collapse",
        "just-no-collapse",
        "no-real-images",
        "both-lose-and-none-tells",
        "within-the-spread",
    ],
)
def test_sentence_follows_the_numbers(levels, said, not_said):
    sentence = summary_line(results(**levels))
    assert sentence.endswith(".") and "\n" not in sentence
    for part in said:
        assert part in sentence
    for part in not_said:
        assert part not in sentence


def test_sentence_names_its_limits():
    assert "it is one seed, so the spread is unknown" in summary_line(results())
    assert "points" not in summary_line(results()).partition("one seed")[2]
    few = results() | {"evaluated_on": {"images": 200, "kind": "data"}}
    assert "of 200 images one is 0.5 points" in summary_line(few)
    assert "one seed" not in summary_line(results(seeds=(0, 1)))
    assert "without labels" in summary_line(results(labelled=False))
    real = {"noise": {"images": 32, "evaluated": False}, "real": {"images": 9, "evaluated": True}}
    assert "real images are 9, the others 32" in summary_line(results() | {"calibrated_on": real})
    assert "of those measured on" in summary_line(results() | {"calibrated_on": real})
    assert "; 2 broken images were skipped" in summary_line(results() | {"skipped": ["a: broken", "b: broken"]})
    assert "; 1 broken image was skipped" in summary_line(results() | {"skipped": ["a: broken"]})
    evaluated = {"images": 10000, "kind": "data", "skipped": 3}  # of a sweep, which knows how many they are
    assert "; 3 broken images were skipped" in summary_line(results() | {"evaluated_on": evaluated})
    without = results(calibrations=("synthesized", "noise")) | {"calibrated_on": real}
    assert "real" not in summary_line(without)
    assert "within the spread of seeds" in summary_line(results(seeds=(0, 4), synthesized=88.9))


def test_the_spread_of_seeds_is_two_standard_deviations_of_a_difference():
    """Two seeds 2 points apart: 1.41 points each, 2 of a difference."""
    for gain, is_chance in ((3.5, True), (4.5, False), (-3.5, True), (-4.5, False)):
        sentence = summary_line(results(seeds=(0, 4), synthesized=89.0 + gain))
        assert ("within the spread of seeds" in sentence) == is_chance, gain


def test_what_is_won_back_is_told_from_least_to_most():
    found = results(noise=20.0)
    for run in found["runs"]:
        run["top1"] -= 5 * (run["bits"] == "w4a8" and run["calibration"] == "synthesized")
    assert "synthesized images win back 63.0 to 68.0;" in summary_line(found)


def test_limits_begin_where_they_are_said_to():
    for images, said in ((999, True), (1000, False)):
        sentence = summary_line(results() | {"evaluated_on": {"images": images, "kind": "data"}})
        assert (f"of {images} images one is 0.1 points" in sentence) == said
    as_many = {name: {"images": 32, "evaluated": False} for name in ("synthesized", "noise", "real")}
    assert "real images are" not in summary_line(results() | {"calibrated_on": as_many})


def test_of_many_settings_the_sentence_tells_the_worst_and_the_best():
    gains = {"w8a8": 0.0, "w6a6": 1.0, "w5a8": 0.5, "w4a8": -2.0, "w3a8": 0.25}
    one = [run for run in runs() if run["bits"] == "w8a8"]
    many = [
        run | {"bits": bits, "top1": run["top1"] + gain * (run["calibration"] == "synthesized")}
        for bits, gain in gains.items()
        for run in one
    ]
    told = "came out worst at w4a8 3.00 points below noise (86.00 %) and best at w6a6 level with noise (89.00 %)"
    assert f"{told}, of 5 settings" in summary_line(results() | {"runs": many})


def test_without_labels_nothing_is_won_back():
    """Agreement on synthesized images favours calibration on such."""
    sentence = summary_line(results(labelled=False, noise=20.0, calibrations=("synthesized", "noise")))
    assert "favours calibration on such" in sentence and "of 32 images one is 3.1 points" in sentence
    assert "paper" not in sentence and "win back" not in sentence


def test_sentence_without_noise_or_runs():
    one = results(calibrations=("synthesized",))
    assert "best top-1 is 88.00 %, w8a8 calibrated on" in summary_line(one)
    worse = [run | {"recipe": "default", "top1": 80.0} for run in one["runs"]]
    assert "best top-1 is 88.00 %, w8a8 (paper) calibrated on" in summary_line(one | {"runs": one["runs"] + worse})
    assert "Nothing was quantized" in summary_line({"runs": []})
    made = {"num_images": 1024, "iterations": 200}
    assert summary_line({"runs": [], "synthesis": made}).startswith("1,024 images were made by 200 iterations; nothing")
    assert "has a figure" in summary_line({"runs": [{"bits": "w8a8", "calibration": "noise"}]})
