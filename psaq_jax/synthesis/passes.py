"""The model as the loop passes through it: one function of the images, in the form that costs an iteration least."""

import functools

import jax
import jax.numpy as jnp

from psaq_jax.errors import InputError, reason_of
from psaq_jax.models.layers import fused_attention
from psaq_jax.models.model import Model, exact_products, in_float32
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.synthesis.balancing import balanced
from psaq_jax.synthesis.config import SynthesisConfig

TOLERANCE = 0.02  # of a norm: 16-bit floats make 0.004


def prepared(model: Model, config: SynthesisConfig, device: jax.Device | None = None) -> Model:
    """The model for a synthesis by `config`, which runs on `device` (default: the first) and others like it.

    Raises:
      InputError: a fused attention that this model has not, or that this machine cannot compute.
    """
    check_attention(model, config, device)
    if config.recipe == "default":
        model = balanced(model)
    if config.fused_attention:
        model = model.replace(module=model.module.clone(fused_attention=config.fused_attention), source=model.source)
    return model.with_layers_rounded()


def check_attention(model: Model, config: SynthesisConfig, device: jax.Device | None = None) -> None:
    """Raises InputError as `prepared` does; jobs ask before they take their folder."""
    if not config.fused_attention:
        return
    if not isinstance(model.module, VisionTransformer):
        found = f"synthesis.fused_attention is {config.fused_attention!r}, and {model.source or 'the model'} is no ViT"
        raise InputError(f"{found} (attention in windows has biases); leave it out")
    check_fused_attention(model.module, config.fused_attention, device or jax.local_devices()[0])


@functools.cache  # the job and its synthesis ask alike
@in_float32
def check_fused_attention(module: VisionTransformer, implementation: str, device: jax.Device) -> None:
    """Computes two images' attention and its gradients, of normal variables, before a synthesis relies on them.

    Raises:
      InputError: they are not those of the formula in float32, or the library refuses.
    """
    shape = (2, module.heads, module.special_tokens + module.grid[0] * module.grid[1], module.width // module.heads)
    drawn = jax.random.normal(jax.random.key(0), (4, *shape)).astype(module.dtype)
    *inputs, cotangent = jax.device_put(drawn, device)

    @jax.jit
    def errors(inputs, cotangent):
        def computed(dtype, by):
            with exact_products(dtype):
                output, back = jax.vjp(lambda *x: fused_attention(*x, by), *(x.astype(dtype) for x in inputs))
                return output, *back(cotangent.astype(dtype))

        pairs = zip(computed(module.dtype, implementation), computed(jnp.float32, "xla"), strict=True)
        return [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]

    found = f"synthesis.fused_attention is {implementation!r}, and of {module.heads} heads of {shape[2]} tokens"
    try:
        worst = float(max(errors(inputs, cotangent)))
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise InputError(f"{found} it cannot be computed here ({reason_of(error)}); leave it out") from None
    if not worst <= TOLERANCE:
        raise InputError(f"{found} it is {worst:.2g} of its norm off here, expected up to {TOLERANCE}; leave it out")
