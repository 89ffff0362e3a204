"""Goals: what texts are read as, negation included. Expected readings are written by hand."""

from __future__ import annotations

import pytest

from agent.goal import Goal, GoalWeights, interpret_goal


@pytest.mark.parametrize(
    ("text", "names", "weights"),
    [
        ("Spare liver function", ("spare_liver_function",), (1, 2, 0)),
        ("please avoid damaging the liver", ("spare_liver_function",), (1, 2, 0)),
        ("No hepatic decompensation, please.", ("spare_liver_function",), (1, 2, 0)),
        ("liver-sparing", ("spare_liver_function",), (1, 2, 0)),
        ("least toxicity", ("least_toxicity",), (1, 4, 0)),
        ("as few side-effects as possible", ("least_toxicity",), (1, 4, 0)),
        ("without toxicity", ("least_toxicity",), (1, 4, 0)),
        ("down-stage to transplant", ("downstage",), (1, 1, 1)),
        ("Down stage the tumour", ("downstage",), (1, 1, 1)),
        ("shrink it before surgery", ("downstage",), (1, 1, 1)),
        ("longest survival", ("lowest_mortality_risk",), (1, 1, 0)),
        ("down-stage, but spare the liver", ("spare_liver_function", "downstage"), (1, 2, 1)),
        (
            "not only down-stage but also keep side effects low: fewest complications",
            ("least_toxicity", "downstage"),
            (1, 4, 1),
        ),
        (
            "What TACE treatment protocols are recommended for a patient diagnosed with hepatocellular carcinoma (HCC) "
            "given the pre-treatment CT?",
            ("lowest_mortality_risk",),
            (1, 1, 0),
        ),
    ],
)
def test_goals_that_are_understood(text: str, names: tuple[str, ...], weights: tuple[float, ...]) -> None:
    goal = interpret_goal(text)
    assert goal.understood
    assert goal.names == names
    assert goal.name == "+".join(names)
    assert (goal.weights.tumour, goal.weights.toxicity, goal.weights.size) == weights


@pytest.mark.parametrize(
    ("text", "names", "not_wanted"),
    [
        ("do not down-stage", ("default",), ("downstage",)),
        ("Don't downstage; least toxicity", ("least_toxicity",), ("downstage",)),
        ("spare the liver rather than shrink the tumour", ("spare_liver_function",), ("downstage",)),
        ("do not spare the liver", ("default",), ("spare_liver_function",)),
        ("not for transplant, longest survival", ("lowest_mortality_risk",), ("downstage",)),
    ],
)
def test_negation(text: str, names: tuple[str, ...], not_wanted: tuple[str, ...]) -> None:
    goal = interpret_goal(text)
    assert (goal.names, goal.not_wanted, goal.understood) == (names, not_wanted, True)
    assert "ruled out" in goal.note
    if "downstage" in not_wanted:
        assert goal.weights.size == 0


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_empty_is_the_default(text: str) -> None:
    goal = interpret_goal(text)
    assert goal.understood
    assert goal.names == ("default",)
    assert goal.weights == GoalWeights()
    assert "No goal" in goal.note


@pytest.mark.parametrize("text", ["make it blue", "最好的方案", "xyzzy 42"])
def test_unknown_text_says_so_and_changes_nothing(text: str) -> None:
    goal = interpret_goal(text)
    assert not goal.understood
    assert goal.weights == GoalWeights()
    assert "not understood" in goal.note


def test_objective_is_the_weighted_sum() -> None:
    goal = Goal(text="", names=("x",), understood=True, weights=GoalWeights(tumour=1, toxicity=2, size=0.5), note="")
    assert goal.objective(0.3, 0.1, -40.0) == pytest.approx(0.3 + 0.2 - 0.2)
    assert goal.objective(0.3, 0.1, None) == pytest.approx(0.3 + 0.2)
    assert interpret_goal("").objective(0.3, 0.1, None) == pytest.approx(0.4)
