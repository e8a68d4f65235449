"""What a row of latencies holds, from times that are given; not how long anything takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psaq_jax import latency, save_quantized
from psaq_jax.quantization.integer import integer_model
from psaq_jax.quantization.integer_plan import coverage
from psaq_jax.quantization.transform import dequantize_params
from tests.export.small_models import random_model, random_quantized


def test_rows_are_medians_of_interleaved_rounds(monkeypatch):
    """Seconds of a call: first those of one, that tell how many calls fill the least time, then the rounds'."""
    times = {"float32": [0.05, 4.0, 2.0, 9.0], "integer": [1.0, 8.0, 6.0, 7.0]}
    asked, told, q = [], [], random_quantized()
    models = {"float32": random_model(), "integer": integer_model(q)}
    names = {id(model): name for name, model in models.items()}

    def seconds(name, calls):
        asked.append((name, calls))
        return times[name].pop(0)

    monkeypatch.setattr(latency, "_compile", lambda model, size: (names[id(model)], f"compiled {size}", 0.5))
    monkeypatch.setattr(latency, "_seconds", seconds)
    monkeypatch.setattr(latency, "peak_memory", {"compiled 14": 7}.get)
    of_float, of_integers = latency.measure("a model", models, (14,), 3, 0.2, lambda *at: told.append(at))
    assert asked == [("float32", 1), ("integer", 1)] + [("float32", 4), ("integer", 1)] * 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    expected = {"seconds": 7, "seconds_min": 6, "seconds_max": 8, "images_per_second": 2, "times_float32": 7 / 4}
    assert {name: of_integers[name] for name in expected} == expected
    assert (of_float["seconds"], of_float["times_float32"], of_float["images_per_second"]) == (4, 1, 14 / 4)
    for row, model in ((of_float, models["float32"]), (of_integers, models["integer"])):
        assert row["weight_bytes"] == sum(x.nbytes for x in jax.tree.leaves(model))
        assert (row["batch_size"], row["peak_memory_bytes"], row["compile_seconds"], row["repeats"]) == (14, 7, 0.5, 3)
    assert of_integers["integer_share"] == coverage(models["integer"].products) and "integer_share" not in of_float


def test_nothing_is_compared_with_float_where_it_was_not_timed(monkeypatch):
    monkeypatch.setattr(latency, "_compile", lambda model, size: (None, None, 0.5))
    monkeypatch.setattr(latency, "_seconds", lambda call, times: 0.001)
    monkeypatch.setattr(latency, "peak_memory", lambda compiled: 0)
    (row,) = latency.measure("m", {"simulated": random_quantized()}, (1,), 1)
    assert row["times_float32"] is None and latency.table([row]).plain().splitlines()[-1].split()[6] == "-"


@pytest.mark.parametrize("execution, ratio, remark", [
    ("integer", 1.25, "slower than float32"), ("integer", 0.75, ""), ("simulated", 1.25, ""),
])  # fmt: skip
def test_the_table_says_where_integers_are_slower(execution, ratio, remark):
    row = {
        "model": "m", "batch_size": 32, "execution": execution, "seconds": 0.25, "seconds_min": 0.125,
        "seconds_max": 0.5, "images_per_second": 128.0, "times_float32": ratio, "weight_bytes": 3_000_000,
        "peak_memory_bytes": 5_000_000,
    }  # fmt: skip
    head, _, line = latency.table([row]).plain().splitlines()
    cells = ["m", "32", execution, "250.00", "(125.00..500.00)", "128", f"{ratio:.2f}", "3.00", "5.00"]
    assert line.split() == cells + remark.split()
    assert head.index("weights MB") < head.index("peak MB")


def test_executions_of_an_artefact_are_one_model(tmp_path):
    q = random_quantized()
    found = latency.executions(str(save_quantized(q, tmp_path / "artefact")))
    assert list(found) == ["float32", "bfloat16", "simulated", "integer"]
    assert [found[name].module.dtype for name in ("float32", "bfloat16")] == [jnp.float32, jnp.bfloat16]
    jax.tree.map(np.testing.assert_array_equal, found["float32"].params, dequantize_params(q.params))
    assert found["simulated"].weight_bits == 4 and found["integer"].products
