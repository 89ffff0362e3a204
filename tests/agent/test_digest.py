"""What a conversation says of a plan."""

from __future__ import annotations

import pytest

from agent.digest import plan_digest, plan_text
from tests.agent.report.made_plan import made_plan


def test_a_search_that_ended_early_is_told_with_what_was_not_compared() -> None:
    assert "ended early" not in plan_text(made_plan(), "plan-1")
    note = "Ranked among the finalists but not compared, because the budget was used up: Cisplatin | PVA."
    text = plan_text(made_plan(stopped_early="The budget of 40 was reached at drug 2.", confidence_note=note), "plan-1")
    assert f"The search ended early: The budget of 40 was reached at drug 2. {note}" in text


@pytest.mark.parametrize(("weights", "words"), [((1, 2, 0), "weighted by the goal"), ((1, 1, 0), "log-risk")])
def test_the_objective_is_told_with_its_weights(weights: tuple[float, float, float], words: str) -> None:
    made = made_plan()
    goal = made.goal.model_copy(update={"weights": dict(zip(("tumour", "toxicity", "size"), weights, strict=True))})
    plan = made.model_copy(update={"goal": goal})
    chosen = plan.chosen.assessed if plan.chosen else pytest.fail("the made plan has a choice")
    assert plan_digest(plan)["goal"]["weights"] == goal.weights
    toxicity = f"toxicity {chosen.toxicity_log_risk:+.2f}" + (" x 2" if weights[1] == 2 else "")
    assert f"(tumour {chosen.tumour_log_risk.mean:+.2f}, {toxicity}; {words}, lower is better; " in plan_text(plan, "p")
