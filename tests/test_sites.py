"""The instrument: sites are the identity until tapped; taps see them in running order and leave nothing behind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax.sites import Site, apply_with_tap, observe, record, site_names


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Site(name="doubled")(2 * x)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Site(name="input")(x)
        x = Inner(name="block_0")(x)
        return Site(name="output")(nn.Dense(3, name="dense")(x))


@pytest.fixture
def tiny():
    module, pixels = Tiny(), jnp.arange(24.0).reshape(1, 2, 4, 3)
    return module, module.init(jax.random.key(0), pixels)["params"], pixels


def test_names_are_paths_in_running_order(tiny):
    module, params, pixels = tiny
    assert site_names(module, params, pixels.shape[1:]) == ("input", "block_0/doubled", "output")


def test_a_tap_that_changes_nothing_changes_nothing(tiny):
    module, params, pixels = tiny
    tapped = apply_with_tap(module, params, pixels, lambda name, x: x)
    np.testing.assert_array_equal(tapped, module.apply({"params": params}, pixels))


def test_a_tap_replaces_tensors_for_what_follows(tiny):
    module, params, pixels = tiny
    zeroed = apply_with_tap(module, params, pixels, lambda name, x: x * 0 if name == "block_0/doubled" else x)
    np.testing.assert_array_equal(zeroed, jnp.broadcast_to(params["dense"]["bias"], zeroed.shape))


def test_record_keeps_what_matches(tiny):
    module, params, pixels = tiny
    output, kept = record(module, params, pixels, "*/doubled")
    assert list(kept) == ["block_0/doubled"]
    np.testing.assert_array_equal(kept["block_0/doubled"], 2 * pixels)
    np.testing.assert_array_equal(output, module.apply({"params": params}, pixels))


def test_a_pattern_that_matches_nothing_is_reported(tiny):
    module, params, pixels = tiny
    with pytest.raises(ValueError, match="no site matches 'nothing'; the sites of this model are input"):
        record(module, params, pixels, "nothing")


def test_a_pattern_is_of_the_whole_name(tiny):
    module, params, pixels = tiny
    with pytest.raises(ValueError, match="no site matches 'doubled'"):
        record(module, params, pixels, "doubled")
    assert list(record(module, params, pixels, "*")[1]) == ["input", "block_0/doubled", "output"]


def test_ranges_are_float32_of_half_precision_too(tiny):
    module, params, pixels = tiny
    ranges = observe(module, params, pixels.astype(jnp.bfloat16))
    assert {x.dtype for pair in ranges.values() for x in pair} == {jnp.dtype(jnp.float32)}


def test_observe_gives_ranges_in_running_order(tiny):
    module, params, pixels = tiny
    ranges = observe(module, params, pixels, wanted=lambda name: name != "output")
    assert {name: tuple(map(float, pair)) for name, pair in ranges.items()} == {
        "input": (0.0, 23.0),
        "block_0/doubled": (0.0, 46.0),
    }


def test_taps_compose_with_jit_grad_and_vmap(tiny):
    module, params, pixels = tiny

    def energy(x):
        _, kept = record(module, params, x[None], "*/doubled")
        return sum((v**2).sum() for v in kept.values())

    gradient = jax.jit(jax.vmap(jax.grad(energy)))(pixels)
    np.testing.assert_allclose(gradient, 8 * pixels)
