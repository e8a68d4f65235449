"""The bases in which rounding loses least: the residual stream turned once more, and each head's queries and values.

Rounding adds noise to every channel in proportion to the channel's spread (its step follows its range) and at the cost
of the squared gradient there. To first order the logits' squared error is a constant times

    Σ over sites Σ over channels  S_ii · K_i · G_ii,

S being the site's second moments, G those of the logits' gradients there, and K the channel's kurtosis, a third of it:
heavy tails take wide ranges. Rounding a kernel W to as many bits adds as much noise to its outputs as rounding there if
S were WᵀDW, D the variances of its inputs. Another basis changes the sum, while the model computes what it did. The
residual stream may be turned by any rotation R that keeps the vector of ones (`rotation`): RᵀSR and RᵀGR. It is found
by descent, as SpinQuant's (Liu et al., ICLR 2025) are, on these matrices and some of the site's rows. What a head's
queries are multiplied by, T, its keys' inverse takes back, and the same goes for values and projection: T S Tᵀ and
T⁻ᵀ G T⁻¹. But for K the least sum is known: both matrices equal and diagonal (as in balanced truncation of linear
systems, Moore, 1981), then turned so that all channels are alike; of such turns K has the one that descent finds from a
random one.
Shapes: c channels, h heads, d their width, s sites, k rows.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from psaq_jax.models.model import Model
from psaq_jax.quantization import folding
from psaq_jax.quantization.recipes import DefaultRecipe
from psaq_jax.quantization.rotation import rotates, streams, turn_stream
from psaq_jax.quantization.site_moments import NORMS, Moments, site_moments, with_kernels, written

STEPS = 100  # of Adam
RATE = 0.04  # of Adam, divided by the root of the width
DAMPING = 0.5  # part of the moments that no basis changes: what other images excite is not known that well


def in_bases(model: Model, images: np.ndarray, options: DefaultRecipe) -> Model:
    """The same function in other bases, for a model as `rotation.rotated` leaves it with these options.

    Args:
      images: [n, height, width, 3] float32, normalised.
    """
    flat = traverse_util.flatten_dict(model.params, sep="/")
    moments = with_kernels(site_moments(model, images, options.seed), flat)
    for stream in streams(model.module, flat) if rotates(model, options) else ():
        sites = [moments[f"{block}/{norm}"] for block in stream.blocks for norm in NORMS]
        sites += [site for block in stream.blocks for site in written(flat, block, moments)]
        flat = turn_stream(flat, best_turns(sites, but_ones(stream.width))[0], stream)
    params, generator = traverse_util.unflatten_dict(flat, sep="/"), np.random.default_rng(options.seed)
    for block in folding.blocks(params):
        params = _with_heads(params, f"{block}/attention", moments, generator)
    return model.replace(params=params)


def best_turns(sites: Sequence[Moments], across: np.ndarray) -> np.ndarray:
    """Rotations [h, c, c] float32 of all sites alike, a head's each, that make the noise least, from no turn at all.

    Args:
      across: [c, m], orthonormal: the directions that may be turned.
    """
    spread, cost, rows = (np.stack(each, axis=1) for each in zip(*sites, strict=True))
    spread, cost = (_evened(y) for y in (spread, cost))
    rows = rows / np.maximum(np.sqrt(np.square(rows).mean((2, 3), keepdims=True)), 1e-30)
    whole = np.maximum(np.einsum("hsii,hsii->h", spread, cost), 1e-30)[:, None, None, None]
    return np.asarray(_descend(*(jnp.asarray(y, jnp.float32) for y in (spread, cost / whole, rows, across))))


def _evened(matrices: np.ndarray) -> np.ndarray:
    even = np.eye(matrices.shape[-1]) / matrices.shape[-1]
    return (1 - DAMPING) * matrices + DAMPING * np.trace(matrices, axis1=-2, axis2=-1)[..., None, None] * even


@jax.jit
def _descend(spread, cost, rows, across) -> jax.Array:
    """By Adam on Cayley's parameters."""
    width = spread.shape[-1]
    product, unit = functools.partial(jnp.matmul, precision="highest"), jnp.eye(width)

    def turn(free):
        skew = product(product(across, free - free.mT), across.T)
        return jnp.linalg.solve(unit + skew, unit - skew)

    def noise(free):
        r = turn(free)
        return jnp.sum(_diagonals(spread, r) * _tails(_all_times(rows, r)) * _diagonals(cost, r))

    optimizer = optax.adam(optax.cosine_decay_schedule(RATE / jnp.sqrt(width), STEPS))

    def step(state, _):
        free, moments = state
        updates, moments = optimizer.update(jax.grad(noise)(free), moments)
        return (optax.apply_updates(free, updates), moments), None

    start = jnp.zeros((len(spread), across.shape[1], across.shape[1]))
    (free, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)
    return turn(free)


