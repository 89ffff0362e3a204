from __future__ import annotations

from pathlib import Path

import pytest

from models.engine import Engine
from models.weights import PARTS, SurvivalBaseline, init_world_model, save_world_model
from tests.models.test_engine import tiny_preset


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny untrained world model on disk."""
    model = init_world_model(tiny_preset(), seed=5)
    folder = tmp_path_factory.mktemp("bundle")
    months = tuple(float(m) for m in range(0, 85, 6))
    baseline = SurvivalBaseline(
        times_months=months, survival=tuple(0.97**m for m in months), n=100, data_origin="synthetic"
    )
    save_world_model(
        {name: model.part(name) for name in PARTS}, model.preset, folder, origin="untrained",
        provenance={"command": "a test"}, baseline=baseline,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine("cpu", bundle, precision="fp32", batch=4)
