"""`mewm chat`, and approval in `mewm plan` and `mewm resume`, over fake simulations."""

from __future__ import annotations

import functools
import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

import agent.chat
import agent.services
from agent.cli.approve import WAITING, ask
from agent.cli.main import app
from agent.events import Waiting
from agent.plan import read_plan
from tests.agent.fake_chat import ChatWorld

QUICK = ("--drugs", "3", "--drug-horizon", "1", "--embolic-horizon", "1", "--actions", "hcc_tace_seg")


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = ChatWorld(tmp_path)
    made.add_case("anna")
    opened = functools.partial(agent.chat.open_chat, make_services=made.services, make_tools=made.tools)
    monkeypatch.setattr(agent.chat, "open_chat", opened)
    monkeypatch.setattr(agent.services, "make_services", made.services)
    monkeypatch.chdir(tmp_path)
    return made


def mewm(*arguments, said=""):
    return CliRunner().invoke(app, list(map(str, arguments)), input=said, terminal_width=200)


def test_a_conversation_from_a_pipe_listed_and_opened_again(world):
    said = "help\nplan\nwhat is the weather\nexit\n"
    done = mewm("chat", "cases/anna", "--actions", "hcc_tace_seg", said=said)
    assert done.exit_code == 0, done.output
    assert "no LLM: embedded policy" in done.stdout
    assert "you> plan" in done.stdout
    assert "waits for approval: plan-1, case anna" in done.stdout
    assert "I did not understand “what is the weather”" in done.stdout
    thread = re.search(r"mewm chat --thread (\S+)", done.stdout)[1]
    listed = mewm("chat", "--list")
    assert thread in listed.stdout
    assert "anna" in listed.stdout
    again = mewm("chat", "--thread", thread, "--as", "Dr Chen", said="reject because the scan is old\n")
    assert again.exit_code == 0, again.output
    assert "waits for approval: plan-1, case anna" in again.stdout
    assert "the action space was rejected" in again.stdout
    assert read_plan(world.folder / "chats" / thread / "plan-1" / "plan.json").rejected.by == "Dr Chen"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("chat",), "Which case?"),
        (("chat", "--thread", "nope"), "There is no conversation 'nope'"),
        (("chat", "cases/nobody"), "cases/nobody has no case.json"),
        (("chat", "cases/anna", "--llm", "nowhere"), "There is no backend 'nowhere'"),
        (("chat", "cases/anna", "--prompts", "mewm"), "name a backend with --llm"),
    ],
)
def test_what_can_not_be_opened_is_a_sentence(world, arguments, sentence):
    done = mewm(*arguments)
    assert done.exit_code == 2, done.output
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_no_conversations_yet(world):
    assert "There is no conversation in chats yet" in mewm("chat", "--list").stdout


