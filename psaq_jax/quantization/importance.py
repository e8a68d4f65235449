"""How much an error at each token costs: the squared gradient of the logits there, on the calibration images alone.

Ranges of least squared error treat all tokens alike. A class token's errors reach the logits whole, a patch's as one of
hundreds, and an outlier token's hardly at all. This is the diagonal of the Gauss-Newton matrix, summed up by token; by
element it is what BRECQ (Li et al., ICLR 2021) weighs its errors with.

Shapes: n images, b of a batch, r rows of one image (tokens, for softmax outputs heads and tokens).
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.models.model import Model, exact_products
from psaq_jax.quantization import streaming
from psaq_jax.quantization.recipes import site_filter
from psaq_jax.quantization.statistics import channels_last, has_heads
from psaq_jax.sites import apply_with_tap, record

BATCH = 8  # images a backward pass through the whole model, at most
AS_THEY_ARE = ("attention_probabilities", "activation_output")  # not folded, but at 8 bits and in a SwiGLU
LEAST = 0.01  # what a token without any gradient counts, beside 1 on average


def token_importance(model: Model, images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """{site of recipe "default", but for the pixels: [n, r] float32}, on average 1 in each image.

    Args:
      images: [n, height, width, 3] float32, normalised. seed: of the random combinations of the logits, one an image.
    """
    return by_batches(_importance, model, images, seed)


def by_batches(function, model: Model, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What `function(model, batch, key) -> {name: [b, ...]}` gives for all images, {name: [n, ...]}; a key a batch."""
    found = {}
    for part, mask, key in backward_batches(model, images, seed):
        for name, rows in function(model, part, key).items():
            found.setdefault(name, []).append(np.asarray(rows)[mask > 0])
    return {name: np.concatenate(rows) for name, rows in found.items()}


def backward_batches(model: Model, images: np.ndarray, seed: int) -> Iterator[tuple]:
    """(batch, its mask [b], a key of its own), each as large as a backward pass through the whole model takes."""
    one = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    sites = jax.eval_shape(lambda x: record(model.module, model.params, x, "*")[1], one)
    size = streaming.images_at_once(sites, 1, BATCH)
    for number, (part, mask) in enumerate(streaming.batches(images, size=size)):
        yield part, mask, jax.random.fold_in(jax.random.key(seed), number)


@jax.jit
def _importance(model: Model, images, key) -> dict[str, jax.Array]:
    """One batch's, {site: [b, r]}. The expected square over random weights is the sum of squares over the logits."""
    wanted = site_filter("default")
    gradients, seen = site_gradients(model, images, key, lambda name: wanted(name) and name != "input")
    return {name: _by_rows(name, seen[name], gradient, len(images)) for name, gradient in gradients.items()}


def site_gradients(
    model: Model, images, key, wanted: Callable[[str], bool]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """({site: gradient of a random combination of each image's logits}, {site: its tensor}) of the wanted sites.

    What shifts all logits of an image alike changes no prediction, and moves nothing here.
    """
    sites = jax.eval_shape(lambda x: record(model.module, model.params, x, "*")[1], images)
    offsets = {name: jnp.zeros(y.shape, y.dtype) for name, y in sites.items() if wanted(name)}
    return jax.grad(lambda offsets: _combine(model, images, key, offsets), has_aux=True)(offsets)


def _combine(model: Model, images, key, offsets: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(the combinations, summed up, {site: its tensor}), with `offsets` added to sites."""
    seen = {}

    def tap(name, y):
        if name not in offsets:
            return y
        seen[name] = y
        return y + offsets[name]

    with exact_products(model.module.dtype):
        logits = apply_with_tap(model.module, model.params, images, tap)
    weights = jax.random.normal(key, logits.shape)
    if logits.shape[-1] > 1:  # one logit alone has nothing to be compared with
        weights -= weights.mean(-1, keepdims=True)
    return jnp.sum(weights * logits), seen


def _by_rows(name: str, x, gradient, images: int) -> jax.Array:
    """[b, r]. Channels that folding evens out share one step in the end, so there an error is a part of the channel's
    own spread: scaled channels change nothing."""
    x, gradient = (channels_last(y, has_heads(name)) for y in (x, gradient))
    x, gradient = (y.reshape(images, -1, y.shape[-1]) for y in (x, gradient))
    if name.rpartition("/")[2] not in AS_THEY_ARE:
        gradient = gradient * jnp.std(x, axis=1, keepdims=True)
    square = jnp.sum(jnp.square(gradient), -1)
    mean = square.mean(1, keepdims=True)
    return LEAST + (1 - LEAST) * jnp.where(mean > 0, square / jnp.where(mean > 0, mean, 1), 1)
