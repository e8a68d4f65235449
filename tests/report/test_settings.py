"""What a model card says of a run."""

from psaq_jax.report import card_figures
from tests.report.samples import results


def test_a_model_card_has_units_and_the_float_model_beside():
    sets = {"synthesized": {"images": 1024}, "real": {"images": 9, "evaluated": True}}
    of_float = results() | {"calibrated_on": sets}
    run = {"calibration": "synthesized", "top1": 88.0, "top5": 99.5, "loss": 0.4, "agreement": 91.0}
    assert card_figures(of_float, run, "npz:FILE") == {
        "calibrated on": "1,024 synthesized images",
        "measured on": "10,000 images of npz:FILE",
        "top-1 (%)": "88.00 (float model: 91.30)",
        "top-5 (%)": "99.50 (float model: 99.80)",
        "cross-entropy (nats)": "0.4000 (float model: 0.2500)",
        "same top-1 as the float model (%)": "91.00",
    }
    real = {"calibration": "real", "top1": None, "top5": None, "loss": None, "agreement": 91.0}
    assert card_figures(of_float, real, "")["calibrated on"] == "9 real images, of those measured on"
    assert card_figures(results(labelled=False), real, "") == {
        "calibrated on": "real images",
        "measured on": "32 synthesized images that no calibration saw",
        "same top-1 as the float model (%)": "91.00",
    }
