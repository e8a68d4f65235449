"""The live comparison as one page, in Markdown, and as tables for a console."""

from collections.abc import Callable, Iterator

from psaq_jax import text_tables
from psaq_jax.text_tables import figure

Table = tuple[str, tuple[str, ...], list[list[str]], int]  # title, header, rows, columns of words


def tables(found: dict) -> Iterator[Table]:
    """Accuracy, speed and memory, parity.

    Args:
      found: what `compare_live` returns.
    """
    recipes = list(found["rows"][0]["psaq_jax"])
    yield "Accuracy", *_accuracy(found, recipes)
    yield "Speed and memory", *_speed(found["synthesis"])
    yield "Parity: both quantizers on the release's ranges", *_parity(found["rows"])


def _accuracy(found, recipes):
    ours = [f"psaq_jax ({recipe})" for recipe in recipes]
    labelled = found["float"]["top1"] is not None
    names = [f"{who}, top-1 %" for who in ("release", *ours)] if labelled else []
    names += [f"{who}, agreement %" for who in ("release", *ours)]
    rows = [["float", "", *_figures(found["float"]["release"], [found["float"]] * len(ours), labelled)]]
    for row in found["rows"]:
        figures = _figures(row["release"], [row["psaq_jax"][recipe] for recipe in recipes], labelled)
        rows.append([row["bits"], row["calibration"], *figures])
    return ("bits", "calibration images", *names), rows, 2


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
        line("iterations of synthesis", "iterations", str, compared=False),
        line("seconds per iteration, mean", "seconds_per_iteration", lambda s: f"{s:.3f}"),
        line("seconds per iteration, fastest", "seconds_per_iteration_min", lambda s: f"{s:.3f}"),
        line("compilation, seconds (once)", "compile_seconds", lambda s: f"{s:.1f}", compared=False),
        line("peak memory of the process, synthesis", "peak_memory_bytes", megabytes),
    ]
    if release.get("device_peak_bytes") or ours.get("device_peak_bytes"):
        rows.append(line("peak memory of the device, synthesis", "device_peak_bytes", megabytes))
    return ("", "release", "psaq_jax", "release / psaq_jax"), rows, 1


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
    return header, rows, 2


def console(found: dict) -> str:
    """The tables, aligned."""
    parts = (f"{title}\n{text_tables.plain(header, rows, left)}" for title, header, rows, left in tables(found))
    return "\n\n".join(parts)


def markdown(found: dict, facts: dict[str, str], pictures: dict[str, str]) -> str:
    """The whole page.

    Args:
      facts: what was run, name and text.
      pictures: {title: path of a PNG, relative to the page}.
    """
    lines = ["# psaq_jax beside the PyTorch release of PSAQ-ViT", ""]
    lines += [text_tables.markdown(("", ""), facts.items(), 2), ""]
    for title, header, rows, left in tables(found):
        lines += [f"## {title}", "", text_tables.markdown(header, rows, left), ""]
        lines += [*_notes(title, found), ""]
    lines += ["## Synthesized images", ""]
    for title, path in pictures.items():
        lines += [f"{title}:", "", f"![{title}]({path})", ""]
    return "\n".join(lines)


def _notes(title: str, found: dict) -> list[str]:
    if title == "Accuracy":
        return [
            f"On {found['float']['examples']:,} images, the same for both. Agreement: how often top-1 is the float "
            f"model's. The float logits of both differ by {found['float']['largest_difference']:.1e} at most."
        ]
    if title == "Speed and memory":
        return [
            "Seconds per iteration: of one group of images, one side after the other; the fastest is the release's "
            "fastest iteration and our fastest chunk of up to 25, and means more where other programs ran beside. Peak "
            "memory: resident memory of either process when its synthesis ended; ours holds the compiler."
        ]
    return [
        f"On {found['rows'][0]['parity']['images']} images. Ranges: of the same calibration images in both, as a part "
        "of a range's length. Codes: of the last site; above 4 bits one rounding that falls the other way in an early "
        "site moves all that follows by a step or a few, so a share is equal."
    ]
