"""Image grids, loss curves, patch similarities: PNG files that decode, of the right size and content."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from psaq_jax.errors import InputError
from psaq_jax.extras import require
from psaq_jax.report import figures, similarity
from psaq_jax.report.figures import FIGURES, accuracy_curves, loss_curves, similarity_figure
from psaq_jax.report.images import image_grid, shortened
from psaq_jax.synthesis.entropy import kernel_density
from tests.report.samples import history, image_sets, results
from tests.scaled_copies import scaled


def decoded(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image


def test_grid_enlarges_small_images_by_whole_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)
    grid = decoded(image_grid(images, columns=3))
    assert grid.size == (8 + 3 * 120, 8 + 2 * 120)  # 4 x 28 = 112 pixels and a gap of 8
    tile = np.asarray(grid)[8 : 8 + 112, 8 + 120 : 8 + 232]
    np.testing.assert_array_equal(tile[::4, ::4], images[1])
    np.testing.assert_array_equal(tile[3::4, 3::4], images[1])


def test_grid_keeps_large_images_and_takes_labels():
    images = np.zeros((2, 224, 224, 3), np.uint8)
    plain, labelled = decoded(image_grid(images)), decoded(image_grid(images, ["x" * 200, "<b>é\n日本</b>"]))
    assert plain.size == (8 + 2 * 232, 8 + 232)
    assert labelled.width == plain.width and labelled.height > plain.height


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]
)
def test_grid_refuses(images):
    with pytest.raises(InputError, match="expected uint8"):
        image_grid(images)


def test_labels_are_cut_to_the_width():
    font = ImageFont.load_default()
    assert shortened("a  dog", font, 100) == "a dog"
    cut = shortened("i" * 10**6, font, 100)  # at once, whatever the length
    assert cut.endswith("…") and 80 < font.getlength(cut) <= 100


def test_grid_refuses_another_number_of_labels():
    with pytest.raises(InputError, match="3 labels for 2 images"):
        image_grid(np.zeros((2, 4, 4, 3), np.uint8), ["a", "b", "c"])


def tile(grid, row, column, height, below):
    """The pixels of a tile, 112 wide, and what is written below it."""
    top, left = 8 + row * (height + below + 8), 8 + column * 120
    return grid[top : top + height, left : left + 112], grid[top + height : top + height + below, left : left + 112]


def test_every_image_has_its_label_below_it():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None].repeat(28, 1).repeat(28, 2).repeat(3, 3)
    grid = np.asarray(decoded(image_grid(images, ["", "ii", "", "MMMM", ""], columns=2)))
    assert grid.shape == (8 + 3 * 142, 8 + 2 * 120, 3)
    inks = []
    for i, image in enumerate(images):
        found, text = tile(grid, *divmod(i, 2), 112, 22)
        assert (found == image[0, 0]).all()
        inks.append(int((text < 255).sum()))
    assert inks[0] == inks[2] == inks[4] == 0 < inks[1] < inks[3]


def test_loss_curves():
    assert decoded(loss_curves(history())).size == (1350, 870)
    assert decoded(loss_curves({"loss": [1.0]})).width == 1350
    with pytest.raises(InputError, match="history is empty"):
        loss_curves({"loss": []})


def test_accuracy_curves():
    sweeps = {n: results(seeds=(0, 1), synthesized=80 + n / 50) for n in (50, 100, 200)}
    assert decoded(accuracy_curves({0.01: sweeps})).size == (930, 840)  # two pairs of bit-widths
    assert decoded(accuracy_curves({0.01: sweeps, 0.05: {50: sweeps[50]}})).size == (930, 840)
    assert decoded(accuracy_curves({0.01: {50: results(labelled=False)}})).size == (930, 420)
    with pytest.raises(InputError, match="no run was calibrated on synthesized images"):
        accuracy_curves({0.01: {50: results(calibrations=("noise",))}})


def test_accuracy_curves_are_means_and_deviations_of_synthesized_images(monkeypatch):
    monkeypatch.setattr(figures, "_png", lambda figure: figure)
    sweeps = {n: results(seeds=(0, 2), bits=("w8a8",), synthesized=80 + n / 50) for n in (50, 100)}
    lost, agreement = accuracy_curves({0.01: sweeps}).axes
    # Two seeds a point apart: means 0.5 above the first, deviations of half a point's root of 2.
    for axes, title, means in ((lost, FIGURES["lost"], [9.8, 8.8]), (agreement, FIGURES["agreement"], [84.5, 85.5])):
        ((line, _, (bars,)),) = axes.containers
        np.testing.assert_allclose(line.get_xydata(), np.transpose([[50, 100], means]))
        np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars.get_segments()], [2 * 0.5**0.5] * 2)
        assert axes.get_ylabel() == title


def test_similarity_maps_share_one_scale_from_the_least_to_one(vit, monkeypatch):
    monkeypatch.setattr(figures, "_png", lambda figure: figure)
    first = {kind: images[0] for kind, images in image_sets(vit, 1).items()}
    drawn = similarity_figure(vit, first, layer="block_0").subfigs[0].axes
    maps = [image for axes in drawn for image in axes.images if image.get_array().ndim == 2]
    found = [similarity.similarities(vit, image)["block_0/attention"] for image in first.values()]
    assert {image.get_clim() for image in maps} == {(float(np.min(found)), 1)} and len(maps) == 3
    for image, values in zip(maps, found, strict=True):
        np.testing.assert_array_equal(image.get_array(), similarity.mosaic(values))


def test_layers_have_names_and_numbers(vit):
    names = similarity.layers(vit)
    for given in (-1, len(names) - 1, names[-1], similarity.short_name(names[-1])):
        assert similarity.choose_layer(vit, given) == names[-1]
    for given in (len(names), -len(names) - 1):
        with pytest.raises(InputError, match=f"layer: found {given}, expected an index or one of block_0/attention"):
            similarity.choose_layer(vit, given)
    assert similarity.position(vit, names[0]) == f"block_0 (layer 1 of {len(names)})"


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_similarity_figure(name, request):
    model = request.getfixturevalue(name)
    sets = image_sets(model, 1)
    first = {kind: images[0] for kind, images in sets.items()}
    assert decoded(similarity_figure(model, first)).width > 1000
    without = decoded(similarity_figure(model, first | {"real": None}, layer=0))
    assert without.width > 800


@pytest.mark.parametrize("bits", [("w8a8",), ("w8a8", "w4a8"), ("w8a8", "w6a6", "w4a8", "w4a4")])
def test_a_legend_of_accuracy_curves_is_not_cut_off(bits):
    found = results(bits=bits, calibrations=("synthesized",))
    found["runs"] += [run | {"recipe": "default"} for run in found["runs"]]
    pixels = np.asarray(decoded(accuracy_curves({0.01: {50: found}, 0.05: {50: found}})).convert("L"))
    assert pixels[:, :4].min() == pixels[:, -4:].min() == 255


def test_similarity_figure_refuses(vit):
    with pytest.raises(InputError, match="no image"):
        similarity_figure(vit, {"real": None})
    image = image_sets(vit, 1)["noise"][0]
    with pytest.raises(InputError, match="block_0/attention"):
        similarity_figure(vit, {"noise": image}, layer="block_77")
    with pytest.raises(InputError, match="found shape"):
        similarity_figure(vit, {"noise": image[:-1]})


def test_similarities_of_a_scaled_copy_are_the_models(vit):
    image = image_sets(vit, 1)["noise"][0]
    found, of_copy = similarity.similarities(vit, image), similarity.similarities(scaled(vit), image)
    for name, values in found.items():
        np.testing.assert_array_equal(of_copy[name], values)


@pytest.mark.parametrize("name, special", [("vit", 1), ("swin", 0)])
def test_similarities_leave_out_special_tokens_and_keep_windows(name, special, request):
    model = request.getfixturevalue(name)
    found = similarity.similarities(model, image_sets(model, 1)["noise"][0])
    assert list(found) == similarity.layers(model)
    for values in found.values():
        windows, patches, _ = values.shape
        np.testing.assert_allclose(values[:, np.arange(patches), np.arange(patches)], 1, rtol=1e-5)
        assert similarity.mosaic(values).size == windows * patches**2
    if special:
        rows, columns = model.module.grid
        assert values.shape == (1, rows * columns, rows * columns)


def test_mosaic_puts_windows_side_by_side():
    windows = np.arange(4)[:, None, None] * np.ones((4, 2, 2))
    np.testing.assert_array_equal(similarity.mosaic(windows), [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])


def test_densities_are_those_of_the_loss():
    values = np.random.default_rng(0).uniform(0.2, 1, (1, 30, 30)).astype(np.float32)
    density = similarity.densities({"noise": values})["noise"]
    np.testing.assert_allclose(np.trapezoid(density.values, density.grid), 1, rtol=1e-3)
    exact = np.asarray(kernel_density(values[:1], density.grid[::20].astype(np.float32))[0])
    # Entries are binned to a fifth of the bandwidth, which blurs the curve by about 1 %.
    np.testing.assert_allclose(density.values[::20], exact, atol=0.03 * exact.max())


def test_default_layer_lies_three_quarters_through():
    assert similarity.default_layer([f"block_{i}" for i in range(12)]) == "block_8"
    assert similarity.default_layer(["block_0"]) == "block_0"


def test_a_missing_extra_is_named():
    with pytest.raises(InputError, match=r'pip install "\.\[report\]"'):
        require("no_such_package_of_ours.figure", "report")
