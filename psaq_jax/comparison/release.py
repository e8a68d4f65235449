"""Starts the PyTorch release of PSAQ-ViT in an interpreter of its own and reads what it found.

What goes over and what comes back are npy and npz files and JSON in one folder; `release_adapter` documents them.
"""

import hashlib
import json
import os
import pathlib
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from psaq_jax import files, resumption
from psaq_jax.errors import InputError, reading
from psaq_jax.models import names
from psaq_jax.models.model import Model
from psaq_jax.models.swin import NORM_EPS, SwinTransformer
from psaq_jax.models.vit import VisionTransformer
from psaq_jax.progress import Progress

ADAPTER = pathlib.Path(__file__).parent / "release_adapter"
PARTS = ("test_quant.py", "generate_data.py", "utils/build_model.py", "models/vit_quant.py", "models/swin_quant.py")
URL = "github zkkli/PSAQ-ViT"
PROBE_SECONDS = 600  # importing torch from a cold disk is slow


class Release(NamedTuple):
    """A clone, an interpreter that can run it, and the folder of their job."""

    clone: pathlib.Path
    python: str
    folder: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        return self.folder / "release.log"

    def job(self, **fields) -> None:
        """Adds fields to the job that every later `run` sees."""
        path = self.folder / "job.json"
        before = resumption.read_json_if_whole(path) or {}  # a restart writes every field again
        files.write_json(path, before | fields)

    def run(self, command: str, progress: Progress | None = None, timeout: float | None = None) -> dict:
        """Runs a command of the adapter; its own log grows by what it prints. Returns its figures.

        Raises:
          InputError: it ended with an error or without an answer; the line names the log.
        """
        answer = self.folder / f"{command}.json"
        answer.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        arguments = [self.python, str(ADAPTER), command, str(self.folder / "job.json")]
        with self.log.open("ab") as log:
            begin = log.tell()
            try:
                code = _follow(arguments, self.folder, environment, log, progress, timeout)
            except OSError as error:
                raise InputError(
                    f"--baseline_python={self.python}: cannot be run ({error.strerror}); "
                    "give an interpreter that has torch and timm"
                ) from None
        try:
            return json.loads(answer.read_bytes())
        except (OSError, ValueError):
            raise InputError(self._failure(command, code, begin)) from None

    def _failure(self, command: str, code: int, begin: int) -> str:
        text = self.log.read_bytes()[begin:].decode(errors="replace").strip()
        last = text.splitlines()[-1][:300] if text else f"exit code {code}, no message"
        what = "--baseline_python={0} cannot run the release of --baseline_dir={1}" if command == "probe" else (
            "the release's own run ({2}) failed with --baseline_python={0} and --baseline_dir={1}")  # fmt: skip
        return f"{what.format(self.python, self.clone, command)}: {last}; its log: {self.log}"

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """An npz that a run left."""
        path = self.folder / f"{name}.npz"
        more = f"remove it and start the same command again; the release's log: {self.log}"
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
        except files.DAMAGED_NPZ as error:
            raise InputError(f"{path}: the release left no readable answer ({error}); {more}") from None
        if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise InputError(f"{path}: the release's {', '.join(broken)} are not all finite, expected numbers; {more}")
        return arrays

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


