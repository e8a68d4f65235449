"""One self-contained HTML page of a run: no network, no script, readable on a phone, printed, in the dark."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from psaq_jax.config import without_training
from psaq_jax.data.labels import class_names
from psaq_jax.extras import require
from psaq_jax.models.model import Model
from psaq_jax.quantization.recipes import DefaultRecipe, read_recipe
from psaq_jax.report import pictures, sections
from psaq_jax.report.charts import HEIGHT, WIDTH
from psaq_jax.report.figures import TERM_TITLES
from psaq_jax.report.sensitivity import Sensitivity
from psaq_jax.report.settings import images_text, settings
from psaq_jax.report.summary import summary_line
from psaq_jax.text_tables import Table

HERE = pathlib.Path(__file__).parent
ORIGIN = ("device", "versions", "synthesis")  # fields of the results that tell how they were made
CONSTANTS = {
    "chart_width": WIDTH, "chart_height": HEIGHT, "top": sections.TOP, "kinds": sections.KINDS,
    "term_titles": TERM_TITLES,
}  # fmt: skip


def render_page(
    results: dict,
    *,
    model: Model | None = None,
    images: Mapping[str, np.ndarray | None] | None = None,
    targets: Sequence[int] | None = None,
    history: Mapping[str, np.ndarray] | None = None,
    distillations: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ranges: Mapping[str, Mapping] | None = None,
    sensitivity: Sequence[Sensitivity] | None = None,
    measured: Mapping | None = None,
    sensitivity_images: int = 0,
    coverage: Sequence[Mapping[str, str]] | None = None,
    sizes: Mapping[str, int] | None = None,
    command: str = "",
    config: Mapping | None = None,
) -> str:
    """The page as HTML text. Sections without data are left out; only `results` (results.json) must be there.

    Everything that is given is escaped. The page asks for nothing over the network, and its own content
    security policy forbids that.

    Args:
      results: percentages from 0 to 100; `runs` may hold any number of seeds; "seconds" are {phase: wall seconds},
        "peak_memory_bytes" of the process or the device.
      model: the float model: needed for images, similarity maps and computed sizes.
      images: {"synthesized", "noise", "real": [n, h, w, 3] normalised, or None};
        the first 12 of each are shown, the first one's patch similarities.
      targets: class numbers that the synthesized images were made for.
      history: {term: [iterations]} of the synthesis; distillations: {bits: {term: [steps]}}.
      ranges: {calibration: {site: (minimum, maximum)}}.
      sensitivity: of `measure_sensitivity`; sensitivity_images: on how many images of the calibration set.
      measured: which of the runs `sensitivity` and `coverage` are of: {"bits", "recipe", "calibration"}.
      coverage: of `coverage_rows`: {"name", "execution" ("integer" or "float"), "reason", "share" (may be missing)}.
      sizes: {"float32" first, then such as "w4a8": bytes} as measured on disk; None: computed from `model`.
      command: the exact command line; config: the whole configuration.
    Raises:
      InputError: jinja2 or matplotlib is missing; the message names the extra.
    """
    return _render(
        "page.html.jinja",
        heading=results.get("model") or "model",
        kind="quantization report",
        eyebrow="Data-free quantization report",
        **_answer(results, model, sizes, config),
        **_pictures(model, images, targets),
        **_measurements(ranges, sensitivity),
        **_origin(results, command, config, sizes, model),
        loss_charts=pictures.loss_charts(history),
        distillation_charts={bits: pictures.loss_charts(x, "step") for bits, x in (distillations or {}).items() if x},
        measured=measured,
        sensitivity_images=sensitivity_images,
        coverage=list(coverage or ()),
    )


def render_tables(
    results: dict,
    tables: Sequence[Table],
    *,
    heading: str,
    kind: str,
    lead: str,
    galleries: Mapping[str, Sequence[pictures.Picture]] | None = None,
    figures: Mapping[str, bytes] | None = None,
    command: str = "",
    config: Mapping | None = None,
) -> str:
    """The page of a run that measures and quantizes nothing: what it says in a sentence, its tables, how it was made.

    Args:
      results: where it ran, as `machine.describe_machine` tells; "seconds" and "peak_memory_bytes" as in results.json.
      heading: what was measured, such as a model; kind: of report; lead: the answer in a sentence or two.
      figures: {title: PNG}, above the tables; galleries: {title: pictures}, below them.
      command, config: as `render_page`.
    """
    return _render(
        "tables.html.jinja",
        heading=heading,
        kind=kind,
        eyebrow=kind[0].upper() + kind[1:],
        lead=lead,
        tables=tables,
        galleries=galleries or {},
        figures={title: pictures.data_address(png) for title, png in (figures or {}).items()},
        sizes=[],
        **_origin(results, command, config),
    )


def _render(template: str, **values) -> str:
    return _environment().get_template(template).render(**values, **CONSTANTS)


def _origin(results, command, config, *others) -> dict:
    """How it was made; `others` are shown there too."""
    spent = {"seconds": results.get("seconds") or {}, "peak_memory_bytes": results.get("peak_memory_bytes")}
    return spent | {
        "results": results,
        "command": command,
        "config": sections.pretty(config) if config else "",
        "has_origin": any([command, config, *others, *spent.values(), *map(results.get, ORIGIN)]),
    }


def _answer(results, model, sizes, config) -> dict:
    """The figures of every setting, the sentence about them, and sizes before and after."""
    computed = sizes is None and model is not None
    if computed:
        found = settings(results)
        ends_at_8 = any(_keeps_ends(s.recipe, config) for s in found)  # the largest of the recipes'
        sizes = sections.weight_sizes(model.params, [s.bits for s in found], ends_at_8)
    return {
        "answer": sections.answer(results),
        "summary": summary_line(results),
        "images_text": images_text(results),
        "sizes": sections.size_rows(sizes),
        "sizes_computed": computed,
    }


def _keeps_ends(recipe: str, config: Mapping | None) -> bool:
    """Whether its first and last layers have 8 bits."""
    options = DefaultRecipe(**(config or {}).get("quantization", {}).get("options", {}))
    _, found = read_recipe(without_training(recipe), options)
    return found is not None and found.first_last_8bit


def _measurements(ranges, sensitivity) -> dict:
    kinds = ("activations", "weights", "block", "all")
    return {
        "ranges": sections.range_rows(ranges),
        "calibrations": list(ranges or {}),
        "heat_maps": sections.heat_maps(sensitivity),
        "worst": {kind: sections.worst_first(sensitivity, kind) for kind in kinds},
    }


def _pictures(model, images, targets) -> dict:
    """Galleries, similarity maps and their colour scale, as the template takes them."""
    given = {kind: np.asarray(x) for kind, x in (images or {}).items() if x is not None and len(x)}
    if model is None or not given:
        return {"galleries": {}, "layers": [], "least_similarity": 0.0, "color_stops": []}
    captions = {"synthesized": class_names(model.labels, targets)} if targets is not None else {}
    layers, least = pictures.similarity_layers(model, {kind: x[0] for kind, x in given.items()})
    return {
        "galleries": {kind: pictures.gallery(model, x, captions.get(kind)) for kind, x in given.items()},
        "layers": layers,
        "least_similarity": least,
        "color_stops": pictures.color_stops(),
    }


def check_extra() -> None:
    """Raises MissingExtra where a page could not be rendered."""
    for module in ("jinja2", "matplotlib"):
        require(module, "report")


def _environment():
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    markup = require("markupsafe", "report")

    def breakable(name):
        """A path or site name that may break after "/", "_" and ":"."""
        escaped = str(markup.escape(name))  # entities hold none of the three
        return markup.Markup(re.sub("([/_:])", r"\1<wbr>", escaped))

    environment.filters.update(bytes=sections.bytes_text, duration=sections.seconds_text, breakable=breakable)
    return environment
