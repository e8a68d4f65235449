"""Evaluation against NumPy written out here, over data sets small enough to count by hand."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psaq_jax import load_model, pipeline, quantize
from psaq_jax.config import JobConfig
from psaq_jax.data import ArraySource, Dataset, load_dataset
from psaq_jax.errors import InputError
from psaq_jax.evaluation import agreement, collect_logits, evaluate, metrics, predict_logits
from psaq_jax.models.preprocessing import Preprocessing
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


class Linear:
    """A model of one dense layer that counts its compilations."""

    def __init__(self, classes=7, labels=None, dtype=jnp.float32):
        self.preprocessing = self.preprocess = Preprocessing((4, 4), (0.5,) * 3, (0.25,) * 3)
        self.labels, self.traces = labels, 0
        self.kernel = jax.random.normal(jax.random.key(0), (48, classes))

        def forward(kernel, pixels):
            self.traces += 1
            return (pixels.reshape(len(pixels), -1) @ kernel).astype(dtype)

        self.forward = jax.jit(forward)

    def __call__(self, pixels):
        return self.forward(self.kernel, pixels)


class Table(Linear):
    """A model whose logits are rows of a table, picked by the image's first byte."""

    def __init__(self, table, labels=None):
        super().__init__(np.shape(table)[1], labels)
        self.preprocessing = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0)
        self.forward = lambda _, pixels: jnp.asarray(table, jnp.float32)[pixels[:, 0, 0, 0].astype(int)]


def images_and_labels(n, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8), rng.integers(0, classes, n)


def numbered(n):
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return images