def _follow(arguments, folder, environment, log, progress, timeout) -> int:
    """Runs a process, hands its lines "progress DONE ALL" on, and returns its exit code.

    Its standard input is a pipe to which nothing is written: however this process ends, the pipe closes, and the
    release's process ends too (`release_adapter.__main__`) and doesn't go on beside the next.
    """
    output = log if timeout else subprocess.PIPE
    with subprocess.Popen(
        arguments, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=log, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                words = line.split()
                if progress and words[:1] == ["progress"]:
                    progress(int(words[1]), int(words[2]))
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.write(f"no answer within {timeout:.0f} s\n".encode())
            return -1
        finally:
            if process.poll() is None:
                process.kill()


def check_clone(clone) -> pathlib.Path:
    """The clone's absolute path.

    Raises:
      InputError: no such folder, or another one, or no right to read it.
    """
    clone = pathlib.Path(os.path.expanduser(clone)).absolute()
    with reading(clone):
        missing = [part for part in PARTS if not (clone / part).is_file()]
    if missing:
        found = f"has no {missing[0]}" if clone.is_dir() else "is no directory"
        raise InputError(f"--baseline_dir={clone}: {found}; give a clone of {URL}")
    return clone


def open_release(clone: pathlib.Path, python: str, folder: pathlib.Path, device: str = "auto") -> tuple[Release, dict]:
    """(the release, {"python", "torch", "timm", "device"}), tried out before anything is computed.

    Args:
      folder: for the job and the log; made.
      device: "auto", "cpu" or "cuda", of torch, or "cuda-tf32".
    Raises:
      InputError: an interpreter that cannot be run or lacks torch or timm.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if os.sep in python:
        python = str(pathlib.Path(os.path.expanduser(python)).absolute())  # the working directory is the job's
    release = Release(clone, python, folder)
    release.job(clone=str(clone), device=device)
    return release, release.run("probe", timeout=PROBE_SECONDS)


def source_hash(clone: pathlib.Path) -> str:
    """SHA-256 over the clone's Python files: which release it was.

    Raises:
      InputError: no right to read one.
    """
    digest = hashlib.sha256()
    with reading(clone):
        for path in sorted(path for path in clone.rglob("*.py") if path.is_file()):
            digest.update(str(path.relative_to(clone)).encode() + path.read_bytes())
    return digest.hexdigest()


def write_model(release: Release, model: Model) -> None:
    """Writes shape and weights under the names of timm and of the release's own classes.

    Raises:
      InputError: a family that the release does not have.
    """
    module, source = model.module, model.source
    if isinstance(module, SwinTransformer):
        tables, fields = _swin(module, source)
    else:
        tables, fields = _vit(module, source)
    if module.activation != "gelu":
        raise InputError(f"model {source}: its activation is {module.activation!r}, the release has 'gelu' alone")
    flat, written = traverse_util.flatten_dict(model.params, sep="/"), []
    for name, table in tables.items():
        tensors = names.to_source(flat, table, module.patch_size)
        if not module.qkv_bias:  # the release always has one
            weights = [k for k in tensors if k.endswith("attn.qkv.weight")]
            tensors |= {k.replace("weight", "bias"): np.zeros(len(tensors[k]), np.float32) for k in weights}
        written.append(f"weights_{name}.npz")
        files.write(release.folder / written[-1], lambda path, arrays=tensors: np.savez(path, **arrays))
    release.job(weights=written, classes=module.classes, image_size=list(module.image_size), **fields)


def _vit(module: VisionTransformer, source: str):
    unlike = {
        "distillation token": module.distillation_token, "registers": module.registers,
        "layer scale": module.layer_scale, "SwiGLU": module.swiglu,
        f"head {module.head!r}": module.head != "class_token",
    }  # fmt: skip
    _refuse(source, (name for name, there in unlike.items() if there))
    shape = {
        "img_size": list(module.image_size), "patch_size": list(module.patch_size), "num_classes": module.classes,
        "embed_dim": module.width, "depth": module.depth, "num_heads": module.heads, "qkv_bias": True,
        "mlp_ratio": (module.hidden + 0.01) / module.width,  # a little more: both libraries truncate
    }  # fmt: skip
    eps = {"eps": module.layer_norm_eps, "embedding_eps": module.layer_norm_eps}
    return {"timm": names.TIMM_VIT}, {"family": "vit", "model": "deit_tiny", "shape": shape, **eps}


def _swin(module: SwinTransformer, source: str):
    widths = [module.widths[0] * 2**i for i in range(len(module.widths))]
    ratio = (module.hidden[0] + 0.01) / module.widths[0]  # a little more: both libraries truncate
    unlike = {
        f"widths {module.widths}": list(module.widths) != widths,
        f"hidden widths {module.hidden}": [int(w * ratio) for w in widths] != list(module.hidden),
        f"window {module.window}": len(set(module.window)) > 1,
        f"patch size {module.patch_size}": len(set(module.patch_size)) > 1,
    }
    _refuse(source, (name for name, there in unlike.items() if there))
    shape = {
        "img_size": list(module.image_size), "patch_size": module.patch_size[0], "num_classes": module.classes,
        "embed_dim": module.widths[0], "depths": list(module.depths), "num_heads": list(module.heads),
        "window_size": module.window[0], "mlp_ratio": ratio,
    }  # fmt: skip
    tables = {"timm": names.timm_swin(len(module.depths)), "release": names.ORIGINAL_SWIN}
    eps = {"eps": module.layer_norm_eps, "embedding_eps": NORM_EPS}
    return tables, {"family": "swin", "model": "swin_tiny", "shape": shape, **eps}


def _refuse(source: str, unlike: Iterable[str]) -> None:
    for name in unlike:
        raise InputError(
            f"model {source}: has {name}, which the release has not; it has ViT, DeiT (not distilled) and Swin alone"
        )
