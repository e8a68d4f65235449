"""On whose grid a product's factors are: the nearest site of a name, the first name that is quantized."""

import pytest

from psaq_jax.quantization.grids import FACTORS, candidates, factor_sites
from psaq_jax.sites import site_names
from tests.quantization.artefacts import MODULES, random_model

BLOCK = "block_0/attention"
CASES = {
    "the site beside it": (f"{BLOCK}/projection", {f"{BLOCK}/attention_output"}, (f"{BLOCK}/attention_output",)),
    "around it": (f"{BLOCK}/qkv", {"block_0/norm1_output"}, ("block_0/norm1_output",)),
    "none that is quantized": (f"{BLOCK}/qkv", {f"{BLOCK}/attention_output"}, ("",)),
    "the first name": (f"{BLOCK}/query_key", {f"{BLOCK}/{x}" for x in ("query", "key", "qkv_output")},
                       (f"{BLOCK}/query", f"{BLOCK}/key")),
    "the second name": (f"{BLOCK}/query_key", {f"{BLOCK}/qkv_output"}, (f"{BLOCK}/qkv_output",) * 2),
    "one factor of two": (f"{BLOCK}/attention_value", {f"{BLOCK}/value"}, ("", f"{BLOCK}/value")),
    "probabilities before values": (f"{BLOCK}/attention_value", {f"{BLOCK}/attention_probabilities", f"{BLOCK}/value"},
                                    (f"{BLOCK}/attention_probabilities", f"{BLOCK}/value")),
    "of another block": ("block_1/attention/qkv", {"block_0/norm1_output"}, ("",)),
    "an unknown product": ("block_0/other", {"block_0/norm1_output"}, ("",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_site_of_each_factor(case):
    product, quantized, expected = CASES[case]
    assert factor_sites(product, quantized, quantized) == expected


def test_a_nearer_site_without_quantizer_hides_one_around_it():
    running = {"stage_0/merging/norm_output", "norm_output"}
    assert factor_sites("stage_0/merging/reduction", running, running) == ("stage_0/merging/norm_output",)
    assert factor_sites("stage_0/merging/reduction", running, {"norm_output"}) == ("",)


@pytest.mark.parametrize("family", ["vit", "distilled", "dinov2", "swin"])
def test_every_product_of_a_model_has_its_sites(family):
    model = random_model(MODULES[family])
    sites = site_names(model.module, model.params, model.image_shape)
    for attention in (site.removesuffix("/query") for site in sites if site.endswith("/query")):
        block = attention.removesuffix("/attention")
        beside = {
            "attention/qkv": ("norm1_output",), "attention/query_key": ("attention/query", "attention/key"),
            "attention/attention_value": ("attention/attention_probabilities", "attention/value"),
            "attention/projection": ("attention/attention_output",), "mlp/dense1": ("norm2_output",),
            "mlp/dense2": ("mlp/activation_output",),
        }  # fmt: skip
        for product, names in beside.items():
            expected = tuple(f"{block}/{name}" for name in names)
            assert factor_sites(f"{block}/{product}", sites, sites) == expected, product
    assert factor_sites("patch_embedding", sites, sites) == ("input",)
    assert factor_sites("head", sites, sites) == ("head_input",)
    assert candidates("head") == FACTORS["head"]
