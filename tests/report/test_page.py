"""The page's HTML: everything escaped, nothing from outside, sections that vanish without data."""

import re

import numpy as np
import pytest

from psaq_jax.report import render_page, sections
from psaq_jax.report.charts import line_chart, ticks
from psaq_jax.report.sensitivity import Sensitivity
from psaq_jax.report.similarity import mosaic
from tests.report.parsed import EVIL, Parsed, assert_complete, assert_harmless
from tests.report.samples import history, image_sets, results

SENSITIVITY = [
    Sensitivity("activations", "block_0/residual1", 12.25, 90.0),
    Sensitivity("activations", "input", 30.0, 99.0),
    Sensitivity("weights", "block_0/mlp/dense1", -3.0, 50.0),
    Sensitivity("block", "block_0", -5.0, 45.0),
    Sensitivity("all", "", -6.0, 40.0),
]


MEASURED = {"bits": "w4a8", "recipe": "paper", "calibration": "synthesized"}


def full_page(model, name="bundled:fashion_mnist_vit", **changes):
    sets = image_sets(model)
    ranges = {kind: {"input": (-1.0, 2.0), f"{name}/site": (0.5, 0.75)} for kind in sets}
    arguments = {
        "model": model, "images": sets, "targets": [0, 1, 2, 99], "history": history(), "ranges": ranges,
        "sensitivity": SENSITIVITY, "sensitivity_images": 4, "measured": MEASURED,
        "sizes": {"float32": 4_000_000, "w4a8": 600_000},
        "coverage": [{"name": "block_0/attention·value", "execution": "float", "reason": "softmax is not quantized"}],
        "command": "python -m launch.quantize --config=configs/demo.py", "config": {"model": name, "seed": 0},
    }  # fmt: skip
    spent = {"seconds": {"evaluation": 75.0}, "peak_memory_bytes": 2_500_000_000}
    return render_page(results(seeds=(0, 1)) | spent | {"model": name}, **arguments | changes)


@pytest.fixture(scope="module")
def page(vit):
    return Parsed(full_page(vit))


def test_every_section_is_there(page):
    ids = page.values("id")
    assert ids == ["settings", "images", "losses", "similarity", "ranges", "sensitivity", "coverage", "origin"]
    assert [target for target in page.values("href") if target != "data:,"] == [f"#{name}" for name in ids]


def test_figures_are_there(vit, page):
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 3 * 4 + 3 * vit.module.depth
    assert all(re.match(r"data:image/png;base64,[\w+/]+=*$", address) for address in images)
    assert page.tags.count("svg") == 4 + vit.module.depth
    assert all(page.values("alt"))


def test_the_numbers_are_there(page):
    for text in (
        "91.30 %", "88.25 %", "± 0.35", "3.05", "4 MB", "600 kB", "6.7×", "1 min 15 s", "2.5 GB", "12.2", "−3.0",
        "python -m launch.quantize --config=configs/demo.py", "2 CPU cores", "0.10.2", '"seed": 0', "0, 1",
        "At the end: loss (weighted sum of the terms) −3.25; patch-similarity entropy, negative −4.",
    ):  # fmt: skip
        assert text in page.text, text


def test_nothing_comes_from_outside_and_nothing_runs(page):
    assert_complete(page)


def test_everything_is_escaped(vit):
    evil = vit.replace(labels=(EVIL, *vit.labels[1:]))
    changes = results()
    for run in changes["runs"]:
        run.update(calibration=EVIL, bits=EVIL, recipe=EVIL)
    changes |= {"device": EVIL, "versions": {EVIL: EVIL}, "model": EVIL, "seconds": {EVIL: 1.0}}
    changes["synthesis"]["final_loss"] = {EVIL: EVIL}
    text = render_page(
        changes, model=evil, images={EVIL: image_sets(vit)["noise"], "synthesized": image_sets(vit)["real"]},
        targets=[0, 0, 0, 0], history={EVIL: [1.0, 2.0]}, ranges={EVIL: {EVIL: (0.0, 1.0)}},
        sensitivity=[s._replace(name=f"block_0/{EVIL}") for s in SENSITIVITY],
        sensitivity_images=4, measured=dict.fromkeys(MEASURED, EVIL),
        coverage=[{"name": EVIL, "execution": EVIL, "reason": EVIL}], sizes={EVIL: 2, "b" + EVIL: 1},
        command=EVIL, config={EVIL: EVIL},
    )  # fmt: skip
    assert_harmless(text)


