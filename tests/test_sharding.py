"""Calibration and evaluation over 8 fake devices: ranges and top-1 of one device, every image counted once."""

import numpy as np

from tests.fake_devices import run

SCRIPT = """
import sys
import jax, numpy as np
import psaq_jax
from tests.golden_files import reference_vit

assert jax.device_count() == int(sys.argv[1])
rng = np.random.default_rng(0)
model = reference_vit(1)
pixels = rng.normal(size=(75, *model.image_shape)).astype(np.float32)  # 10 batches of 8, the last of 3
ranges = psaq_jax.calibrate(model, pixels, batch_size=8)
images = rng.integers(0, 256, (53, *model.image_shape), dtype=np.uint8)
labels = rng.integers(0, model.classes, 53)
q = psaq_jax.quantize(model, ranges, 8, 8)
found = [psaq_jax.evaluate(m, (images, labels), batch_size=20) for m in (model, q)]
np.savez(sys.argv[2], names=list(ranges), ranges=np.array(list(ranges.values())), found=np.array(found))
"""


def test_eight_devices_give_what_one_gives(tmp_path):
    one, eight = run(SCRIPT, 1, tmp_path / "one.npz"), run(SCRIPT, 8, tmp_path / "eight.npz")
    assert one["names"].tolist() == eight["names"].tolist() and len(one["names"]) == 17
    np.testing.assert_array_equal(one["ranges"], eight["ranges"])
    assert one["found"][:, 3].tolist() == eight["found"][:, 3].tolist() == [53, 53]
    np.testing.assert_array_equal(one["found"][:, :2], eight["found"][:, :2])  # top-1, top-5
    # A batch of 24 over 8 devices is rounded otherwise than one of 20 on one; the quantized model amplifies that.
    np.testing.assert_allclose(one["found"][:, 2], eight["found"][:, 2], rtol=1e-2)
