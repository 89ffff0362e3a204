from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agent.settings import PlannerSettings
from evals import planning
from evals.planning import Judged, evaluate, rank_constants, show, summarise
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.protocol import Protocol

SMALL = PlannerSettings(
    drugs=3,
    embolics=2,
    beams=2,
    replicas=2,
    drug_horizon=1,
    embolic_horizon=1,
    finalists=2,
    finalist_replicas=2,
    steps=4,
)


def test_the_constant_is_the_best_on_the_other_patients_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CONSTANT_PATIENTS", 6)
    ranked = rank_constants(SMALL)
    assert len(ranked) == len(set(ranked)) == 10 * 6
    regret = dict.fromkeys(ranked, 0.0)
    for seed in range(planning.CONSTANT_SEED, planning.CONSTANT_SEED + 6):
        risk = {p: respond(draw_patient(seed), p).log_hazard for p in ranked}
        low, high = min(risk.values()), max(risk.values())
        for p in ranked:
            regret[p] += (risk[p] - low) / (high - low) / 6
    assert ranked[0] == min(regret, key=regret.__getitem__)
    assert regret[ranked[0]] < regret[ranked[-1]]


def judged(planner: float, random: float) -> dict[str, object]:
    row = Judged("p", "A | B", "C | D", 100, 30.0, planner, random, constant=0.4, policy_first=0.5, reachable=0.1)
    return asdict(row)


def test_the_summary_is_paired_by_patient() -> None:
    """Planner and random vary a lot between patients, their difference does not: the paired interval must be narrow."""
    rows = [judged(x, x + 0.1) for x in np.linspace(0.0, 0.8, 12)]
    conditions = {"weights": "w", "settings": {}, "phantom_version": 1}
    result = summarise(rows, ["phantom-1"], conditions, Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)))
    row = result["paired"]["planner minus random"]
    assert row["mean"] == pytest.approx(-0.1)
    assert row["low"] == pytest.approx(-0.1)
    assert result["regret"]["planner"]["high"] - result["regret"]["planner"]["low"] > 0.2
    text = StringIO()
    show(result, Console(file=text, width=160))
    assert "-0.100" in text.getvalue()
    assert "12 unseen synthetic patients" in text.getvalue()


def test_four_unseen_patients_are_planned_and_kept(tmp_path: Path) -> None:
    """The whole evaluation on the shipped weights, small settings; a second call plans nothing again."""
    console = Console(file=StringIO())
    result = evaluate(4, tmp_path, SMALL, console)
    assert result["n"] == 4
    for row in result["patients"]:
        assert 0.0 <= row["reachable"] <= row["planner"] <= 1.0
        assert 0.0 < row["random"] < 1.0
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("patient-*.json")}
    assert len(stamps) >= 4
    assert evaluate(4, tmp_path, SMALL, console) == result
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("patient-*.json")} == stamps
    file = next(tmp_path.glob("patient-*.json"))
    content = json.loads(file.read_text())
    assert content["conditions"]["weights"] == result["weights"]
