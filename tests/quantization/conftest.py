"""A small saved artefact, and a copy of it to alter; a calibrated model."""

import shutil

import pytest

from psaq_jax import calibrate
from tests.quantization.artefacts import random_model
from tests.quantization.tampering import save_artefact
from tests.random_models import random_pixels


@pytest.fixture(scope="session")
def artefact(tmp_path_factory):
    return save_artefact(tmp_path_factory.mktemp("artefact") / "q")


@pytest.fixture
def altered(artefact, tmp_path):
    return shutil.copytree(artefact, tmp_path / "q")


@pytest.fixture(scope="session")
def calibrated():
    model = random_model()
    return model, calibrate(model, random_pixels())
