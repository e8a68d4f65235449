"""Artefacts whose weights were damaged, or altered by one who mends the hash: refused in one line."""

import json

import numpy as np
import pytest

from tests.quantization.tampering import ACTIVATION, KERNEL, SCALE, SITE, mend_hash, refused, retensor


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(altered, keep, mended):
    path = altered / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    if mended:
        mend_hash(altered)
    refused(altered, "model.safetensors")


def test_a_flipped_bit_breaks_the_hash(altered):
    path = altered / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(altered, "model.safetensors", "SHA-256")


def test_a_header_that_declares_more_than_the_file_holds(altered):
    path = altered / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    mend_hash(altered)
    refused(altered, "model.safetensors", "safetensors")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[SCALE]["shape"] = [2**62]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    mend_hash(altered)
    refused(altered, "model.safetensors", "safetensors")


def value_of(name, value):
    def change(tensors):
        tensors[name] = np.full_like(tensors[name], value)

    return change


def typed(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].astype(dtype)})


TENSORS = {
    "scale zero": (value_of(SCALE, 0), SCALE, "positive"),
    "scale negative": (value_of(SCALE, -1), SCALE, "positive"),
    "scale NaN": (value_of(SCALE, np.nan), SCALE, "NaN"),
    "scale infinite": (value_of(SCALE, np.inf), SCALE, "NaN or infinity"),
    "parameter NaN": (value_of("params/head/bias", np.nan), "params/head/bias"),
    "site scale zero": (value_of(f"{SITE}/scale", 0), f"{SITE}/scale", "positive"),
    "site scale next to zero": (value_of(f"{SITE}/scale", 1e-38), f"{SITE}/scale", "at least 1e-30"),
    "site scale negative": (value_of(f"{SITE}/scale", -0.1), f"{SITE}/scale", "positive"),
    "site scale NaN": (value_of(f"{SITE}/scale", np.nan), f"{SITE}/scale"),
    "zero point of a half": (value_of(f"{SITE}/zero_point", 1.5), f"{SITE}/zero_point"),
    "zero point too large": (value_of(f"{SITE}/zero_point", 256), f"{SITE}/zero_point"),
    "zero point negative": (value_of(f"{SITE}/zero_point", -1), f"{SITE}/zero_point"),
    "bits of a site": (value_of(f"{SITE}/bits", 1e30), f"{SITE}/bits"),
    "fewer bits of a site": (value_of(f"{SITE}/bits", 7), f"{SITE}/bits", "activation_bits"),
    "site scale by channel": (lambda t: t.update({f"{SITE}/scale": np.ones(8, np.float32)}), f"{SITE}/scale", "[]"),
    "missing": (lambda tensors: tensors.pop(SCALE), SCALE, "missing"),
    "extra": (lambda tensors: tensors.update(extra=np.zeros(1)), "extra", "not expected"),
    "scale of an activation": (lambda t: t.update({ACTIVATION: np.ones(2, np.float32)}), ACTIVATION, "[12]"),
    "path": (lambda tensors: tensors.update({"../../evil\n": np.zeros(1)}), "../../evil"),
    "float copy": (lambda t: t.update({"params/head/kernel": np.zeros((8, 3), np.float32)}), "not expected"),
    "float64 scale": (typed(SCALE, np.float64), SCALE, "F32"),
    "float codes": (typed(KERNEL, np.float32), KERNEL, "U8"),
    "signed codes": (typed(KERNEL, np.int8), KERNEL, "U8"),
    "long scale": (lambda t: t.update({SCALE: np.ones(4, np.float32)}), SCALE, "[3]"),
    "scalar scale": (lambda t: t.update({SCALE: np.ones((), np.float32)}), SCALE),
    "short codes": (lambda t: t.update({KERNEL: t[KERNEL][:-1]}), KERNEL),
    "codes of another shape": (lambda t: t.update({KERNEL: t[KERNEL][None]}), KERNEL),
}


@pytest.mark.parametrize("case", TENSORS)
def test_altered_tensors_with_a_mended_hash(altered, case):
    change, *fields = TENSORS[case]
    retensor(altered, change)
    refused(altered, "model.safetensors", *fields)


def test_another_format_of_tensors(altered):
    retensor(altered, lambda tensors: None, metadata="pt")
    refused(altered, "model.safetensors", "format")
