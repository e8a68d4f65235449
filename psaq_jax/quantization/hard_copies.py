"""Function-preserving hard copies: the same model as before, with channels that per-tensor quantization cannot hold.

Modern backbones have few channels that are a hundred times larger than the rest; small models have none. A copy has
them, and its float logits are the original's: what a recipe loses on the copy alone is the recipe's fault. The changes
are those that `folding` undoes, the other way round.
"""

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.models.model import Model, in_float32
from psaq_jax.quantization import folding

SHARE = 0.05  # of the channels; at least one of each kind
LEAST, GREATEST = 10.0, 100.0  # factors
TOKEN_OFFSET = 100.0


@in_float32
def hard_copy(model: Model) -> Model:
    """A model of the same function whose layers' inputs have outlier channels, and whose special tokens a high norm.

    In every block a share of the channels of both LayerNorms' outputs, of the values and of the keys (of a SwiGLU's
    gated values too) is scaled up by 10 to 100 (log-uniform), and down again in the weights that take them (for keys:
    in the queries). Special tokens (class, distillation) get 100 added to all channels alike, which every LayerNorm
    takes off again: the residual stream has tokens of high norm, as registers of large backbones.

    Returns:
      a model whose float logits differ from the original's by float32 rounding only.
    """
    generator = np.random.default_rng(0)

    def outliers(channels):
        factor = np.ones(channels, np.float32)
        chosen = generator.choice(channels, max(1, round(SHARE * channels)), replace=False)
        factor[chosen] = np.exp(generator.uniform(np.log(LEAST), np.log(GREATEST), len(chosen)))
        return jnp.asarray(factor)

    params = model.params
    if "position_embedding" in params and "class_token" in params:
        special = 1 + int("distillation_token" in params)
        positions = jnp.asarray(params["position_embedding"])
        params = {**params, "position_embedding": positions.at[:special].add(TOKEN_OFFSET)}
    for block in folding.blocks(params):
        qkv, projection = f"{block}/attention/qkv", f"{block}/attention/projection"
        flat = traverse_util.flatten_dict(params, sep="/")
        c = flat[f"{projection}/kernel"].shape[0]
        none = jnp.zeros(c)
        for norm, layer in ((f"{block}/norm1", qkv), (f"{block}/norm2", f"{block}/mlp/dense1")):
            params = folding.fold_norm(params, norm, (layer,), 1 / outliers(c), none)
        params = folding.fold_values(params, qkv, projection, 1 / outliers(c), none)
        dense1, dense2 = f"{block}/mlp/dense1", f"{block}/mlp/dense2"
        hidden = flat[f"{dense2}/kernel"].shape[0]
        if flat[f"{dense1}/kernel"].shape[1] == 2 * hidden:
            params = folding.fold_gated(params, dense1, dense2, 1 / outliers(hidden))
        params = folding.fold_queries(params, qkv, 1 / outliers(c), none)
    return model.replace(params=params)
