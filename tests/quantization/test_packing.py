"""Bit packing: exact, small, and strict about what it reads."""

import numpy as np
import pytest

from psaq_jax import InputError
from psaq_jax.quantization.packing import pack, packed_size, to_quantizer, unpack

BITS = range(2, 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8, 3), (3, 5, 7), (16, 16)])
def test_unpack_inverts_pack(bits, shape):
    codes = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (packed_size(codes.size, bits),)
    unpacked = unpack(packed, bits, shape)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_survives(bits):
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.int8)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, codes.shape), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (4, [1, -1, -8, 7], [0xF1, 0x78]),
        (4, [3], [0x03]),
        (2, [0, 1, -2, -1], [0b11_10_01_00]),
        (3, [1, 2, 3, -4, -3, -2, -1, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (8, [-128, 127], [0x80, 0x7F]),
    ],
)
def test_the_layout_is_one_little_endian_stream(bits, codes, packed):
    np.testing.assert_array_equal(pack(np.array(codes, np.int8), bits), packed)


@pytest.mark.parametrize("bits", BITS)
def test_the_stream_equals_numpys_bits(bits):
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 101).astype(np.int8)
    one_by_one = ((codes[:, None].astype(int) >> np.arange(bits)) & 1).astype(np.uint8)
    np.testing.assert_array_equal(pack(codes, bits), np.packbits(one_by_one.reshape(-1), bitorder="little"))


@pytest.mark.parametrize(("bits", "code"), [(2, 2), (2, -3), (4, 8), (4, -9), (7, 64)])
def test_codes_outside_the_bit_width_are_refused(bits, code):
    with pytest.raises(InputError, match=f"for {bits} bits"):
        pack(np.array([0, code], np.int8), bits)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_another_number_of_bytes_is_refused(count):
    with pytest.raises(InputError, match="expected 2 bytes"):
        unpack(np.zeros(count, np.uint8), 4, (4,))


def test_bits_after_the_last_code_are_refused():
    with pytest.raises(InputError, match="after the last code"):
        unpack(np.array([0xF1], np.uint8), 4, (1,))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("zero_point", 16, "0 to 2.bits - 1"), ("zero_point", 1.5, "whole"), ("bits", 1, "2 to 8"), ("bits", 9, "2 to 8")],
)
def test_a_grid_of_few_bits_ends_with_them(field, value, expected):
    def read(**fields):
        tensors = {f"sites/x/{name}": np.float32(value) for name, value in fields.items()}
        return to_quantizer(tensors, "x", "UniformQuantizer", InputError)

    fields = {"scale": 0.1, "zero_point": 15, "bits": 4}
    assert read(**fields).zero_point == 15
    with pytest.raises(InputError, match=f"'sites/x/{field}' holds .*, expected .*{expected}"):
        read(**fields | {field: value})
