"""Run: a folder that holds one plan on its way: `run.json`, checkpoints, artifacts, and what the plan leaves.

run.json            format version, case and its content hash, settings, goal
checkpoints.sqlite  the planner's state after every node
artifacts/          simulated outcomes and segmentations
plan.json, trace.jsonl, report.html, finalists/
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.events import Event, Planned, events
from agent.files import unwritable, write_text
from agent.nodes import RunStopped, Services
from agent.plan import Plan
from agent.planner import build_planner
from agent.settings import PlannerSettings
from agent.state import STATE_TYPES, CaseFacts, PlannerInput, PlannerState
from agent.trace import write_trace
from models.case import Case
from models.errors import RunError

FORMAT_VERSION = 1
_THREAD: RunnableConfig = {"configurable": {"thread_id": "plan"}}


class RunRecord(BaseModel):
    """Content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    created: str
    case_path: str
    case_id: str
    case_hash: str
    settings: PlannerSettings
    goal: str


MakeServices = Callable[["Run", CaseFacts, threading.Event], Services]
"""Builds what the nodes work with, for a run and the facts of its case; the event stops the run."""


class Run:
    """One run folder."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder = folder
        self.record = record

    @property
    def command(self) -> str:
        """The command that repeats this run, with the settings that differ from the defaults."""
        parts = ["mewm", "plan", _quoted(self.record.case_path)]
        if self.record.goal:
            parts += ["--goal", _quoted(self.record.goal)]
        for name, default in PlannerSettings().model_dump().items():
            value = getattr(self.record.settings, name)
            if value != default and name in OPTIONS:
                parts += [OPTIONS[name]] if value is True else [OPTIONS[name], str(value)]
        return " ".join(parts)

    def execute(self, make_services: MakeServices, stop: threading.Event | None = None) -> Iterator[Event]:
        """Run the planner from where it stands, and leave `plan.json` and `trace.jsonl`.

        Args:
            make_services: Builds tools and policy.
            stop: Set from another thread or a signal handler to stop the run; it can be resumed.

        Yields:
            Events; the last one is `Planned` with the plan as it was written.

        Raises:
            RunError: the folder can't be written, its checkpoints can't be read, or the case is not that of the run.
            CaseError: the case is missing or one of its files was changed.
            RunStopped: `stop` was set.
        """
        facts = self.case_facts()
        services = make_services(self, facts, stop or threading.Event())
        with closing(self._connect()) as connection:
            serde = JsonPlusSerializer(allowed_msgpack_modules=STATE_TYPES)
            planner = build_planner(lambda _: services, SqliteSaver(connection, serde=serde))
            try:
                snapshot = planner.get_state(_THREAD)
                given: dict[str, Any] | None = None
                if not snapshot.values:
                    given = PlannerInput(
                        case_id=self.record.case_id,
                        goal=self.record.goal,
                        options=self.record.settings.model_dump(mode="json"),
                    ).model_dump()
                if given is not None or snapshot.next:
                    for event in events(planner, given, _THREAD, durability="sync"):
                        if not isinstance(event, Planned):
                            yield event
                state = PlannerState.model_validate(planner.get_state(_THREAD).values)
            except sqlite3.DatabaseError as exc:
                msg = f"The checkpoints of {self.folder} can't be used ({exc}): start a new run with `mewm plan`."
                raise RunError(msg) from exc
        yield Planned(plan=self._leave(state))

    def _leave(self, state: PlannerState) -> Plan:
        """Write `plan.json` and `trace.jsonl` from the checkpointed state; the same state gives the same files."""
        if state.plan is None:
            msg = f"The run in {self.folder} ended without a plan: start a new run with `mewm plan`."
            raise RunError(msg)
        names = {"plan": "plan.json", "trace": "trace.jsonl"}
        plan = state.plan.model_copy(update={"artifacts": {**state.plan.artifacts, **names}})
        write_trace(state.decisions, self.folder / names["trace"])
        write_text(self.folder / names["plan"], plan.to_json())
        return plan

    def case_facts(self) -> CaseFacts:
        """The case as it is now.

        Raises:
            CaseError: it is missing or damaged.
            RunError: it is not the case that the run began with.
        """
        facts = case_facts(Path(self.record.case_path))
        if facts.content_hash != self.record.case_hash:
            msg = (
                f"The case {self.record.case_path} has changed since the run in {self.folder} began: "
                "start a new run with `mewm plan`."
            )
            raise RunError(msg)
        return facts

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "checkpoints.sqlite"
        try:
            return sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as exc:
            msg = f"The run folder {self.folder} can't be written ({exc}): choose another with --run, or free space."
            raise RunError(msg) from exc


OPTIONS = {
    "strategy": "--strategy",
    "drugs": "--drugs",
    "embolics": "--embolics",
    "replicas": "--replicas",
    "beams": "--beams",
    "drug_horizon": "--drug-horizon",
    "embolic_horizon": "--embolic-horizon",
    "budget": "--budget",
    "steps": "--steps",
    "seed": "--seed",
    "actions": "--actions",
    "profile": "--profile",
    "strict": "--strict",
    "device": "--device",
}
"""Settings that have an option of `mewm plan`."""


def case_facts(path: Path) -> CaseFacts:
    """What the planner keeps of a case folder; its files are verified.

    Raises:
        CaseError: the case is missing, damaged or of another schema version.
    """
    case = Case.load(path)
    return CaseFacts(
        case_id=case.case_id, origin=case.origin, origin_note=case.origin_note, content_hash=case.content_hash
    )


def start_run(case_path: Path, folder: Path | None, settings: PlannerSettings, goal: str = "") -> Run:
    """Make a new run folder.

    Args:
        case_path: Case folder.
        folder: Run folder; None makes ``runs/<case>-<time>`` in the working directory.
        settings: Settings of the search.
        goal: Treatment goal in words.

    Raises:
        CaseError: the case can't be used.
        RunError: the folder holds a run already, or can't be written.
    """
    facts = case_facts(case_path)
    now = datetime.now(UTC)
    if folder is None:
        folder = Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', facts.case_id)}-{now:%Y%m%d-%H%M%S-%f}"
    target = folder / "run.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as exc:
        raise RunError(unwritable(folder, exc)) from exc
    if taken:
        what = "holds a run already: go on with `mewm resume`" if target.exists() else "is not empty: empty it"
        raise RunError(f"The run folder {folder} {what}, or choose another with --run.")
    record = RunRecord(
        created=now.isoformat(timespec="seconds"),
        case_path=str(case_path.resolve()),
        case_id=facts.case_id,
        case_hash=facts.content_hash,
        settings=settings,
        goal=goal,
    )
    write_text(target, record.model_dump_json(indent=2) + "\n")
    return Run(folder, record)


def open_run(folder: Path) -> Run:
    """Open a run folder that `start_run` made.

    Raises:
        RunError: there is no run, it is damaged, or it is of another format version.
    """
    path = folder / "run.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"There is no run in {folder}: give a folder that `mewm plan` made.") from None
    except (OSError, ValueError) as exc:
        raise RunError(f"The file {path} can't be read ({exc}): start a new run with `mewm plan`.") from exc
    found = data.get("format_version") if isinstance(data, dict) else None
    if found != FORMAT_VERSION:
        raise RunError(
            f"The run in {folder} has format version {found}, this program reads {FORMAT_VERSION}: "
            "start a new run with `mewm plan`."
        )
    try:
        return Run(folder, RunRecord.model_validate(data))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"The file {path} is damaged ({where}: {first['msg']}): start a new run.") from exc


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


__all__ = ["FORMAT_VERSION", "OPTIONS", "MakeServices", "Run", "RunRecord", "RunStopped", "open_run", "start_run"]
