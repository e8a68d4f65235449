"""The live comparison as a job: everything checked first, then both sides, then the page."""

import dataclasses
import pathlib

import jax

from psaq_jax import files, pipeline, report
from psaq_jax.cases import SHAPES, case_model
from psaq_jax.comparison import page
from psaq_jax.comparison.live import BY_RELEASE, BY_US, compare_live
from psaq_jax.comparison.published import CompareConfig
from psaq_jax.comparison.release import check_clone, open_release, source_hash
from psaq_jax.config import has_whole_bits
from psaq_jax.errors import InputError
from psaq_jax.extras import written
from psaq_jax.machine import describe_machine, processor
from psaq_jax.progress import Bars
from psaq_jax.quantization.recipes import read_recipe
from psaq_jax.report import pictures
from psaq_jax.report.writing import write_images
from psaq_jax.synthesis.config import SynthesisConfig
from psaq_jax.text_tables import Table
from psaq_jax.workdir import keep_settings, open_workdir

FIXED = (  # in the release's synthesis
    "rounds", "learning_rate", "jitter", "total_variation", "total_variation_weight", "cross_entropy_weight",
    "bandwidth",
)  # fmt: skip


def compare_with_release(
    config: CompareConfig, workdir: pathlib.Path, clone: str, python: str, iterations: int = 0, device: str = "auto",
    command: str = "", bars: Bars = lambda title: None, every_seconds: float = 60.0,
) -> tuple[str, dict[str, pathlib.Path | str]]:  # fmt: skip
    """Compares `config.model` at `config.seed`, and writes comparison.json, comparison.md, report.html and images/.

    Args:
      clone, python: of the release; see `open_release`.
      iterations: of the release's synthesis; 0: as many as ours.
      command: for the page.
      every_seconds: between checkpoints of our synthesis.
    Returns:
      (the tables as text, {what it is: path of a page, or why there is none})
    Raises:
      InputError: bad input, a clone or interpreter that cannot be used, a crash of the release.
    """
    if iterations < 0:
        raise InputError(f"--baseline_iterations is {iterations}, expected at least 1, or 0 for as many as ours")
    for bits in config.quantization.bits:
        if not has_whole_bits(bits):
            raise InputError(f"quantization.bits has {bits!r}, which the release has not; take such as 'w4a8'")
    for name in config.quantization.recipes:
        read_recipe(name)
    papers = SynthesisConfig()
    for name in FIXED:
        found, expected = getattr(config.synthesis, name), getattr(papers, name)
        if found != expected:
            raise InputError(f"synthesis.{name} is {found}, the release's is always {expected}; leave it out")
    if config.model in SHAPES and (config.image_size or config.revision):
        raise InputError(f"image_size and revision are of sources; {config.model} is a shape at 224 px: leave them out")
    iterations = iterations or config.synthesis.iterations
    root = check_clone(clone)
    model = config.preprocessed(case_model(config.model) if config.model in SHAPES else pipeline.load_float(config))
    dataset = pipeline.open_data(config, model)
    baseline = {"baseline_source": source_hash(root), "baseline_iterations": iterations, "baseline_device": device}
    identity = config.identity(model, dataset) | baseline
    with open_workdir(workdir, identity):
        release, versions = open_release(root, python, workdir / "release", device)
        another = "take that one, or another --workdir"  # figures of one interpreter must not go on in the next
        keep_settings(release.folder / "versions.json", versions, "the release ran with", another)
        found, sets = compare_live(config, model, dataset, release, workdir, iterations, bars, every_seconds)
        machine = describe_machine()
        found = {"model": config.model, "seed": config.seed} | machine | {"baseline": versions} | found
        files.write_json(workdir / "comparison.json", found)
        facts = _facts(config, model, machine, versions, identity["baseline_source"])
        return page.console(found), _write_pages(config, model, workdir, found, facts, sets, command)


def _write_pages(config, model, workdir, found, facts, sets, command) -> dict[str, pathlib.Path | str]:
    """comparison.md beside images/, and report.html with all in one."""
    grids = write_images(workdir / "images", model, {"psaq_jax": sets[BY_US], "release": sets[BY_RELEASE]})
    shown = {name: str(path.relative_to(workdir)) for name, path in grids.items()}
    ours = {"psaq_jax": ", ".join(f"{name} {version}" for name, version in found["versions"].items())}
    text = page.markdown(found, facts | ours | {"command": command}, shown)

    def html():
        tables = [*page.tables(found), Table("What was run", ("", ""), list(facts.items()), 2)]
        galleries = {f"Images {name}": pictures.gallery(model, sets[name]) for name in (BY_US, BY_RELEASE)}
        return report.render_tables(
            found, tables, heading=config.model, kind="comparison with the release", lead=page.answer(found),
            galleries=galleries, command=command, config=dataclasses.asdict(config),
        )  # fmt: skip

    return {
        "comparison": files.write_text(workdir / "comparison.md", text),
        "report": written(lambda: files.write_text(workdir / "report.html", html())),
    }


def _facts(config, model, machine, versions, source) -> dict[str, str]:
    """What was run, but for what report.html says of every run."""
    synthesis, size = config.synthesis, "x".join(map(str, model.image_size))
    return {
        "model": f"{config.model}, {size} pixels, {model.classes} classes",
        "synthesized images": f"{synthesis.num_images} in groups of {synthesis.group_size}",
        "data": config.data or "none: agreement on images synthesized by psaq_jax that no calibration saw",
        "seed": str(config.seed),
        "machine": machine["device"] if jax.default_backend() == "cpu" else f"{machine['device']}, {processor()}",
        "release": f"sources {source[:12]}, python {versions['python']}, torch {versions['torch']}, timm "
        f"{versions['timm']}, on {versions['device']}",
    }
