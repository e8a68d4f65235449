"""Patch-similarity entropy (PSAQ-ViT, Li et al., ECCV 2022, section 3.2; the release's `generate_data.py`).

Real images excite diverse patch responses, noise excites like ones: the entropy of the distribution of the patches'
pairwise cosine similarities tells them apart. Pure functions of arrays; no Flax.

The gradient of the entropy is computed with its value, because both need the similarities and neither keeps them: a
layer leaves [b, p, d] for the backward pass, in place of [b, p, p]. On accelerators layers of one shape are computed
together: of every layer's small operations alone each would wait for the one before.

Shapes: b batch, h heads, n tokens, d head width, p patches (n without the special tokens), g grid points, i images.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.errors import InputError

GRID_POINTS = 10
BANDWIDTH = 0.01
SMOOTHING = 1e-4
EPSILON = 1e-8  # the least norm of a patch response
MOST_PARTS = 8  # of the sum over the similarities
AT_ONCE = 2**25  # similarities of layers that are computed together: 128 MB of them, twice


# For all layers of one shape; what is compiled stays the same.
_traced_once = functools.partial(jax.jit, static_argnames=("images", "bandwidth"), inline=True)


def patch_similarity(attention: jax.Array, special_tokens: int = 1) -> jax.Array:
    """Cosine similarity of every pair of patches, of the attention output averaged over the heads.

    Args:
      attention: [b, h, n, d], attention probabilities times values, before the projection.
      special_tokens: how many leading tokens to leave out. The paper leaves out token 0, for Swin too.
    Returns:
      [b, p, p] float32, the diagonal included. Norms count as at least 1e-8; the gradient is finite at zero vectors.
    Raises:
      ValueError: attention is not 4-dimensional.
      InputError: no patch is left.
    """
    return _products(_directions(_responses(attention, special_tokens)))


def _responses(attention, special_tokens):
    """The patches' responses, averaged over the heads: [b, p, d]."""
    if attention.ndim != 4:
        raise ValueError(f"attention is {attention.shape}, expected [batch, heads, tokens, head_dim]")
    if not 0 <= special_tokens < attention.shape[2]:
        found = f"special_tokens={special_tokens} leaves no patch of a layer with {attention.shape[2]}"
        raise InputError(f"{found} tokens; give a larger image_size, or for Swin config.synthesis.recipe=default")
    return attention.astype(jnp.float32).mean(axis=1)[:, special_tokens:]


def _directions(x):
    """The responses at length 1."""
    # The square root of a clamped sum: zero vectors get gradient zero, where a clamped norm would give NaN.
    # One division a patch, then a product: XLA makes this of x / norm too, but not in every partitioning.
    return x * (1 / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), EPSILON**2)))


def _products(directions):
    return jnp.einsum("bpd,bqd->bpq", directions, directions, precision="highest")


def patch_similarity_entropy(
    attention: jax.Array, images: int | None = None, special_tokens: int = 1, bandwidth: float = BANDWIDTH
) -> jax.Array:
    """The paper's patch-similarity entropy of one layer: a scalar, larger for more diverse patches.

    Args:
      attention: [b, h, n, d]; for Swin, b counts windows, image-major.
      images: how many images the b windows belong to (default: b, one window an image).
      special_tokens: leading tokens left out; 1 in the paper, for every model.
      bandwidth: of the density's Gaussian kernels, 0.01 in the paper. Pairs of patches get a gradient only if their
        similarity is within some bandwidths of a point of the grid, and those points are 0.1 apart where
        similarities reach from 0.1 to 1.
    Returns:
      float32 scalar: the mean over images of the entropy of their similarities' density, on one grid of 10 points
      from the least to the greatest similarity of the batch (no gradient through these two).
    Raises:
      ValueError: the windows cannot be shared out among the images, or as `patch_similarity`.
    """
    return total_entropy((attention,), images, special_tokens, bandwidth)


