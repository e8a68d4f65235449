"""The synthesis loop: from Gaussian noise to calibration images, by Adam on pixels or frequencies, in one scan.

A *group* of images is optimized together and knows nothing of other groups, so groups spread over devices and hosts
without communication. All randomness is folded in from (seed, group, iteration): a resumed run, another chunk length
or another number of devices gives the same images. Shapes: b images of a group, [b, height, width, 3].
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from psaq_jax.models.model import Model, exact_products
from psaq_jax.sites import record
from psaq_jax.synthesis import frequencies
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.entropy import total_entropy
from psaq_jax.synthesis.priors import IMAGENET_MEAN, IMAGENET_STD, clip, jitter, total_variation

TERMS = ("loss", "entropy", "cross_entropy", "total_variation")
Extra = Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class GroupState(NamedTuple):
    """A group under way. `key` drives the steps; `labels` and `target` are drawn once."""

    variables: jax.Array  # [b, height, width, 3]: normalised pixels, or what `shown` makes them of
    adam: optax.ScaleByAdamState
    labels: jax.Array  # [b] int32
    target: jax.Array  # scalar, total variation
    key: jax.Array


def objective(model: Model, images, labels, tv_target) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The paper's loss of images that are already jittered, differentiable in `images`.

      loss = −Σ_layers entropy + cross_entropy_weight·cross_entropy + total_variation_weight·|TV − target|

    Args:
      images: [b, height, width, 3] normalised.
      labels: [b] int, the classes that the images shall show.
      tv_target: total variation to aim at, for these images as they are (no scaling here).
    Returns:
      (loss, {"loss", "entropy": −Σ_layers, "cross_entropy": mean, "total_variation": |TV − target|}), float32 scalars.
    """
    loss, terms, _ = _objective(model, SynthesisConfig(), images, labels, tv_target)
    return loss, terms


def _objective(model: Model, config: SynthesisConfig, images, labels, tv_target):
    """`objective` by a config and, third, the logits."""
    special_tokens = 1 if config.recipe == "paper" else model.module.special_tokens
    with exact_products(model.module.dtype):
        logits, attention = record(model.module, model.params, images, "*/attention_output")
    entropy = -total_entropy(list(attention.values()), len(images), special_tokens, config.bandwidth)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    variation = jnp.abs(total_variation(images) - tv_target)
    loss = entropy + config.cross_entropy_weight * cross_entropy + config.total_variation_weight * variation
    terms = {"loss": loss, "entropy": entropy, "cross_entropy": cross_entropy, "total_variation": variation}
    return loss, terms, logits


def learning_rate(base, iteration, warmup: int, iterations: int) -> jax.Array:
    """The rate of one iteration of a round: linear warm-up to `base`, then a cosine to zero.

    base·(i+1)/warmup for i < warmup, then base·(1+cos(π(i−warmup)/(iterations−warmup)))/2
    """
    i = jnp.asarray(iteration, jnp.float32)
    cosine = (1 + jnp.cos(jnp.pi * (i - warmup) / max(iterations - warmup, 1))) / 2
    return base * jnp.where(i < warmup, (i + 1) / max(warmup, 1), cosine)


def initial_group(model: Model, config: SynthesisConfig, seed, group) -> GroupState:
    """The start of group number `group`: noise, labels, variation target. The seed and the group may be traced."""
    key = jax.random.fold_in(jax.random.key(seed), group)
    key_noise, key_labels, key_target, key_steps = jax.random.split(key, 4)
    height, width = model.image_size
    noise = jax.random.normal(key_noise, (config.group_size, height, width, 3))
    least, greatest = config.total_variation
    scale = (config.group_size * height * width / (32 * 224 * 224)) ** 0.5
    return GroupState(
        variables=noise,
        adam=adam().init(noise),
        labels=jax.random.randint(key_labels, (config.group_size,), 0, model.classes),
        target=jax.random.uniform(key_target, minval=least, maxval=greatest) * scale,
        key=key_steps,
    )


def shown(model: Model, config: SynthesisConfig, variables: jax.Array) -> jax.Array:
    """The normalised images of a group's variables, both [b, height, width, 3]."""
    if config.parametrization == "pixels":
        return variables
    return frequencies.images(variables, *_normalization(model, paper=False))


def adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.5, b2=0.9, eps=1e-8)


def step(
    model: Model, config: SynthesisConfig, state: GroupState, iteration, extra: Extra | None = None
) -> tuple[GroupState, dict]:
    """One iteration of one group: jitter, loss, gradient, Adam, clip. Returns (state, terms).

    `extra` gives a further term of the loss, and its own terms, from the jittered images and their logits.
    """
    paper = config.recipe == "paper"
    turn, i = iteration // config.round_length, iteration % config.round_length
    key_offset, key_flip = jax.random.split(jax.random.fold_in(state.key, iteration))
    scale = min(model.image_size) / 224
    reach = jnp.asarray([round(pixels * scale) for pixels in config.jitter])[turn]
    offset = jax.random.randint(key_offset, (), -reach, reach + 1)
    flip = jax.random.bernoulli(key_flip)

    def loss_fn(variables):
        images = jitter(shown(model, config, variables), offset, flip)
        loss, terms, logits = _objective(model, config, images, state.labels, state.target)
        if extra is None:
            return loss, terms
        more, more_terms = extra(images, logits)
        return loss + more, terms | more_terms | {"loss": loss + more}

    gradient, terms = jax.grad(loss_fn, has_aux=True)(state.variables)
    pixels = config.parametrization == "pixels"
    usual = getattr(model.module, "synthesis_learning_rate", 0.2) if pixels else frequencies.LEARNING_RATE
    rate = learning_rate(config.learning_rate or usual, i, config.warmup, config.round_length)
    state = update(state, gradient, rate, *_normalization(model, paper)) if pixels else move(state, gradient, rate)
    return state, terms


def move(state: GroupState, gradient, rate) -> GroupState:
    """Adam's step against `gradient`."""
    direction, moments = adam().update(gradient, state.adam)
    return state._replace(variables=state.variables - rate * direction, adam=moments)


def update(state: GroupState, gradient, rate, mean=IMAGENET_MEAN, std=IMAGENET_STD, white=1.0) -> GroupState:
    """Adam's step against `gradient` and the clip of pixels (`priors.clip`)."""
    state = move(state, gradient, rate)
    return state._replace(variables=clip(state.variables, mean, std, white))


def _normalization(model: Model, paper: bool):
    """(mean, std, white before normalisation)."""
    if paper:
        return IMAGENET_MEAN, IMAGENET_STD, 1.0
    preprocessing = model.preprocessing
    return preprocessing.mean, preprocessing.std, 255 * preprocessing.rescale_factor


def scan_chunk(model: Model, config: SynthesisConfig, state: GroupState, start, length: int):
    """`length` iterations of one group from iteration `start` in one scan: (state, {term: [length]})."""
    return jax.lax.scan(functools.partial(step, model, config), state, start + jnp.arange(length))
