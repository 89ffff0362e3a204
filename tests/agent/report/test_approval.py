"""What people decided, as the report shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.plan import Approval
from agent.report import page
from tests.agent.report.made_plan import MadeWorkspace, blocked_plan, made_plan, made_workspace
from tests.agent.report.test_page import visible, written

APPROVED = Approval(
    gate="plan", decision="approve", by="Dr Chen <b>", at="2026-11-21T10:00:00+00:00", before="A | B", after="A | B"
)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> MadeWorkspace:
    made = made_workspace()
    monkeypatch.setattr(page, "compose_outcome", made.compose)
    return made


def shown(plan, workspace, folder):
    reader = written(plan, workspace, folder)
    assert reader.faults == []
    return {e.attributes["id"]: e for e in reader.elements if "id" in e.attributes}, " ".join(visible(reader).split())


def test_without_gates_there_is_nothing_about_approval(workspace, tmp_path: Path) -> None:
    by_id, _ = shown(made_plan(), workspace, tmp_path)
    assert not {"approval", "rejected", "override", "what-if-1"} & set(by_id)


def test_who_and_when_are_shown_and_names_are_escaped(workspace, tmp_path: Path) -> None:
    by_id, text = shown(made_plan(approvals=(APPROVED,)), workspace, tmp_path)
    assert "override" not in by_id
    assert "Dr Chen <b>" in "".join(by_id["approval"].text)
    assert "21 Nov 2026, 10:00 UTC" in text


def test_an_override_is_red_with_its_reason_and_the_rules(workspace, tmp_path: Path) -> None:
    record = APPROVED.model_copy(
        update={"overridden": ("D09: No cisplatin.",), "override_reason": "clearance was measured anew"}
    )
    by_id, _ = shown(made_plan(approvals=(record,)), workspace, tmp_path)
    strip = by_id["override"]
    assert "override" in strip.attributes["class"].split()
    said = " ".join("".join(strip.text).split())
    assert "D09: No cisplatin." in said
    assert "clearance was measured anew" in said
    style = (tmp_path / "report.html").read_text()
    assert ".strip.override { background: var(--red);" in style
    assert "--red: #a3281a" in style


def test_an_edit_says_who_put_the_protocol_in(workspace, tmp_path: Path) -> None:
    edit = APPROVED.model_copy(update={"decision": "edit", "by": "Dr Wang", "after": "C | D", "reason": "in stock"})
    by_id, text = shown(made_plan(approvals=(edit, APPROVED)), workspace, tmp_path)
    assert "Protocol put in by Dr Wang" in text
    assert "in stock" in "".join(by_id["approval"].text)


def test_a_rejected_plan_and_a_rejected_action_space(workspace, tmp_path: Path) -> None:
    reject = APPROVED.model_copy(update={"decision": "reject", "reason": "patient declines"})
    by_id, _ = shown(made_plan(approvals=(reject,)), workspace, tmp_path)
    assert "patient declines" in "".join(by_id["rejected"].text)
    assert "chosen" in by_id
    actions = reject.model_copy(update={"gate": "actions"})
    plan = blocked_plan(approvals=(actions,), blocked_by=(), rules=(), explanation="The action space was rejected.")
    by_id, text = shown(plan, workspace, tmp_path)
    assert "No protocol: the action space was rejected" in text
    assert "blocked by rules" not in text


def test_a_what_if_says_what_was_changed(workspace, tmp_path: Path) -> None:
    line = "Creatinine clearance: 20 mL/min (in the record: 75 mL/min)"
    by_id, _ = shown(made_plan(what_if=(line,)), workspace, tmp_path)
    assert line in "".join(by_id["what-if-1"].text)
