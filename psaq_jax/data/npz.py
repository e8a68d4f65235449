"""Images in memory or in an npz file."""

import pathlib
import zipfile

import numpy as np

from psaq_jax import checksums, files
from psaq_jax.data.dataset import UNLABELLED
from psaq_jax.errors import InputError, reason_of


class ArraySource:
    """Images uint8 [n, h, w, 3], [n, h, w, 1] or [n, h, w] and integer labels [n] (None: unlabelled).

    Raises:
      InputError: another dtype or shape, negative labels, or as many labels as images is not.
    """

    class_names = None

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, name: str = "arrays"):
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise InputError(
                f"{name}: images: found {images.dtype} {list(images.shape)}, expected uint8 "
                "[n, h, w, 3 or 1], not empty; save raw pixels from 0 to 255"
            )
        if labels is not None:
            if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
                raise InputError(
                    f"{name}: labels: found {labels.dtype} {list(labels.shape)}, expected integers "
                    f"[{len(images)}], one for each image; correct or leave out the labels"
                )
            wrong = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
            if len(wrong):
                raise InputError(
                    f"{name}: labels: found {labels[wrong[0]]} at index {wrong[0]}, expected a class number "
                    "from 0; correct it"
                )
        self.images, self.labels, self.name = images, labels, name
        self.labelled = labels is not None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return np.asarray(self.images[index]), int(self.labels[index]) if self.labelled else UNLABELLED

    def describe(self, index):
        return f"{self.name}, image {index}"

    def stamps(self):
        return [checksums.checksum(self.images)]


class NpzSource(ArraySource):
    """`images` and, where there are any, `labels` of an npz file, without pickle.

    Arrays that `numpy.savez` stored uncompressed stay on disk and are mapped; compressed ones are read whole.

    Raises:
      InputError: no such file, not an npz file, no `images` in it, or what `ArraySource` refuses.
    """

    def __init__(self, path):
        path = pathlib.Path(path)
        try:
            files.check_regular(path)
            with zipfile.ZipFile(path) as archive:
                self._stamps = [(info.filename, info.CRC, info.file_size) for info in archive.infolist()]
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if "images" not in names:
                    raise InputError(
                        f"{path}: found {', '.join(names) or 'nothing'}, expected `images` (and `labels`); "
                        "save them under these names"
                    )
                labels = _read(archive, "labels.npy") if "labels" in names else None
                images = _map(archive, "images.npy")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the path") from None
        except (InputError, PermissionError):
            raise
        except files.DAMAGED_NPZ as error:
            raise InputError(
                f"{path}: cannot be read ({reason_of(error)}), expected an npz file without pickled objects; "
                "save it with numpy.savez"
            ) from None
        super().__init__(images, labels, str(path))

    def stamps(self):
        return self._stamps

    def __reduce__(self):
        return NpzSource, (self.name,)


def _read(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _map(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """A member as a read-only map of its bytes in the archive; read whole where they are compressed."""
    info = archive.getinfo(member)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if info.compress_type != zipfile.ZIP_STORED or version not in _HEADERS:
            return _read(archive, member)
        shape, fortran, dtype = _HEADERS[version](file)
        header = file.tell()
    if dtype.hasobject or 0 in shape:
        return _read(archive, member)
    with open(archive.filename, "rb") as file:  # the zip's own header: 30 bytes, the name, an extra field
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.astype(int).sum()) + header
    return np.memmap(archive.filename, dtype, "r", offset, shape, "F" if fortran else "C")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
