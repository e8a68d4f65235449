"""A short comparison, for the tests of both kinds."""

from psaq_jax.comparison.published import CompareConfig
from psaq_jax.config import QuantizationConfig
from psaq_jax.synthesis.config import SynthesisConfig
from tests.jobs import TINY


def config(model=str(TINY), data="", **changes) -> CompareConfig:
    settings = {
        "model": model, "data": data, "batch_size": 16, "calibration": ("synthesized", "noise", "real"),
        "synthesis": SynthesisConfig(num_images=4, group_size=4, iterations=3),
        "quantization": QuantizationConfig(("w8a8", "w4a4")),
    }  # fmt: skip
    return CompareConfig(**settings | changes)
