"""Which matrix products of a quantized model can run on integers, and why the others cannot."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.layers import matrix_products
from psaq_jax.quantization.grids import candidates, factor_sites
from psaq_jax.quantization.representation import QuantizedKernel, UniformQuantizer
from psaq_jax.quantization.transform import QuantizedModel, dequantize_params
from psaq_jax.sites import site_names
from psaq_jax.text_tables import Table

LARGEST_SUM = 2**31 - 1  # of an int32 accumulator


@dataclasses.dataclass(frozen=True)
class MatrixProduct:
    """One matrix product of a model.

    Attributes:
      name: path of its module, such as "block_0/attention/query_key".
      sites: for each factor that is an activation, the site whose grid it is on; "" where it is on none.
      multiply_adds: for one image.
      integer: int8 times int8 into int32; otherwise float32.
      reason: why not, or what bounds the accumulator.
    """

    name: str
    sites: tuple[str, ...]
    multiply_adds: int
    integer: bool
    reason: str


def plan(q: QuantizedModel) -> tuple[MatrixProduct, ...]:
    """Every matrix product of the model in running order. Nothing is computed but the weights' largest codes."""
    kernels = traverse_util.flatten_dict(q.params, sep="/")
    params = jax.eval_shape(dequantize_params, q.params)
    running = site_names(q.module, params, q.image_shape)
    products = matrix_products(q.module, params, jax.ShapeDtypeStruct((1, *q.image_shape), jnp.float32))
    return tuple(_product(q, kernels, running, *product) for product in products)


def coverage(products: Iterable[MatrixProduct]) -> float:
    """The integer products' share of all multiply-adds, 0 to 1."""
    products = tuple(products)
    return sum(p.multiply_adds for p in products if p.integer) / max(sum(p.multiply_adds for p in products), 1)


def summary(products: Iterable[MatrixProduct]) -> str:
    """How many products run in integers, in words."""
    products = tuple(products)
    count = sum(p.integer for p in products)
    return f"{count} of {len(products)} products run in integers, {100 * coverage(products):.1f} % of all multiply-adds"


def table(products: Mapping[str, Iterable[MatrixProduct]]) -> Table:
    """Every matrix product of each model by its name: integer or float, and why."""
    rows = [
        (model, product.name, "integer" if product.integer else "float", product.reason)
        for model, of_model in products.items()
        for product in of_model
    ]
    note = "; ".join(f"{model}: {summary(of_model)}" for model, of_model in products.items())
    return Table("Integer coverage", ("model", "product", "execution", "why"), rows, 4, f"{note}.")


def _product(q, kernels, running, name, terms, multiply_adds) -> MatrixProduct:
    sites = factor_sites(name, running, q.sites)
    largest = [2 ** int(q.sites[site].bits) - 1 for site in sites if site in q.sites]
    kernel = kernels.get(f"{name}/kernel")
    if kernel is not None:
        largest.append(_largest_code(kernel))
    reason = _obstacle(q, sites, candidates(name), kernel)
    bound = terms * math.prod(largest)
    if not reason and bound > LARGEST_SUM:
        reason = f"sums of {terms} products may reach {bound}, int32 ends at {LARGEST_SUM}"
    integer = not reason
    return MatrixProduct(name, sites, multiply_adds, integer, reason or f"sums are at most {bound}, within int32")


def _largest_code(kernel) -> int:
    codes = np.asarray(kernel.codes, np.int32) if isinstance(kernel, QuantizedKernel) else np.ones(1)
    return max(int(np.abs(codes).max()), 1)


def _obstacle(q, sites, names_of_factors, kernel) -> str:
    """Why a product cannot be integer, or ""."""
    if kernel is not None and not isinstance(kernel, QuantizedKernel):
        return "its weights are not quantized"
    for site, names in zip(sites, names_of_factors, strict=True):
        if not site:
            return f"its input is not quantized (site {' or '.join(names) or 'unknown'})"
        if not isinstance(q.sites[site], UniformQuantizer):
            return f"the grid of {site.rpartition('/')[2]} is not uniform ({type(q.sites[site]).__name__})"
    return ""
