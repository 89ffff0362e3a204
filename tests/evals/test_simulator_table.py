"""The comparison of simulators, all the way through on a tiny untrained model: kept patient by patient."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from evals import simulators
from evals.simulator_table import show, simulator_table
from evals.simulators import DEPTH_BINS, HAND_MADE, Training
from models.response import NECROTIC, OIL, VIABLE
from models.weights import PARTS, init_world_model, read_manifest, save_world_model
from tests.models.test_engine import tiny_preset

KNOWN = Training(
    change=np.linspace(-10, -80, DEPTH_BINS), dead=np.array([0.4]), oily=np.array([0.1]), volume_ratio=np.array([0.8]),
    hu={VIABLE: 150.0, NECROTIC: 30.0, OIL: 500.0}, grain={VIABLE: 10.0, NECROTIC: 5.0, OIL: 90.0},
)  # fmt: skip


def test_every_simulator_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "training", lambda: KNOWN)
    model, bundle, work = init_world_model(tiny_preset(), seed=5), tmp_path / "bundle", tmp_path / "work"
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, bundle, origin="untrained", provenance={"command": "a test"})

    def table(n: int) -> dict[str, Any]:
        return simulator_table(
            n, work, weights=bundle, device="cpu", protocols=4, console=Console(file=StringIO(), width=200)
        )

    table(1)
    first = {path: path.stat().st_mtime_ns for path in work.glob("*/9*.json")}
    assert len(first) == 1 + len(HAND_MADE)
    result = table(2)
    assert {path: path.stat().st_mtime_ns for path in first} == first  # the first patient was not measured again
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["world_model", "no_change", "mean_change", "texture", "cells"]
    for row in rows.values():
        assert 0.0 < row["realism"]["ssim"]["value"] <= 1.0
        assert row["dynamics"]["viable"]["slope"]["n"] == 2
    for blind in ("no_change", "mean_change", "texture", "cells"):
        assert rows[blind]["dynamics"]["oil"]["within_patient_rank"]["value"] == 0.0
        assert rows[blind]["dynamics"]["oil"]["amplitude_ratio"]["value"] == 0.0
    assert result["weights"] == read_manifest(bundle).weights_hash
    text = StringIO()
    show(json.loads(json.dumps(result)), Console(file=text, width=200))
    assert "after SynTumor" in text.getvalue()
    assert "no --trained folder was given" in text.getvalue()
