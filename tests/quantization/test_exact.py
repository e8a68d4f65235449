"""Exact sums against sums of floats; that integer execution gives the same bits is tested in test_integer.py."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.models.layers import Product
from psaq_jax.quantization import exact, transform
from psaq_jax.quantization.representation import LogQuantizer, UniformQuantizer
from psaq_jax.sites import Site
from tests.export.small_models import VITS, random_quantized
from tests.random_models import random_pixels


def logits(q, pixels, has_exact_sums):
    return np.asarray(transform._forward(q.module, q.params, q.sites, pixels, has_exact_sums))


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_exact_sums_are_those_of_floats_to_their_rounding(recipe):
    q, pixels = random_quantized(VITS["vit"], 8, 8, recipe), random_pixels(VITS["vit"], 64)
    whole, rounded = logits(q, pixels, True), logits(q, pixels, False)
    assert np.abs(whole - rounded).mean() <= 1e-3 * np.ptp(whole)
    np.testing.assert_array_equal(q(pixels), whole)


class Similarities(nn.Module):
    """A product that scales its first factor, as Swin's attention has it."""

    @nn.compact
    def __call__(self, x):
        query, key = (Site(name=name)(x) for name in ("query", "key"))
        return Product("bhnd,bhmd->bhnm", 0.25, name="query_key")(query, key).reshape(len(x), -1)


@pytest.mark.parametrize("integers", [(), ("query_key",)])
def test_products_are_scaled_and_summed_as_they_are_told(integers):
    grid, told = UniformQuantizer(jnp.float32(0.1), jnp.float32(3), jnp.float32(4)), []

    def sums(*arguments):
        told.append(arguments[0])
        return exact.float_sums(*arguments)

    pixels = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    found = exact.forward(Similarities(), {}, dict.fromkeys(("query", "key"), grid), pixels, sums, integers)
    x = np.asarray(grid(pixels), np.float64)
    np.testing.assert_allclose(found, 0.25 * (x @ x.swapaxes(2, 3)).reshape(2, -1), rtol=1e-6, atol=1e-7)
    assert bool(told) == bool(integers)


def test_products_with_a_logarithmic_grid_stay_as_they_are():
    q, pixels = random_quantized(VITS["vit"], 8, 8, "default"), random_pixels(VITS["vit"], 64)
    grid = LogQuantizer(jnp.float32(1), jnp.float32(2), jnp.float32(6))
    softmax = {site: grid for site in q.sites if site.endswith("probabilities")}
    q = dataclasses.replace(q, sites=q.sites | softmax)
    assert softmax and np.abs(logits(q, pixels, True) - logits(q, pixels, False)).mean() <= 1e-3
