"""What several processes tell each other, with threads in their place: of any size, in several pieces."""

import concurrent.futures
import threading

import numpy as np
import pytest

from psaq_jax import distributed
from psaq_jax.data import ArraySource, Dataset
from psaq_jax.errors import InputError
from psaq_jax.evaluation import collect_logits, evaluate
from psaq_jax.models.preprocessing import Preprocessing

COUNT = 3


@pytest.fixture
def together(monkeypatch):
    """`together(function)`: [function(index of the process) in each of three], which exchange 8 bytes at a time."""
    own, parts, barrier = threading.local(), [None] * COUNT, threading.Barrier(COUNT, timeout=60)

    def all_gather(content):
        parts[own.index] = content
        barrier.wait()
        found = np.stack(parts)  # as the devices' own: of one shape
        barrier.wait()
        return found

    def run(index, function):
        own.index = index
        return function(index)

    monkeypatch.setattr(distributed, "PIECE", 8)
    monkeypatch.setattr(distributed, "count", lambda: COUNT)
    monkeypatch.setattr(distributed, "index", lambda: own.index)
    monkeypatch.setattr(distributed, "_all_gather", all_gather)
    monkeypatch.setattr(distributed, "_broadcast", lambda content: all_gather(content)[0])
    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        yield lambda function: list(pool.map(run, range(COUNT), [function] * COUNT))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("lengths", [(1, 4, 2), (0, 3, 7), (5, 5, 5), (0, 0, 0)])
def test_rows_come_in_the_order_of_their_processes(together, lengths, dtype):
    rows = np.random.default_rng(0).integers(0, 2, (sum(lengths), 3)).astype(dtype)
    shares = np.split(rows, np.cumsum(lengths)[:-1])
    for found in together(lambda i: distributed.gather(shares[i])):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, rows)


def test_all_get_what_the_first_has(together):
    items = [{"a": np.arange(9.0).reshape(3, 3), "b": np.asarray("text")}, {"c": np.zeros((0, 2))}]
    for found in together(lambda i: list(distributed.each_from_first(items if i == 0 else ()))):
        assert [list(item) for item in found] == [["a", "b"], ["c"]]
        for item, expected in zip(found, items, strict=True):
            for name, value in expected.items():
                np.testing.assert_array_equal(item[name], value)
    assert together(lambda i: distributed.from_first({"a": np.zeros(i)} if i else None)) == [None] * COUNT


def test_what_one_wants_all_know(together):
    assert together(lambda i: distributed.any_of(i == 1, False, True)) == [(True, False, True)] * COUNT
    texts = [["one"], [], ["caf\udce9.png: broken", "日本"]]
    assert together(lambda i: distributed.gather_texts(texts[i])) == [sum(texts, [])] * COUNT
    together(lambda i: distributed.check_same("the run", "the same"))
    with pytest.raises(InputError, match="^the run differs between the processes; start all of them with the same"):
        together(lambda i: distributed.check_same("the run", "other" if i == 2 else "the same"))


class Model:
    """Logits are the image's first byte, and notes the sizes of its batches."""

    preprocessing, labels = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3, rescale_factor=1.0), ()

    def __init__(self):
        self.sizes = []

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        return np.asarray(pixels)[:, 0, 0, :1] * [0, 1, 2]


class Broken(ArraySource):
    def __getitem__(self, index):
        if index in (1, 9):
            raise InputError("broken")
        return super().__getitem__(index)


def broken():
    images = np.arange(11, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    return Dataset(Broken(images, np.arange(11) % 3), errors="skip")


def test_each_evaluates_a_share_and_all_know_the_whole(together):
    """Also what others have skipped; in batches as large as one process has, for rounding depends on these."""
    models, sets = [Model() for _ in range(COUNT)], [broken() for _ in range(COUNT)]
    sound = [i for i in range(11) if i not in (1, 9)]
    for logits, labels in together(lambda i: collect_logits(models[i], sets[i], 5)):
        np.testing.assert_array_equal(logits, np.outer(sound, [0, 1, 2]))
        assert labels.tolist() == [i % 3 for i in sound]
    assert [model.sizes for model in models] == [[5]] * COUNT
    assert [dataset.skipped for dataset in sets] == [[f"arrays, image {i}: broken" for i in (1, 9)]] * COUNT
    assert len(set(together(lambda i: evaluate(models[i], sets[i], 5)))) == 1
    assert [len(dataset.skipped) for dataset in sets] == [2] * COUNT