def reference(logits, labels):
    """(top-1, top-5 in percent, loss) with a stable sort, so that the first of equal logits wins."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, axis=-1, kind="stable")
    hits = order[:, :5] == np.asarray(labels)[:, None]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    return 100 * hits[:, 0].mean(), 100 * hits.any(-1).mean(), losses.mean()


@pytest.mark.parametrize("classes", [2, 4, 7, 30])
def test_metrics_equal_numpy(classes):
    model, (images, labels) = Linear(classes), images_and_labels(53, classes)
    found = evaluate(model, (images, labels), batch_size=16)
    expected = reference(model(model.preprocessing(images)), labels)
    assert found.examples == 53
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    if classes <= 5:
        assert found.top5 == 100


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40))
def test_any_batch_size_counts_every_image_once(n, batch_size):
    rng = np.random.default_rng(n)
    table, labels = rng.normal(size=(n, 9)), rng.integers(0, 9, n)
    calls = []
    found = evaluate(
        Table(table),
        (numbered(n), labels),
        batch_size,
        progress=lambda done, total: calls.append((done, total)),
    )
    expected = reference(table.astype(np.float32), labels)
    assert found.examples == n
    np.testing.assert_allclose(found[:3], expected, rtol=1e-9)
    assert calls[-1] == (n, n) and len(calls) == -(-n // min(n, batch_size))


def test_ties_go_to_the_first_class_as_argmax():
    table = np.zeros((3, 8))
    table[2, 3:] = 1
    found = evaluate(Table(table), (numbered(3), np.array([0, 5, 7])))
    # Image 0: class 0 of equals, right. Image 1: class 5 ranks sixth. Image 2: class 7 is the fifth of 3..7.
    assert found[:2] == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    np.testing.assert_allclose(found.loss, (2 * np.log(8) + np.log(3 + 5 * np.e) - 1) / 3, rtol=1e-6)


def test_huge_logits_give_a_finite_loss():
    found = evaluate(Table([[1e5, 0, -1e5]]), (numbered(1), np.array([2])))
    assert found.loss == 2e5


def test_one_compilation_whatever_the_remainder():
    model = Linear()
    evaluate(model, images_and_labels(53), batch_size=16)
    predict_logits(model, np.zeros((37, 4, 4, 3), np.float32), batch_size=16)
    assert model.traces == 1


def test_collected_logits_agree_with_everything_else():
    model, (images, labels) = Linear(), images_and_labels(20)
    logits, found_labels = collect_logits(model, (images, labels), 8)
    assert logits.dtype == np.float32 and logits.shape == (20, 7)
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_array_equal(logits, predict_logits(model, model.preprocessing(images), 8))
    assert metrics(logits, found_labels) == evaluate(model, (images, labels), 8)


def test_bfloat16_logits_become_float32():
    assert predict_logits(Linear(dtype=jnp.bfloat16), np.zeros((3, 4, 4, 3)), 2).dtype == np.float32


class Broken(ArraySource):
    def __init__(self, images, labels, broken=(1, 4)):
        super().__init__(images, labels)
        self.broken = broken

    def __getitem__(self, index):
        if index in self.broken:
            raise InputError("broken")
        return super().__getitem__(index)


def test_skipped_images_are_not_counted():
    table = np.eye(6)
    dataset = Dataset(Broken(numbered(6), np.array([0, 0, 2, 0, 0, 5])), errors="skip")
    found = evaluate(Table(table), dataset, 4)
    assert (found.top1, found.examples) == (75.0, 4)
    with pytest.raises(InputError, match="arrays, image 1: broken"):
        evaluate(Table(table), Dataset(Broken(numbered(6), np.zeros(6, int))))
    dataset = Dataset(Broken(numbered(6), np.zeros(6, int), range(6)), errors="skip")
    for find in (evaluate, collect_logits):
        with pytest.raises(InputError, match="found no sound image among 6"):
            find(Table(table), dataset, 4)


@pytest.mark.parametrize("batch_size", [1, 3, 250])
def test_a_label_beyond_the_classes_is_named_with_its_image(batch_size):
    labels = np.array([0, 1, 2, 3, 9, 8])
    with pytest.raises(InputError, match="found label 9 at arrays, image 4, expected 0 to 6"):
        evaluate(Linear(7), (numbered(6), labels), batch_size)
    some = Dataset(Broken(numbered(6), labels, (1, 3)), errors="skip")
    with pytest.raises(InputError, match="found label 9 at arrays, image 4, expected 0 to 6"):
        evaluate(Linear(7), some, batch_size)


def test_unlabelled_images_cannot_be_evaluated_but_predicted():
    dataset = Dataset(ArraySource(numbered(3)))
    with pytest.raises(InputError, match="without labels"):
        evaluate(Linear(), dataset)
    logits, labels = collect_logits(Linear(), dataset, 2)
    assert logits.shape == (3, 7) and labels.tolist() == [-1] * 3


def test_logits_that_are_not_finite_are_no_result():
    broken = Table(np.full((6, 6), np.nan))
    for find in (evaluate, collect_logits):
        with pytest.raises(InputError, match="^Table: found logits that are not finite, .*; take a sound copy"):
            find(broken, images_and_labels(6))
    with pytest.raises(InputError, match="not finite"):
        predict_logits(broken, np.zeros((3, 4, 4, 3)))
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="^metrics: found logits that are not finite"):
            metrics(np.full((2, 6), value), np.zeros(2, int))


def test_a_quantized_model_is_not_taken_for_its_source():
    model = load_model(GOLDEN / "paper" / "vit")
    q = quantize(model, None, 4, None)
    head = q.params["head"] | {"bias": jnp.full(model.classes, jnp.nan)}
    q = dataclasses.replace(q, params=q.params | {"head": head})
    with pytest.raises(InputError, match=f"^the quantized model of {model.source}: found .*; quantize it again"):
        predict_logits(q, np.zeros((3, *q.image_shape)))


def test_labels_are_checked_before_a_job_begins(tmp_path):
    """Those that are known without reading an image; a prediction needs none."""
    images, labels = numbered(6), np.array([0, 1, 2, 3, 10, 8])
    np.savez(tmp_path / "wrong.npz", images=images, labels=labels)
    np.savez(tmp_path / "none.npz", images=images)
    model = load_model("bundled:fashion_mnist_vit")
    for name, message in (("wrong", "found label 10 at .*, image 4, expected 0 to 9"), ("none", "without labels")):
        config = JobConfig(model=model.source, data=f"npz:{tmp_path / name}.npz")
        with pytest.raises(InputError, match=f"{name}.npz: found .*{message.removeprefix('found ')}"):
            pipeline.open_data(config, model)
        assert len(pipeline.load_data(config)) == 6


def test_the_same_classes_in_another_order_are_refused():
    source = ArraySource(numbered(2), np.array([0, 1]))
    source.class_names = ("cat", "dog")
    with pytest.raises(InputError, match="class 'cat' as number 0, the model has it as 1; give a class_index"):
        evaluate(Linear(2, labels=("dog", "cat")), Dataset(source))
    with pytest.raises(InputError, match="class 'dog' as number 1, the model has it as 2; give a class_index"):
        evaluate(Linear(3, labels=("cat", "cow", "dog")), Dataset(source))  # some of the model's classes
    with pytest.raises(InputError, match="class 'cat' as number 0, the model has it as 1; give a class_index"):
        evaluate(Linear(2, labels=("Dog", "Cat ")), Dataset(source))
    for labels in (("cat", "dog"), ("tench", "goldfish"), ("Cat", "DOG"), None):
        assert evaluate(Linear(2, labels=labels), Dataset(source)).examples == 2


def test_class_folders_that_may_be_any_of_the_models_classes(tmp_path):
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    data = f"folder:{tmp_path}"
    with pytest.raises(InputError, match="2 class folders, the model has 3 classes; .* give class_index"):
        evaluate(Linear(3, labels=("ape", "bee", "cow")), data)
    with pytest.raises(InputError, match="found 2 classes, the model has 1"):
        evaluate(Linear(1, labels=("ape",)), data)
    assert collect_logits(Linear(1, labels=("ape",)), data)[0].shape == (2, 1)  # which asks for no labels
    (tmp_path / "index.json").write_text('["n1", "n2"]')
    for labels, dataset in (
        (("ape", "bee", "cow"), load_dataset(data, class_index=str(tmp_path / "index.json"))),
        (("N1", "n2", "n3"), data),
        (("ape", "bee"), data),
    ):
        assert evaluate(Linear(len(labels), labels=labels), dataset).examples == 2


def test_names_of_several_classes_say_nothing():
    """Keras's class index of ImageNet has maillots at 638 and 639, transformers' labels call the second otherwise."""
    source = ArraySource(numbered(2), np.array([0, 1]))
    for names, labels in (
        (("maillot", "maillot"), ("maillot", "maillot, tank suit")),
        (("crane", "crane bird"), ("bird", "crane", "crane")),
    ):
        source.class_names = names
        assert evaluate(Linear(len(labels), labels=labels), Dataset(source)).examples == 2


def test_bad_arguments():
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluate(Linear(), images_and_labels(3), 0)
    with pytest.raises(InputError, match="batch_size is 2.5, expected a whole number"):
        evaluate(Linear(), images_and_labels(3), 2.5)
    with pytest.raises(InputError, match="images are of several shapes"):
        predict_logits(Linear(), [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))])
    with pytest.raises(InputError, match=r"pixels: found shape \[4, 4, 3\]"):
        predict_logits(Linear(), np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match="labels: found int64"):
        evaluate(Linear(), (numbered(3), np.zeros(2, int)))
    with pytest.raises(InputError, match="expected equal shapes"):
        agreement(np.zeros((3, 2)), np.zeros((2, 2)))


def test_agreement_is_a_percentage_of_equal_top1():
    a = np.array([[1, 0], [0, 1], [1, 1], [0, 1]])
    b = np.array([[9, 0], [1, 0], [2, 2], [0, 3]])
    assert agreement(a, b) == 75.0
    assert agreement(a, a) == 100.0


SHARDED = """
import sys; sys.path.insert(0, "tests")
import jax, numpy as np
from test_evaluation import Linear, images_and_labels
from psaq_jax.evaluation import evaluate
assert jax.device_count() == 4
seen = []
class Watched(Linear):
    def __call__(self, pixels):
        seen.append((pixels.shape[0], len(pixels.sharding.device_set)))
        return super().__call__(pixels)
found = evaluate(Watched(), images_and_labels(53), 15)
assert seen == [(16, 4)] * 4, seen
print(*map(repr, found))
"""


def test_four_devices_give_the_result_of_one():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    expected = evaluate(Linear(), images_and_labels(53), 16)
    np.testing.assert_allclose([float(x) for x in run.stdout.split()], expected, rtol=1e-6)
