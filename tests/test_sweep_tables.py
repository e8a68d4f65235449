"""The tables that a sweep leaves for people, of results with figures of their own."""

import csv
import io

from psaq_jax import sweep_tables
from tests.report.samples import results


def swept(**changes):
    found = results(**changes)
    for run in found["runs"]:
        run |= {"synthesis_seconds": 12.34 if run["calibration"] == "synthesized" else None, "quantization_seconds": 5}
        run["integer_share"] = 75.04
    return found


def test_a_row_for_the_float_model_and_one_a_setting():
    found = list(sweep_tables.rows([swept(seeds=(0, 2), bits=("w8a8",), calibrations=("synthesized", "noise"))]))
    model = "bundled:fashion_mnist_vit"
    assert found == [
        [model, "", "float", "", "", "91.30", "", "99.80", "0.2500", "", "", "", ""],
        [model, "paper", "w8a8", "synthesized", "2", "88.50 ± 0.71", "2.80 ± 0.71", "99.50 ± 0.00", "0.4000 ± 0.0000",
         "91.50 ± 0.71", "75.0 ± 0.0", "12.3 ± 0.0", "5.0 ± 0.0"],
        [model, "paper", "w8a8", "noise", "2", "89.50 ± 0.71", "1.80 ± 0.71", "99.50 ± 0.00", "0.4000 ± 0.0000",
         "92.50 ± 0.71", "75.0 ± 0.0", "-", "5.0 ± 0.0"],
    ]  # fmt: skip


def test_every_figure_stands_below_its_name():
    text = sweep_tables.as_csv([swept(seeds=(3,), bits=("w4a8",), calibrations=("noise",))])
    (line,) = csv.DictReader(io.StringIO(text))
    names = ("model", "recipe", "bits", "calibration", "seeds", "float_top1")
    assert [line[name] for name in names] == ["bundled:fashion_mnist_vit", "paper", "w4a8", "noise", "3", "91.3"]
    figures = {"top1": 90.5, "lost": 0.8, "top5": 99.5, "loss": 0.4, "agreement": 93.5, "integer_share": 75.04}
    figures["quantization_seconds"] = 5
    assert {name: round(float(line[f"{name}_mean"]), 9) for name in figures} == figures
    assert line["synthesis_seconds_mean"] == "" and not any(line[f"{name}_std"] for name in figures)


def test_without_data_there_is_no_row_of_the_float_model():
    (row,) = sweep_tables.rows([swept(labelled=False, bits=("w8a8",), calibrations=("noise",))])
    assert row[5:9] == ["-"] * 4 and row[9] == "92.00"
