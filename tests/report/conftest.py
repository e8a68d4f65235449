"""Small models for the tests of the report."""

import pytest

import psaq_jax
from tests.golden_files import GOLDEN


@pytest.fixture(scope="session")
def vit():
    return psaq_jax.load_model(GOLDEN / "paper" / "vit")


@pytest.fixture(scope="session")
def swin():
    return psaq_jax.load_model(GOLDEN / "paper" / "swin")