def test_no_labels(vit):
    parsed = Parsed(render_page(results(labelled=False, calibrations=("synthesized", "noise")), model=vit))
    assert "agreement with float" in parsed.text and "91.00 %" in parsed.text
    assert "top-1, %" not in parsed.text and "points lost" not in parsed.text
    assert "computed" in parsed.text
    assert "Figures are of 32 synthesized images that no calibration saw." in parsed.text
    assert "synthesis of 32 images and 32 held out, 50 iterations" in parsed.text


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_sensitivity_says_of_what(vit, recipe):
    text = " ".join(Parsed(full_page(vit, measured=MEASURED | {"recipe": recipe})).text.split())
    assert "quantized alone at w4a8" in text
    assert "On the first 4 synthesized images of the calibration, of seed 0" in text
    assert f"of w4a8, recipe {recipe}, calibrated on synthesized images" in text  # the products
    assert ("What recipe default quantizes, with plain ranges" in text) == (recipe == "default")
    assert f"at the sites that recipe {recipe} quantizes, of seed 0." in text  # the ranges
    assert "Everything at once: −6.0 dB" in text


def test_sizes_of_several_recipes_are_the_largest():
    some = results()
    assert "largest of the recipes" not in render_page(some, sizes={"float32": 2, "w4a8": 1})
    some["runs"] = [run | {"recipe": name} for name in ("paper", "default") for run in some["runs"]]
    assert render_page(some, sizes={"float32": 2, "w4a8": 1}).count("the largest of the recipes") == 2


def test_least_data():
    parsed = Parsed(render_page({"model": "m", "runs": []}))
    assert parsed.values("id") == ["settings"]
    assert "img" not in parsed.tags and "svg" not in parsed.tags
    Parsed(render_page({"runs": [{"bits": "w8a8", "calibration": "noise", "agreement": 99.0}]}))
    Parsed(render_page({"model": "m", "runs": [], "float": {"top1": 90.0}, "versions": None, "synthesis": None}))


def test_missing_images_and_one_calibration(vit):
    sets = image_sets(vit)
    text = full_page(vit, images=sets | {"real": None, "noise": sets["noise"][:0]}, ranges={"real": {"input": (0, 1)}})
    parsed = Parsed(text)
    images = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 4 + vit.module.depth
    assert "All 1 sites" in parsed.text


def test_swin(swin):
    assert Parsed(full_page(swin)).tags.count("svg") == 4 + 4


def test_texts_of_sizes_and_times():
    assert [sections.bytes_text(n) for n in (0, 999, 1200, 45_678, 999_600, 5_100_000, 123_456_789, 2.5e9)] == [
        "0 B", "999 B", "1.2 kB", "46 kB", "1 MB", "5.1 MB", "123 MB", "2.5 GB",
    ]  # fmt: skip
    assert [sections.seconds_text(s) for s in (0.0412, 12.34, 59.96, 125, 7620)] == [
        "0.0412 s", "12.3 s", "1 min 00 s", "2 min 05 s", "2 h 07 min",
    ]  # fmt: skip


def test_computed_sizes():
    params = {"a": {"kernel": np.zeros((10, 4)), "bias": np.zeros(4)}}
    assert sections.weight_sizes(params, ["w4a8", "w8a8", "w4a8", "float"]) == {
        "float32": 4 * 44, "w4a8": 20 + 4 * 8, "w8a8": 40 + 4 * 8,
    }  # fmt: skip


