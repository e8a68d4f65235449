"""The model card of a saved quantized model: README.md, with whatever came from outside escaped."""

import dataclasses
import html
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from psaq_jax.quantization.record import Record
from psaq_jax.quantization.representation import average_bits
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.text_tables import one_line

TEMPLATE = """\
---
library_name: psaq_jax
tags: [image-classification, quantization, vision-transformer]
---

# {title}, quantized

{family}, {classes} classes, images of {height}x{width} pixels.
Weights: {weights}. Activations: {activations}. Recipe: {recipe}{trained}.

## Source

{source}

{hashes}

## How it was made

{method}
Weights: symmetric, one scale per output channel, every Dense and patch embedding kernel.
Activations: {grids}.
Versions: {versions}.

## Use

    q = psaq_jax.load_quantized(DIRECTORY)
    logits = q(q.preprocess(images))
{integer}
## Figures

{figures}

## Limits

- Weights are stored as integers. {products}
- Not quantized: {floats}.
- Whatever the source gets wrong, this model gets wrong too: check it on your own images first.
"""

POST_TRAINING = "Post-training quantization by psaq\\_jax (PSAQ-ViT, Li et al., ECCV 2022), in JAX."
TRAINED = """\
Quantization-aware training without data by psaq\\_jax (distillation after PSAQ-ViT V2, Li et al., TNNLS 2023), in JAX,
started from post-training quantization (PSAQ-ViT, Li et al., ECCV 2022) by recipe {recipe}.
{settings}"""
INTEGER = {
    "grids": "one grid per site, as config.json lists them",
    "integer": '    q = psaq_jax.load_quantized(DIRECTORY, execution="integer")  # int8 products where they can be\n',
    "products": "Products run in floating point on rounded numbers (simulated quantization), or on\n  integers on "
    "demand, which need not be faster: `python -m launch.latency` measures it.",
}
FLOAT = {
    "grids": "none; they stay in floating point",
    "integer": "",
    "products": "All products run in floating point on rounded weights (simulated quantization).",
}


def model_card(q: QuantizedModel, record: Record, figures: Mapping[str, Any]) -> str:
    """The model card. Whatever came from a checkpoint or a caller is escaped."""
    kinds = {name.rpartition("/")[2] for name in q.sites}
    floats = ["biases", "the insides of LayerNorm and softmax"]
    floats += ["residual sums"] * ("residual1" not in kinds)
    if "attention_probabilities" not in kinds:
        floats.append("softmax outputs (so attention·value is no integer product)")
    if not q.sites:
        floats = ["activations", "biases"]
    rows = [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in figures.items()]
    return TEMPLATE.format(
        title=_escaped(pathlib.PurePath(q.source).name or record.family),
        family=record.family, classes=q.classes, height=q.image_size[0], width=q.image_size[1],
        weights=_weights(q, record.kernels),
        activations=_activations(q), **(INTEGER if q.sites else FLOAT),
        recipe=_escaped(q.recipe), trained=", then distillation" if q.distillations else "", method=_method(q),
        source=_escaped(q.source or "not recorded"),
        hashes="\n".join(f"- {_escaped(n)}: SHA-256 {_escaped(x)}" for n, x in record.source_sha256.items())
        or "The hash of its weights was not recorded: no folder of this name held them.",
        versions=", ".join(f"{_escaped(n)} {_escaped(x)}" for n, x in sorted(record.versions.items())),
        figures="\n".join(["| figure | value |", "|---|---|", *rows]) if rows else "None were recorded.",
        floats=", ".join(floats),
    )  # fmt: skip


def _method(q: QuantizedModel) -> str:
    if not q.distillations:
        return POST_TRAINING
    settings = "\n".join(
        f"Distillation: {', '.join(f'{_escaped(name)} {_escaped(x)}' for name, x in dataclasses.asdict(one).items())}."
        for one in q.distillations
    )
    return TRAINED.format(recipe=_escaped(q.recipe), settings=settings)


def _activations(q: QuantizedModel) -> str:
    if q.activation_bits is None:
        return "floating point"
    bits = sorted({int(site.bits) for site in q.sites.values()})
    return f"{bits[0]} bits" if len(bits) == 1 else f"{bits[0]} to {bits[-1]} bits (config.json lists each site's)"


def _weights(q: QuantizedModel, bits: Mapping[str, int]) -> str:
    least, most = min(bits.values()), max(bits.values())
    if least == most:
        return f"{least} bits"
    kernels = traverse_util.flatten_dict(q.params, sep="/")
    average = average_bits(bits, {path: kernels[path].codes.size for path in bits})
    return f"{least} to {most} bits, {average:.2f} on average (config.json lists each kernel's)"


def _escaped(value) -> str:
    """Text as one line that Markdown and HTML show as it is."""
    text = one_line(" ".join(str(value).split()))
    return re.sub(r"([\\`*_{}\[\]()#+.!|~:@$^=-])", r"\\\1", html.escape(text, quote=False))