def _all_times(matrices, turn) -> jax.Array:
    """[h, s, k, c] times [h, c, c], as one product of a head's."""
    h, s, k, c = matrices.shape
    return jnp.matmul(matrices.reshape(h, s * k, c), turn, precision="highest").reshape(matrices.shape)


def _diagonals(matrices, turn) -> jax.Array:
    """Of RᵀSR, [h, s, c], of symmetric S [h, s, c, c]. The gradient, 2·SR, takes no product of its own."""
    fixed, turn = jax.lax.stop_gradient(_all_times(matrices, turn)), turn[:, None]
    return jnp.sum(2 * fixed * turn - jax.lax.stop_gradient(fixed * turn), axis=2)


def _tails(rows) -> jax.Array:
    """A third of the channels' kurtosis, [..., k, c] -> [..., c]; 1 of normal ones, and of one that is constant.

    Args:
      rows: of a size of about 1.
    """
    square = jnp.square(rows)
    spread, fourth = square.mean(-2), jnp.square(square).mean(-2)
    return jnp.where(spread > 1e-6, fourth / (3 * jnp.square(jnp.maximum(spread, 1e-6))), 1)


def but_ones(width: int) -> np.ndarray:
    """All directions but the vector of ones, [c, c - 1]."""
    columns = np.eye(width)
    columns[:, 0] = 1
    return np.linalg.qr(columns)[0][:, 1:]


def _with_heads(params: dict, attention: str, moments: dict[str, Moments], generator) -> dict:
    """The parameters with queries, keys and values of every head in their best bases."""
    query, key, value, output = (moments[f"{attention}/{n}"] for n in ("query", "key", "value", "attention_output"))
    of_queries = head_bases(_sum(query.spread, key.cost), _sum(key.spread, query.cost), query.spread, generator)
    costs = sum(_size(y.spread) * y.cost for y in (value, output))
    of_values = head_bases(_sum(value.spread, output.spread), costs, value.spread, generator)
    undone = np.linalg.inv(of_queries).swapaxes(1, 2)
    of_queries, of_values = (
        best_turns(sites, np.eye(base.shape[-1])).swapaxes(1, 2) @ base
        for base, sites in ((of_queries, (query.there(of_queries), key.there(undone))),
                            (of_values, (value.there(of_values), output.there(of_values))))
    )  # fmt: skip
    return folding.change_bases(params, f"{attention}/qkv", f"{attention}/projection", of_queries, of_values)


def _sum(*matrices: np.ndarray) -> np.ndarray:
    """Of [h, d, d] each, every head's of size one."""
    return sum(y / _size(y) for y in matrices)


def _size(matrices: np.ndarray) -> np.ndarray:
    """The geometric mean of each diagonal, without zeros, [h, 1, 1]: channels that are scaled change the sizes of what
    is summed up alike, and with a trace they would outweigh all others.
    """
    return np.exp(np.ma.log(np.einsum("hii->hi", matrices)).mean(1).filled(0))[:, None, None]


def head_bases(spread: np.ndarray, cost: np.ndarray, kept: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """T [h, d, d] float64 with T spread Tᵀ = T⁻ᵀ cost T⁻¹ up to a factor, all of whose diagonals are nearly even.

    Damped by the matrices' own diagonals, so that T follows channels that are scaled. kept: [h, d, d], whose trace T
    leaves as it is.
    """
    found = []
    for spread_h, cost_h, kept_h in zip(*map(_damped, (spread, cost)), kept, strict=True):
        lower = np.linalg.cholesky(spread_h)
        values, vectors = np.linalg.eigh(lower.T @ cost_h @ lower)
        base = np.maximum(values, values[-1] * 1e-12)[:, None] ** 0.25 * np.linalg.solve(lower.T, vectors).T
        base *= np.where(base @ np.sqrt(np.diag(spread_h)) < 0, -1, 1)[:, None]  # eigenvectors have either sign
        base = np.linalg.qr(generator.normal(size=base.shape))[0] @ base
        size, size_there = np.trace(kept_h), np.trace(base @ kept_h @ base.T)
        if size <= 0:  # nothing moves in that head
            size, size_there = len(base), np.square(base).sum()
        found.append(base * np.sqrt(size / size_there))
    return np.stack(found)


def _damped(matrices: np.ndarray) -> np.ndarray:
    diagonals = np.einsum("hii->hi", matrices)
    usual = np.maximum(diagonals.mean(-1, keepdims=True), 1e-30)
    diagonals = np.where(diagonals > 0, diagonals, usual)  # zero: a channel that nothing excites, or that takes nothing
    return (1 - DAMPING) * matrices + DAMPING * diagonals[:, :, None] * np.eye(matrices.shape[-1])
