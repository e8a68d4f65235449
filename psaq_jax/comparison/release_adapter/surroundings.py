"""Where the release runs: a stand-in for torchvision, the CPU in place of CUDA, and the memory that was used."""

import functools
import importlib.abc
import importlib.machinery
import types

import torch
from process_memory import peak_process_memory


class Stand(type):
    """A class whose every attribute is another such class: enough for `import` and for being a base class."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stand(name, (), {})


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of torchvision where it is not installed; nothing of it is run here."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = functools.partial(getattr, Stand(spec.name, (), {}))
        return module

    def exec_module(self, module):
        pass


class Changed:
    """An object (such as a module) with some attributes replaced, for one importer of it alone."""

    def __init__(self, original, **changes):
        self.__dict__.update(changes, _original=original)

    def __getattr__(self, name):
        return getattr(self._original, name)


def pick_device(wanted):
    """The name "cpu" or "cuda"; for "auto" the GPU where there is one, for "cuda-tf32" with its products in TF32."""
    if wanted == "cuda-tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        return "cuda"
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def stay_on_cpu():
    """`.cuda()` and `.to("cuda")`, which the release hard-codes, leave tensors and modules where they are."""
    move = torch.Tensor.to

    def to(tensor, *arguments, **options):
        stays = bool(arguments) and isinstance(arguments[0], str) and arguments[0] == "cuda"
        return tensor if stays else move(tensor, *arguments, **options)

    torch.Tensor.to = to
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self


def peak_memory(device):
    """Peaks so far: the process's resident memory, and what torch took on the GPU."""
    on_device = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"peak_memory_bytes": peak_process_memory(), "device_peak_bytes": on_device}
