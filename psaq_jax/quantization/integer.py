"""Integer execution: matrix products whose factors are on uniform grids run as int8 times int8 into int32.

With weights w = W·t (codes W signed, one scale t per output channel) and activations x = (X − z)·s (codes X in
0..2^b−1, shifted by 2^(b−1) to fit int8: A = X − 2^(b−1), a = z − 2^(b−1)),

  Σ x·w = s·t·(Σ A·W − a·Σ W)                              Dense and patch embedding; Σ W is computed once
  Σ x·y = s·s'·(Σ A·B − b·Σ A − a·Σ B + n·a·b)             q·k and attention·value, n products a sum

Sums are exact in int32 (`integer_plan` refuses products whose sum might not fit). What lies between the products
(LayerNorm, softmax, activation functions, residual sums) and every product with a factor on no uniform grid is float32;
`IntegerModel.products` lists which is which. Simulated quantization has the same sums (`exact`).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from psaq_jax.models.layers import Product
from psaq_jax.models.model import exact_products
from psaq_jax.quantization.exact import scaled, whole_codes
from psaq_jax.quantization.integer_plan import MatrixProduct, plan
from psaq_jax.quantization.representation import QuantizedKernel, UniformQuantizer
from psaq_jax.quantization.transform import QuantizedModel, dequantize_params
from psaq_jax.sites import Site


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "sites", "column_sums"],
    meta_fields=[
        "module", "labels", "preprocessing", "source", "weight_bits", "activation_bits", "recipe", "kernel_bits",
        "options", "products",
    ],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class IntegerModel(QuantizedModel):
    """A quantized model whose products run on integers where they can.

    Attributes:
      column_sums: {path of a Dense layer: int32 [output channels]}, of the weights' codes.
      products: every matrix product, integer or float and why, in running order.
    """

    column_sums: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    products: tuple[MatrixProduct, ...] = ()

    def __call__(self, pixels) -> jax.Array:
        """Normalised pixels [b, h, w, 3] float32 -> logits [b, classes] float32, jitted."""
        return _forward(self, jnp.asarray(pixels, jnp.float32))


def integer_model(q: QuantizedModel) -> IntegerModel:
    """The same quantized model, run on integers where it can be. A module in bfloat16 runs its float parts in float32.

    Logits equal those of simulated quantization but for float32 rounding, as the module's docstring says.
    """
    products = plan(q)
    kernels = traverse_util.flatten_dict(q.params, sep="/")
    sums = {}
    for product in products:
        kernel = kernels.get(f"{product.name}/kernel")
        if product.integer and kernel is not None:
            sums[product.name] = jnp.sum(kernel.codes, axis=0, dtype=jnp.int32)
    fields = {field.name: getattr(q, field.name) for field in dataclasses.fields(QuantizedModel)}
    fields["module"] = q.module.clone(dtype=jnp.float32)
    return IntegerModel(**fields, column_sums=sums, products=products)


def integer_dense(x, quantizer: UniformQuantizer, kernel: QuantizedKernel, column_sums, bias=None):
    """x [..., i] float32 on the quantizer's grid, codes [i, o] -> x @ kernel + bias, [..., o] float32."""
    codes, zero = shifted_codes(x, quantizer)
    contract_last = (((codes.ndim - 1,), (0,)), ((), ()))
    sums = jax.lax.dot_general(codes, kernel.codes, contract_last, preferred_element_type=jnp.int32)
    return scaled((sums - zero * column_sums).astype(jnp.float32), quantizer.scale * kernel.scale, bias)


def integer_product(equation: str, x, y, of_x: UniformQuantizer, of_y: UniformQuantizer):
    """einsum(equation, x, y) of tensors [b, h, n, k] and one with k, each on its quantizer's grid, float32."""
    (a, zero_a), (b, zero_b) = shifted_codes(x, of_x), shifted_codes(y, of_y)
    product = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.int32)
    sums = product(a, b)
    sums_of_a = jnp.sum(a, axis=-1, keepdims=True, dtype=jnp.int32)
    sums_of_b = product(jnp.ones_like(a[:, :, :1]), b)
    exact = sums - zero_b * sums_of_a - zero_a * sums_of_b + a.shape[-1] * zero_a * zero_b
    return scaled(exact.astype(jnp.float32), of_x.scale * of_y.scale)


def shifted_codes(x, quantizer: UniformQuantizer):
    """Values on a grid -> (their codes less 2^(b−1) as int8, the zero point less the same as int32)."""
    zero = quantizer.zero_point - 2.0 ** (quantizer.bits - 1)
    return (whole_codes(x, quantizer) + zero).astype(jnp.int8), zero.astype(jnp.int32)


@jax.jit
def _forward(model: IntegerModel, pixels):
    layers = traverse_util.flatten_dict(model.params, sep="/")
    plans = {product.name: product for product in model.products if product.integer}

    def interceptor(next_fun, args, kwargs, context):
        module, name = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        if isinstance(module, Site):
            return model.sites[name](args[0]) if name in model.sites else args[0]
        if name not in plans:
            return next_fun(*args, **kwargs)
        grids = [model.sites[site] for site in plans[name].sites]
        if isinstance(module, Product):
            return module.scale * integer_product(module.equation, *args, *grids)
        kernel, bias = layers[f"{name}/kernel"], layers.get(f"{name}/bias")
        return integer_dense(*args, *grids, kernel, model.column_sums[name], bias)

    with exact_products(jnp.float32), nn.intercept_methods(interceptor):
        return model.module.apply({"params": dequantize_params(model.params)}, pixels)