def test_without_a_terminal_a_gate_leaves_the_run_waiting_and_a_file_answers(world):
    done = mewm("plan", "cases/anna", "--run", "run", *QUICK, "--approve", "--json")
    assert done.exit_code == WAITING, done.output
    waiting = Waiting.model_validate_json(done.stdout)
    assert waiting.value["gate"] == "actions"
    again = mewm("resume", "run")
    assert again.exit_code == WAITING
    assert "waits for approval: case anna" in again.stderr
    assert "mewm resume run [--answer FILE]" in again.stderr
    answer = {"interrupt_id": waiting.interrupt_id, "case_id": "anna", "decision": "approve", "by": "Dr Chen"}
    wrong = mewm("resume", "run", "--answer", "-", said=json.dumps({**answer, "case_id": "bert"}))
    assert wrong.exit_code == 2
    assert "is for case 'bert', but the plan that waits is of case 'anna'" in " ".join(wrong.stderr.split())
    next_gate = mewm("resume", "run", "--json", "--answer", "-", said=json.dumps(answer))
    assert next_gate.exit_code == WAITING, next_gate.output
    waiting = Waiting.model_validate_json(next_gate.stdout)
    assert waiting.value["gate"] == "plan"
    file = world.folder / "answer.json"
    file.write_text(json.dumps({**answer, "interrupt_id": waiting.interrupt_id, "reason": "agreed"}))
    last = mewm("resume", "run", "--answer", file)
    assert last.exit_code == 0, last.output
    assert "plan approved by Dr Chen" in " ".join(last.stdout.split())
    assert read_plan(world.folder / "run" / "plan.json").approved.reason == "agreed"
    assert mewm("resume", "run", "--answer", file).exit_code == 2  # nothing waits any more


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "interrupt_id: Field required"),
        ("nonsense", "can't be used"),
        (
            '{"interrupt_id": "x", "case_id": "anna", "decision": "reject", "by": "Dr Chen"}',
            "a rejection needs a reason",
        ),
    ],
)
def test_an_answer_that_is_none_is_a_sentence(world, text, sentence):
    mewm("plan", "cases/anna", "--run", "run", *QUICK, "--approve-actions")
    done = mewm("resume", "run", "--answer", "-", said=text)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    missing = mewm("resume", "run", "--answer", "nothing.json")
    assert "can't be read" in missing.stderr


def test_a_rejected_plan_is_no_success(world):
    mewm("plan", "cases/anna", "--run", "run", *QUICK, "--approve-plan", "--json")
    waiting = json.loads(mewm("resume", "run", "--json").stdout)
    answer = {"interrupt_id": waiting["interrupt_id"], "case_id": "anna", "decision": "reject", "by": "Dr Chen"}
    done = mewm("resume", "run", "--answer", "-", said=json.dumps({**answer, "reason": "patient declines"}))
    assert done.exit_code == 6
    assert "plan rejected by Dr Chen" in " ".join(done.stdout.split())


def test_a_changed_record_is_planned_and_told(world):
    done = mewm("plan", "cases/anna", "--run", "run", *QUICK, "--change", "creatinine_clearance=20 mL/min")
    assert done.exit_code == 6, done.output  # rule P09
    plan = read_plan(world.folder / "run" / "plan.json")
    assert plan.what_if == ("Creatinine clearance: 20 mL/min (in the record: 75 mL/min)",)
    assert "--change 'creatinine_clearance_ml_min=20.0'" in plan.reproduction.command
    assert "What if: Creatinine clearance: 20 mL/min" in " ".join(done.stdout.split())
    bad = mewm("plan", "cases/anna", "--run", "other", "--change", "kidneys=bad")
    assert bad.exit_code == 2
    assert "no field" in bad.stderr
    assert not (world.folder / "other").exists()


class Typist(Console):
    """A console at which somebody types."""

    def __init__(self, *lines):
        super().__init__(file=io.StringIO(), width=120)
        self.lines = list(lines)

    def input(self, *args, **kwargs):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


WAITS = Waiting(
    interrupt_id="abc",
    value={
        "gate": "plan", "case_id": "anna", "question": "May it be?", "protocol": "A | B", "runners_up": ["C | D"],
        "blocks": ["D09: No."], "warnings": ["D08: Much."], "problem": "", "drugs": [], "embolics": [], "removed": [],
    },
)  # fmt: skip


def test_the_terminal_asks_until_there_is_an_answer():
    typist = Typist("Dr Chen", "maybe", "reject", "approve, override because it is fine")
    answer = ask(WAITS, typist, "")
    assert (answer.decision, answer.by, answer.override_reason) == ("approve", "Dr Chen", "it is fine")
    shown = typist.file.getvalue()
    assert "Blocked by D09: No." in shown
    assert "Warning D08: Much." in shown
    assert "That is no answer" in shown
    assert "a rejection needs a reason" in shown


@pytest.mark.parametrize("lines", [(), ("",), ("Dr Chen",), ("Dr Chen", "")])
def test_the_terminal_lets_it_wait(lines):
    assert ask(WAITS, Typist(*lines), "") is None