def total_entropy(
    attentions: Sequence[jax.Array], images: int | None = None, special_tokens: int = 1, bandwidth: float = BANDWIDTH
) -> jax.Array:
    """The sum of `patch_similarity_entropy` over layers: a scalar."""
    responses = tuple(_responses(attention, special_tokens) for attention in attentions)
    for x in responses:
        if images is not None and (images < 1 or len(x) % images):
            raise ValueError(f"{len(x)} windows cannot belong to {images} images alike")
    return sum(_entropies(responses, images, bandwidth))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _entropies(responses, images, bandwidth):
    """One scalar for each layer's responses [b, p, d]."""
    return [_entropy(x, images, bandwidth) for x in responses]


@_traced_once
def _entropy(responses, images, bandwidth):
    similarity = _pooled(_directions(responses), images)
    grid = similarity_grid(similarity)
    return _mean_entropy(kernel_density(similarity, grid, bandwidth), grid)


def _pooled(directions, images):
    """The similarities, those of an image's windows together: [i, rows, p]."""
    windows, patches, _ = directions.shape
    return _products(directions).reshape(images or windows, -1, patches)


def _entropies_and_gradients(responses, images, bandwidth):
    each = functools.partial(_entropy_and_gradient, images=images, bandwidth=bandwidth)
    together = functools.partial(_together, each)
    found = jax.lax.platform_dependent(*responses, cpu=lambda *layers: [each(x) for x in layers], default=together)
    return [entropy for entropy, _ in found], [gradient for _, gradient in found]


