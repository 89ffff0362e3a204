"""The judge: what a search could have answered follows from its own settings, not from the space of the dataset."""

from __future__ import annotations

from collections.abc import Mapping

from evals.judge import judge_answer
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
