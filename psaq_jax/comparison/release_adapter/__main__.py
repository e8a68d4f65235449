"""Runs the PyTorch release of PSAQ-ViT (github zkkli/PSAQ-ViT) from outside, on CPU as well as CUDA, at any image size.

This folder alone needs torch and timm, and must import neither jax nor psaq_jax: the user's interpreter runs it as a
script, `release.py` beside it starts it. All work is the release's own code, imported from the user's clone, in which
nothing is written:

    PYTHON release_adapter probe JOB.json       -> probe.json: versions and device
    PYTHON release_adapter generate JOB.json    -> generated.npz, generate.json         (its generate_data)
    PYTHON release_adapter quantize JOB.json    -> float.npz, NAME.npz of every run, quantize.json
                                                   (its test_quant.main: calibrate, freeze, validate)

JOB.json names files in its own folder; what is there already is not done again. Standard output carries lines
"progress DONE ALL"; what the release prints goes to standard error. `adapted.py` lists what is adapted.
"""

import importlib.util
import json
import os
import pathlib
import platform
import sys
import threading
import time

import numpy as np
import surroundings
import torch


def save(path, **arrays):
    """An npz that appears whole or not at all."""
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def write(path, value):
    path.with_suffix(".part").write_text(json.dumps(value))
    path.with_suffix(".part").replace(path)


def probe(job, folder):
    import timm

    device = surroundings.pick_device(job["device"])
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    name += ", products in TF32" * (job["device"] == "cuda-tf32")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    write(folder / "probe.json", versions | {"device": name})


def generate(release, folder):
    images, seconds = release.generate()
    write(folder / "generate.json", surroundings.peak_memory(release.device) | {"seconds": seconds.tolist()})
    save(folder / "generated.npz", images=images)


def quantize(release, folder, tell):
    began, runs = time.perf_counter(), release.job["runs"]
    if not (folder / "float.npz").exists():
        save(folder / "float.npz", logits=release.float_logits())
    for done, run in enumerate(runs, start=1):
        if not (folder / f"{run['name']}.npz").exists():
            save(folder / f"{run['name']}.npz", **release.quantize(run["calibration"], run["bits"]))
        tell(done, len(runs))
    seconds = time.perf_counter() - began
    write(folder / "quantize.json", surroundings.peak_memory(release.device) | {"seconds": seconds})


def end_with_parent():
    """Ends this process when standard input does: nobody writes there, and whoever holds the other end is gone."""
    os.read(0, 1)
    os._exit(1)


def main():
    threading.Thread(target=end_with_parent, daemon=True).start()
    command, file = sys.argv[1], pathlib.Path(sys.argv[2])
    job, folder = json.loads(file.read_text()), file.parent
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(done, total):
        print("progress", done, total, file=answers, flush=True)
        print(f"{command}: {done} of {total}", file=sys.stderr, flush=True)

    if command == "probe":
        return probe(job, folder)
    from adapted import Release

    release = Release(job, folder, tell)
    return generate(release, folder) if command == "generate" else quantize(release, folder, tell)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(surroundings.StandInFinder())
    main()
