"""The full table: every part is an evaluation of its own, on the same cases, and what is finished is not repeated."""

from __future__ import annotations

import pytest

import evals.table as table
from evals.ablation import ASSISTANT, WithoutAssistant
from evals.baselines import NAMES
from evals.prepare import Evaluation
from evals.results import BaselineAnswer, BaselineAnswers
from evals.runner import run_evaluation
from models.engine import Engine
from models.response import VIABLE
from tests.evals.fake_dataset import Says, dataset, protocol, spec
from tests.tools.conftest import case_folder, engine, make_workspace, model, workspace  # noqa: F401 (fixtures)

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
SAYS = {
    "planner": protocol(["Cisplatin"], ["Lipiodol"]),
    "greedy": protocol(["Doxorubicin"], ["Lipiodol"]),
    "other": protocol(["Mitomycin"], ["Lipiodol"]),
}


@pytest.fixture
def prepared(monkeypatch):
    """Calls of `prepare`, which gives evaluations on a small dataset in place of the phantom."""
    calls = []

    def prepare(name, **options):
        calls.append({"name": name, **options})
        data = dataset(3)
        key = "greedy" if options["planner"].get("beams") == 1 else "other" if options["parts_off"] else "planner"
        agent = Says(SAYS[key])
        calls[-1]["agent"] = agent

        def said(case):
            answers = {"constant": BaselineAnswer(label="constant", protocols=dict.fromkeys(case.gold, SAYS["other"]))}
            return BaselineAnswers(answers=answers if options["baselines"] else {}, not_run={})

        told = spec(data, parts_off=options["parts_off"], baselines=options["baselines"])
        return Evaluation(told, data, agent, said)

    monkeypatch.setattr(table, "prepare", prepare)
    return calls


def run(evaluation, folder):
    return run_evaluation(folder, evaluation.spec, evaluation.dataset, evaluation.agent, evaluation.baselines)


def test_every_part_is_a_line_beside_the_baselines_and_what_is_finished_is_not_asked_again(prepared, tmp_path):
    summary = table.full_table(tmp_path / "table", run, n=3, seed=4, planner={"replicas": 3})
    assert {c["name"] for c in prepared} == {"phantom"}
    assert [c["limit"] for c in prepared] == [3] * 4
    assert [c["planner"] for c in prepared] == [
        {"seed": 4, "replicas": 3}, {"seed": 4, "replicas": 3, "beams": 1},
        {"seed": 4, "replicas": 3, "strategy": "paper"}, {"seed": 4, "replicas": 3},
    ]  # fmt: skip
    assert [c["parts_off"] for c in prepared] == [(), ("beam (B = 1)",), (), (ASSISTANT,)]
    assert [c["baselines"] for c in prepared] == [NAMES, (), (), ()]
    board = summary.boards[0]
    labels = {line.label: line for line in board.lines}
    assert labels["MeWM planner (guideline, without assistant)"].n == 3
    assert labels["constant"].n == 3
    for what in ("contrastive", "attenuation"):
        line = next(x for x in board.lines if x.not_run and what in x.not_run)
        assert f"--weights-without {what}=FOLDER" in line.not_run
    assert len({v.label for v in summary.versus}) == 4
    assert {p.name for p in (tmp_path / "table").iterdir()} >= {"planner", "greedy", "report.md", "report.html"}
    before = len(prepared)
    again = table.full_table(tmp_path / "table", run, n=3, seed=4, planner={"replicas": 3})
    assert [len(c["agent"].asked) for c in prepared[before:]] == [0] * 4
    assert again.boards == summary.boards


def test_weights_that_were_trained_without_a_part_are_run_where_they_are_given(prepared, tmp_path):
    given = {"contrastive": tmp_path / "no-ccl"}
    table.full_table(tmp_path / "table", run, n=3, weights=tmp_path / "full", weights_without=given)
    assert [c["weights"] for c in prepared] == [tmp_path / "full"] * 4 + [tmp_path / "no-ccl"]
    assert prepared[-1]["parts_off"] == ("contrastive learning",)


def test_without_the_assistant_every_protocol_leaves_the_whole_tumour(model, workspace):  # noqa: F811 (fixtures)
    """The shipped engine finds what is left; the ablated one calls the original tumour viable, and says who it is."""
    ablated = WithoutAssistant.__new__(WithoutAssistant)
    Engine.__init__(ablated, "cpu", model=model, precision="fp32", batch=4)
    assert ablated.weights_hash == f"{model.weights_hash}-no-assistant"
    prepared = workspace.prepared("two")
    mask = prepared.numbers > 0
    found = ablated.segment(prepared.pre, prepared.pre, mask)
    assert found.shape == prepared.pre.shape
    assert ((found == VIABLE) == mask).all()
    assert set(found.ravel()) <= {0, VIABLE}
