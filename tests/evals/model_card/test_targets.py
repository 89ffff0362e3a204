"""The targets are those of the issue, and a miss is never silent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evals.model_card.figures import figure
from evals.model_card.targets import Target, Targets, judge, targets


def one(**bounds: Any) -> Targets:
    target = Target(id="t", figure="a.*.x", text="t", **bounds)
    return Targets(source="a test", real_patient=targets().real_patient, targets=(target,))


def test_the_numbers_are_those_asked_for() -> None:
    found = {target.id: (target.at_least, target.at_most) for target in targets().targets}
    assert found == {
        "oil_rank": (0.90, None), "necrosis_rank": (0.80, None), "oil_amplitude": (0.8, 1.2),
        "necrosis_amplitude": (0.8, 1.2), "viable_amplitude": (0.8, 1.2), "agents": (0.6, 1.4),
        "control": (-0.1, 0.1), "outside": (0, 0), "dice_post": (0.85, None), "dice_simulated": (0.80, None),
        "false_tumours": (None, 0.05), "c_index": (0.9, None), "risk_rank": (0.6, None), "regret": (None, 0.5),
    }  # fmt: skip
    least = {target.id: target.least_n for target in targets().targets if target.least_n}
    assert least == {"agents": 200, "c_index": 1000}


def test_met_missed_and_by_how_much() -> None:
    wanted = one(at_least=0.6, at_most=1.4)
    met = judge({"a": {"p": {"x": figure(1.0, 0.7, 1.3, 300)}}}, wanted)[0]
    assert (met["verdict"], met["sure"], met["miss"]) == ("met", True, 0.0)
    barely = judge({"a": {"p": {"x": figure(0.7, 0.5, 0.9, 300)}}}, wanted)[0]
    assert (barely["verdict"], barely["sure"]) == ("met", False)
    low = judge({"a": {"p": {"x": figure(0.45, 0.4, 0.5, 300)}}}, wanted)[0]
    assert low["verdict"] == "missed"
    assert low["miss"] == pytest.approx(-0.15)
    high = judge({"a": {"p": {"x": figure(1.9, 1.6, 2.0, 300)}}}, wanted)[0]
    assert high["miss"] == pytest.approx(0.5)


def test_the_worst_of_several_figures_counts_and_all_misses_are_named() -> None:
    card = {"a": {"p": {"x": figure(1.0, n=5)}, "q": {"x": figure(1.5, n=5)}, "r": {"x": figure(-2.0, n=4)}}}
    row = judge(card, one(at_least=0.6, at_most=1.4))[0]
    assert row["verdict"] == "missed"
    assert row["of"] == "a.r.x"
    assert row["figures_missed"] == ["a.q.x", "a.r.x"]
    assert row["n"] == 4


def test_a_good_value_on_too_few_patients_is_not_met() -> None:
    wanted = one(at_least=0.6, least_n=200)
    assert judge({"a": {"p": {"x": figure(0.9, 0.8, 1.0, 20)}}}, wanted)[0]["verdict"] == "too few"
    assert judge({"a": {"p": {"x": figure(0.9, 0.8, 1.0, 200)}}}, wanted)[0]["verdict"] == "met"


def test_what_was_not_measured_says_so() -> None:
    for card in ({}, {"a": {}}, {"a": {"p": {"x": figure(float("nan"))}}}):
        assert judge(card, one(at_least=0.6))[0]["verdict"] == "not measured"


def test_a_target_is_not_met_while_one_of_its_figures_has_no_value() -> None:
    card = {"a": {"p": {"x": figure(1.0, 0.9, 1.1, 300)}, "q": {"x": figure(float("nan"))}}}
    row = judge(card, one(at_least=0.6, least_n=200))[0]
    assert (row["verdict"], row["sure"], row["figures"]) == ("not measured", None, 2)
    assert row["figures_unmeasured"] == ["a.q.x"]
    card["a"]["r"] = {"x": figure(0.2, 0.1, 0.3, 300)}  # a miss stays a miss
    row = judge(card, one(at_least=0.6))[0]
    assert (row["verdict"], row["figures_missed"], row["figures_unmeasured"]) == ("missed", ["a.r.x"], ["a.q.x"])


def test_a_target_without_a_bound_is_refused() -> None:
    with pytest.raises(ValidationError, match="no bound"):
        one()
