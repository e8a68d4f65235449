"""What a record may declare of a Swin model: as much as `load_model` takes, before anything of that size is traced."""

import pytest

from psaq_jax import InputError
from psaq_jax.models.fields import LARGEST_WINDOW, MOST_STAGES
from psaq_jax.models.loading import abstract_params
from psaq_jax.quantization import record
from tests.quantization.artefacts import SWIN


def read(**changes):
    kernels = {path: 4 for path in abstract_params(SWIN) if path.endswith("kernel")}
    module = record.encoded(SWIN) | changes
    fields = dict.fromkeys(record.fields_of(record.Record), None) | {
        "family": "SwinTransformer", "module": {k: list(v) if isinstance(v, tuple) else v for k, v in module.items()},
        "kernels": kernels, "labels": (), "model_bytes": 2**20,
    }  # fmt: skip
    return record.read_module(record.Record(**fields), InputError)


def test_the_untouched_module_is_read():
    module, parameters = read()
    assert module == SWIN and parameters.keys() == abstract_params(SWIN).keys()


@pytest.mark.parametrize("changes, message", [
    ({"depths": [3] + [0] * MOST_STAGES}, f"module: stages is {MOST_STAGES + 1}, expected at most {MOST_STAGES}"),
    ({"image_size": [1024, 1024], "patch_size": [1, 1], "window": [9, 9]}, "module: windows is 84934656, expected"),
    ({"image_size": [1024, 1025], "patch_size": [1, 1]}, "module: patches is 1049600, expected at most 1048576"),
    ({"image_size": [1024, 1024], "patch_size": [2, 2], "window": [LARGEST_WINDOW + 1, 1]},
     f"windows of {LARGEST_WINDOW + 1} patches, expected at most {LARGEST_WINDOW}"),
    ({"window": [2, LARGEST_WINDOW + 1], "convention": "transformers"}, f"windows of {LARGEST_WINDOW + 1} patches"),
    ({"depths": [2, 5]}, "module: blocks is 7, expected at most 3"),
])  # fmt: skip
def test_more_than_a_model_has_is_not_traced(changes, message, monkeypatch):
    monkeypatch.setattr(record, "abstract_params", lambda module: pytest.fail("it was traced"))
    with pytest.raises(InputError, match=message):
        read(**changes)
