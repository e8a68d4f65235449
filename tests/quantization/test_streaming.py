"""Statistics of many images: the same in one batch as in several, of which the last is short and filled up."""

import jax
import numpy as np
import pytest

import psaq_jax
from psaq_jax.quantization import streaming
from psaq_jax.quantization.segments import chain, parts_of
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def statistics_of(segment, params, x):
    sites = parts_of(segment, params, x).sites
    widths = {name: sites[name][-1] for name in ("norm1_output", "mlp/activation_output")}
    moments = streaming.channel_moments(segment, params, x, widths)
    ground = {"norm1_output": (np.float32(-9), np.float32(9), np.ones((), np.float32))}
    weights = {"norm1_output": np.random.default_rng(1).uniform(0.5, 1.5, (len(x), x.shape[1])).astype(np.float32)}
    return {
        "moments": moments,
        "channels": streaming.channel_histograms(segment, params, x, moments),
        "tensors": streaming.tensor_histograms(segment, params, x, ground, weights),
        "layer": streaming.layer_moments(segment, "mlp/dense1", x.shape[-1], params, {}, x),
        "float": streaming.propagate_float(segment, params, x),
        "quantized": streaming.propagate(segment, params, {}, x),
    }


@pytest.fixture(scope="module")
def found():
    """Of five images: all at once, and three and two."""
    model = psaq_jax.load_model(GOLDEN / "paper" / "vit")
    link = next(link for link in chain(model.module, model.params, model.image_shape) if link.path)
    x = np.random.default_rng(0).normal(size=(5, 17, model.module.width)).astype(np.float32)
    both = []
    for size in (5, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "BATCH", size)
            both.append(statistics_of(link.segment, link.parameters(model.params), x))
    return both


@pytest.mark.parametrize("statistic", ["moments", "channels", "tensors", "layer", "float", "quantized"])
def test_a_short_last_batch_counts_no_image_twice(found, statistic):
    whole, parts = (jax.tree.leaves(one[statistic]) for one in found)
    for a, b in zip(whole, parts, strict=True):
        if statistic in ("channels", "tensors"):  # a value on an edge may fall to either side in another batch
            a, b = (np.cumsum(x, axis=-1) for x in (a, b))
        # Sums of float32 in another order; one image more would be a fifth.
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-3 * np.abs(a).max())
