"""Artefacts with random damage: refused in one line, or loaded and run; never a crash, slow or large."""

import copy
import json
import random
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax import InputError
from psaq_jax.quantization.artefact import load_quantized
from tests.quantization.tampering import MODULE, NAMES, mend_hash, retensor

FUZZED = 320
NASTY = (
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("-inf"),
    "", "../../etc/passwd", "a\nb\ud800\x00", "x" * 100_000, [], {}, [[[]]], [1] * 1000, {"a": {"b": []}},
    [2**40] * 2,
)  # fmt: skip


def places(value, path=()):
    """Every path inside a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def fuzz_json(directory, chance):
    path = directory / chance.choice(NAMES[:2])
    value = json.loads(path.read_text())
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = chance.choice([p for p in places(value) if p] or [("a",)])
        place = value
        for key in found[:-1]:
            place = place[key]
        action = chance.random()
        if action < 0.6:
            place[found[-1]] = copy.deepcopy(chance.choice(NASTY))
        elif action < 0.8:
            del place[found[-1]]
        elif isinstance(place, dict):
            place[chance.choice(("extra", "..", "", "name", "parent"))] = copy.deepcopy(chance.choice(NASTY))
        else:
            place.append(copy.deepcopy(chance.choice([*NASTY, *place])))
    path.write_text(json.dumps(value))


def fuzz_bytes(directory, chance):
    path = directory / chance.choice(NAMES)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3, 50))):
        at = chance.randrange(min(len(content), chance.choice((8, 400, 10**9))))
        action = chance.random()
        if action < 0.6:
            content[at] = chance.randrange(256)
        elif action < 0.8:
            content[at:at] = chance.randbytes(chance.choice((1, 8)))
        else:
            del content[at : at + chance.choice((1, 8, 10**9))]
        content = content or bytearray(b"\0")
    path.write_bytes(content)
    if path.name == NAMES[2] and chance.random() < 0.7:
        mend_hash(directory)


def fuzz_tensors(directory, chance):
    def change(tensors):
        for _ in range(chance.choice((1, 1, 2, 5))):
            name = chance.choice(sorted(tensors))
            value = tensors[name]
            action = chance.randrange(7)
            if action == 0:
                del tensors[name]
            elif action == 1:
                tensors[chance.choice(("../x", "a" * 5000, name + "/scale", "sites/x/bits"))] = value
            elif action == 2:
                tensors[name] = value.astype(chance.choice(("f2", "f8", "i4", "u1", "?")))
            elif action == 3:
                shape = chance.choice(((), (0,), (1, 1), (7,), (2,) * 9, (1000, 50)))
                tensors[name] = np.resize(value, shape)
            elif value.size:
                changed = value.copy().reshape(-1)
                floats = value.dtype == np.float32
                extreme = chance.choice((np.nan, np.inf, -1, 0, 1e38, 0.5) if floats else (0, 1, 127, 255))
                changed[chance.randrange(value.size)] = np.array(extreme).astype(value.dtype)
                tensors[name] = changed.reshape(value.shape)

    with np.errstate(invalid="ignore"):  # the casts are meant to be wrong
        retensor(directory, change)


@pytest.mark.parametrize("part", range(4))
def test_fuzzed_artefacts_are_refused_or_run(artefact, tmp_path, part):
    """Never another error than InputError, never slow, never large; whatever loads also runs."""
    before, outcomes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"refused": 0, "loaded": 0}
    for i in range(part, FUZZED, 4):
        chance = random.Random(i)
        directory = shutil.copytree(artefact, tmp_path / str(i))
        chance.choice((fuzz_json, fuzz_json, fuzz_bytes, fuzz_tensors))(directory, chance)
        start = time.process_time()
        try:
            q = load_quantized(directory)
        except InputError as error:
            assert "\n" not in str(error) and str(error).startswith(str(directory)), (i, str(error))
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            logits = jax.eval_shape(q, jax.ShapeDtypeStruct((2, *q.image_shape), jnp.float32))
            assert logits.shape == (2, q.classes)
            if q.module == MODULE:
                q(np.zeros((1, 8, 8, 3)))
        assert time.process_time() - start < 10, i
        shutil.rmtree(directory)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * 1024, outcomes  # KiB
    assert outcomes["refused"] > FUZZED / 8, outcomes
