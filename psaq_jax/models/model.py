"""`Model`: a Flax module, its parameters and its preprocessing, as one value that jitted functions take."""

import abc
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from psaq_jax.checksums import checksum
from psaq_jax.errors import InputError, first
from psaq_jax.models.preprocessing import Preprocessing
from psaq_jax.sites import site_names

CHANGED = " (changed)"


class Classifier(abc.ABC):
    """What float and quantized models have in common: a `module`, a `preprocessing` and a `source`."""

    module: nn.Module
    preprocessing: Preprocessing
    source: str

    def __repr__(self) -> str:
        """One line: a notebook that shows a model should not print its parameters."""
        module, (height, width) = self.module, self.image_size
        form = f"{type(module).__name__}, {height}x{width} pixels, {self.classes} classes"
        return f"{type(self).__name__}({self.source!r}, {form}, {self._numbers()})"

    @abc.abstractmethod
    def _numbers(self) -> str:
        """What it computes in, for `__repr__`."""

    def __call__(self, pixels) -> jax.Array:
        """Normalised pixels [b, h, w, 3] float32 -> logits [b, classes] float32, jitted.

        Raises:
          InputError: images of another shape, or whole numbers, which are not normalised.
        """
        return self.jitted(jnp.asarray(check_images(pixels, self.image_shape), jnp.float32))

    @abc.abstractmethod
    def jitted(self, pixels) -> jax.Array:
        """`__call__` on pixels that have been checked."""

    def preprocess(self, images):
        """uint8 [n, h, w, 3] or a list of PIL images -> normalised pixels [n, height, width, 3] float32."""
        return self.preprocessing(images)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.module.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3): the shape of one image."""
        return (*self.image_size, 3)

    @property
    def classes(self) -> int:
        """How many logits an image gets."""
        return self.module.classes


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["module", "labels", "preprocessing", "source", "stamps"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # arrays have no one truth value
class Model(Classifier):
    """A float vision transformer. A pytree whose leaves are `params`: hand it to jit, grad or vmap as it is.

    Attributes:
      params: the module's parameters, float32 but for `with_layers_rounded`.
      module: the Linen module, normalised pixels [b, h, w, 3] -> logits [b, classes].
      labels: class names in the order of the logits.
      preprocessing: raw images -> normalised pixels.
      source: where it came from, as given to `load_model`.
      stamps: of the files that it was read from, see `tensors.file_stamps`; none where it was not.
    """

    params: dict
    module: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str = ""
    stamps: tuple[tuple[str, int, int], ...] = ()

    def jitted(self, pixels) -> jax.Array:
        return _forward(self, pixels)

    def _numbers(self) -> str:
        return jnp.dtype(self.module.dtype).name

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites in running order."""
        return site_names(self.module, self.params, self.image_shape)

    def apply(self, pixels) -> jax.Array:
        """As calling it, but not jitted: for use inside other traced functions."""
        with exact_products(self.module.dtype):
            return self.module.apply({"params": self.params}, pixels)

    def fingerprint(self) -> str:
        """SHA-256 over the parameters, the module and the preprocessing: the same model under any name."""
        return checksum(self.params, repr((self.module, self.preprocessing)))

    def replace(self, **changes) -> "Model":
        """With other parameters it is not what its source holds any more, and says so."""
        if "params" in changes:
            changes = {"source": f"{self.source.removesuffix(CHANGED)}{CHANGED}"} | changes
        return dataclasses.replace(self, **changes)

    def with_dtype(self, dtype) -> "Model":
        """The same model with its passes computed in `dtype`; parameters stay float32, logits too."""
        return self.replace(module=self.module.clone(dtype=jnp.dtype(dtype).type))

    def with_layers_rounded(self) -> "Model":
        """The same passes of kernels and their biases that are in the module's dtype already: a loop rounds them in
        every pass else.
        """
        flat, dtype = traverse_util.flatten_dict(self.params), self.module.dtype
        rounded = {path: x.astype(dtype) if (*path[:-1], "kernel") in flat else x for path, x in flat.items()}
        return self.replace(params=traverse_util.unflatten_dict(rounded), source=self.source)


def check_model(model, function: str) -> None:
    """Raises InputError where what `function` was given is no model, float or quantized."""
    if not callable(model) or not hasattr(model, "preprocessing"):
        found = f"{function} takes a float or quantized model, found {type(model).__name__}"
        raise InputError(f"{found}; load_model or load_quantized gives one")


def check_float_model(model, function: str) -> None:
    """Raises InputError where what `function` was given is no float model."""
    if not isinstance(model, Model):
        raise InputError(f"{function} takes a float model, found {type(model).__name__}; load_model gives one")


def check_sound_model(model, function: str) -> None:
    """The same, and where its parameters are NaN or infinite, as `load_model` does for files."""
    check_float_model(model, function)
    flat = traverse_util.flatten_dict(model.params, sep="/")
    if broken := [path for path, x in flat.items() if not np.isfinite(x).all()]:
        found = f"{model.source or 'the model'}: parameters that are NaN or infinite in {first(broken)}"
        raise InputError(f"{found}; expected finite numbers; give a sound model")


def check_floats(pixels, what: str = "images"):
    """The images as an array, or InputError where they are no floats; works on tracers too."""
    try:
        pixels = pixels if isinstance(pixels, jax.Array) else np.asarray(pixels)
    except ValueError:
        raise InputError(f"{what} are of several shapes, expected one array; `preprocess` makes it") from None
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(
            f"{what} are {pixels.dtype}, expected normalised floats; `preprocess` of the model makes them of raw pixels"
        )
    return pixels


def check_images(pixels, image_shape: tuple[int, int, int], what: str = "images", some: bool = False):
    """The same, and InputError where they are not [n, height, width, 3] of that shape; `some`: or n is 0.

    Otherwise n may be symbolic, as in exports.
    """
    pixels = check_floats(pixels, what)
    if pixels.ndim != 4 or pixels.shape[1:] != image_shape or some and not len(pixels):
        expected = "x".join(map(str, image_shape))
        raise InputError(f"{what} are {list(pixels.shape)}, expected one or more of {expected} (NHWC)")
    return pixels


def exact_products(dtype):
    """Float32 models multiply in float32 on every device; the default on GPU and TPU rounds to fewer bits."""
    return jax.default_matmul_precision("highest" if jnp.dtype(dtype) == jnp.float32 else "default")


def in_float32(function):
    """The function outside jax's x64 mode, in which what is made on the way would be float64."""

    @functools.wraps(function)
    def wrapped(*arguments, **named):
        with jax.enable_x64(False):
            return function(*arguments, **named)

    return wrapped


@jax.jit
def _forward(model: Model, pixels):
    return model.apply(pixels)
