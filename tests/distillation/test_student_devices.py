"""A batch over 8 fake devices: the same gradients and losses as on one, to float32's rounding."""

import numpy as np

from tests.fake_devices import run

SCRIPT = """
import sys
import jax, numpy as np
import psaq_jax
from psaq_jax.distillation import driver, turns
from psaq_jax.distillation.config import DistillationConfig
from psaq_jax.quantization.recipes import DefaultRecipe

model = psaq_jax.load_model("tests/golden/paper/vit")
assert jax.device_count() == int(sys.argv[1])
images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
ranges = psaq_jax.calibrate(model, images, recipe="default")
q = psaq_jax.quantize(model, ranges, 8, 8, recipe="default")
config = DistillationConfig(cycles=1, generator_iterations=2, student_steps=2, batch_size=8)
# With seeds 0 and 2 a last bit turns an activation's rounding on some processors, and that image's gradient with it.
arena, state = turns.enter(model, q, config, psaq_jax.SynthesisConfig(), 1, jax.devices())
state, generated = turns.generate(arena, state, 0, 0)
state, learned = turns.learn(arena, state, [images], 0, 0)
assert len(state.group.images.sharding.device_set) == int(sys.argv[1])
assert len(driver.distill(model, q, images, config).images) == 16
moments = state.moments.mu._asdict() | {"images": state.group.adam.mu}  # gradients of the first step, but for a factor
found = {f"gradient/{k}": np.concatenate([np.ravel(x) for x in jax.tree.leaves(v)]) for k, v in moments.items()}
found |= {f"generator/{k}": np.asarray(v) for k, v in generated.items()}
np.savez(sys.argv[2], **found, **{f"student/{k}": np.asarray(v) for k, v in learned.items()})
"""


def test_gradients_and_losses_do_not_depend_on_the_devices(tmp_path):
    """To 1e-5 of the largest gradient of a kind: sums whose terms cancel keep no more of themselves.

    What Adam makes of gradients does depend on them: it divides each by its own size, and tiny ones are all rounding.
    """
    one, eight = run(SCRIPT, 1, tmp_path / "one.npz"), run(SCRIPT, 8, tmp_path / "eight.npz")
    assert one.keys() == eight.keys() and {"generator/discrepancy", "student/loss"} <= one.keys()
    for name, value in one.items():
        # The entropy's bandwidth of 0.01 magnifies rounding; the golden gradients of images have this tolerance too.
        part = 4e-5 if name == "gradient/images" else 1e-5
        np.testing.assert_allclose(eight[name], value, rtol=part, atol=part * np.abs(value).max(), err_msg=name)
