"""One iteration as a whole: its jitter, flip, loss and rate, and the labels and targets that a group starts with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psaq_jax.sites import record
from psaq_jax.synthesis import loop
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.entropy import patch_similarity_entropy
from psaq_jax.synthesis.priors import jitter, total_variation
from tests.quantization.artefacts import MODULES, random_model
from tests.random_models import VIT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# Of 16x20 pixels, where 28 and 56 of 224 are 2 and 4. Rounds of 10 iterations, 2 of them warm-up.
CONFIG = SynthesisConfig(2, 2, iterations=20, jitter=(28, 56))


@functools.partial(jax.jit, static_argnames="config")
def step(model, config, state, iteration):
    """`loop.step`, whose terms hold the jittered images too."""
    return loop.step(model, config, state, iteration, lambda images, _: (0.0, {"seen": images}))


@pytest.fixture(scope="module")
def steps():
    """{iteration: [(offset, flipped, median of what pixels moved)] over keys}."""
    model = random_model()
    state, found = loop.initial_group(model, CONFIG, 0, 0), {}
    moved = {(o, f): np.asarray(jitter(state.variables, o, f)) for o in range(-5, 6) for f in (False, True)}
    for i in (0, 1, 5, 9, 10, 15):
        for k in range(30):
            after, terms = step(model, CONFIG, state._replace(key=jax.random.key(k)), jnp.int32(i))
            (which,) = [key for key, images in moved.items() if np.array_equal(images, terms["seen"])]
            found.setdefault(i, []).append((*which, np.median(np.abs(after.variables - state.variables))))
    return found


def test_each_round_has_its_jitter(steps):
    for iterations, reach in (((0, 1, 5, 9), 2), ((10, 15), 4)):
        seen = [one for i in iterations for one in steps[i]]
        assert {offset for offset, *_ in seen} == set(range(-reach, reach + 1))
        assert 0.3 < np.mean([flipped for _, flipped, _ in seen]) < 0.7


def test_the_rate_starts_anew_in_each_round(steps):
    """Adam's first move is as long as the rate, but where pixels are clipped."""
    for i, seen in steps.items():
        expected = loop.learning_rate(0.2, i % 10, 2, 10)
        np.testing.assert_allclose([move for *_, move in seen], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "family, config, expected",
    [
        ("swin", CONFIG, 0.25),  # as the release
        ("vit", SynthesisConfig(2, 2, iterations=20, learning_rate=0.03), 0.03),
        ("vit", SynthesisConfig(2, 2, iterations=20, recipe="default"), 0.1),
    ],
)
def test_rates(family, config, expected):
    model = random_model(MODULES[family])
    state = loop.initial_group(model, config, 0, 0)
    after, _ = step(model, config, state, 1)
    np.testing.assert_allclose(np.median(np.abs(after.variables - state.variables)), expected, rtol=1e-3)


@pytest.mark.parametrize("recipe, special_tokens", [("paper", 1), ("default", 3)])
def test_the_loss_is_the_configs(recipe, special_tokens):
    """Of a model with two registers, which the paper does not know; `objective` is the paper's."""
    model = random_model(VIT.clone(registers=2))
    config = SynthesisConfig(
        2, 2, iterations=20, recipe=recipe, bandwidth=0.05, cross_entropy_weight=0.3, total_variation_weight=0.2
    )  # fmt: skip
    state = loop.initial_group(model, config, 0, 0)
    _, terms = step(model, config, state, 0)

    @jax.jit
    def parts(images):
        logits, attention = record(model.module, model.params, images, "*/attention_output")
        entropies = [
            -sum(patch_similarity_entropy(a, 2, *of) for a in attention.values()) for of in ((), (special_tokens, 0.05))
        ]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, state.labels).mean()
        return *entropies, cross_entropy, jnp.abs(total_variation(images) - state.target)

    papers, entropy, cross_entropy, variation = parts(terms["seen"])
    expected = entropy + 0.3 * cross_entropy + 0.2 * variation, entropy, cross_entropy, variation
    np.testing.assert_allclose([terms[name] for name in loop.TERMS], expected, rtol=1e-4)  # float32, fused otherwise
    found, _ = jax.jit(loop.objective)(model, terms["seen"], state.labels, state.target)
    np.testing.assert_allclose(found, papers + cross_entropy + 0.05 * variation, rtol=1e-4)


def test_labels_and_targets_are_uniform():
    groups = jax.vmap(lambda group: loop.initial_group(random_model(), CONFIG, 0, group))(jnp.arange(500))
    assert np.bincount(np.ravel(groups.labels), minlength=5).min() > 150  # of 200 expected
    ends = np.array(CONFIG.total_variation) * np.sqrt(2 * 16 * 20 / (32 * 224 * 224))
    assert ends[0] <= groups.target.min() < ends @ [0.95, 0.05] and ends @ [0.05, 0.95] < groups.target.max() <= ends[1]
