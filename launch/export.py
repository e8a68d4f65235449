"""A float or saved quantized model as StableHLO or ONNX.

    python -m launch.export --config.model=SOURCE|ARTEFACT --format=stablehlo|onnx --workdir=DIR
        [--execution=simulated|integer] [--weights=inside|beside]

Writes DIR/model.stablehlo (loads in any process that has jax; with --weights=beside, DIR/model.safetensors) or
DIR/model.onnx (QDQ; for ONNX Runtime), DIR/export.json: input, normalisation, labels, hashes and how far its logits
were from ours on noise, and DIR/report.html. A file that could not be loaded and run is not written. Both formats may
share DIR: export.json describes the newest export, and the other format's under "others"; the page is the newest's.
"""

from absl import flags
from ml_collections import config_flags

from launch import config as launch_config
from launch import pages
from psaq_jax import pipeline
from psaq_jax.errors import InputError
from psaq_jax.export import description
from psaq_jax.export.onnx_file import export_onnx
from psaq_jax.export.stablehlo import PLACES, export_stablehlo
from psaq_jax.quantization import integer_plan
from psaq_jax.quantization.artefact import EXECUTIONS
from psaq_jax.workdir import results_folder

CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/demo.py", "A file in configs/; only `model`, `image_size` and `revision` are read."
)
FORMAT = flags.DEFINE_enum("format", "stablehlo", ["stablehlo", "onnx"], "Of the exported file.")
EXECUTION = flags.DEFINE_enum("execution", "simulated", EXECUTIONS, "Of a quantized model in StableHLO.")
WEIGHTS = flags.DEFINE_enum("weights", "inside", PLACES, "Where StableHLO's weights are: in its file or beside it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the exported files and report.html.", required=True)


def main():
    if EXECUTION.value == "integer" and FORMAT.value == "onnx":
        raise InputError("--execution=integer is for StableHLO; an ONNX runtime chooses for itself, leave it out")
    if WEIGHTS.value == "beside" and FORMAT.value == "onnx":
        raise InputError("--weights=beside is for StableHLO; an ONNX file holds its weights, leave it out")
    config = launch_config.read_job(CONFIG)
    model = pipeline.load_either(config, EXECUTION.value)
    with results_folder(WORKDIR.value, description.check_folder) as workdir:
        if FORMAT.value == "onnx":
            written = export_onnx(model, workdir)
        else:
            written = export_stablehlo(model, workdir, WEIGHTS.value)
        for path in written:
            print(f"  {path} ({path.stat().st_size / 1e6:.2f} MB)")
        print(f"  report: {write_page(config, model, workdir)}")


def write_page(config, model, workdir):
    exported = description.read_descriptions(workdir)[FORMAT.value]
    tables = description.tables(exported, workdir, repr(model))
    if EXECUTION.value == "integer":
        tables.append(integer_plan.table({config.model: model.products}))
    lead = description.answer(exported)
    return pages.write_tables(workdir, config, tables, heading=config.model, kind="export report", lead=lead)


if __name__ == "__main__":
    launch_config.run(main)
