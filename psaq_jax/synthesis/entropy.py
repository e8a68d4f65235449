"""Patch-similarity entropy (PSAQ-ViT, Li et al., ECCV 2022, section 3.2; the release's `generate_data.py`).

Real images excite diverse patch responses, noise excites like ones: the entropy of the distribution of the patches'
pairwise cosine similarities tells them apart. Pure functions of arrays; no Flax.

The gradient of the entropy is computed with its value, because both need the similarities and their kernels, and
neither keeps them: a layer leaves [b, p, d] for the backward pass, in place of [b, p, p]. Layers of one shape take
turns in a loop, which is compiled once.

Shapes: b batch, h heads, n tokens, d head width, p patches (n without the special tokens), g grid points, i images.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

GRID_POINTS = 10
BANDWIDTH = 0.01
HEIGHT = BANDWIDTH * np.sqrt(2 * np.pi)  # what a kernel is divided by
SMOOTHING = 1e-4
EPSILON = 1e-8  # the least norm of a patch response
MOST_PARTS = 8  # of the patches, and of the sum over the similarities
NARROW, WIDE = 1.8, 8  # distances of grid points, in bandwidths


def patch_similarity(attention: jax.Array, special_tokens: int = 1) -> jax.Array:
    """Cosine similarity of every pair of patches, of the attention output averaged over the heads.

    Args:
      attention: [b, h, n, d], attention probabilities times values, before the projection.
      special_tokens: how many leading tokens to leave out. The paper leaves out token 0, for Swin too.
    Returns:
      [b, p, p] float32, the diagonal included. Norms count as at least 1e-8; the gradient is finite at zero vectors.
    Raises:
      ValueError: attention is not 4-dimensional, or no patch is left.
    """
    directions = _directions(_responses(attention, special_tokens))
    return jnp.einsum("bpd,bqd->bpq", directions, directions, precision="highest")


def _responses(attention, special_tokens):
    """The patches' responses, averaged over the heads: [b, p, d]."""
    if attention.ndim != 4:
        raise ValueError(f"attention is {attention.shape}, expected [batch, heads, tokens, head_dim]")
    if not 0 <= special_tokens < attention.shape[2]:
        raise ValueError(f"special_tokens={special_tokens} leaves no patch of {attention.shape[2]} tokens")
    return attention.astype(jnp.float32).mean(axis=1)[:, special_tokens:]


def _directions(x):
    """The responses at length 1."""
    # The square root of a clamped sum: zero vectors get gradient zero, where a clamped norm would give NaN.
    # One division a patch, then a product: XLA makes this of x / norm too, but not in every partitioning.
    return x * (1 / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), EPSILON**2)))


def patch_similarity_entropy(attention: jax.Array, images: int | None = None, special_tokens: int = 1) -> jax.Array:
    """The paper's patch-similarity entropy of one layer: a scalar, larger for more diverse patches.

    Args:
      attention: [b, h, n, d]; for Swin, b counts windows, image-major.
      images: how many images the b windows belong to (default: b, one window an image).
      special_tokens: leading tokens left out; 1 in the paper, for every model.
    Returns:
      float32 scalar: the mean over images of the entropy of their similarities' density, on one grid of 10 points
      from the least to the greatest similarity of the batch (no gradient through these two).
    Raises:
      ValueError: the windows cannot be shared out among the images, or as `patch_similarity`.
    """
    return total_patch_similarity_entropy([attention], images, special_tokens)


def total_patch_similarity_entropy(
    layers: Iterable[jax.Array], images: int | None = None, special_tokens: int = 1
) -> jax.Array:
    """The sum of the layers' `patch_similarity_entropy`; the layers [b, h, n, d] may differ in shape."""
    stacks, total = {}, 0.0
    for attention in layers:
        responses = _responses(attention, special_tokens)
        stacks.setdefault(responses.shape, []).append(responses)
    for shape, stack in stacks.items():
        count = shape[0] if images is None else images
        if count < 1 or shape[0] % count:
            raise ValueError(f"{shape[0]} windows cannot belong to {count} images alike")
        total += _entropies(jnp.stack(stack), count).sum()
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _entropies(responses, images):
    """Of each layer of [layers, b, p, d]: [layers]."""
    return jax.lax.map(functools.partial(_entropy, images=images), responses)


def _entropies_and_gradients(responses, images):
    """The entropies, and their derivatives [layers, b, p, d]: each takes the place of the layer's responses."""

    def layer(stack, i):
        entropy, gradient = _entropy_and_gradient(stack[i], images)
        return stack.at[i].set(gradient), entropy

    gradients, entropies = jax.lax.scan(layer, responses, jnp.arange(len(responses)))
    return entropies, gradients


_entropies.defvjp(_entropies_and_gradients, lambda _, gradients, c: (c[:, None, None, None] * gradients,))


def _entropy(responses, images):
    similarity, times = _pairs(_directions(responses), images)
    grid = similarity_grid(similarity)
    return _mean_entropy(_density(similarity, times, _each_point(similarity, grid)), grid)


def _entropy_and_gradient(responses, images):
    """The entropy, and its derivative [b, p, d]."""
    similarity, pull, times = jax.vjp(lambda x: _pairs(_directions(x), images), responses, has_aux=True)
    # Elsewhere exponentials are cheap, and a branch makes the host wait for the device.
    each_point, fewest = (functools.partial(f, times) for f in (_entropy_and_slope, _fewest_exponentials))
    grid = similarity_grid(similarity)
    entropy, slope = jax.lax.platform_dependent(similarity, grid, cpu=fewest, default=each_point)
    return entropy, pull(slope)[0]


