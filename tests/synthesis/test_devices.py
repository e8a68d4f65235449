"""Groups over 8 fake devices: no collective in the compiled chunk, and the same images as on one device."""

import numpy as np

from psaq_jax.synthesis import loop
from tests.fake_devices import run

SCRIPT = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
import psaq_jax
from psaq_jax.synthesis import chunks
from tests.golden_files import reference_vit

model = reference_vit(1)
config = psaq_jax.SynthesisConfig(num_images=20, group_size=2, iterations=4)
waves = psaq_jax.SynthesisConfig(10, 2, 4, recipe="default")
assert jax.device_count() == int(sys.argv[1])
texts, compile_chunk = [], chunks.compile_chunk.__wrapped__

@functools.lru_cache
def noted(*arguments):
    compiled = compile_chunk(*arguments)
    texts.append(compiled.as_text())
    return compiled

chunks.compile_chunk = noted
result, other = (psaq_jax.synthesize(model, c, seed=0) for c in (config, waves))
np.savez(sys.argv[2], images=result.images, waves=other.images, labels=result.labels, **result.history)
names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
assert texts and not [name for name in names for text in texts if name in text]
"""


def test_images_do_not_depend_on_the_devices(tmp_path):
    """10 groups on 8 devices: the second wave is padded with groups that are dropped."""
    one, eight = run(SCRIPT, 1, tmp_path / "one.npz"), run(SCRIPT, 8, tmp_path / "eight.npz")
    assert eight["images"].shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(one["labels"], eight["labels"])
    for name in ("images", "waves"):
        np.testing.assert_array_equal(one[name], eight[name])
    for name in loop.TERMS:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-6)  # means over groups
