"""The judge: what a search could have answered follows from its settings, and what a failed answer is worth."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from evals.judge import judge_answer
from evals.measures import metric_value
from evals.results import Answer, BaselineAnswers
from models.formulary import Formulary
from models.protocol import Protocol
from tests.evals.fake_dataset import SETTINGS, FakeCase, protocol

GOLD = {
    "near": protocol(["Cisplatin"], ["Lipiodol"]),
    "two drugs": protocol(["Cisplatin", "Mitomycin"], ["Lipiodol"]),
    "beads": protocol(["Doxorubicin"], ["Drug-eluting beads"]),
}
NOBODY = BaselineAnswers(answers={}, not_run={})


class Case(FakeCase):
    @property
    def gold(self) -> Mapping[str, Protocol]:
        return GOLD


def out_of_reach(**changes: object) -> dict[str, tuple[str, ...]]:
    answer = Answer(case_id="one", epoch=1, status="answered", protocol=GOLD["near"])
    row = judge_answer(Case("one"), answer, NOBODY, SETTINGS.model_copy(update=changes))
    return {name: found.reasons for name, found in row.reachable.items() if not found.reachable}


def test_gold_is_out_of_reach_beyond_the_horizons_and_the_action_set_of_the_search() -> None:
    assert out_of_reach() == {}
    assert out_of_reach(drug_horizon=1) == {"two drugs": ("Gold has 2 drugs, the horizon is 1.",)}
    missing = [
        name for name in ("Mitomycin", "Doxorubicin", "Drug-eluting beads") if name not in Formulary.load("policy")
    ]
    assert missing  # the set that is searched by default is narrower than the gold of this dataset
    found = out_of_reach(actions="policy")
    expected = {name for name, gold in GOLD.items() if set(missing) & set(gold.items)}
    assert set(found) == expected
    assert all("outside the action set of the search" in " ".join(reasons) for reasons in found.values())


@pytest.mark.parametrize("status", ["degraded", "limit", "failed"])
def test_a_backend_that_failed_borrows_no_action_space(status) -> None:
    """It counts as having proposed nothing, in place of being left out of the means or lent the fallback's."""
    space = ("Cisplatin", "Lipiodol") if status == "degraded" else None
    said = GOLD["near"] if status == "degraded" else None
    answer = Answer(case_id="one", epoch=1, status=status, protocol=said, space=space)
    row = judge_answer(Case("one"), answer, NOBODY, SETTINGS)
    assert row.space is not None
    assert row.space.items == ()
    assert row.space.gold_recall == dict.fromkeys(GOLD, 0.0)
    assert (row.space.best_recall, row.space.best_within) == (0.0, 1.0)
    entry = (row, row.own, "gold_recall", "near")
    assert metric_value(*entry, "own") == 0.0
    assert metric_value(*entry, "constant") is None
    if status == "degraded":
        assert row.fallback_space is not None
        assert row.fallback_space.gold_recall["near"] == 1.0
        assert metric_value(*entry, "fallback") == 1.0
    else:
        assert row.fallback_space is None
        assert metric_value(*entry, "fallback") == 0.0


def test_an_answer_keeps_its_action_space() -> None:
    answer = Answer(case_id="one", epoch=1, status="answered", protocol=GOLD["near"], space=("Cisplatin", "Lipiodol"))
    row = judge_answer(Case("one"), answer, NOBODY, SETTINGS)
    assert row.space is not None
    assert row.space.gold_recall == pytest.approx({"near": 1.0, "two drugs": 2 / 3, "beads": 0.0})
    assert row.fallback_space is None