def _pairs(directions, images):
    """Every pair of patches once, more or less, as the matrix of similarities is symmetric.

    The patches make a ring of k blocks; each block meets itself and those up to half way around.

    Returns:
      similarities [i, rows, columns], and how often each column [columns] stands in the whole matrix: twice, but for
      blocks that meet themselves, and those half way around an even ring, whom they meet from both sides.
    """
    b, p, d = directions.shape
    k = min((n for n in range(1, MOST_PARTS + 1) if p % n == 0), key=lambda n: (n // 2 + 1) / n)
    distances = np.arange(k // 2 + 1)
    block = directions.reshape(b, k, p // k, d)
    others = jnp.concatenate([jnp.roll(block, -n, axis=1) for n in distances], axis=2)
    similarity = jnp.einsum("bkmd,bknd->bkmn", block, others, precision="highest")
    times = np.where(2 * distances % k == 0, 1, 2).astype(np.float32)
    return similarity.reshape(images, -1, similarity.shape[-1]), np.repeat(times, p // k)


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


def kernel_density(similarity: jax.Array, grid: jax.Array) -> jax.Array:
    """Gaussian kernel density of each image's similarities [i, ...] at the grid points [g]: [i, g].

    p(x) = mean_s exp(−(x−s)²/2h²) / (h·√(2π))
    """
    similarity = similarity.reshape(len(similarity), -1, similarity.shape[-1])
    times = np.ones(similarity.shape[-1], np.float32)
    return _density(similarity, times, _each_point(similarity, grid), len(grid))


def _density(similarity, times, kernel, points=GRID_POINTS):
    """Point by point, so that nothing as large as [g, p, p] is held. Each point's kernel is first added up over
    `parts` of the rows, in one elementwise pass that writes only the sums."""
    images, rows, columns = similarity.shape
    parts = max(n for n in range(1, MOST_PARTS + 1) if rows % n == 0)
    split = (kernel(k).reshape(images, parts, -1, columns) for k in range(points))
    sums = jnp.stack([sum(part[:, n] for n in range(parts)) for part in split], axis=1)
    return (sums.sum(axis=2) * times).sum(axis=-1) * np.float32(1 / (HEIGHT * rows * times.sum()))


def _entropy_and_slope(times, similarity, grid, kernels=None):
    """The entropy of similarities [i, rows, columns], and its derivative with respect to them.

      dp(x)/ds = exp(−(x−s)²/2h²)·(x−s)/h² / (h·√(2π)) / count

    `kernels` says how to compute exp(−(x−s)²/2h²): it returns what all points share, as a function of the point.
    """
    kernel = (kernels or _each_point)(similarity, grid)
    entropy, weights = jax.value_and_grad(_mean_entropy)(_density(similarity, times, kernel), grid)
    # Both passes compute the points' kernels, from what all points share: XLA would keep all ten from one to the other.
    kernel, weights = jax.lax.optimization_barrier((kernel, weights))
    weights = weights * np.float32(1 / (HEIGHT * BANDWIDTH**2 * similarity.shape[1] * times.sum()))
    terms = (weights[:, k, None, None] * kernel(k) * (grid[k] - similarity) for k in range(GRID_POINTS))
    return entropy, sum(terms) * times


def _fewest_exponentials(times, similarity, grid):
    """A narrow grid takes two exponentials, a wide one takes two, and what lies between takes one for each point."""
    distance = (grid[-1] - grid[0]) / (GRID_POINTS - 1) / BANDWIDTH
    branches = [functools.partial(_entropy_and_slope, times, kernels=f) for f in (_by_powers, _each_point, _by_nearest)]
    choice = jnp.int32(distance >= NARROW) + jnp.int32(distance >= WIDE)
    return jax.lax.switch(choice, branches, similarity, grid)


def _each_point(similarity, grid):
    return Partial(lambda s, x, k: _kernel(s, x[k]), similarity, grid)


def _by_powers(similarity, grid):
    """With u = (s−x₄)/h and the points' distance δh:  exp(−(u−jδ)²/2) = exp(−u²/2)·exp(uδ)ʲ·exp(−j²δ²/2)

    Neither factor leaves the range of float32 while 25δ² < 88.
    """
    distance = (grid[-1] - grid[0]) * np.float32(1 / (GRID_POINTS - 1) / BANDWIDTH)
    u = (similarity - grid[4]) * np.float32(1 / BANDWIDTH)
    middle, ratio = jax.lax.optimization_barrier((jnp.exp(-0.5 * u * u), jnp.exp(u * distance)))
    factor = jnp.exp(-0.5 * jnp.square((np.arange(GRID_POINTS, dtype=np.float32) - 4) * distance))
    return Partial(lambda m, r, f, k: m * r ** (k - 4) * f[k], middle, ratio, factor)


def _by_nearest(similarity, grid):
    """One exponential for the even points and one for the odd ones: 16 bandwidths apart, only the nearest counts.

    All others are more than 8 bandwidths away, where the kernel is less than exp(−32), 1e-14: below the resolution of
    float32.
    """
    nearest = [grid[0], grid[1]]
    for k in range(2, GRID_POINTS):
        nearest[k % 2] = jnp.where(similarity > grid[k - 1], grid[k], nearest[k % 2])
    kernels = jax.lax.optimization_barrier([_kernel(similarity, x) for x in nearest])
    reach = grid[1] - grid[0]
    return Partial(
        lambda s, x, near, k: jnp.where(jnp.abs(s - x[k]) < reach, near[k % 2], 0), similarity, grid, kernels
    )


def _kernel(similarity, x):
    return jnp.exp(jnp.square(x - similarity) * np.float32(-0.5 / BANDWIDTH**2))
