"""The two gates: approve, edit, reject; what is refused; kill and resume while one waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.approval import GateAnswer, GateRequest, warnings_of
from agent.events import NodeStarted, Planned, Proposed, Waiting
from agent.plan import read_plan
from agent.run import open_run, start_run
from agent.search import parse_key
from agent.settings import PlannerSettings
from agent.trace import read_trace
from models.errors import ApprovalError, RunError, ToolError
from models.protocol import Protocol
from tests.agent.fake_tools import FakeWorld, fake_services, make_case
from tests.agent.report.made_plan import made_plan

ROOT = Path(__file__).resolve().parents[2]
QUICK = PlannerSettings(actions="hcc_tace_seg", drug_horizon=2, embolic_horizon=1)
BOTH = QUICK.model_copy(update={"approve_actions": True, "approve_plan": True})
PLAN_ONLY = QUICK.model_copy(update={"approve_plan": True})


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "case")


@pytest.fixture
def world(tmp_path):
    return FakeWorld(tmp_path / "log")


def go(run, world, answer=None):
    return list(run.execute(fake_services(world), answer=answer))


def reply(waiting, decision, **fields):
    given = {"interrupt_id": waiting.interrupt_id, "case_id": waiting.value["case_id"], "by": "Dr Chen", **fields}
    return GateAnswer(decision=decision, **given)


def at_plan_gate(case, folder, world, settings=PLAN_ONLY):
    """A run whose plan waits; the proposed plan and what waits."""
    run = start_run(case, folder, settings)
    *_, proposed, waiting = go(run, world)
    assert isinstance(proposed, Proposed)
    assert isinstance(waiting, Waiting)
    return run, proposed.plan, waiting


def test_an_answer_whose_handling_failed_is_not_taken_in_place_of_the_next(tmp_path, case, world):
    run, _, waiting = at_plan_gate(case, tmp_path / "run", world)
    check = world.tools["check_rules"].function

    def broken(**_):
        raise ToolError("The rules can't be read.")

    world.tools["check_rules"].function = broken
    with pytest.raises(ToolError):
        go(open_run(run.folder), world, reply(waiting, "edit", protocol="Cisplatin 50 mg | Lipiodol"))
    world.tools["check_rules"].function = check
    again = open_run(run.folder)
    assert again.look().waiting == waiting
    go(again, world, reply(waiting, "reject", reason="declines", by="Dr Wang"))
    assert [(a.decision, a.by) for a in again.look().approvals] == [("reject", "Dr Wang")]


def test_without_gates_nothing_waits_and_approving_both_gives_the_same_choice(tmp_path, case, world):
    plain = go(start_run(case, tmp_path / "plain", QUICK), world)[-1].plan
    assert plain.approvals == ()
    assert plain.approved is None
    run = start_run(case, tmp_path / "run", BOTH)
    first = go(run, world)[-1]
    request = GateRequest.model_validate(first.value)
    assert (request.gate, request.case_id, request.problem) == ("actions", "tiny", "")
    assert set(request.drugs) | set(request.embolics) == {n.item for n in plain.proposals if n.kept}
    assert run.look().status == "waiting"
    assert not (tmp_path / "run" / "plan.json").exists()
    *_, proposed, second = go(open_run(tmp_path / "run"), world, reply(first, "approve"))
    assert proposed.plan.chosen == plain.chosen
    assert second.interrupt_id != first.interrupt_id
    assert second.value["protocol"] == plain.chosen.assessed.key
    last = go(run, world, reply(second, "approve", by="Dr Wang", reason="agreed"))[-1]
    assert isinstance(last, Planned)
    assert last.plan == read_plan(tmp_path / "run" / "plan.json")
    assert last.plan.chosen == plain.chosen
    assert [(a.gate, a.decision, a.by) for a in last.plan.approvals] == [
        ("actions", "approve", "Dr Chen"),
        ("plan", "approve", "Dr Wang"),
    ]
    assert all(a.at.startswith("20") and a.at.endswith("+00:00") for a in last.plan.approvals)
    assert last.plan.approved.reason == "agreed"
    assert run.look().status == "done"
    trace = read_trace(tmp_path / "run" / "trace.jsonl")
    assert [d.reason for d in trace if d.node.startswith("approve")] == ["Dr Chen: approve", "Dr Wang: approve"]
    assert len({d.decision_id for d in trace}) == len(trace)


def test_an_edited_action_space_is_what_is_searched(tmp_path, case, world):
    settings = BOTH.model_copy(update={"approve_plan": False})
    run = start_run(case, tmp_path / "run", settings)
    waiting = go(run, world)[-1]
    assert "Mitomycin" in waiting.value["drugs"]
    answer = reply(waiting, "edit", items=("adriamycin", "Cisplatin", "iodized oil"), reason="no mitomycin in stock")
    plan = go(run, world, answer)[-1].plan
    tried = {item for line in world.simulated() for item in parse_key(line.split("\t")[0]).items}
    assert tried == {"Doxorubicin", "Cisplatin", "Lipiodol"}
    (record,) = plan.approvals
    assert (record.decision, record.after) == ("edit", "Doxorubicin, Cisplatin | Lipiodol")
    notes = {n.item: n for n in plan.proposals}
    assert not notes["Mitomycin"].kept
    assert "by Dr Chen: no mitomycin in stock" in notes["Mitomycin"].reason
    assert notes["Cisplatin"].kept


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (("Aspirin", "Lipiodol"), "'Aspirin' is not a known drug or embolic"),
        (("Cisplatin",), "has no embolic agent"),
        (("Oxaliplatin", "Lipiodol"), "known but not in the action set 'hcc_tace_seg'"),
    ],
)
def test_an_impossible_action_space_is_refused_and_waits_on(tmp_path, case, world, items, sentence):
    run = start_run(case, tmp_path / "run", BOTH)
    waiting = go(run, world)[-1]
    with pytest.raises(ApprovalError, match=sentence):
        go(run, world, reply(waiting, "edit", items=items))
    assert run.look().waiting == waiting
    assert world.simulated() == []


def test_an_agent_that_a_rule_forbids_is_not_let_in(tmp_path, case):
    def judge(keys, complete):
        return {key: "no cisplatin for this patient" for key in keys if "Cisplatin" in parse_key(key).drugs}

    world = FakeWorld(tmp_path / "log", judge=judge)
    run = start_run(case, tmp_path / "run", BOTH)
    waiting = go(run, world)[-1]
    assert "Cisplatin" not in waiting.value["drugs"]
    assert any("Cisplatin" in text for text in waiting.value["removed"])
    again = go(run, world, reply(waiting, "edit", items=("Cisplatin", "Lipiodol")))[-1]
    assert isinstance(again, Waiting)
    assert "no cisplatin for this patient" in again.value["problem"]
    assert again.interrupt_id != waiting.interrupt_id
    assert world.simulated() == []
    done = go(run, world, reply(again, "edit", items=("Doxorubicin", "Lipiodol")))[-1]
    assert done.value["gate"] == "plan"


def test_a_rejected_action_space_ends_without_a_simulation(tmp_path, case, world):
    run = start_run(case, tmp_path / "run", BOTH)
    waiting = go(run, world)[-1]
    plan = go(run, world, reply(waiting, "reject", reason="imaging is too old"))[-1].plan
    assert plan.blocked
    assert plan.chosen is None
    assert plan.blocked_by == ()
    assert plan.rejected.reason == "imaging is too old"
    assert "rejected by Dr Chen" in plan.explanation
    assert world.simulated() == []
    assert read_plan(tmp_path / "run" / "plan.json") == plan


def test_a_rejected_plan_stays_visible_and_is_not_approved(tmp_path, case, world):
    run, proposed, waiting = at_plan_gate(case, tmp_path / "run", world)
    plan = go(run, world, reply(waiting, "reject", reason="patient declines"))[-1].plan
    assert plan.chosen == proposed.chosen
    assert plan.rejected.reason == "patient declines"
    assert plan.approved is None


def test_choosing_the_runner_up_simulates_nothing_and_waits_again(tmp_path, case, world):
    run, proposed, waiting = at_plan_gate(case, tmp_path / "run", world)
    other = proposed.runners_up[0].assessed
    before = len(world.simulated())
    *_, edited, again = go(run, world, reply(waiting, "edit", protocol=other.key, reason="less nephrotoxic"))
    assert len(world.simulated()) == before
    assert again.interrupt_id != waiting.interrupt_id
    plan = edited.plan
    assert plan.chosen.assessed.key == again.value["protocol"] == other.key
    assert plan.chosen.place == 1
    assert plan.chosen.assessed.rank == other.rank  # a person's choice is no better by the objective
    old = next(f for f in plan.runners_up if f.assessed.key == proposed.chosen.assessed.key)
    assert old.margin.mean == pytest.approx(-proposed.runners_up[0].margin.mean)
    assert "put in by Dr Chen: less nephrotoxic" in plan.explanation
    assert f"{old.margin.mean:+.3f}" in plan.explanation
    assert plan.goal == proposed.goal
    with pytest.raises(ApprovalError, match="look at what waits"):
        go(run, world, reply(waiting, "approve"))  # the question that is no longer there
    final = go(run, world, reply(again, "approve"))[-1].plan
    assert final.approved.after == other.key
    assert [a.decision for a in final.approvals] == ["edit", "approve"]
    assert final.chosen == plan.chosen


def test_a_new_protocol_with_a_dose_is_checked_and_simulated_on_the_common_seeds(tmp_path, case, world):
    run, proposed, waiting = at_plan_gate(case, tmp_path / "run", world)
    before, checks = len(world.simulated()), len(world.tools["check_rules"].calls)
    *_, edited, again = go(run, world, reply(waiting, "edit", protocol="lipiodol; cisplatin 50 mg"))
    key = "Cisplatin 50 mg | Lipiodol"
    new = [line.split("\t") for line in world.simulated()[before:]]
    seeds = [r.seed for r in proposed.chosen.assessed.replicas]
    assert sorted(new) == sorted([key, str(seed)] for seed in seeds)
    assert set(Counter(world.simulated()).values()) == {1}
    (check,) = world.tools["check_rules"].calls[checks:]
    assert (check["protocols"], check["stage"]) == ([key], "complete")
    chosen = edited.plan.chosen
    assert chosen.assessed.protocol == parse_key(key)
    values = [world.risk.value(key, s) + chosen.assessed.toxicity_log_risk for s in seeds]
    assert chosen.assessed.objective.mean == pytest.approx(sum(values) / len(values))
    doses = {d.item: d.text for d in chosen.doses}
    assert doses["Cisplatin"].startswith("50 mg as stated; usual ")
    go(run, world, reply(again, "approve"))
    nodes = [d.node for d in read_trace(tmp_path / "run" / "trace.jsonl") if d.kind == "node"]
    assert nodes[-7:] == ["approve_plan", "simulate", "segment", "score", "revise", "approve_plan", "report"]


def test_the_rules_that_warn_of_the_choice_are_shown_at_the_gate():
    plan = made_plan()
    assert warnings_of(plan) == ("C01: More than 15 ml of Lipiodol is above the label.",)
    assert warnings_of(plan.model_copy(update={"chosen": None})) == ()


def forbid_beads(keys, complete):
    return {key: "beads are contraindicated" for key in keys if "Drug-eluting beads" in parse_key(key).embolics}


def test_a_blocked_protocol_needs_a_typed_reason(tmp_path, case):
    world = FakeWorld(tmp_path / "log", judge=forbid_beads)
    run, _, waiting = at_plan_gate(case, tmp_path / "run", world)
    *_, edited, again = go(run, world, reply(waiting, "edit", protocol="Doxorubicin | Drug-eluting beads"))
    assert again.value["blocks"] == ["fake-protocol: beads are contraindicated."]
    chosen = edited.plan.chosen.assessed
    assert (chosen.allowed, chosen.rank, chosen.finalist) == (False, None, True)
    assert edited.plan.chosen.margin is None
    assert all(place.margin is not None for place in edited.plan.runners_up)
    for reason in ("", "   "):
        with pytest.raises(ApprovalError, match=r"beads are contraindicated\. Approving it needs an override reason"):
            go(run, world, reply(again, "approve", override_reason=reason))
    assert run.look().waiting == again
    plan = go(run, world, reply(again, "approve", override_reason="allergy was ruled out"))[-1].plan
    assert plan.approved.override_reason == "allergy was ruled out"
    assert plan.approved.overridden == ("fake-protocol: beads are contraindicated.",)


def test_an_allowed_protocol_records_no_override(tmp_path, case, world):
    run, _, waiting = at_plan_gate(case, tmp_path / "run", world)
    plan = go(run, world, reply(waiting, "approve", override_reason="just in case"))[-1].plan
    assert (plan.approved.override_reason, plan.approved.overridden) == ("", ())


def test_a_blocked_patient_is_agreed_to_or_overridden(tmp_path, case):
    world = FakeWorld(tmp_path / "log", patient_block="decompensated cirrhosis")
    run, _, waiting = at_plan_gate(case, tmp_path / "run", world, BOTH)
    assert waiting.value["protocol"] is None
    assert waiting.value["blocks"] == ["fake-patient: decompensated cirrhosis."]
    *_, edited, again = go(run, world, reply(waiting, "edit", protocol="Doxorubicin | Lipiodol"))
    assert len(world.simulated()) == QUICK.finalist_replicas
    assert not edited.plan.blocked
    assert edited.plan.chosen.assessed.key == "Doxorubicin | Lipiodol"
    with pytest.raises(ApprovalError, match="decompensated cirrhosis"):
        go(run, world, reply(again, "approve"))
    plan = go(run, world, reply(again, "approve", override_reason="compensated since"))[-1].plan
    assert plan.approved.overridden == ("fake-patient: decompensated cirrhosis.",)
    other = FakeWorld(tmp_path / "log2", patient_block="decompensated cirrhosis")
    run, _, waiting = at_plan_gate(case, tmp_path / "agreed", other)
    plan = go(run, other, reply(waiting, "approve"))[-1].plan  # agreeing that nothing is proposed overrides nothing
    assert plan.blocked
    assert plan.approved.overridden == ()


def test_two_waiting_plans_are_not_mixed_up(tmp_path):
    one, two = make_case(tmp_path / "one", "anna"), make_case(tmp_path / "two", "bert")
    world = FakeWorld(tmp_path / "log")
    run1, _, waits1 = at_plan_gate(one, tmp_path / "run1", world)
    run2, _, waits2 = at_plan_gate(two, tmp_path / "run2", world)
    with pytest.raises(ApprovalError, match="answer is to question"):
        go(run2, world, reply(waits1, "approve"))
    with pytest.raises(ApprovalError, match="is for case 'anna', but the plan that waits is of case 'bert'"):
        go(run2, world, reply(waits2, "approve", case_id="anna"))
    assert (run1.look().status, run2.look().status) == ("waiting", "waiting")
    plan = go(run2, world, reply(waits2, "approve"))[-1].plan
    assert plan.case_id == "bert"
    assert run1.look().status == "waiting"
    with pytest.raises(ApprovalError, match="waits for no answer"):
        go(run2, world, reply(waits2, "approve"))


@pytest.mark.parametrize(
    "fields",
    [
        {"decision": "reject"},
        {"decision": "edit"},
        {"decision": "approve", "protocol": "Cisplatin | Lipiodol"},
        {"decision": "approve", "by": " "},
        {"decision": "approve", "interrupt_id": ""},
        {"decision": "maybe"},
    ],
)
def test_an_incomplete_answer_is_no_answer(fields):
    with pytest.raises(ValidationError):
        GateAnswer.model_validate({"interrupt_id": "x", "case_id": "tiny", "by": "Dr Chen", **fields})


def test_an_edit_for_the_other_gate_is_refused(tmp_path, case, world):
    run, _, waiting = at_plan_gate(case, tmp_path / "run", world)
    with pytest.raises(ApprovalError, match="names a protocol"):
        go(run, world, reply(waiting, "edit", items=("Cisplatin", "Lipiodol")))
    with pytest.raises(ApprovalError, match="has no embolic agent"):
        go(run, world, reply(waiting, "edit", protocol="Cisplatin"))


def test_a_run_that_waits_says_so_again_and_computes_nothing(tmp_path, case, world):
    _, _, waiting = at_plan_gate(case, tmp_path / "run", world)
    calls = {name: len(tool.calls) for name, tool in world.tools.items()}
    events = go(open_run(tmp_path / "run"), world)
    assert [type(event) for event in events] == [Proposed, Waiting]
    assert events[-1] == waiting
    assert {name: len(tool.calls) for name, tool in world.tools.items()} == calls


def test_a_run_is_worked_on_by_one_at_a_time(tmp_path, case, world):
    run = start_run(case, tmp_path / "run", QUICK)
    at_work = run.execute(fake_services(world))
    next(at_work)
    with pytest.raises(RunError, match="is at work already"):
        go(open_run(tmp_path / "run"), world)
    assert isinstance(list(at_work)[-1], Planned)


def test_killed_after_the_answer_the_run_goes_on_and_simulates_nothing_twice(tmp_path, case):
    """The first process ends while the gate waits, the second is killed in the search that it let begin."""
    folder, log = tmp_path / "run", tmp_path / "log"
    waiting = go(start_run(case, folder, BOTH), FakeWorld(log))[-1]
    code = (
        "import sys; from pathlib import Path; from agent.approval import GateAnswer; from agent.run import open_run\n"
        "from tests.agent.fake_tools import FakeWorld, fake_services\n"
        "answer = GateAnswer.model_validate_json(sys.argv[3]); world = FakeWorld(Path(sys.argv[2]), kill_after=9)\n"
        "list(open_run(Path(sys.argv[1])).execute(fake_services(world), answer=answer))"
    )
    answer = reply(waiting, "approve").model_dump_json()
    killed = subprocess.run(
        [sys.executable, "-c", code, folder, log, answer], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run, world = open_run(folder), FakeWorld(log)
    assert run.look().status == "unfinished"
    events = go(run, world)
    assert next(e.node for e in events if isinstance(e, NodeStarted)) == "simulate"
    assert events[-1].value["gate"] == "plan"
    assert set(Counter(world.simulated()).values()) == {1}
    plan = go(run, world, reply(events[-1], "approve"))[-1].plan
    assert [a.gate for a in plan.approvals] == ["actions", "plan"]
    plain = go(start_run(case, tmp_path / "plain", QUICK), FakeWorld(tmp_path / "log2"))[-1].plan
    assert plan.chosen == plain.chosen


def test_a_key_with_doses_reads_back():
    protocol = Protocol(
        drugs=("Cisplatin", "Mitomycin"), embolics=("Lipiodol",),
        doses={"Cisplatin": {"amount": 62.5, "unit": "mg"}, "Lipiodol": {"amount": 10, "unit": "ml"}},
    )  # fmt: skip
    assert parse_key(protocol.key) == protocol
    assert parse_key("- | Drug-eluting beads") == Protocol(embolics=("Drug-eluting beads",))
