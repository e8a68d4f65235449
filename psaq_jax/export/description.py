"""export.json: what a program needs beside the exported files, and the same for a page.

Both formats may share a folder.
"""

import dataclasses
import pathlib

from psaq_jax import checksums, files, resumption
from psaq_jax.checks import check_folder_path
from psaq_jax.errors import InputError, first
from psaq_jax.machine import versions
from psaq_jax.quantization.artefact import is_artefact
from psaq_jax.quantization.transform import QuantizedModel
from psaq_jax.text_tables import Table

DESCRIPTION = "export.json"
FIRST = 10  # labels, in a table


def write_description(folder, model, format: str, written: list[pathlib.Path], checked: dict, **more) -> pathlib.Path:
    """Input, preprocessing, labels, hashes, how it was checked; what it said of the other format stays, in "others"."""
    preprocessing = model.preprocessing
    quantized = {}
    if isinstance(model, QuantizedModel):
        quantized = {name: getattr(model, name) for name in ("weight_bits", "activation_bits", "recipe")}
        quantized["distillations"] = [dataclasses.asdict(x) for x in model.distillations]
    description = {
        "format": format,
        **more,
        "files": {file.name: checksums.of_file(file) for file in written},
        "input": {"name": "pixels", "dtype": "float32", "shape": ["batch", *model.image_shape]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", model.classes]},
        "preprocessing": dataclasses.asdict(preprocessing),  # (x·rescale_factor − mean) / std, as `Preprocessing` says
        "normalisation": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        "labels": list(model.labels),
        "quantization": quantized or None,
        "checked": checked,
        "versions": versions("jax", "onnx", "onnxruntime"),
    }
    others = {name: entry for name, entry in read_descriptions(folder).items() if name != format}
    if others:
        description["others"] = others
    return files.write_json(pathlib.Path(folder) / DESCRIPTION, description)


def check_folder(folder) -> pathlib.Path:
    """Its path, or InputError: none of this machine, or a quantized model is saved there, which could not be saved
    there again beside other files.
    """
    folder = check_folder_path("the export's directory", folder)
    if is_artefact(folder):
        raise InputError(f"{folder}: holds a saved quantized model, expected another folder to export into; choose one")
    return folder


def read_descriptions(folder) -> dict[str, dict]:
    """{format: what a folder's export.json says of it}; empty where there is none, or none of ours."""
    newest = resumption.read_json_if_whole(pathlib.Path(folder) / DESCRIPTION) or {}
    others = newest.pop("others", None)
    found = {str(newest.get("format")): newest} | (others if isinstance(others, dict) else {})
    return {name: x for name, x in found.items() if isinstance(x, dict) and isinstance(x.get("files"), dict)}


def answer(description: dict) -> str:
    """What was exported and how near it is, in two sentences."""
    checked = description["checked"]
    return (
        f"{' and '.join(description['files'])}: loaded and run. On {checked['images']} images of noise its logits are "
        f"{checked['mean_difference']:.2g} off ours on average and {checked['largest_difference']:.2g} at most; on "
        f"average {checked['tolerance']:.2g} were allowed."
    )


def tables(description: dict, folder, note: str) -> list[Table]:
    """The exported files, and what a program needs to know that runs them; the note says what was exported."""
    folder, told = pathlib.Path(folder), []
    rows = [(name, sha, f"{(folder / name).stat().st_size / 1e6:.2f}") for name, sha in description["files"].items()]
    for place in ("input", "output"):
        x = description[place]
        told.append((place, f"{x['name']}: {x['dtype']} [{', '.join(map(str, x['shape']))}]"))
    told += [(name, str(x)) for name, x in description["preprocessing"].items() if x is not None]
    told.append(("labels", first(description["labels"], FIRST)))
    return [
        Table("Files", ("file", "SHA-256", "MB"), rows, 2, note),
        Table("For a program that runs it", ("", ""), told, 2, "export.json has this for programs."),
    ]
