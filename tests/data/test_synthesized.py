"""Synthesized sets as TFDS data sets: what TFDS reads is what was synthesized, whenever the writing was interrupted."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

import psaq_jax
from psaq_jax.config import JobConfig
from psaq_jax.data import load_dataset, synthesized
from psaq_jax.data.array_records import features, png, write_shard
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.synthesis.job import parts_for_job
from tests import jobs
from tests.jobs import TINY

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = psaq_jax.SynthesisConfig(num_images=10, group_size=2, iterations=2)
FACTS = {"seed": 7, "synthesis": {"iterations": 2}}


@pytest.fixture(scope="module")
def model():
    return psaq_jax.load_model(TINY)


@pytest.fixture(scope="module")
def whole(model):
    return psaq_jax.synthesize(model, CONFIG, seed=7)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(synthesized, "SHARD_IMAGES", 4)


def writer(directory, model, **more):
    return synthesized.SynthesizedWriter(directory, model, CONFIG, 7, FACTS, **more)


def part(whole, first, last):
    images = whole.images.reshape(5, 2, 32, 32, 3)[first:last]
    return {"first": np.asarray(first), "images": images, "labels": whole.labels.reshape(5, 2)[first:last]}


def check(directory, model, whole, exact):
    """Reads with TFDS alone, then through our own `tfds:`."""
    builder = tfds.builder_from_directory(str(directory))
    records = builder.as_data_source("train")
    assert len(records) == len(whole.images) and builder.info.splits["train"].num_shards == 3
    assert dict(builder.info.metadata) == FACTS
    for i, record in enumerate(records):
        np.testing.assert_array_equal(record["image"], model.preprocessing.denormalize(whole.images[i]))
        assert (record["label"], record["seed"], record["group"]) == (whole.labels[i], 7, i // 2)
        if exact:
            np.testing.assert_array_equal(record["pixels"], whole.images[i])
    dataset = load_dataset(f"tfds:{directory}:train[2:]")
    batch = next(dataset.batches(model.preprocessing, 8))
    assert batch.mask.all() and batch.labels.tolist() == whole.labels[2:].tolist()
    assert dataset.class_names == model.labels and "tensorflow" not in sys.modules


@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 2, 3, 4, 5), (0, 3, 5)])
def test_parts_of_any_size_make_the_same_shards(tmp_path, model, whole, small_shards, cuts):
    out = writer(tmp_path / "dataset", model, exact_pixels=True)
    for first, last in zip(cuts, cuts[1:], strict=False):
        out.add(part(whole, first, last))
    out.close()
    check(tmp_path / "dataset", model, whole, exact=True)
    shards = list((tmp_path / "dataset").glob("*array_record*"))
    assert len(shards) == 3
    for record in array_record_module.ArrayRecordReader(str(shards[0])).read_all():  # its order is no process's own
        assert tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True) == record


def test_a_second_writer_goes_on_behind_the_whole_shards(tmp_path, model, whole, small_shards):
    first = writer(tmp_path / "dataset", model)
    first.add(part(whole, 0, 3))  # one shard, and one group that is lost with the writer
    with pytest.raises(Exception, match="Could not read dataset info"):
        tfds.builder_from_directory(str(tmp_path / "dataset"))
    second = writer(tmp_path / "dataset", model)
    assert second.first == 2
    second.add(part(whole, 1, 4))
    second.add(part(whole, 4, 5))
    second.close()
    check(tmp_path / "dataset", model, whole, exact=False)


def cut(count):
    return lambda content: content[:count]


def turned(content):
    """One bit in a record, behind which all else is whole."""
    place = content.index(b"\x89PNG") + 100
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut(0), cut(1000), cut(2**16), cut(-1), turned])
def test_a_damaged_shard_is_written_anew(tmp_path, model, whole, small_shards, damage):
    out = writer(tmp_path / "dataset", model)
    out.add(part(whole, 0, 5))
    shard = sorted((tmp_path / "dataset").glob("*array_record*"))[1]
    shard.write_bytes(damage(shard.read_bytes()))
    again = writer(tmp_path / "dataset", model)
    assert again.first == 2
    again.add(part(whole, 2, 5))
    again.close()
    check(tmp_path / "dataset", model, whole, exact=False)


def test_a_shard_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, model, whole, small_shards):
    out = writer(tmp_path / "dataset", model)
    out.add(part(whole, 0, 5))
    shard = sorted((tmp_path / "dataset").glob("*array_record*"))[0]
    shard.rename(tmp_path / "aside")
    shard.symlink_to(tmp_path / "dataset")  # opens, and reading fails
    with pytest.raises(TryAgain, match="nothing was removed"):
        writer(tmp_path / "dataset", model)


def test_a_shard_that_finds_no_space_is_one_line(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    image = {"image": png(np.zeros((2, 2, 3), np.uint8)), "label": 0}
    with pytest.raises(InputError, match="cannot be written .*No space left on device.*; free some space"):
        write_shard(tmp_path / "x.array_record", features((2, 2, 3), ("a", "b")), [image])
    assert not list(tmp_path.iterdir())


class Killed(Exception):
    pass


def test_a_killed_job_streams_the_same_set_and_keeps_little(tmp_path, model, whole, small_shards):
    """Killed twice at the end of group 3 (one device: a group a wave); groups in shards are not kept twice."""
    config = JobConfig(model="tiny", seed=7, synthesis=CONFIG)

    def job(stop):
        def progress(done, _):
            if done == stop:
                raise Killed

        out = writer(tmp_path / "dataset", model, exact_pixels=True)
        for some in parts_for_job(config, model, tmp_path, lambda: out.first, progress, every_seconds=0):
            out.add(some)
        out.close()

    for stop in (4 * 2, 4 * 2):
        with pytest.raises(Killed):
            job(stop)
    assert writer(tmp_path / "dataset", model).first == 2
    assert [path.name for path in (tmp_path / "checkpoints").glob("groups_*")] == ["groups_00000002_00000003.npz"]
    job(None)
    check(tmp_path / "dataset", model, whole, exact=True)
    assert list((tmp_path / "checkpoints").glob("groups_*")) == []


def test_labels_of_the_same_name_stay_apart():
    names = features((2, 2, 3), ("crane", "dog", "crane"))["label"].names
    assert names == ["crane (0)", "dog", "crane (2)"]


def test_labels_are_one_line_each(tmp_path):
    """TFDS keeps them in a text file, and reads no name for an empty line."""
    kinds = features((2, 2, 3), ("", "a\nb", "\ud800", "  c "))
    kinds.save_metadata(str(tmp_path), feature_name="")
    (file,) = tmp_path.glob("*.txt")
    assert file.read_text().splitlines() == ["0", "a b", "?", "c"] == kinds["label"].names
    assert len(set(features((2, 2, 3), ("a", "a", "a (1)"))["label"].names)) == 3


def test_the_job_writes_it(tmp_path):
    command = [
        sys.executable, "-m", "launch.synthesize", "--config=configs/demo.py", f"--workdir={tmp_path}", "--quiet",
        f"--config.model={jobs.shallow(tmp_path)}", "--config.synthesis.num_images=4",
        "--config.synthesis.group_size=2", "--config.synthesis.iterations=2", "--dataset", "--nonpy",
    ]  # fmt: skip
    done = subprocess.run(command, timeout=600, **jobs.settings())
    assert done.returncode == 0, done.stderr
    assert len(tfds.builder_from_directory(str(tmp_path / "dataset")).as_data_source("train")) == 4
    facts = json.loads((tmp_path / "dataset" / "metadata.json").read_text())
    assert facts["synthesis"]["recipe"] == "paper" and len(facts["model_fingerprint"]) == 64
    page = (tmp_path / "report.html").read_text()  # of the first part
    assert re.search("synthesis of [24] images, 2 iterations", page) and page.count("<figure><img") >= 4
    assert (tmp_path / "images" / "synthesized.png").exists() and not (tmp_path / "images" / "synthesized.npy").exists()
    done = subprocess.run([*command, "--exact_pixels"], timeout=600, **jobs.settings())
    assert done.returncode == 2 and "exact_pixels is missing there and True now" in done.stderr
    done = subprocess.run([*command, "--exact_pixels", "--nodataset", "--npy"], timeout=600, **jobs.settings())
    assert done.returncode == 2 and "--exact_pixels is of the data set, which would not be written" in done.stderr
    done = subprocess.run([*command, "--nodataset"], timeout=600, **jobs.settings())
    assert done.returncode == 2 and "neither images/synthesized.npy nor a data set would be written" in done.stderr
