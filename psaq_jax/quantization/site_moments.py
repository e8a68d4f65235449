"""Second moments at the sites of a model, and what rounding its kernels adds to them: what `bases` are chosen by.

Shapes: c channels, h heads, d their width, k rows, i inputs of a kernel, o its outputs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psaq_jax.models.model import Model
from psaq_jax.quantization import folding
from psaq_jax.quantization.channel_folding import HIDDEN
from psaq_jax.quantization.importance import backward_batches, site_gradients
from psaq_jax.quantization.output_moments import COMBINATIONS
from psaq_jax.quantization.statistics import has_heads

ROWS, ROWS_A_BATCH = 512, 64  # of a site's tensor, from which its channels' kurtosis is known
ROUNDING = 1e-6  # part of a mean square: a variance below is what float32's sums leave of a constant channel
NORMS = ("norm1_output", "norm2_output")
WRITERS = {  # layers of a block that write into the stream: what they take, and where their errors arrive
    "attention/projection": ("attention/attention_output", "residual1"),
    "mlp/dense2": (HIDDEN, "residual2"),
}
SITES = {*NORMS, "residual1", "residual2"}  # with `has_heads` and `HIDDEN`


class Moments(NamedTuple):
    """Of one site: [1, c, c] and [1, k, c]; of queries, keys, values and attention outputs [h, d, d] and [h, k, d]; of
    hidden channels, of which variances alone serve, [c, 1, 1] and [c, k, 1].
    """

    spread: np.ndarray  # second moments of its tensor, about the mean but for queries, which folding does not shift
    cost: np.ndarray  # second moments of the logits' gradients
    rows: np.ndarray  # some of its tensor's, about that mean too; of what a kernel adds, its own

    def there(self, base: np.ndarray) -> "Moments":
        """Of the tensor times `base` [h, d, d], transposed."""
        undone = np.linalg.inv(base)
        turned = base @ self.spread @ base.swapaxes(1, 2), undone.swapaxes(1, 2) @ self.cost @ undone
        return Moments(*turned, self.rows @ base.swapaxes(1, 2))


def site_moments(model: Model, images: np.ndarray, seed: int) -> dict[str, Moments]:
    """{site: `Moments`} of every LayerNorm in a block, what is made of it for the attention, hidden channels and where
    a block adds to the stream.
    """
    totals, rows = {}, {}
    for part, mask, key in backward_batches(model, np.concatenate([images] * COMBINATIONS), seed):
        for name, (sums, some) in _sums(model, part, key, mask).items():
            totals[name] = jax.tree.map(jnp.add, totals[name], sums) if name in totals else sums
            rows.setdefault(name, []).append(some)
    return {name: _moments(name, *jax.device_get((sums, rows[name]))) for name, sums in totals.items()}


@jax.jit
def _sums(model: Model, images, key, mask) -> dict[str, tuple]:
    """{site: ((x xᵀ, x, g gᵀ, rows), some rows of x)} of a batch, the former summed up over rows."""
    gradients, seen = site_gradients(
        model, images, key, lambda name: has_heads(name) or name.endswith(HIDDEN) or name.rpartition("/")[2] in SITES
    )
    found = {}
    for name, gradient in gradients.items():
        x, g = (y.astype(jnp.float32) for y in (seen[name], gradient))
        if not has_heads(name):
            x, g = (y.reshape(len(y), 1, -1, y.shape[-1]) for y in (x, g))
        if name.endswith(HIDDEN):
            x, g = (y.transpose(0, 3, 2, 1) for y in (x, g))
        weight = jnp.repeat(mask, len(x) // len(mask), total_repeat_length=len(x))[:, None, None, None]
        sums = _squares(weight * x, x), (weight * x).sum((0, 2)), _squares(weight * g, g), weight.sum() * x.shape[2]
        rows = x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[3])
        found[name] = sums, rows[:, jax.random.randint(key, (ROWS_A_BATCH,), 0, rows.shape[1], jnp.int32)]
    return found


def _squares(x, y) -> jax.Array:
    """[b, h, n, d] twice -> [h, d, d]."""
    if x.shape[-1] == 1:  # which XLA makes a product of matrices of
        return jnp.sum(x * y, axis=(0, 2))[:, :, None]
    return jnp.einsum("bhnd,bhne->hde", x, y, precision="highest")


def _moments(name: str, sums, rows) -> Moments:
    square, total, cost, count = (np.asarray(y, np.float64) for y in sums)
    spread, mean, rows = square / count, total / count, np.concatenate(rows, axis=1)
    rows = rows[:, np.unique(np.linspace(0, rows.shape[1] - 1, ROWS).astype(int))]
    if name.rpartition("/")[2] != "query":
        spread, rows = spread - mean[:, :, None] * mean[:, None, :], rows - mean[:, None]
        moves = np.einsum("hii->hi", spread) > ROUNDING * np.einsum("hii->hi", square / count)
        spread, rows = spread * (moves[:, :, None] & moves[:, None, :]), rows * moves[:, None]
    return Moments(spread, cost, rows.astype(np.float32))


def with_kernels(moments: dict[str, Moments], flat: dict) -> dict[str, Moments]:
    """With what rounding qkv's kernels adds to queries, keys and values."""
    changed = dict(moments)
    for block in folding.blocks(flat):
        sites = [f"{block}/attention/{name}" for name in ("query", "key", "value")]
        kernel, heads = np.asarray(flat[f"{block}/attention/qkv/kernel"]), moments[sites[0]].spread.shape[:2]
        for i, site in enumerate(sites):
            each = kernel.reshape(-1, 3, *heads)[:, i].swapaxes(0, 1)
            added = kernel_rows(each, moments[f"{block}/norm1_output"])
            changed[site] = moments[site]._replace(spread=moments[site].spread + added.swapaxes(1, 2) @ added)
    return changed


def written(flat: dict, block: str, moments: dict[str, Moments]) -> Iterator[Moments]:
    """Of what rounding the kernels that write into the stream adds to it."""
    for layer, (inputs, outputs) in WRITERS.items():
        kernel, (_, cost, rows) = np.asarray(flat[f"{block}/{layer}/kernel"])[None], moments[f"{block}/{outputs}"]
        added = kernel_rows(kernel, moments[f"{block}/{inputs}"])
        some = np.linspace(0, kernel.shape[1] - 1, rows.shape[1]).astype(int)
        yield Moments(added.swapaxes(1, 2) @ added, cost, added[:, some].astype(np.float32))


def kernel_rows(kernels: np.ndarray, inputs: Moments) -> np.ndarray:
    """√D·W [h, i, o] of kernels W [h, i, o], which all take the i channels of `inputs`: WᵀDW is their square."""
    return np.sqrt(np.einsum("hii->hi", inputs.spread).reshape(-1, 1)) * kernels.astype(np.float64)
