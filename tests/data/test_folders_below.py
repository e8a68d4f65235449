"""Folders of images below others: splits, and files that labels name by their paths."""

import pytest

from psaq_jax.data import load_dataset
from tests.data.test_folder import read, save


@pytest.mark.parametrize("names, evaluated", [(("val", "test"), 0), (("test", "validation"), 1), (("test",), 0)])
def test_of_several_splits_the_validation_images_are_evaluated(tmp_path, names, evaluated):
    for value, name in enumerate(names):
        save(tmp_path / name / "cat" / "a.png", value)
    save(tmp_path / "train" / "cat" / "a.png", 9)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert read(dataset)[0] == [evaluated] and read(dataset.train)[0] == [9]


def test_names_in_a_labels_file_are_paths_in_the_folder(tmp_path):
    for value, name in enumerate(("a/x.png", "b/x.png", "x.png")):
        save(tmp_path / "flat" / name, value)
    (tmp_path / "labels.txt").write_text("x.png 7\nb/x.png 6\na/x.png 5\n")
    dataset = load_dataset(f"folder:{tmp_path / 'flat'}", labels_file=str(tmp_path / "labels.txt"))
    assert read(dataset) == ([2, 0, 1], [7, 5, 6])  # a folder's own files come before those below it
