"""The sweeps in `configs/`: that they are whole, and that the tables have what they are named after."""

import dataclasses
import importlib

import pytest

from psaq_jax.config import from_mapping
from psaq_jax.errors import InputError
from psaq_jax.quantization.recipes import WITHOUT
from psaq_jax.sweep_config import SweepConfig
from tests.jobs import ROOT
from tests.test_sweep import TINY

CONFIGS = sorted((ROOT / "configs" / "sweeps").glob("[a-z]*.py")) + [ROOT / "configs" / "accuracy.py"]
CONFIGS += [path for path in (ROOT / "configs" / "imagenet").glob("[a-z]*.py") if path.stem != "common"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_sweeps(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = importlib.import_module(name).get_config()
    assert len(from_mapping(SweepConfig, found.to_dict()).seeds) >= 3
    assert f"--config={path.relative_to(ROOT)}" in importlib.import_module(name).__doc__


def test_every_field_of_a_sweep_is_in_its_config():
    """`model` and `seed` stand for one of `models` and `seeds`."""
    values = importlib.import_module("configs.sweeps.demo").get_config().to_dict()
    assert set(values) == {field.name for field in dataclasses.fields(SweepConfig)} - {"model", "seed"}


@pytest.mark.parametrize("name", ["deit_tiny", "deit_small", "deit_base"])
def test_models_are_evaluated_as_those_beside_them_were(name):
    ours, papers = (importlib.import_module(f"configs.{kind}.{name}").get_config() for kind in ("imagenet", "paper"))
    assert ours.crop_fraction == papers.crop_fraction and ours.models == (papers.model,)


def test_the_ablation_takes_every_ingredient_away_once():
    table = from_mapping(SweepConfig, importlib.import_module("configs.accuracy").get_config("ablation").to_dict())
    first, *others = table.quantization.recipes  # WITHOUT also has what is off, and first_last_8bit
    assert first == "default" and len(others) == len(set(others)) == len(WITHOUT) - 3


def test_the_tables_have_what_they_are_named_after():
    get_config = importlib.import_module("configs.accuracy").get_config
    recipes, hard, backbone = (get_config(table).to_dict() for table in ("recipes", "hard", "backbone"))
    table = from_mapping(SweepConfig, recipes)
    assert table.quantization.recipes == ("paper", "default-reconstruct", "default", "distill")
    assert len(table.quantization.bits) == 5 and len(table.calibration) == 3 and len(table.seeds) == 5
    model, copy = from_mapping(SweepConfig, hard).models
    assert copy == f"hard:{model}"
    with pytest.raises(InputError, match="models has '', expected sources"):
        from_mapping(SweepConfig, backbone)
    assert from_mapping(SweepConfig, backbone | {"models": (TINY,)}).image_size == 112
    with pytest.raises(InputError, match="accuracy.py:all is unknown, known are recipes"):
        get_config("all")
