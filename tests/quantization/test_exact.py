"""Exact sums against sums of floats; that integer execution gives the same bits is tested in test_integer.py."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.quantization import transform
from psaq_jax.quantization.representation import LogQuantizer
from tests.export.small_models import VITS, random_pixels, random_quantized


def logits(q, pixels, has_exact_sums):
    return np.asarray(transform._forward(q.module, q.params, q.sites, pixels, has_exact_sums))


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_exact_sums_are_those_of_floats_to_their_rounding(recipe):
    q, pixels = random_quantized(VITS["vit"], 8, 8, recipe), random_pixels(VITS["vit"], 64)
    exact, rounded = logits(q, pixels, True), logits(q, pixels, False)
    assert np.abs(exact - rounded).mean() <= 1e-3 * np.ptp(exact)
    np.testing.assert_array_equal(q(pixels), exact)


def test_products_with_a_logarithmic_grid_stay_as_they_are():
    q, pixels = random_quantized(VITS["vit"], 8, 8, "default"), random_pixels(VITS["vit"], 64)
    grid = LogQuantizer(jnp.float32(1), jnp.float32(2), jnp.float32(6))
    softmax = {site: grid for site in q.sites if site.endswith("probabilities")}
    q = dataclasses.replace(q, sites=q.sites | softmax)
    assert softmax and np.abs(logits(q, pixels, True) - logits(q, pixels, False)).mean() <= 1e-3
