"""A conversation over fake simulations: real rules, measurements and planner, scripted risks for the networks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent.chat import Chat, open_chat
from agent.chat_store import ChatStore
from agent.deidentify import NEUTRAL_ID
from agent.guideline import GuidelinePolicy
from agent.nodes import Services
from agent.settings import PlannerSettings
from agent.state import CaseFacts
from models.case import Case, ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from tests.agent.fake_tools import FakeWorld, make_case
from tools.registry import RegisteredTool, build_tools
from tools.workspace import Workspace

TINY = PlannerSettings(
    actions="hcc_tace_seg", drug_horizon=2, embolic_horizon=1, beams=3, replicas=3, finalists=3, finalist_replicas=4,
    approve_actions=True, approve_plan=True,
)  # fmt: skip
RECORD = ClinicalRecord(
    age_years=61, child_pugh_class="A", child_pugh_score=5, bilirubin_mg_dl=0.9, albumin_g_dl=3.9, inr=1.1,
    creatinine_clearance_ml_min=75.0, platelets_10e9_l=150.0, ecog=0, portal_vein_invasion="none", lvef_percent=62.0,
)  # fmt: skip
SIMULATED = ("simulate_tumor", "segment", "survival_risk", "measure_response")


class ChatWorld:
    """Cases, conversations and fake simulations in one folder."""

    def __init__(self, folder: Path, **world: Any) -> None:
        self.folder = folder
        self.cases = folder / "cases"
        self.world = FakeWorld(folder / "log", seed=3, **world)
        self.store = ChatStore(folder / "chats")

    def add_case(self, name: str, case_id: str | None = None) -> Path:
        """A case with a clinical record; the folder bears its name."""
        bare = Case.load(make_case(self.folder / "bare" / name))
        image = {ImageMeta("pre_arterial", "pre", "arterial"): bare.volume("pre_arterial")}
        labels = bare.label_array().astype(np.uint8)
        note = "Jane Roe, admitted 2024-03-05"
        return write_case(self.cases / name, case_id or name, "synthetic", note, image, labels, RECORD).path

    def tools(
        self, path: Path, changes: Mapping[str, Any], artifacts: Path, settings: PlannerSettings
    ) -> Mapping[str, RegisteredTool]:
        return self._tools(NEUTRAL_ID, path, changes, artifacts)

    def services(self, run: Any, facts: CaseFacts, stop: threading.Event) -> Services:
        policy = GuidelinePolicy()
        record = run.record
        return Services(
            tools=self._tools(record.case_id, Path(record.case_path), record.changes, run.artifacts),
            policy=policy,
            fallback=policy,
            formulary=run.formulary,
            case=lambda case_id: facts,
            conditions=self.world.conditions,
            publish=lambda plan: {"report": "report.html"},
            command=run.command,
            listen=self.world.listen,
            stop=stop,
        )

    def chat(self, thread_id: str | None = None, *, case: str | None = None, by: str = "", **thread: Any) -> Chat:
        """A new conversation, or one that is opened again; `case` is open from its beginning."""
        if thread_id is None:
            given = {"settings": TINY, "llm": None, "prompts": "mewm", **thread}
            thread_id = self.store.begin(**given).thread_id
            if case is not None:
                self.store.change(thread_id, case_path=str(self.cases / case))
        return open_chat(self.store, thread_id, self.cases, by=by, make_services=self.services, make_tools=self.tools)

    def _tools(
        self, case_id: str, path: Path, changes: Mapping[str, Any], artifacts: Path
    ) -> dict[str, RegisteredTool]:
        tools = build_tools(Workspace({case_id: path}, artifacts, record_changes={case_id: changes}))
        return {name: self._fake(tool) if name in SIMULATED else tool for name, tool in tools.items()}

    def _fake(self, tool: RegisteredTool) -> RegisteredTool:
        def call(workspace: Workspace, **arguments: Any) -> Any:
            if "protocols" in arguments:
                arguments["protocols"] = [workspace.formulary.parse(text).key for text in arguments["protocols"]]
            if workspace.progress is None:  # a run listens to the fake world itself
                return self.world.tools[tool.name].call(**arguments)
            self.world.listen(workspace.progress)
            try:
                return self.world.tools[tool.name].call(**arguments)
            finally:
                self.world.listen(None)

        return dataclasses.replace(tool, function=call)
