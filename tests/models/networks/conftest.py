from __future__ import annotations

import pytest

from models.networks.preset import Preset
from models.weights import WorldModel, init_world_model
from tests.models.training.conftest import shrink


@pytest.fixture(scope="session")
def tiny() -> Preset:
    return shrink(Preset.load("small"))


@pytest.fixture(scope="session")
def model(tiny: Preset) -> WorldModel:
    return init_world_model(tiny, seed=1)
