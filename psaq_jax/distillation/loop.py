"""Both turns of the competition: the generator's images enlarge what the student's step makes small.

Shapes: b images of a batch, [b, height, width, 3]. Arrays of images may be sharded over their first axis: every loss is
a mean over all of them, so the compiler averages the student's gradients over the devices.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.distillation.student import Grids, Learned, student_pass
from psaq_jax.models.model import Model, exact_products
from psaq_jax.sites import record
from psaq_jax.synthesis import loop
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.synthesis.priors import jitter

BLOCKS = "*/residual2"  # the blocks' outputs
REACH = 30 / 224  # of the student's jitter, in parts of the image: the synthesis' own in its last round


def discrepancy(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """PSAQ-ViT V2's measure of how teacher and student differ: the mean absolute error of their outputs, a scalar."""
    return jnp.mean(jnp.abs(teacher - student))


def generator_config(config: DistillationConfig, synthesis: SynthesisConfig) -> SynthesisConfig:
    """The synthesis of one turn's images."""
    return dataclasses.replace(
        synthesis, num_images=config.batch_size, group_size=config.batch_size,
        iterations=max(1, config.generator_iterations), cross_entropy_weight=config.generator_cross_entropy,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("synthesis",), donate_argnames="state")
def generator_step(teacher: Model, grids: Grids, learned: Learned, synthesis, weight, state, iteration):
    """One iteration of the generator's images: the synthesis' loss − weight·discrepancy. Returns (state, terms).

    V2's: patch-similarity entropy, total variation and discrepancy, no labels. Ours: jitter, clip and rates, which are
    the synthesis' own.
    """

    def compete(images, logits):
        found, _ = student_pass(teacher.module, grids, learned, images)
        value = discrepancy(logits, found)
        return -weight * value, {"discrepancy": value}

    return loop.step(teacher, synthesis, state, iteration, compete)


class Weights(NamedTuple):
    """What a step of the student weighs its parts with; float32 scalars, so that other values compile nothing anew."""

    features: jax.Array
    mixing: jax.Array
    rate: jax.Array  # of all rates: up to 1, then down to 0


def weights(config: DistillationConfig, step: int) -> Weights:
    """Those of one step of the student, counted over all turns: the rates rise for a tenth, then fall as a cosine.

    Adam's first steps are all of full length, whatever the gradient, and the start is too good for them.
    """
    rate = loop.learning_rate(1.0, step, config.steps // 10, config.steps)
    return Weights(np.float32(config.feature_weight), np.float32(config.mixing), rate)


def rates(config: DistillationConfig, sizes: Learned) -> Learned:
    """How far a step of Adam moves each parameter, given the parameters' sizes (see `student.units`)."""
    kinds = Learned(config.kernel_rate, config.scale_rate, config.scale_rate, config.float_rate)
    return Learned(*(jax.tree.map(lambda s, r=r: r * s, size) for size, r in zip(sizes, kinds, strict=True)))


adam = optax.scale_by_adam()


@functools.partial(jax.jit, donate_argnames=("learned", "state"))
def student_step(teacher: Model, grids: Grids, rates: Learned, weights: Weights, learned, state, images, key):
    """One step of the student against the discrepancy: (learned, Adam's state, terms).

    V2's: the discrepancy of the outputs. Ours: that of the blocks' outputs beside it, each over its mean magnitude.
    """
    images = augment(images, key, weights.mixing)
    with exact_products(teacher.module.dtype):
        logits, blocks = record(teacher.module, teacher.params, images, BLOCKS)

    def loss_fn(learned):
        found, kept = student_pass(teacher.module, grids, learned, images, blocks.__contains__)
        outputs = discrepancy(logits, found)
        features = sum(relative(y, kept[name]) for name, y in blocks.items()) / len(blocks)
        return outputs + weights.features * features, {"discrepancy": outputs, "features": features}

    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(learned)
    direction, state = adam.update(gradient, state)
    learned = jax.tree.map(lambda x, r, d: x - weights.rate * r * d, learned, rates, direction)
    return learned, state, terms | {"loss": loss}


def relative(teacher: jax.Array, student: jax.Array) -> jax.Array:
    teacher = teacher.astype(jnp.float32)
    return discrepancy(teacher, student.astype(jnp.float32)) / jnp.mean(jnp.abs(teacher))


def augment(images: jax.Array, key: jax.Array, mixing) -> jax.Array:
    """Jitter of the whole batch, and of a part `mixing` of the images a blend with another one (mixup, Zhang et al.,
    ICLR 2018; the teacher says what a blend is, so there are no labels to blend).
    """
    key_offset, key_flip, key_part, key_order, key_chosen = jax.random.split(key, 5)
    reach = round(min(images.shape[1:3]) * REACH)
    offset = jax.random.randint(key_offset, (), -reach, reach + 1)
    images = jitter(images, offset, jax.random.bernoulli(key_flip))
    shape = (len(images), 1, 1, 1)
    other = jnp.where(jax.random.bernoulli(key_chosen, mixing, shape), jax.random.uniform(key_part, shape), 0.0)
    return (1 - other) * images + other * images[jax.random.permutation(key_order, len(images))]
