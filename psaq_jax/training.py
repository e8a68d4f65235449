"""Training from scratch on small images: the bundled ViT, and a small Swin. Used by `launch.train_demo` alone.

Shapes: b batch, images [b, height, width, 3] in normalised pixels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psaq_jax.progress import Progress


class TrainState(NamedTuple):
    params: dict
    average: dict  # exponential moving average of params: what is evaluated and saved
    optimizer: optax.OptState
    step: jax.Array


def make_optimizer(learning_rate: float, steps: int, warmup: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay to zero; decay on matrices only; gradients clipped at norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps)
    decayed = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay, mask=decayed))


def augment(key: jax.Array, images: jax.Array, margin: int) -> jax.Array:
    """A flip with probability one half and a shift of at most `margin` pixels (edges repeated), per image."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")

    def one(key, image):
        key_offset, key_flip = jax.random.split(key)
        row, column = jax.random.randint(key_offset, (2,), 0, 2 * margin + 1)
        image = jax.lax.dynamic_slice(image, (row, column, 0), (height, width, image.shape[-1]))
        return jnp.where(jax.random.bernoulli(key_flip), image[:, ::-1], image)

    return jax.vmap(one)(jax.random.split(key, images.shape[0]), padded)


def make_train_step(module, optimizer, *, seed: int, margin: int, label_smoothing: float, average_decay: float):
    """Returns jitted `step(state, images [b, h, w, 3], labels [b]) -> (state, loss)`; randomness follows the step."""

    def loss_fn(params, images, labels):
        logits = module.apply({"params": params}, images)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, images, labels):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, gradients = jax.value_and_grad(loss_fn)(state.params, augment(key, images, margin), labels)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        return TrainState(params, average, optimizer_state, state.step + 1), loss

    return step


def initial_state(module, optimizer, pixels, seed: int) -> TrainState:
    params = module.init(jax.random.key(seed), pixels)["params"]
    return TrainState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32))


def train_epoch(
    step, state: TrainState, images, labels, batch_size: int, seed: int, epoch: int, progress: Progress | None = None
) -> tuple[TrainState, float]:
    """One pass over all whole batches, in an order of (seed, epoch): (state, mean loss; not finite where one is not).

    Args:
      step: of `make_train_step`; progress: called with (batches done, in all).
    """
    order, losses = np.random.default_rng((seed, epoch)).permutation(len(images)), []
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    for done, picked in enumerate(batches, 1):
        state, loss = step(state, images[picked], labels[picked])
        losses.append(float(loss))  # waits: Ctrl-C would be heard behind all steps that are queued
        if progress:
            progress(done, len(batches))
    return state, float(np.mean(losses))


def top1(module, params, images, labels) -> float:
    """Percent of images [n, h, w, 3] that the module takes for what their labels [n] say."""
    guesses = np.concatenate([_guess(module, params, part) for part in np.array_split(images, 20)])
    return float(np.mean(guesses == labels) * 100)


@functools.partial(jax.jit, static_argnames="module")
def _guess(module, params, images):
    return jnp.argmax(module.apply({"params": params}, images), -1)
