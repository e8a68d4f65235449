"""The synthesis' settings: the ends of what they take, what a message proposes, and what follows from them."""

import re

import pytest

from psaq_jax.errors import InputError
from psaq_jax.synthesis.config import SynthesisConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"bandwidth": 0.001}, {"bandwidth": 1.0}, {"total_variation": (3.0, 3.0)}, {"total_variation": (0.0, 1e9)},
        {"jitter": (0.0, 1e4)}, {"cross_entropy_weight": 0.0, "total_variation_weight": 1e6}, {"learning_rate": 1e3},
        {"iterations": 10**6}, {"num_images": 1, "group_size": 1}, {"rounds": 1, "jitter": [15]},
    ],
)  # fmt: skip
def test_the_ends_are_taken(changes):
    config = SynthesisConfig(**changes)
    for name, value in changes.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a positive number up to 1000"),
        ({"learning_rate": 1001.0}, "learning_rate is 1001.0, expected a positive number up to 1000"),
        ({"bandwidth": 1.01}, "bandwidth is 1.01, expected 0.001 to 1 (the paper's is 0.01)"),
        ({"jitter": (-1.0, 2.0)}, "jitter is (-1.0, 2.0), expected 2 numbers from 0 to 10000, one a round"),
        ({"total_variation": (-1.0, 2.0)}, "total_variation is (-1.0, 2.0), expected (least, greatest), 0 to 100000"),
        ({"group_size": 10**6 + 1}, "group_size is 1000001, expected a whole number from 1 to 1000000"),
        ({"parametrization": "frequencies"}, "parametrization is 'frequencies', and synthesis.recipe 'paper', which"),
        ({"parametrization": "pixel"}, "parametrization is 'pixel', known are pixels, frequencies"),
        ({"fused_attention": "flash"}, "fused_attention is 'flash', known are cudnn, xla"),
    ],
)
def test_beyond_them_settings_are_named(changes, message):
    with pytest.raises(InputError, match=re.escape(f"synthesis.{message}")):
        SynthesisConfig(**changes)


@pytest.mark.parametrize("images, group, proposed", [(100, 32, 96), (33, 16, 32), (3, 32, 32)])
def test_of_images_that_groups_do_not_divide_the_message_proposes_a_number_that_they_do(images, group, proposed):
    with pytest.raises(InputError, match=f"num_images is {images}, .*group_size = {group} .*; take {proposed} images,"):
        SynthesisConfig(images, group)
    assert SynthesisConfig(proposed, group).groups == proposed // group


@pytest.mark.parametrize(
    "iterations, rounds, length, warmup", [(1000, 2, 500, 100), (200, 2, 100, 20), (7, 2, 4, 0), (101, 3, 34, 6)]
)
def test_rounds_share_out_the_iterations_and_warm_up_a_fifth(iterations, rounds, length, warmup):
    config = SynthesisConfig(iterations=iterations, rounds=rounds, jitter=(15.0,) * rounds)
    assert (config.round_length, config.warmup) == (length, warmup)
