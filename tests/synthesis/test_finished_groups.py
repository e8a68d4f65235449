"""Groups that are done come back whole, once and in order."""

import numpy as np
import pytest

from psaq_jax.synthesis.finished_groups import FinishedGroups


def test_only_files_of_its_own_are_groups(tmp_path):
    groups, others = FinishedGroups(tmp_path), tmp_path / "groups_00000000_00000002 (copy).npz"
    groups.keep({"first": np.int64(0), "images": np.ones((2, 4, 8, 8, 3), np.float32)})
    others.write_bytes(b"somebody's")
    assert [len(part["images"]) for part in groups.read()] == [2]
    groups.drop(2)
    assert list(tmp_path.glob("groups*")) == [others]


def test_groups_of_overlapping_parts_come_once(tmp_path):
    """As when another number of devices made anew what the first of them had lost."""
    groups = FinishedGroups(tmp_path)
    for first, last in ((0, 3), (3, 6), (4, 8), (6, 8)):
        groups.keep({"first": np.int64(first), "images": np.ones((last - first, 1, 2, 2, 3), np.float32)})

    def found(first):
        return [(int(part["first"]), len(part["images"])) for part in groups.read(first)]

    assert found(0) == [(0, 3), (3, 3), (6, 2)]
    assert found(5) == [(3, 3), (6, 2)]  # whose first groups the caller has


def kept(groups, *parts):
    for first, last in parts:
        groups.keep({"first": np.int64(first), "images": np.ones((last - first, 1))})


def names(folder):
    return sorted(path.stem.removeprefix("groups_") for path in folder.glob("groups_*"))


def test_behind_a_damaged_part_nothing_is_kept(tmp_path, caplog):
    """It would stand beside other parts of the same groups."""
    groups = FinishedGroups(tmp_path)
    kept(groups, (0, 2), (2, 4), (4, 6))
    (tmp_path / "groups_00000002_00000004.npz").write_bytes(b"")
    assert [int(part["first"]) for part in groups.read()] == [0]
    assert names(tmp_path) == ["00000000_00000002"] and "00000002_00000004.npz: is missing or damaged" in caplog.text


@pytest.mark.parametrize("before, left", [(0, 3), (1, 3), (2, 2), (3, 2), (4, 1), (5, 1), (6, 0)])
def test_parts_go_when_all_their_groups_are_safe(tmp_path, before, left):
    groups = FinishedGroups(tmp_path)
    kept(groups, (0, 2), (2, 4), (4, 6))
    groups.drop(before)
    assert len(names(tmp_path)) == left


def test_a_gap_ends_what_is_finished(tmp_path):
    groups = FinishedGroups(tmp_path)
    kept(groups, (0, 2), (3, 4))
    assert [len(part["images"]) for part in groups.read()] == [2]
    assert list(groups.read(2)) == [] and len(list(groups.read(3))) == 1
