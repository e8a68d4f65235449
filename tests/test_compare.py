"""The comparison with the published table: its configs, its differences, its page; and the measure of parity."""

import importlib

import numpy as np
import pytest

from psaq_jax.comparison import live, page, parity, published, release
from psaq_jax.comparison.published import PUBLISHED, CompareConfig
from psaq_jax.config import from_mapping
from psaq_jax.errors import InputError
from psaq_jax.sweep import run_sweep
from psaq_jax.synthesis.config import SynthesisConfig
from tests import jobs
from tests.comparisons import config
from tests.report.samples import results

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TINY = str(jobs.TINY)
WHO = ("release", "psaq_jax (paper)", "psaq_jax (default)")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jobs.small_data(tmp_path_factory.mktemp("data"))


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
    settings = config(data=data, published="deit_tiny", seeds=(0, 1), calibration=("synthesized", "noise"))
    row = published.published_row(settings)
    (ran,) = run_sweep(settings, tmp_path)
    lines = {(line[2], line[3]): line for line in published.rows(row, ran)}
    assert list(lines) == [
        ("float", ""), *((bits, name) for name in ("synthesized", "noise") for bits in ("w8a8", "w4a4"))
    ]  # fmt: skip
    ours = [r["top1"] for r in ran["runs"] if r["bits"] == "w8a8" and r["calibration"] == "synthesized"]
    assert lines["w8a8", "synthesized"][4:] == [
        "2", "71.56", f"{np.mean(ours):.2f} ± {np.std(ours, ddof=1):.2f}", f"{np.mean(ours) - 71.56:+.2f}"
    ]  # fmt: skip
    assert lines["w8a8", "noise"][5] == lines["w4a4", "synthesized"][5] == "-"
    machine = {"device": "a device", "versions": {"jax": "0"}}
    text = published.page(row, ran, "the command", machine)
    assert published.answer(row, ran).startswith(
        f"Ours minus the published: w8a8 (paper) {np.mean(ours) - 71.56:+.2f} "
    )
    assert "DeiT-T" in text and "71.56" in text and "the command" in text and published.SOURCE in text
    assert f"\nModel {TINY}, 20 images, a device, jax 0.\n" in text


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


def synthesis(**changes):
    figures = {"made": "by all", "iterations": 500, "seconds_per_iteration": 3.0, "seconds_per_iteration_min": 1.0}
    return figures | {"compile_seconds": None, "peak_memory_bytes": 2e9, "device_peak_bytes": None} | changes


def test_speeds_stand_beside_each_other_with_their_quotient():
    ours = synthesis(made="by us", seconds_per_iteration=1.5, compile_seconds=9.0, peak_memory_bytes=1e9)
    (_, head, rows, *_) = page.tables(found(synthesis={"release": synthesis(), "psaq_jax": ours}))[1]
    assert head == ("", "release", "psaq_jax", "release / psaq_jax")
    assert rows == [
        ["synthesis", "by all", "by us", ""],
        ["iterations of synthesis", "500", "500", ""],
        ["seconds per iteration, mean", "3.000", "1.500", "2.0"],
        ["seconds per iteration, fastest", "1.000", "1.000", "1.0"],
        ["compilation, seconds (once)", "-", "9.0", ""],
        ["peak memory of the process, synthesis", "2,000 MB", "1,000 MB", "2.0"],
    ]
    on_a_gpu = {"release": synthesis(device_peak_bytes=4e9), "psaq_jax": synthesis(device_peak_bytes=1e9)}
    rows = page.tables(found(synthesis=on_a_gpu))[1].rows
    assert rows[6:] == [["peak memory of the device, synthesis", "4,000 MB", "1,000 MB", "4.0"]]


def found(**changes):
    """As `compare_live` returns it; every figure is another number."""
    figures = [{"top1": float(n), "agreement": n + 0.5} for n in range(10, 50, 10)]
    of_float, release, paper, default = figures
    parity = {"equal_codes": 99.0, "largest_steps": 2, "largest_difference": 0.25, "same_top1": 100.0, "images": 8}
    row = {
        "calibration": "noise", "bits": "w4a8", "release": release, "psaq_jax": {"paper": paper, "default": default},
        "range_difference": 1e-6, "parity": parity,
    }  # fmt: skip
    base = of_float | {"examples": 8, "release": {"top1": 9.0, "agreement": 9.5}, "largest_difference": 1e-5}
    both = {"release": synthesis(), "psaq_jax": synthesis()}
    return {"float": base, "rows": [row], "synthesis": both, "calibrated_on": {}} | changes


