"""The model as the loop takes it: fused attention is the sites' own, and is tried before images rely on it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax import SynthesisConfig, synthesize
from psaq_jax.errors import InputError
from psaq_jax.models.layers import fused_attention
from psaq_jax.sites import record
from psaq_jax.synthesis import loop, passes
from tests import jobs
from tests.export.small_models import SWINS, VITS
from tests.quantization.artefacts import random_model
from tests.random_models import VIT, random_pixels

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FUSED = SynthesisConfig(2, 2, iterations=2, jitter=(28, 56), fused_attention="xla")


@pytest.mark.parametrize("module", VITS.values(), ids=VITS)
def test_a_fused_attention_gives_the_loss_and_the_gradient_of_the_sites(module):
    """Of 17 and 19 tokens, which are padded, and of 18."""
    model, pixels = random_model(module), random_pixels(module, 2)
    fused = passes.prepared(model, FUSED)
    assert fused.module.fused_attention == "xla"

    def loss(images, model):
        return loop.objective(model, images, jnp.array([1, 3]), 2.0)

    (found, terms), gradient = jax.value_and_grad(loss, has_aux=True)(pixels, fused)
    (expected, expected_terms), expected_gradient = jax.value_and_grad(loss, has_aux=True)(pixels, model)
    np.testing.assert_allclose([found, *terms.values()], [expected, *expected_terms.values()], rtol=1e-5)
    rounding = 1e-4 * np.abs(expected_gradient).max()  # which kernels of 0.01 magnify
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=rounding)


def test_neither_logits_nor_probabilities_are_sites_of_a_fused_attention():
    model = random_model()
    fused = passes.prepared(model, FUSED)
    every, left = (list(record(m.module, m.params, random_pixels(), "*")[1]) for m in (model, fused))
    assert [name for name in every if name not in left] == [
        "block_0/attention/attention_logits", "block_0/attention/attention_probabilities"
    ]  # fmt: skip


def test_images_are_made_by_a_fused_attention():
    model = random_model()
    fused = synthesize(model, FUSED)
    plain = synthesize(model, SynthesisConfig(2, 2, iterations=2, jitter=(28, 56)))
    np.testing.assert_allclose(fused.history["loss"], plain.history["loss"], rtol=1e-5)


def test_what_cudnn_refuses_is_said_in_a_line_before_anything_is_made():
    expected = "synthesis.fused_attention is 'cudnn', and of 3 heads of 17 tokens it cannot be computed here (cuDNN"
    with pytest.raises(InputError, match=re.escape(expected)):
        synthesize(random_model(), SynthesisConfig(2, 2, fused_attention="cudnn"))


@pytest.mark.parametrize("of", range(4))
def test_what_a_library_computes_wrongly_is_not_relied_on(monkeypatch, of):
    """The output or one of the three gradients, 3 percent off, where rounding to bfloat16 makes less than one."""
    bfloat16 = VIT.clone(dtype=jnp.bfloat16)
    passes.check_fused_attention(bfloat16, "xla", jax.devices()[0])

    def wrong(query, key, value, implementation):
        output = fused_attention(query, key, value, "xla")
        return output if implementation == "xla" else skewed(output, query, key, value)

    @jax.custom_vjp
    def skewed(output, query, key, value):
        return output * (1.03 if of == 0 else 1)

    gains = [1.03 if of == n else 1 for n in (1, 2, 3)]

    def backward(residuals, cotangent):
        *_, back = jax.vjp(lambda *x: fused_attention(*x, "xla"), *residuals)
        return (jnp.zeros_like(cotangent), *(g * x for g, x in zip(gains, back(cotangent), strict=True)))

    skewed.defvjp(lambda output, *x: (skewed(output, *x), x), backward)
    monkeypatch.setattr(passes, "fused_attention", wrong)
    with pytest.raises(
        InputError, match=r"'cudnn', and of 3 heads of 17 tokens it is 0\.03.* of its norm off here, exp"
    ):
        passes.check_fused_attention(VIT, "cudnn", jax.devices()[0])


def test_nan_is_not_relied_on(monkeypatch):
    monkeypatch.setattr(passes, "fused_attention", lambda q, k, v, by: q * (jnp.nan if by == "cudnn" else 1))
    with pytest.raises(InputError, match="it is nan of its norm off here, expected up to 0.02; leave it out"):
        passes.check_fused_attention(VIT, "cudnn", jax.devices()[0])


def test_a_job_is_refused_before_it_takes_its_folder(tmp_path):
    job = jobs.launch(
        "synthesize", "--config=configs/default.py", f"--workdir={tmp_path / 'run'}", f"--config.model={jobs.TINY}",
        "--config.synthesis.fused_attention=cudnn",
    )  # fmt: skip
    assert job.returncode == 2 and "it cannot be computed here (cuDNN" in job.stderr
    assert not (tmp_path / "run").exists()


def test_a_job_and_its_synthesis_try_it_once():
    model, before = random_model(), passes.check_fused_attention.cache_info()
    passes.check_attention(model, FUSED)
    passes.prepared(model, FUSED, jax.local_devices()[0])
    after = passes.check_fused_attention.cache_info()
    assert after.hits + after.misses == before.hits + before.misses + 2 and after.misses <= before.misses + 1


def test_a_swin_has_no_fused_attention():
    with pytest.raises(InputError, match="fused_attention is 'xla', and swins is no ViT .*; leave it out"):
        passes.prepared(random_model(SWINS["swin_timm"], source="swins"), FUSED)
