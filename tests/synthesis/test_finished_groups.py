"""Groups that are done come back whole, once and in order."""

import numpy as np

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
