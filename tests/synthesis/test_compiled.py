"""Regression guards on the compiled step: how often it is compiled, what it computes, what it holds. Never how long."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

import psaq_jax
from psaq_jax.models.model import Model
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.sites import apply_with_tap
from psaq_jax.synthesis import chunks
from psaq_jax.synthesis.entropy import GRID_POINTS
from psaq_jax.synthesis.loop import initial_group, scan_chunk

DEPTH, WIDTH, HIDDEN, SIDE, PATCHES = 2, 24, 96, 48, 144
KERNELS = {(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH), (3 * 4 * 4, WIDTH), (WIDTH, 7)}
BIASES = {(3 * WIDTH,), (WIDTH,), (HIDDEN,), (7,)}


@pytest.fixture(scope="module")
def model():
    module = VisionTransformer((SIDE, SIDE), (4, 4), WIDTH, DEPTH, 2, HIDDEN, 7)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    return Model(params, module, tuple("abcdefg"), Preprocessing((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3))


@pytest.fixture(scope="module")
def run(model):
    """[the compiled chunks] of a whole run: 2 waves of a group of 2, 2 rounds, 4 chunks a wave."""
    found, compile_chunk = [], chunks.compile_chunk

    def spy(*arguments):
        found.append(compile_chunk(*arguments))
        return found[-1]

    spy.cache_info = compile_chunk.cache_info
    compile_chunk.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "LONGEST_CHUNK", 2)
        patch.setattr(chunks, "compile_chunk", spy)
        config = psaq_jax.SynthesisConfig(num_images=4, group_size=2, iterations=8)
        psaq_jax.synthesize(model, config, devices=tuple(jax.local_devices()[:1]))
    return found


@pytest.fixture(scope="module")
def text(run):
    return run[0].as_text()


def test_one_compilation_for_all_waves_rounds_and_chunks(run):
    assert len(run) == 2 * 4 and len(set(map(id, run))) == 1


def test_the_gradient_is_with_respect_to_the_images_alone(text):
    """Matrix products, by the model's architecture; a weight gradient would be one more for every kernel."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", text)
    forward = 1 + DEPTH * 6 + 1  # patches; qkv, scores, values, projection, two of the MLP; classifier
    backward = 1 + DEPTH * (4 + 2 * 2) + 1  # one for every kernel, two for a product of two activations
    similarities = DEPTH * 2  # the Gram matrix, and its gradient by symmetry
    assert len(shapes) == forward + backward + similarities
    kernels = KERNELS | {shape[::-1] for shape in KERNELS}
    assert not kernels & {tuple(map(int, shape.split(","))) for shape in shapes if shape}


def test_no_buffer_holds_the_grid_times_the_similarities(text):
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    assert PATCHES**2 < max(sizes) < GRID_POINTS * PATCHES**2


def test_the_host_is_not_called(text):
    """Nor are other devices: `test_devices.py` looks for that in what two or more of them run."""
    assert not [name for name in ("callback", "infeed", "outfeed", "send", "recv") if name in text]


@pytest.mark.parametrize("recipe, dtype", [("paper", "float32"), ("default", "bfloat16")])
def test_accelerators_take_the_step_and_do_not_branch_by_its_values(model, recipe, dtype):
    """On a CPU each layer's entropy chooses by how wide its grid is. A choice by platform, two for a layer there and
    for all of them here, is written as two cases of a constant.
    """
    config = psaq_jax.SynthesisConfig(num_images=2, group_size=2, recipe=recipe)
    passes, state = model.with_dtype(dtype), initial_group(model, config, 0, 0)
    step = jax.jit(lambda model, state: scan_chunk(model, config, state, 0, 2)).trace(passes, state)
    cpu, cuda, tpu = (
        step.lower(lowering_platforms=(name,)).as_text().count("stablehlo.case") for name in ("cpu", "cuda", "tpu")
    )
    assert cpu - DEPTH * (1 + 2 * 2) == cuda - 2 * 2 == tpu - 2 * 2


def test_accelerators_take_the_layers_entropies_together(model):
    """Two products for the similarities of all layers, which are alike; a CPU takes two for each."""
    config = psaq_jax.SynthesisConfig(num_images=2, group_size=2)
    state = initial_group(model, config, 0, 0)
    step = jax.jit(lambda model, state: scan_chunk(model, config, state, 0, 2)).trace(model, state)
    texts = (step.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu"))
    cpu, cuda, tpu = (text.count("stablehlo.dot_general") for text in texts)
    assert cpu - cuda == cpu - tpu == 2 * (DEPTH - 1)


def test_kernels_and_their_biases_are_rounded_before_the_loop(model):
    config = psaq_jax.SynthesisConfig(num_images=2, group_size=2)

    def rounded(passes):
        """Shapes of the parameters that the step rounds."""
        state = initial_group(passes, config, 0, 0)
        step = jax.jit(lambda model, state: scan_chunk(model, config, state, 0, 2)).trace(passes, state)
        text = step.lower(lowering_platforms=("tpu",)).as_text()
        found = re.findall(r"stablehlo.convert %arg\d+ : \(tensor<([\dx]+)xf32>\) -> tensor<[\dx]+xbf16>", text)
        return {tuple(map(int, shape.split("x"))) for shape in found}

    passes = model.with_dtype("bfloat16")
    layers = KERNELS | BIASES
    assert rounded(passes) >= layers and not rounded(passes.with_layers_rounded()) & layers


def test_memory_is_what_the_backward_pass_needs(model):
    """By the compiler's account: a longer chunk takes not a byte more, an image little more than its activations."""

    def scratch(images, length):
        config = psaq_jax.SynthesisConfig(num_images=images, group_size=images, iterations=8)
        state = jax.eval_shape(functools.partial(initial_group, model, config), 0, 0)
        chunk = jax.jit(lambda model, state: scan_chunk(model, config, state, 0, length))
        return chunk.lower(model, state).compile().memory_analysis().temp_size_in_bytes

    two = scratch(2, 2)
    assert scratch(2, 4) == two
    assert (scratch(4, 2) - two) / 2 < 1.25 * activation_bytes(model)  # seen: 1.07


def activation_bytes(model) -> int:
    """Of all sites of one image."""
    sizes = []

    def tap(_, x):
        sizes.append(4 * x.size)
        return x

    pixels = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    jax.eval_shape(lambda params, pixels: apply_with_tap(model.module, params, pixels, tap), model.params, pixels)
    return sum(sizes)