def _together(each, *layers):
    """`each` of the layers, of one shape at once."""
    found = {}
    for shape in dict.fromkeys(x.shape for x in layers):
        alike = [i for i, x in enumerate(layers) if x.shape == shape]
        most = max(1, AT_ONCE // (shape[0] * shape[1] ** 2))
        for some in (alike[i : i + most] for i in range(0, len(alike), most)):
            results = jax.vmap(each)(jnp.stack([layers[i] for i in some]))
            found |= {i: [y[k] for y in results] for k, i in enumerate(some)}
    return [tuple(found[i]) for i in range(len(layers))]


@_traced_once
def _entropy_and_gradient(responses, images, bandwidth):
    """The entropy, and its derivative [b, p, d]: a similarity belongs to two patches, and its matrix is symmetric."""
    directions, back = jax.vjp(_directions, responses)
    similarity = _pooled(directions, images)
    grid = similarity_grid(similarity)
    entropy, weights = jax.value_and_grad(_mean_entropy)(kernel_density(similarity, grid, bandwidth), grid)
    slope = density_gradient(similarity, grid, weights, bandwidth).reshape(len(directions), -1, similarity.shape[-1])
    (gradient,) = back(2 * jnp.einsum("bpq,bqd->bpd", slope, directions, precision="highest"))
    return entropy, gradient


def _entropies_backward(images, bandwidth, gradients, cotangents):
    return (tuple(c * gradient for c, gradient in zip(cotangents, gradients, strict=True)),)


_entropies.defvjp(_entropies_and_gradients, _entropies_backward)


def similarity_grid(similarity: jax.Array) -> jax.Array:
    """[g] evenly spaced points from the least to the greatest similarity of the whole batch, without gradient."""
    similarity = jax.lax.stop_gradient(similarity)
    # Not jnp.linspace: XLA computes its steps anew in every kernel, and rounds them as the partitioning has it.
    share = np.linspace(0, 1, GRID_POINTS, dtype=np.float32)
    return similarity.min() * (1 - share) + similarity.max() * share


def _mean_entropy(density, grid):
    """Entropy of the densities [i, g] at the grid [g] by the trapezoid rule, averaged over the images."""
    smoothed = density + SMOOTHING
    entropy = -smoothed * jnp.log(smoothed)
    return jnp.sum((entropy[:, 1:] + entropy[:, :-1]) / 2 * jnp.diff(grid), axis=-1).mean()


def kernel_density(similarity: jax.Array, grid: jax.Array, bandwidth: float = BANDWIDTH) -> jax.Array:
    """Gaussian kernel density of each image's similarities [i, ...] at the grid points [g]: [i, g].

      p(x) = mean_s exp(−(x−s)²/2h²) / (h·√(2π))

    Point by point, so that nothing as large as [g, p, p] is held.
    """
    in_parts, at_once = (functools.partial(f, bandwidth=bandwidth) for f in (_sums_in_parts, _sums_at_once))
    sums = jax.lax.platform_dependent(similarity, grid, tpu=at_once, default=in_parts)
    return sums * np.float32(1 / (bandwidth * np.sqrt(2 * np.pi) * similarity[0].size))


def _sums_in_parts(similarity, grid, bandwidth):
    """Each point's kernel [i, g], first added up over parts of the similarities: one elementwise pass, which writes
    only these sums. Of ten reductions XLA makes ten passes, except on a TPU.
    """
    parts = max(n for n in range(1, MOST_PARTS + 1) if similarity[0].size % n == 0)
    split = similarity.reshape(len(similarity), parts, -1)
    return jnp.stack([sum(_kernel(split[:, n], x, bandwidth) for n in range(parts)) for x in grid], axis=1).sum(axis=-1)


def _sums_at_once(similarity, grid, bandwidth):
    """The same by reductions, of which XLA makes one pass on a TPU, and ten of the sums in parts."""
    axes = tuple(range(1, similarity.ndim))
    return jnp.stack([jnp.sum(_kernel(similarity, x, bandwidth), axes) for x in grid], axis=1)


def density_gradient(
    similarity: jax.Array, grid: jax.Array, weights: jax.Array, bandwidth: float = BANDWIDTH
) -> jax.Array:
    """The derivative of Σ weights·density with respect to the similarities [i, rows, p]; weights are [i, g].

    dp(x)/ds = exp(−(x−s)²/2h²)·(x−s)/h² / (h·√(2π)) / count
    """
    weights = weights * np.float32(1 / (bandwidth**3 * np.sqrt(2 * np.pi) * similarity[0].size))
    fewest, all_points = (functools.partial(f, bandwidth=bandwidth) for f in (_fewest_slopes, _slope))
    # Elsewhere exponentials are cheap, and a branch makes the host wait for the device.
    return jax.lax.platform_dependent(similarity, grid, weights, cpu=fewest, default=all_points)


def _fewest_slopes(similarity, grid, weights, bandwidth):
    """The wider the grid, the fewer exponentials: of points 16 bandwidths apart, only the nearest counts.

    All others are more than 8 bandwidths away, where the kernel is less than exp(−32), 1e-14: below the resolution of
    float32. Points far enough apart make a class, and each class takes one exponential.
    """
    classes = (2, 3, 5, GRID_POINTS)
    narrow = (grid[1] - grid[0]) * np.float32(classes) < 16 * bandwidth
    choice = jnp.minimum(jnp.sum(narrow), len(classes) - 1)
    branches = [functools.partial(_slope, bandwidth=bandwidth, classes=n) for n in classes]
    return jax.lax.switch(choice, branches, similarity, grid, weights)


def _slope(similarity, grid, weights, bandwidth, classes=GRID_POINTS):
    """Each class holds every `classes`-th point of the grid."""
    total = 0.0
    for first in range(classes):
        x, w = grid[first], weights[:, first, None, None]
        for k in range(first + classes, len(grid), classes):
            beyond = similarity > (grid[k - classes] + grid[k]) / 2
            x, w = jnp.where(beyond, grid[k], x), jnp.where(beyond, weights[:, k, None, None], w)
        total += w * _kernel(similarity, x, bandwidth) * (x - similarity)
    return total


def _kernel(similarity, x, bandwidth):
    return jnp.exp(jnp.square(x - similarity) * np.float32(-0.5 / bandwidth**2))
