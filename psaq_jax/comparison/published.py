"""The published figures of PSAQ-ViT, and ours beside them."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from psaq_jax.errors import InputError
from psaq_jax.report.settings import settings
from psaq_jax.sweep_config import SweepConfig
from psaq_jax.text_tables import Table, figure

SOURCE = "Li et al., PSAQ-ViT, ECCV 2022, and the README of github zkkli/PSAQ-ViT: ImageNet, top-1 in percent, one run"


class Row(NamedTuple):
    """A row of the published table."""

    name: str
    float_top1: float
    top1: dict[str, float]  # {bits: top-1}, calibrated on synthesized images


PUBLISHED = {
    "deit_tiny": Row("DeiT-T", 72.21, {"w4a8": 65.57, "w8a8": 71.56}),
    "deit_small": Row("DeiT-S", 79.85, {"w4a8": 73.23, "w8a8": 76.92}),
    "deit_base": Row("DeiT-B", 81.85, {"w4a8": 77.05, "w8a8": 79.10}),
    "swin_tiny": Row("Swin-T", 81.35, {"w4a8": 71.79, "w8a8": 75.35}),
    "swin_small": Row("Swin-S", 83.20, {"w4a8": 75.14, "w8a8": 76.64}),
}
HEADER = ("model", "recipe", "bits", "calibration", "seeds", "published %", "top-1 %", "difference")
WORDS = 4  # columns of words


@dataclasses.dataclass(frozen=True)
class CompareConfig(SweepConfig):
    """The main job's settings, several seeds, and the published row to compare with.

    Attributes:
      published: a key of PUBLISHED; "" for a comparison with the release alone.
    """

    published: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.models != (self.model,):
            raise InputError(f"models is {self.models!r}, a comparison is of one model; leave it out and give model")


def published_row(config: CompareConfig) -> Row:
    """The row of the config.

    Raises:
      InputError: none, an unknown one, or no data to measure top-1 on.
    """
    if config.published not in PUBLISHED:
        raise InputError(
            f"config.published is {config.published!r}, known are {', '.join(PUBLISHED)}; take a config of "
            "configs/paper/, or give --baseline_dir and --baseline_python to compare with the release itself"
        )
    if not config.data:
        raise InputError("config.data is empty, expected the validation images: tfds:..., folder:DIR or npz:FILE")
    return PUBLISHED[config.published]


def rows(row: Row, results: dict) -> Iterator[list[str]]:
    """The table's cells: the float model, then every setting; differences are ours minus the published, in points."""
    ours = results["float"]["top1"]
    yield [row.name, "", "float", "", "", f"{row.float_top1:.2f}", f"{ours:.2f}", f"{ours - row.float_top1:+.2f}"]
    for s in settings(results):
        theirs = row.top1.get(s.bits) if s.calibration == "synthesized" else None
        difference = "-" if theirs is None else f"{s.top1.mean - theirs:+.2f}"
        figures = [figure(theirs), s.top1.text(), difference]
        yield [row.name, s.recipe, s.bits, s.calibration, str(len(s.seeds)), *figures]


def table(row: Row, results: dict) -> Table:
    """The comparison."""
    note = "Mean and sample standard deviation over seeds; the difference is ours minus the published, in points."
    return Table(f"{row.name} beside the published table", HEADER, list(rows(row, results)), WORDS, note)


def answer(row: Row, results: dict) -> str:
    """The differences from the published figures in a sentence."""
    told = [
        f"{bits} ({recipe}) {difference} points"
        for _, recipe, bits, *_, difference in rows(row, results)
        if recipe and difference != "-"
    ]
    return f"Ours minus the published: {', '.join(told)}." if told else "No setting of this run has a published figure."


def page(row: Row, results: dict, command: str, machine: dict) -> str:
    """The comparison as a Markdown page."""
    found = table(row, results)
    return "\n".join([
        f"# {found.title}", "", found.markdown(), "", found.note, "",
        f"Published: {SOURCE}.", "",
        f"Model {results['model']}, {results['float']['examples']:,} images, {machine['device']}, "
        f"jax {machine['versions']['jax']}.", "",
        f"    {command}", "",
    ])  # fmt: skip
