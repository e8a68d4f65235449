"""An encoded image (JPEG, PNG, ...) -> an upright RGB picture, or one kind of error."""

import io
import pathlib

from PIL import Image, UnidentifiedImageError

from psaq_jax import files
from psaq_jax.errors import InputError, reason_of
from psaq_jax.models.images import to_rgb

REMEDY = "replace or remove the image, or set data_errors=skip"


def decode(encoded: bytes | pathlib.Path) -> Image.Image:
    """Bytes or a file -> a loaded PIL image in mode RGB; other modes as `psaq_jax.models.images.to_rgb`.

    Raises:
      InputError: not an image, damaged, cut short, too large, or no right to read it.
    """
    try:
        if isinstance(encoded, pathlib.Path):
            files.check_regular(encoded)
        # Of a path, Pillow maps plain TIFFs into memory, and turns upright wrongly what it has mapped.
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded.open("rb")
        with file, Image.open(file) as image:
            image.load()
            return to_rgb(image)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"cannot be read ({error.strerror}); correct who may read it, or remove the image") from None
    except UnidentifiedImageError:  # whose text has an address that no two times are the same
        raise InputError(f"cannot be decoded (no format that Pillow knows); {REMEDY}") from None
    except Exception as error:  # Pillow's readers raise whatever they run into, from OSError to TypeError
        raise InputError(f"cannot be decoded ({reason_of(error)}); {REMEDY}") from None
