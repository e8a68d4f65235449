"""Integer execution: matrix products whose factors are on uniform grids run as int8 times int8 into int32.

Codes of activations less the zero point, X, are shifted to fit int8: A = X + a, a = z − 2^(b−1). With weights' codes W,

  Σ X·W = Σ A·W − a·Σ W                         Dense and patch embedding
  Σ X·Y = Σ A·B − b·Σ A − a·Σ B + n·a·b         q·k and attention·value, n products a sum

Sums are exact in int32 (`integer_plan` refuses products whose sum might not fit). What lies between the products
(LayerNorm, softmax, activation functions, residual sums) and every product with a factor on no uniform grid is float32;
`IntegerModel.products` lists which is which. All of it is the program of simulated quantization (`exact`), so the
logits of one batch on one device are the same bits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from psaq_jax.quantization import exact
from psaq_jax.quantization.integer_plan import MatrixProduct, plan, summary
from psaq_jax.quantization.representation import UniformQuantizer
from psaq_jax.quantization.transform import ARRAYS, STATIC, QuantizedModel


@functools.partial(jax.tree_util.register_dataclass, data_fields=ARRAYS, meta_fields=[*STATIC, "products"])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value
class IntegerModel(QuantizedModel):
    """A quantized model whose products run on integers where they can.

    Attributes:
      products: every matrix product, integer or float and why, in running order.
    """

    products: tuple[MatrixProduct, ...] = ()

    def jitted(self, pixels) -> jax.Array:
        return _forward(self, pixels)

    def _execution(self) -> str:
        return summary(self.products)


def integer_model(q: QuantizedModel) -> IntegerModel:
    """The same quantized model, run on integers where it can be. A module in bfloat16 runs its float parts in float32.

    Logits are those of simulated quantization in float32, bit for bit.
    """
    fields = {field.name: getattr(q, field.name) for field in dataclasses.fields(QuantizedModel)}
    fields["module"] = q.module.clone(dtype=jnp.float32)
    return IntegerModel(**fields, products=plan(q))


def integer_sums(equation: str, x, y, of_x: UniformQuantizer, of_y: UniformQuantizer | None) -> jax.Array:
    """`exact.float_sums` by int8 times int8 into int32."""
    (a, zero_a), (b, zero_b) = shifted_codes(x, of_x), (y, None) if of_y is None else shifted_codes(y, of_y)
    sums = jnp.einsum(equation, a, b, preferred_element_type=jnp.int32)
    sums_of_b = jnp.sum(b, axis=exact.contracted_axis(equation), dtype=jnp.int32)
    sums -= zero_a * jnp.expand_dims(sums_of_b, -2)  # one for each of the output's columns
    if of_y is not None:
        sums_of_a = jnp.sum(a, axis=-1, keepdims=True, dtype=jnp.int32)
        sums += a.shape[-1] * zero_a * zero_b - zero_b * sums_of_a
    return sums.astype(jnp.float32)


def shifted_codes(x, grid: UniformQuantizer):
    """Codes less the zero point -> (codes less 2^(b−1) as int8, the zero point less the same as int32)."""
    zero = grid.zero_point - 2.0 ** (grid.bits - 1)
    return (x + zero).astype(jnp.int8), zero.astype(jnp.int32)


@jax.jit
def _forward(model: IntegerModel, pixels):
    integers = {product.name for product in model.products if product.integer}
    return exact.forward(model.module, model.params, model.sites, pixels, integer_sums, integers)