def test_real_images_of_those_measured_on_are_told():
    for evaluated in (False, True):
        real = {"real": {"images": 8, "evaluated": evaluated}}
        assert ("Real images are of those measured on" in page.tables(found(calibrated_on=real))[0].note) == evaluated


def test_every_figure_stands_below_whose_it_is():
    (_, head, rows, words, _), _, (_, parity_head, parity_rows, *_) = page.tables(found())
    assert [dict(zip(head[words:], row[words:], strict=True)) for row in rows] == [
        {f"{who}, {what} %": f"{value:.2f}" for who, values in of.items() for what, value in values.items()}
        for of in (
            {who: {"top-1": n, "agreement": n + 0.5} for who, n in zip(WHO, numbers, strict=True)}
            for numbers in ((9, 10, 10), (20, 30, 40))
        )
    ]
    told = dict(zip(parity_head, parity_rows[0], strict=True))
    assert told["equal codes of the logits"] == "99.0 %" and told["largest difference, codes"] == "2"
    assert told["ranges, largest difference"] == "1.0e-06" and told["largest difference, logits"] == "0.25"


def test_every_table_says_of_how_many_images_it_is():
    base = found()["float"] | {"examples": 20_000}
    text = page.markdown(found(float=base), {"a fact": "told"}, {"ours": "images/a.png"})
    accuracy, rest = text.split("## Speed and memory")
    assert "On 20,000 images, the same for both." in accuracy and "differ by 1.0e-05 at most." in accuracy
    assert "On 8 images. Ranges: " in rest.partition("## Parity")[2]
    assert "| a fact | told |" in text and "![ours](images/a.png)" in text


def test_the_answer_is_of_the_first_setting():
    assert page.answer(found()) == (
        "An iteration of the synthesis takes 3 s, the release's 3 s. At w4a8 (calibration images: noise) "
        "top-1 is 30.00 % by recipe paper, the release's 20.00 %."
    )
    unlabelled = page.answer(found(float=found()["float"] | {"top1": None}))
    assert unlabelled.endswith("agreement is 30.50 % by recipe paper, the release's 20.50 %.")


def test_without_labels_agreement_stands_alone():
    row = found()["rows"][0]
    (_, head, rows, *_), *_ = page.tables(found(float=found()["float"] | {"top1": None}, rows=[row]))
    assert head == ("bits", "calibration images", *(f"{who}, agreement %" for who in WHO))
    assert rows == [["float", "", "9.50", "10.50", "10.50"], ["w4a8", "noise", "20.50", "30.50", "40.50"]]


def test_differences_are_ours_minus_the_published():
    """Published: float 72.21, w8a8 71.56. Ours: 91.3 and 88."""
    lines = list(published.rows(PUBLISHED["deit_tiny"], results(bits=("w8a8",), calibrations=("synthesized",))))
    assert lines == [
        ["DeiT-T", "", "float", "", "", "72.21", "91.30", "+19.09"],
        ["DeiT-T", "paper", "w8a8", "synthesized", "1", "71.56", "88.00", "+16.44"],
    ]
    assert published.answer(PUBLISHED["deit_tiny"], results(bits=("w4a4",))).startswith("No setting of this run has")


def test_the_pace_is_the_fastest_between_two_calls(monkeypatch):
    """What was done before the first call, as by an earlier run, took no time that is known."""
    times, told = iter([0.0, 10.0, 12.0, 20.0]), []
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(times))
    pace = live._Pace(lambda done, total: told.append((done, total)))
    seen = [(pace(done, 30), pace.fastest)[1] for done in (5, 10, 14, 16)]
    assert seen == [None, 2, 0.5, 0.5] and told == [(5, 30), (10, 30), (14, 30), (16, 30)]


def test_another_name_of_a_file_is_another_release(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = release.source_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert release.source_hash(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = release.source_hash(tmp_path)
    (tmp_path / "b.py").write_text("x = 2")
    assert len({before, renamed, release.source_hash(tmp_path)}) == 3


def test_ranges_are_compared_in_parts_of_the_release_s():
    assert parity.range_difference({"a": (0.0, 4.0)}, {"a": (0.0, 2.0)}) == 1
