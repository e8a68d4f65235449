"""Simulated quantization with exact sums: products of codes, which are whole numbers, scaled afterwards.

With weights w = W·t and activations x = (X − z)·s, Σ x·w = s·t·Σ (X − z)·W. Float32 holds whole numbers exactly up to
2^24, so the sums are exact in any order, on any device and in any batch, and those of integer execution are the same.
Multiplying x and w themselves, as the release does, rounds every term in an order that no two libraries share: then a
last bit turns a rounding to codes around now and then, and what comes after makes more of it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from psaq_jax.models.layers import Product
from psaq_jax.quantization.grids import factor_sites
from psaq_jax.quantization.representation import QuantizedKernel, UniformQuantizer
from psaq_jax.sites import Site


def interceptor(params: dict, sites: dict):
    """For `nn.intercept_methods`: quantizes the sites; products of two uniform grids are exact, the others as they are.

    Args:
      params: of the quantized model, kernels as `QuantizedKernel`; sites: {site: quantizer}.
    """
    layers, running = traverse_util.flatten_dict(params, sep="/"), []

    def intercept(next_fun, args, kwargs, context):
        module, name = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if isinstance(module, Site):
            running.append(name)
            return sites[name](args[0]) if name in sites else args[0]
        if not isinstance(module, nn.Dense | Product):
            return next_fun(*args, **kwargs)
        grids = [sites.get(site) for site in factor_sites(name, running, sites)]
        if not all(isinstance(grid, UniformQuantizer) for grid in grids):
            return next_fun(*args, **kwargs)
        codes = [whole_codes(x, grid) for x, grid in zip(args, grids, strict=True)]
        if isinstance(module, Product):
            return module.scale * scaled(jnp.einsum(module.equation, *codes), grids[0].scale * grids[1].scale)
        kernel, bias = layers[f"{name}/kernel"], layers.get(f"{name}/bias")
        if not isinstance(kernel, QuantizedKernel):
            return next_fun(*args, **kwargs)
        return scaled(codes[0] @ kernel.codes.astype(jnp.float32), grids[0].scale * kernel.scale, bias)

    return intercept


def whole_codes(x, quantizer: UniformQuantizer) -> jax.Array:
    """Values on a grid -> their codes less the zero point, whole numbers in float32."""
    # On the grid, x/scale is whole to within 1e-4: a product with the reciprocal rounds to the same code.
    return jnp.round(x * (1 / quantizer.scale))


def scaled(sums, scale, bias=None) -> jax.Array:
    """Exact sums, whole numbers in float32, times a scale, plus a bias.

    The barriers keep compilers from fusing this with what makes the sums, which would round in another way.
    """
    y = jax.lax.optimization_barrier(jax.lax.optimization_barrier(sums) * scale)
    return y if bias is None else y + bias
