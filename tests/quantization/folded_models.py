"""A model as recipe "default" folds it, segment by segment."""

from psaq_jax.quantization import streaming
from psaq_jax.quantization.channel_folding import Bits, fold
from psaq_jax.quantization.segments import chain, parts_of


def folded_model(model, images, activation_bits, options):
    """The float model with its per-channel ranges folded in: the same function, and what is quantized afterwards."""
    params, x = model.params, images
    for link in chain(model.module, model.params, model.image_shape):
        own = link.parameters(params)
        parts = parts_of(link.segment, own, x)
        folded = fold(link.segment, parts, own, x, Bits(dict.fromkeys(parts.layers, 8), activation_bits), options)
        x = streaming.propagate(link.segment, folded, {}, x)
        params = link.replaced(params, folded)
    return model.replace(params=params)
