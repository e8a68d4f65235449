"""The images that a job calibrates on."""

import types

import numpy as np
import pytest

from psaq_jax import pipeline
from psaq_jax.config import JobConfig
from psaq_jax.synthesis.config import SynthesisConfig
from tests.export.small_models import random_model


@pytest.fixture(scope="module")
def model():
    return random_model()


def config(seed=7, calibration=("synthesized", "noise", "real")):
    return JobConfig("m", seed=seed, calibration=calibration, synthesis=SynthesisConfig(num_images=6, group_size=3))


def sets(model, dataset=None, synthesized=None, **changes):
    return pipeline.calibration_images(config(**changes), model, dataset, synthesized)


def test_noise_is_as_many_images_and_of_the_seed(model):
    noise = sets(model)["noise"]
    assert noise.shape == (6, *model.image_shape) and noise.dtype == np.float32
    np.testing.assert_array_equal(sets(model)["noise"], noise)
    assert np.mean(sets(model, seed=8)["noise"] == noise) < 0.01
    # 6 * 16 * 20 * 3 numbers: a mean within 4 of its deviations, 1 / sqrt(5760), and a deviation within 3 percent.
    assert abs(noise.mean()) < 4 / 5760**0.5 and abs(noise.std() - 1) < 0.03


def test_real_images_are_those_to_calibrate_on(model):
    asked, images = [], np.ones((4, 1))

    def sample(*arguments, **more):
        asked.append((arguments, more))
        return images

    dataset = types.SimpleNamespace(for_calibration=types.SimpleNamespace(sample=sample))
    found = sets(model, dataset, [1, 2, 3])
    assert list(found) == ["synthesized", "noise", "real"] and found["real"] is images
    assert len(found["noise"]) == 3, "as many as synthesized: of a large job, those that lie in memory"
    assert asked == [((model.preprocessing, 3, 7), {"fewer": True})]
    sets(model, dataset)
    assert asked[1] == ((model.preprocessing, 6, 7), {"fewer": True})
    assert list(sets(model, None, [1], calibration=("real", "synthesized"))) == ["synthesized"]  # there is no data
    assert list(sets(model, calibration=("real", "synthesized"))) == []
