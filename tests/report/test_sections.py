"""The page's numbers and its charts' geometry, without the page."""

import base64
import io
import types

import numpy as np
import pytest
from PIL import Image

from psaq_jax.quantization.integer_plan import MatrixProduct
from psaq_jax.report import coverage_rows, pictures, sections
from psaq_jax.report.charts import line_chart, ticks
from psaq_jax.report.sensitivity import Sensitivity
from tests.report.samples import results


def test_the_worst_come_first():
    """By SQNR, and where that is the same by agreement; of one kind alone."""
    levels = {"a": (9, 99), "b": (-3, 60), "c": (9, 98)}
    found = [Sensitivity("weights", name, *figures) for name, figures in levels.items()]
    found.append(Sensitivity("activations", "d", -9, 1))
    assert [s.name for s in sections.worst_first(found, "weights")] == ["b", "c", "a"]
    assert sections.worst_first(None, "weights") == []


def test_heat_is_one_at_the_lowest_sqnr():
    first, second = (Sensitivity("activations", f"block_{i}/residual1", level, 90) for i, level in enumerate((12, 4)))
    kernel = Sensitivity("weights", "block_0/mlp/dense1", 20, 99)
    outside = Sensitivity("activations", "input", -50, 1)
    columns = ["block 0", "block 1"]
    assert sections.heat_maps([first, second, outside, kernel]) == [
        ("activations", columns, [("residual1", [(first, 0.5), (second, 1.0)])]),
        ("weights", columns, [("mlp/dense1", [(kernel, 0.0), (None, 0.0)])]),
    ]
    assert sections.heat_maps([outside]) == []


def test_coverage_is_in_percent_of_all_multiply_adds():
    products = [MatrixProduct("a", ("",), 300, True, "fits"), MatrixProduct("b", ("",), 100, False, "floats")]
    assert coverage_rows(products) == [
        {"name": "a", "execution": "integer", "reason": "fits", "share": 75},
        {"name": "b", "execution": "float", "reason": "floats", "share": 25},
    ]


def test_tiles_are_of_synthesized_images_wherever_these_stand():
    found = sections.answer(results(calibrations=("real", "synthesized", "noise")))
    assert [(s.bits, s.calibration) for s in found["headline"]] == [("w8a8", "synthesized"), ("w4a8", "synthesized")]
    assert found["lost_scale"] == pytest.approx(91.3 - 86)  # the longest bar: synthesized at w4a8
    without = sections.answer(results(calibrations=("real", "noise")))
    assert {s.calibration for s in without["headline"]} == {"real"}


def test_charts_grow_upwards_and_to_the_right():
    """Between the margins: x from 46 to 348, y from 176 at the bottom to 10 at the top."""
    x, y = np.array([0.0, 10.0]), np.array([2.0, 4.0])
    assert line_chart("t", {"a": (x, y)}, "x").lines == [("a", "M46.0 176.0L348.0 10.0")]
    chart = line_chart("t", {"a": (x, y)}, "x", from_zero=True)
    assert chart.lines == [("a", "M46.0 93.0L348.0 10.0")] and chart.y_ticks[0] == (176, "0")
    assert chart.x_ticks[1] == (46 + 302 / 5, "2")


@pytest.mark.parametrize("bounds, labels", [
    ((0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]), ((-1.0, 1.0), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
    ((3.0, 26.0), ["5", "10", "15", "20", "25"]), ((0.0, 4e5), ["0.0e+00", "1.0e+05", "2.0e+05", "3.0e+05", "4.0e+05"]),
])  # fmt: skip
def test_ticks_are_one_two_or_five_apart(bounds, labels):
    found = ticks(*bounds, most=5)
    assert [label for _, label in found] == labels
    np.testing.assert_allclose([value for value, _ in found], [float(x.replace("−", "-")) for x in labels], atol=1e-12)


def test_losses_begin_at_the_first_iteration():
    (chart,) = pictures.loss_charts({"entropy": np.array([5.0, 4.0, 3.0]), "none": np.array([])})
    assert chart.title == "patch-similarity entropy, negative" and chart.x_ticks[0] == (46, "1.0")
    assert chart.x_ticks[-1] == (348, "3.0") and chart.lines[0][1].startswith("M46.0 10.0L")


def decoded(picture: pictures.Picture) -> np.ndarray:
    content = base64.b64decode(picture.address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_images_keep_their_captions():
    """The first twelve are shown."""
    images = np.arange(13, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    model = types.SimpleNamespace(preprocessing=types.SimpleNamespace(denormalize=lambda x: x))
    shown = pictures.gallery(model, images, map(str, range(13)))
    assert [(p.caption, decoded(p).max()) for p in shown] == [(str(i), i) for i in range(12)]
    assert [p.caption for p in pictures.gallery(model, images)] == [""] * 12


def test_maps_have_the_colours_of_their_scale():
    """From the least of all maps, here 0, to 1."""
    found = decoded(pictures._map(np.array([[[1.0, 0.0], [0.5, 1.0]]]), 0.0, "a caption"))
    stops = pictures.color_stops()
    colors = [[f"rgb({r} {g} {b})" for r, g, b in row] for row in found]
    assert colors[0] == [stops[-1], stops[0]] and colors[1][1] == stops[-1] and len(stops) == 9
    np.testing.assert_array_equal(found[1, 0], pictures._palette()[128])
