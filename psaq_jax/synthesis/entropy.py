"""Patch-similarity entropy (PSAQ-ViT, Li et al., ECCV 2022, section 3.2; the release's `generate_data.py`).

Real images excite diverse patch responses, noise excites like ones: the entropy of the distribution of the patches'
pairwise cosine similarities tells them apart. Pure functions of arrays; no Flax.

Shapes: b batch, h heads, n tokens, d head width, p patches (n without the special tokens), g grid points, i images.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

GRID_POINTS = 10
BANDWIDTH = 0.01
SMOOTHING = 1e-4
EPSILON = 1e-8  # the least norm of a patch response


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
    if attention.ndim != 4:
        raise ValueError(f"attention is {attention.shape}, expected [batch, heads, tokens, head_dim]")
    if not 0 <= special_tokens < attention.shape[2]:
        raise ValueError(f"special_tokens={special_tokens} leaves no patch of {attention.shape[2]} tokens")
    x = attention.astype(jnp.float32).mean(axis=1)[:, special_tokens:]
    # The square root of a clamped sum: zero vectors get gradient zero, where a clamped norm would give NaN.
    # One division a patch, then a product: XLA makes this of x / norm too, but not in every partitioning.
    x = x * (1 / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), EPSILON**2)))
    return jnp.einsum("bpd,bqd->bpq", x, x, precision="highest")


def patch_similarity_entropy(
    attention: jax.Array, images: int | None = None, special_tokens: int = 1
) -> jax.Array:
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
    similarity = patch_similarity(attention, special_tokens)
    images = len(similarity) if images is None else images
    if images < 1 or len(similarity) % images:
        raise ValueError(f"{len(similarity)} windows cannot belong to {images} images alike")
    grid = similarity_grid(similarity)
    per_image = jax.vmap(functools.partial(image_entropy, grid=grid))
    return per_image(similarity.reshape(images, -1, similarity.shape[-1])).mean()


def similarity_grid(similarity: jax.Array) -> jax.Array:
    """[g] evenly spaced points from the least to the greatest similarity of the whole batch, without gradient."""
    similarity = jax.lax.stop_gradient(similarity)
    return jnp.linspace(similarity.min(), similarity.max(), GRID_POINTS)


def image_entropy(similarity: jax.Array, grid: jax.Array) -> jax.Array:
    """Entropy of the density of one image's similarities [..., p] at the grid [g]: a scalar by the trapezoid rule."""
    smoothed = kernel_density(similarity, grid) + SMOOTHING
    entropy = -smoothed * jnp.log(smoothed)
    return jnp.sum((entropy[1:] + entropy[:-1]) / 2 * jnp.diff(grid))


@jax.custom_vjp
def kernel_density(similarity: jax.Array, grid: jax.Array) -> jax.Array:
    """Gaussian kernel density of all entries of `similarity` at the grid points: [g]. No gradient for the grid.

      p(x) = mean_s exp(−(x−s)²/2h²) / (h·√(2π)),   dp(x)/ds = exp(−(x−s)²/2h²)·(x−s)/h² / (h·√(2π)) / count

    Point by point, so that neither pass holds an array of [g, p, p].
    """
    return jnp.stack([_kernel(similarity, x).mean() for x in grid]) / np.float32(
        BANDWIDTH * np.sqrt(2 * np.pi)
    )


def _kernel(similarity, x):
    return jnp.exp(jnp.square(x - similarity) * np.float32(-0.5 / BANDWIDTH**2))


def _density_forward(similarity, grid):
    return kernel_density(similarity, grid), (similarity, grid)


def _density_backward(residuals, cotangent):
    similarity, grid = residuals
    weights = cotangent * np.float32(1 / (BANDWIDTH**3 * np.sqrt(2 * np.pi) * similarity.size))
    gradient = sum(w * _kernel(similarity, x) * (x - similarity) for w, x in zip(weights, grid, strict=True))
    return gradient, jnp.zeros_like(grid)


kernel_density.defvjp(_density_forward, _density_backward)
