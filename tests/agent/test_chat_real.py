"""A conversation over the real tools, on a small untrained bundle: one store of artifacts, report and volumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.chat import open_chat
from agent.chat_store import ChatStore
from agent.events import Planned, Proposed, Said, StepFinished, Waiting
from agent.settings import PlannerSettings
from models.clinical_record import ClinicalRecord
from tests.agent.fake_tools import make_case
from tests.agent.test_services import bundle

__all__ = ["bundle"]
SETTINGS = PlannerSettings(
    actions="hcc_tace_seg", drugs=2, embolics=1, drug_horizon=1, embolic_horizon=1, beams=2, replicas=1,
    screening_replicas=1, finalists=2, finalist_replicas=2, budget=24, device="cpu",
    approve_actions=True, approve_plan=True,
)  # fmt: skip


@pytest.mark.usefixtures("bundle")
def test_plan_what_if_edit_and_approve(tmp_path: Path) -> None:
    case = make_case(tmp_path / "cases" / "anna", "anna")
    content = json.loads((case / "case.json").read_text())
    content["record"] = ClinicalRecord(creatinine_clearance_ml_min=75.0, child_pugh_class="A").known()
    (case / "case.json").write_text(json.dumps(content))
    store = ChatStore(tmp_path / "chats")
    thread = store.begin(SETTINGS, None, "mewm").thread_id
    chat = open_chat(store, thread, tmp_path / "cases", by="Dr Chen")

    def say(text: str) -> list[object]:
        return list(chat.say(text))

    def answer(events: list[object]) -> str:
        return [e.text for e in events if isinstance(e, Said)][-1]

    say("load anna")
    say("plan")
    events = say("approve")
    plan = next(e.plan for e in events if isinstance(e, Proposed))
    assert plan.chosen is not None
    stored = sorted(store.artifacts.glob("outcomes/*/*.safetensors"))
    assert len(stored) == plan.simulations

    # Only the record changed: every outcome and every segmentation is there already.
    events = say("what if the platelets were 90 10^9/L")
    other = next(e.plan for e in events if isinstance(e, Planned))
    assert (other.execution.simulated, other.simulations) == (0, plan.simulations)
    assert other.reproduction.case_hash != plan.reproduction.case_hash
    assert sorted(store.artifacts.glob("outcomes/*/*.safetensors")) == stored
    report = (store.plan_folder(chat.desk.row("what-if-2")) / "report.html").read_text()
    assert "What if, not this patient:" in report

    rival = plan.runners_up[0].assessed.key
    assert "0 of them new" in answer(say(f"compare {plan.chosen.assessed.key} with {rival}"))
    done = next(e for e in say("check Cisplatin | Lipiodol") if isinstance(e, StepFinished))
    assert done.ok
    events = say(f"edit to {rival} because it is gentler")
    assert any(isinstance(e, Waiting) for e in events)
    final = next(e.plan for e in say("approve") if isinstance(e, Planned))
    assert final.approved is not None
    folder = store.plan_folder(chat.desk.row("plan-1"))
    page = (folder / "report.html").read_text()
    assert "Protocol put in by Dr Chen" in page
    assert "it is gentler" in page
    assert (folder / final.artifacts["plan"]).is_file()
    assert list((folder / "finalists").glob("1_*/simulated.nii.gz"))
