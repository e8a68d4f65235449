"""The TensorBoard log, read back from its file."""

import numpy as np
import pytest

from psaq_jax.errors import InputError
from psaq_jax.report import write_metrics
from tests.report.samples import history, results

events = pytest.importorskip("tensorboardX.record_writer", reason="tensorboardX (extra log) is not installed")


def read(directory):
    """{tag: [(step, value)]} of the only event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = directory.iterdir()
    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
        data = data[16 + length :]
    return found


def test_scalars_images_and_text(tmp_path):
    images = {"synthesized": np.zeros((20, 4, 4, 3), np.uint8), "real": None}
    for _ in range(2):  # the same job again replaces what it wrote
        write_metrics(tmp_path / "metrics", results(seeds=(3, 5)), history(7), images)
    found = read(tmp_path / "metrics")
    losses = [(step, round(value.simple_value, 4)) for step, value in found["synthesis/loss"]]
    assert losses == [(i + 1, round(5 - i / 10, 4)) for i in range(7)]
    assert [(step, value.simple_value) for step, value in found["paper/w8a8/synthesized/top1"]] == [
        (3, 89.5), (5, 90.5),
    ]  # fmt: skip
    assert round(found["float/top1"][0][1].simple_value, 3) == 91.3
    ((_, tiled),) = found["images/synthesized"]
    assert (tiled.image.height, tiled.image.width) == (8, 32)  # 16 of 20, 4 by 4 pixels each
    assert any("w8a8" in str(value) for tag in found if tag.startswith("results") for _, value in found[tag])


def test_earlier_events_are_replaced_and_nothing_else(tmp_path):
    """TensorBoard would show every curve twice; names differ by the second that a job starts in."""
    for name in ("events.out.tfevents.1.host", "notes.txt"):
        (tmp_path / name).write_text("")
    write_metrics(tmp_path, results())
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2 and "notes.txt" in names and "events.out.tfevents.1.host" not in names


def test_without_data(tmp_path):
    write_metrics(tmp_path, results(labelled=False))
    found = read(tmp_path)
    assert "paper/w8a8/noise/agreement" in found and not [tag for tag in found if "top1" in tag or "float" in tag]


def test_bad_images_and_folders(tmp_path):
    with pytest.raises(InputError, match="expected uint8"):
        write_metrics(tmp_path / "a", results(), images={"noise": np.zeros((2, 4, 4, 3))})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_metrics(tmp_path / "file" / "metrics", results())