def test_computed_sizes_know_of_first_and_last_layers_at_8_bits():
    params = {name: {"kernel": np.zeros((10, 4))} for name in ("patch_embedding", "inner", "head")}
    assert sections.weight_sizes(params, ["w4a8"], ends_at_8=True)["w4a8"] == 40 + 20 + 40 + 4 * 12


@pytest.mark.parametrize(
    ("recipe", "ends_at_8", "bits"),
    [
        ("paper", True, 4), ("default", True, 8), ("distill", True, 8), ("default-first_last_8bit-gptq", True, 4),
        ("default", False, 4), ("distill", False, 4),
    ],
)  # fmt: skip
def test_computed_sizes_are_those_of_the_recipe(vit, recipe, ends_at_8, bits):
    run = {"bits": "w4a8", "recipe": recipe, "calibration": "noise", "agreement": 99.0}
    config = {"quantization": {"options": {"first_last_8bit": ends_at_8}}}
    text = render_page({"model": "m", "runs": [run]}, model=vit, config=config)
    size = sections.weight_sizes(vit.params, ["w4a8"], ends_at_8=bits == 8)["w4a8"]
    other = sections.weight_sizes(vit.params, ["w4a8"], ends_at_8=bits != 8)["w4a8"]
    assert sections.bytes_text(size) in text and sections.bytes_text(other) not in text


def test_large_similarity_maps_are_shown_smaller():
    similarities = np.random.default_rng(0).normal(size=(1, 1369, 1369)).astype(np.float32)
    found = mosaic(similarities)
    assert found.shape == (457, 457)
    np.testing.assert_allclose(found[1, 2], similarities[0, 3:6, 6:9].mean(), rtol=1e-4)
    np.testing.assert_allclose(found[-1, 0], similarities[0, 1368:, :3].mean(), rtol=1e-4)
    assert mosaic(np.zeros((64, 49, 49))).shape == (392, 392)


def test_ranges_are_placed_in_one_bar():
    (row,) = sections.range_rows({"noise": {"x": (-1.0, 3.0)}, "real": {"x": (0.0, 1.0)}})
    assert row.zero == 25 and row.disagreement == 4
    assert [(s.left, s.width) for s in row.spans] == [(0, 100), (25, 25)]
    assert row.texts == {"noise": "−1 … 3", "real": "0 … 1"}
    (constant,) = sections.range_rows({"noise": {"x": (2.0, 2.0)}})
    assert constant.spans[0].width == 0 and constant.zero is None


@pytest.mark.parametrize("bounds", [
    (0.0, 1.0), (-3.2, 512.0), (1e-7, 3e-7), (1e6, 5e9), (0.299, 0.301), (1.9997, 1.99976), (0.0012, 0.00129),
    (123456.0, 123999.0),
])  # fmt: skip
def test_ticks_are_round_and_inside(bounds):
    found = ticks(*bounds, most=5)
    assert 2 <= len(found) <= 6
    assert all(bounds[0] - 1e-6 * bounds[1] <= value <= bounds[1] * (1 + 1e-6) for value, _ in found)
    assert len({label for _, label in found}) == len(found)


def test_charts_survive_gaps_constants_and_single_points():
    x = np.arange(5.0)
    assert line_chart("t", {"a": (x, np.full(5, np.nan))}, "x") is None
    gap = line_chart("t", {"a": (x, np.array([1, np.nan, 2, np.inf, 3]))}, "x")
    assert gap.lines[0][1].count("M") == 3 and "nan" not in gap.lines[0][1]
    assert line_chart("t", {"a": (x, np.full(5, 2.0))}, "x").y_ticks
    assert line_chart("t", {"a": (x[:1], x[:1])}, "x").lines[0][1].endswith("h0.1")
    assert line_chart("t", {"a": (np.arange(5000.0), np.arange(5000.0))}, "x").lines[0][1].count("L") < 800
