"""On which sites' grids the factors of a matrix product are.

A factor of a product is on a *grid* where its values are those of a quantized site, or zero, or weights' codes: moving,
cutting, padding with zeros and joining tensors of one site keeps them there, arithmetic does not.
"""

from collections.abc import Collection, Iterable

# A product's last name -> for each factor that is an activation, the sites that it may be on the grid of; the first
# that is quantized counts. Each is looked for beside the product, then in the modules around it.
FACTORS = {
    "patch_embedding": (("input",),),
    "qkv": (("norm1_output",),),
    "query_key": (("query", "qkv_output"), ("key", "qkv_output")),
    "attention_value": (("attention_probabilities",), ("value", "qkv_output")),
    "projection": (("attention_output",),),
    "dense1": (("norm2_output",),),
    "dense2": (("activation_output",),),
    "reduction": (("norm_output",),),
    "head": (("head_input",),),
    "distillation_head": (("distillation_head_input",),),
}


def candidates(product: str) -> tuple[tuple[str, ...], ...]:
    """For each factor of a product that is an activation, the last names of the sites that it may be on the grid of."""
    return FACTORS.get(product.rpartition("/")[2], ((),))


def factor_sites(product: str, running: Collection[str], quantized: Collection[str]) -> tuple[str, ...]:
    """For each factor of a product that is an activation, the site on whose grid it is; "" where it is on none.

    Args:
      product: path of the module; running: the sites that run before it, or all; quantized: those with a quantizer.
    """
    return tuple(_site(product, names, running, quantized) for names in candidates(product))


def _site(product: str, names: Iterable[str], running, quantized) -> str:
    for name in names:
        scope = product.rpartition("/")[0]
        while True:
            site = f"{scope}/{name}" if scope else name
            if site in running:  # the nearest one of this name, quantized or not
                if site in quantized:
                    return site
                break
            if not scope:
                break
            scope = scope.rpartition("/")[0]
    return ""
