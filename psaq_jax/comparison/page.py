"""The live comparison as one page, in Markdown, and as tables for a console."""

from collections.abc import Callable

from psaq_jax import text_tables
from psaq_jax.text_tables import Table, figure


def tables(found: dict) -> list[Table]:
    """Accuracy, speed and memory, parity.

    Args:
      found: what `compare_live` returns.
    """
    recipes = list(found["rows"][0]["psaq_jax"])
    return [_accuracy(found, recipes), _speed(found["synthesis"]), _parity(found["rows"])]


def _accuracy(found, recipes):
    ours = [f"psaq_jax ({recipe})" for recipe in recipes]
    labelled = found["float"]["top1"] is not None
    names = [f"{who}, top-1 %" for who in ("release", *ours)] if labelled else []
    names += [f"{who}, agreement %" for who in ("release", *ours)]
    rows = [["float", "", *_figures(found["float"]["release"], [found["float"]] * len(ours), labelled)]]
    for row in found["rows"]:
        figures = _figures(row["release"], [row["psaq_jax"][recipe] for recipe in recipes], labelled)
        rows.append([row["bits"], row["calibration"], *figures])
    note = (
        f"On {found['float']['examples']:,} images, the same for both. Agreement: how often top-1 is the float model's."
        f" The float logits of both differ by {found['float']['largest_difference']:.1e} at most."
    )
    if found["calibrated_on"].get("real", {}).get("evaluated"):
        note += " Real images are of those measured on, which favours them."
    return Table("Accuracy", ("bits", "calibration images", *names), rows, 2, note)


def _figures(release, ours, labelled) -> list[str]:
    fields = ("top1", "agreement") if labelled else ("agreement",)
    return [figure(scores[field]) for field in fields for scores in (release, *ours)]


def _speed(synthesis):
    release, ours = synthesis["release"], synthesis["psaq_jax"]

    def line(name: str, field: str, text: Callable[[float], str], compared=True):
        pair = [release.get(field), ours.get(field)]
        ratio = f"{pair[0] / pair[1]:.1f}" if compared and all(pair) else ""
        return [name, *("-" if value is None else text(value) for value in pair), ratio]

    def megabytes(value):
        return f"{value / 1e6:,.0f} MB"

    rows = [
        line("synthesis", "made", str, compared=False),
        line("iterations of synthesis", "iterations", str, compared=False),
        line("seconds per iteration, mean", "seconds_per_iteration", lambda s: f"{s:.3f}"),
        line("seconds per iteration, fastest", "seconds_per_iteration_min", lambda s: f"{s:.3f}"),
        line("compilation, seconds (once)", "compile_seconds", lambda s: f"{s:.1f}", compared=False),
        line("peak memory of the process, synthesis", "peak_memory_bytes", megabytes),
    ]
    if release.get("device_peak_bytes") or ours.get("device_peak_bytes"):
        rows.append(line("peak memory of the device, synthesis", "device_peak_bytes", megabytes))
    note = (
        "Seconds per iteration: of one group of images, one side after the other; the fastest is the release's fastest "
        "iteration and our fastest chunk of up to 25, and means more where other programs ran beside. Peak memory: "
        "resident memory of either process when its synthesis ended; ours holds the compiler."
    )
    return Table("Speed and memory", ("", "release", "psaq_jax", "release / psaq_jax"), rows, 1, note)


def _parity(found):
    header = ("bits", "calibration images", "ranges, largest difference", "equal codes of the logits",
              "largest difference, codes", "largest difference, logits", "same top-1")  # fmt: skip
    rows = []
    for row in found:
        p = row["parity"]
        rows.append([
            row["bits"], row["calibration"], f"{row['range_difference']:.1e}", f"{p['equal_codes']:.1f} %",
            str(p["largest_steps"]), f"{p['largest_difference']:.3g}", f"{p['same_top1']:.1f} %",
        ])  # fmt: skip
    note = (
        f"On {found[0]['parity']['images']} images. Ranges: of the same calibration images in both, as a part of a "
        "range's length. Codes: of the last site; above 4 bits one rounding that falls the other way in an early site "
        "moves all that follows by a step or a few, so a share is equal."
    )
    return Table("Parity: both quantizers on the release's ranges", header, rows, 2, note)


def answer(found: dict) -> str:
    """The comparison in a sentence or two: speed, and top-1 or agreement of the first setting."""
    release, ours = (found["synthesis"][who]["seconds_per_iteration"] for who in ("release", "psaq_jax"))
    field, name = ("agreement", "agreement") if found["float"]["top1"] is None else ("top1", "top-1")
    row = found["rows"][0]
    recipe, scores = next(iter(row["psaq_jax"].items()))
    return (
        f"An iteration of the synthesis takes {ours:.3g} s, the release's {release:.3g} s. At {row['bits']} "
        f"(calibration images: {row['calibration']}) {name} is {scores[field]:.2f} % by recipe {recipe}, the release's "
        f"{row['release'][field]:.2f} %."
    )


def console(found: dict) -> str:
    """The tables, aligned."""
    return "\n\n".join(f"{table.title}\n{table.plain()}" for table in tables(found))


def markdown(found: dict, facts: dict[str, str], pictures: dict[str, str]) -> str:
    """The whole page.

    Args:
      facts: what was run, name and text.
      pictures: {title: path of a PNG, relative to the page}.
    """
    lines = ["# psaq_jax beside the PyTorch release of PSAQ-ViT", ""]
    lines += [text_tables.markdown(("", ""), facts.items(), 2), ""]
    for table in tables(found):
        lines += [f"## {table.title}", "", table.markdown(), "", table.note, ""]
    lines += ["## Synthesized images", ""]
    for title, path in pictures.items():
        lines += [f"{title}:", "", f"![{title}]({path})", ""]
    return "\n".join(lines)
