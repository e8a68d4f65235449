"""The comparison with the published table: its configs, its differences, its page; and the measure of parity."""

import importlib

import numpy as np
import pytest

from psaq_jax.comparison import parity, published
from psaq_jax.comparison.published import PUBLISHED, CompareConfig
from psaq_jax.config import QuantizationConfig, from_mapping
from psaq_jax.errors import InputError
from psaq_jax.sweep import run_sweep
from psaq_jax.synthesis.config import SynthesisConfig
from tests.golden_files import GOLDEN

TINY = str(GOLDEN / "paper" / "vit")


def config(model=TINY, data="", **changes):
    settings = {
        "model": model, "data": data, "batch_size": 16, "calibration": ("synthesized", "noise"),
        "synthesis": SynthesisConfig(num_images=4, group_size=4, iterations=3),
        "quantization": QuantizationConfig(("w8a8", "w4a4")),
    }  # fmt: skip
    return CompareConfig(**settings | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), labels=np.arange(20) % 10)
    return f"npz:{path}"


def test_the_published_figures_are_the_papers():
    """{model: (name, float, W4A8, W8A8)}."""
    found = {key: (row.name, row.float_top1, row.top1["w4a8"], row.top1["w8a8"]) for key, row in PUBLISHED.items()}
    assert found == {
        "deit_tiny": ("DeiT-T", 72.21, 65.57, 71.56),
        "deit_small": ("DeiT-S", 79.85, 73.23, 76.92),
        "deit_base": ("DeiT-B", 81.85, 77.05, 79.10),
        "swin_tiny": ("Swin-T", 81.35, 71.79, 75.35),
        "swin_small": ("Swin-S", 83.20, 75.14, 76.64),
    }


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_published_row_has_its_config(key):
    fields = importlib.import_module(f"configs.paper.{key}").get_config().to_dict()
    found = from_mapping(CompareConfig, fields)
    row = published.published_row(found)
    assert row is PUBLISHED[key] and set(found.quantization.bits) == set(row.top1)
    assert found.synthesis == SynthesisConfig() and found.seeds == (0, 1, 2)
    assert int(224 / found.crop_fraction) == (248 if "swin" in key else 256)  # before the release's crop


def test_ours_stands_beside_the_published(data, tmp_path):
    settings = config(data=data, published="deit_tiny", seeds=(0, 1))
    row = published.published_row(settings)
    (results,) = run_sweep(settings, tmp_path)
    lines = {(line[2], line[3]): line for line in published.rows(row, results)}
    assert list(lines) == [
        ("float", ""), *((bits, name) for name in ("synthesized", "noise") for bits in ("w8a8", "w4a4"))
    ]  # fmt: skip
    ours = [r["top1"] for r in results["runs"] if r["bits"] == "w8a8" and r["calibration"] == "synthesized"]
    assert lines["w8a8", "synthesized"][4:] == [
        "2", "71.56", f"{np.mean(ours):.2f} ± {np.std(ours, ddof=1):.2f}", f"{np.mean(ours) - 71.56:+.2f}"
    ]  # fmt: skip
    assert lines["w8a8", "noise"][5] == lines["w4a4", "synthesized"][5] == "-"
    machine = {"device": "a device", "versions": {"jax": "0"}}
    text = published.page(row, results, "the command", machine)
    assert "DeiT-T" in text and "71.56" in text and "the command" in text and published.SOURCE in text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"published": ""}, "config.published is '', known are deit_tiny, .*--baseline_dir"),
        ({"published": "deit_huge"}, "config.published is 'deit_huge'"),
        ({"published": "deit_tiny", "data": ""}, "config.data is empty"),
    ],
)
def test_what_cannot_be_compared_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        published.published_row(config(**changes))


@pytest.mark.parametrize("models", [("a",), (TINY, "a")])
def test_a_comparison_is_of_one_model(models):
    assert config(models=(TINY,)).models == (TINY,)
    with pytest.raises(InputError, match="models is .*, a comparison is of one model; leave it out and give model"):
        config(models=models)


def test_parity_counts_codes():
    ours = np.array([[0.5, 1.0, -0.5], [2.0, 0.0, 0.0]], np.float32)
    theirs = np.array([[0.5, 1.5, -0.5], [2.0, 0.0, 3.0]], np.float32)
    assert parity.logit_parity(ours, theirs, 0.5) == {
        "images": 2, "equal_codes": pytest.approx(400 / 6), "largest_difference": 3.0, "largest_steps": 6,
        "same_top1": 50,
    }  # fmt: skip
    ranges = {"a": (0.0, 1.0), "b": (-2.0, 2.0)}
    assert parity.range_difference(ranges, {"a": (0.0, 1.0), "b": (-2.0, 1.0)}) == pytest.approx(1 / 3)
    assert parity.named_ranges(ranges, np.array([[1, 2], [3, 4]])) == {"a": (1, 2), "b": (3, 4)}
    with pytest.raises(InputError, match=r"ranges \[3, 2\], expected 2 sites"):
        parity.named_ranges(ranges, np.zeros((3, 2)))
