"""Results as a run leaves them, for the tests of the report."""

import numpy as np

LEVELS = {"synthesized": 88.0, "noise": 89.0, "real": 89.5}


def runs(seeds=(0,), calibrations=("synthesized", "noise", "real"), bits=("w8a8", "w4a8"), labelled=True, **levels):
    """Runs whose top-1 falls by 2 points from one pair of bits to the next and rises by 0.5 with the seed."""
    found = []
    for seed in seeds:
        for i, name in enumerate(bits):
            for calibration in calibrations:
                top1 = (LEVELS | levels)[calibration] - 2 * i + 0.5 * seed
                run = {"calibration": calibration, "bits": name, "recipe": "paper", "seed": seed}
                figures = {"top1": top1, "top5": 99.5, "loss": 0.4} if labelled else {}
                found.append(run | figures | {"agreement": top1 + 3})
    return found


def results(labelled=True, **changes):
    """What results.json holds; changes go to `runs`."""
    examples = 10000 if labelled else 32
    return {
        "model": "bundled:fashion_mnist_vit",
        "device": "2 CPU cores",
        "versions": {"psaq_jax": "0.1.0", "jax": "0.10.2"},
        "float": {"top1": 91.3, "top5": 99.8, "loss": 0.25, "examples": examples} if labelled else None,
        "runs": runs(labelled=labelled, **changes),
        "evaluated_on": {"images": examples, "kind": "data" if labelled else "synthesized"},
        "synthesis": {
            "iterations": 50, "num_images": 32, "held_out": 0 if labelled else 32,
            "seconds": 61.3, "seconds_per_iteration": 1.2,
            "compile_seconds": 9.1, "final_loss": {"loss": -3.25, "entropy": -4.0},
        },
    }  # fmt: skip


def history(iterations=50):
    i = np.arange(iterations)
    return {
        "loss": 5 - i / 10,
        "entropy": -i / 9,
        "cross_entropy": 3 * np.exp(-i / 30),
        "total_variation": 1 + i % 3,
    }


def image_sets(model, count=4):
    """Normalised images of three kinds."""
    random = np.random.default_rng(0)
    shape = (count, *model.image_shape)
    noise = random.normal(size=shape).astype(np.float32)
    ramp = np.broadcast_to(np.linspace(-1, 1, shape[2], dtype=np.float32)[:, None], shape)
    return {"synthesized": 0.5 * noise + ramp, "noise": noise, "real": ramp + 0.05 * noise}
