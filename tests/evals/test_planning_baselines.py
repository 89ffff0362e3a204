"""The baselines of a plan: the constant by brute force, the others on a table of risks that is worked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.settings import PlannerSettings
from evals import planning_baselines
from evals.planning_baselines import beside_the_plan, rank_constants
from evals.regret import RiskTable
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.protocol import Protocol

SMALL = PlannerSettings(drug_horizon=1, embolic_horizon=1)


def test_the_constant_is_the_best_on_the_other_patients_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning_baselines, "CONSTANT_PATIENTS", 6)
    ranked = rank_constants(SMALL)
    assert len(ranked) == len(set(ranked)) == 10 * 6
    regret = dict.fromkeys(ranked, 0.0)
    for seed in range(planning_baselines.CONSTANT_SEED, planning_baselines.CONSTANT_SEED + 6):
        risk = {p: respond(draw_patient(seed), p).log_hazard for p in ranked}
        low, high = min(risk.values()), max(risk.values())
        for p in ranked:
            regret[p] += (risk[p] - low) / (high - low) / 6
    assert ranked[0] == min(regret, key=regret.__getitem__)
    assert regret[ranked[0]] < regret[ranked[-1]]


def plan(*proposals: tuple[str, str, bool]) -> Any:
    return SimpleNamespace(proposals=[SimpleNamespace(kind=k, item=i, kept=kept) for k, i, kept in proposals])


def protocol(drug: str, *embolics: str) -> Protocol:
    return Protocol(drugs=(drug,), embolics=embolics)


ALLOWED = (
    protocol("Cisplatin", "Lipiodol"), protocol("Cisplatin", "PVA"), protocol("Doxorubicin", "Lipiodol"),
    protocol("Doxorubicin", "Lipiodol", "PVA"), protocol("Mitomycin", "PVA"),
)  # fmt: skip
TRUTH = RiskTable(ALLOWED, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))


def test_baselines_of_a_patient_by_hand() -> None:
    """The policy's first pair is not allowed, its second is; Cisplatin was proposed and dropped."""
    asked = plan(
        ("drug", "Cisplatin", False), ("drug", "Mitomycin", True), ("drug", "Doxorubicin", True),
        ("embolic", "Lipiodol", True), ("embolic", "PVA", True),
    )  # fmt: skip
    ranked = [protocol("Epirubicin", "PVA"), ALLOWED[3], ALLOWED[0]]
    found = beside_the_plan(asked, TRUTH, ranked)
    assert found.policy_first == pytest.approx(1.0)  # Mitomycin with PVA; with Lipiodol it is not allowed
    assert found.constant == pytest.approx(0.75)  # the first of the list is not allowed here
    assert found.random == pytest.approx(0.5)
    assert found.reachable == pytest.approx(0.5)  # Doxorubicin with Lipiodol


def test_a_policy_that_proposes_nothing_has_the_worst_regret() -> None:
    found = beside_the_plan(plan(), TRUTH, [ALLOWED[0]])
    assert (found.policy_first, found.reachable, found.constant) == (1.0, 1.0, 0.0)
