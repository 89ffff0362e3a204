"""Run: a folder that holds one plan on its way: `run.json`, checkpoints, artifacts, and what the plan leaves.

run.json            format version, case and its content hash, settings, goal
checkpoints.sqlite  the planner's state after every node
artifacts/          simulated outcomes and segmentations
plan.json, trace.jsonl, report.html, finalists/
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
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
from models.errors import CaseError, MewmError, RunError

FORMAT_VERSION = 1
LEFT = (
    "run.json", "checkpoints.sqlite", "checkpoints.sqlite-wal", "checkpoints.sqlite-shm", "plan.json", "trace.jsonl",
    "report.html",
)  # fmt: skip
"""Files of a run in which nothing was simulated."""
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
    session_file: str | None = None


MakeServices = Callable[["Run", CaseFacts, threading.Event], Services]
"""Builds what the nodes work with, for a run and the facts of its case; the event stops the run."""


class Run:
    """One run folder."""

    def __init__(self, folder: Path, record: RunRecord, made: tuple[Path, ...] | None = None) -> None:
        """Args: made: folders that were made for this run, innermost first; None for a run that was there before."""
        self.folder = folder
        self.record = record
        self.made = made

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
        if self.record.session_file:
            parts += ["--session", _quoted(self.record.session_file)]
        return " ".join(parts) + self._without_option()

    def _without_option(self) -> str:
        """A shell comment with the settings that the command can't give, where they differ from the defaults."""
        settings, default = self.record.settings, PlannerSettings()
        loose = [name for name in PlannerSettings.model_fields if name not in (*OPTIONS, "session")]
        other = [f"{name}={value}" for name in loose if (value := getattr(settings, name)) != getattr(default, name)]
        return f"  # with {', '.join(other)}, which have no option" if other else ""

    def execute(self, make_services: MakeServices, stop: threading.Event | None = None) -> Iterator[Event]:
        """Run the planner from where it stands, and leave `plan.json` and `trace.jsonl`.

        A new run that fails before anything was simulated is taken back: repeating the command finds no leftovers.

        Args:
            make_services: Builds tools and policy.
            stop: Set from another thread or a signal handler to stop the run; it can be resumed.

        Yields:
            Events; the last one is `Planned` with the plan as it was written.

        Raises:
            RunError: the folder can't be written, its checkpoints can't be read, or the case, the weights, the device
                or the rules are not those that the run began with.
            CaseError: the case is missing or one of its files was changed.
            RunStopped: `stop` was set.
        """
        try:
            yield from self._execute(make_services, stop)
        except RunStopped:
            raise
        except MewmError:
            self._take_back()
            raise

    def _execute(self, make_services: MakeServices, stop: threading.Event | None) -> Iterator[Event]:
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
                elif snapshot.next:
                    self._same_conditions(self._state(snapshot.values), services)
                if given is not None or snapshot.next:
                    for event in events(planner, given, _THREAD, durability="sync"):
                        if not isinstance(event, Planned):
                            yield event
                state = self._state(planner.get_state(_THREAD).values)
            except sqlite3.DatabaseError as exc:
                msg = f"The checkpoints of {self.folder} can't be used ({exc}): start a new run with `mewm plan`."
                raise RunError(msg) from exc
        yield Planned(plan=self._leave(state))

    def _state(self, values: Mapping[str, Any]) -> PlannerState:
        """The checkpointed state, every part of it checked: the serializer reads parts of another version unchecked.

        Raises:
            RunError: another version of the program wrote it.
        """
        try:
            return PlannerState.model_validate(PlannerState.model_construct(**values).model_dump(warnings=False))
        except ValidationError as exc:
            where = ".".join(map(str, exc.errors(include_url=False)[0]["loc"]))
            msg = (
                f"The checkpoints of {self.folder} were written by another version of this program ({where} does not "
                "fit): start a new run with `mewm plan`."
            )
            raise RunError(msg) from exc

    def _same_conditions(self, state: PlannerState, services: Services) -> None:
        """Refuse to mix results of two sets of weights, devices or rules in one plan.

        Raises:
            RunError: what the run began with is not what there is now.
        """
        if state.conditions is None:  # stopped before anything was computed
            return
        if different := state.conditions.differences(services.conditions()):
            msg = (
                f"The run in {self.folder} began under other conditions ({different}): "
                "bring them back, or start a new run with `mewm plan`."
            )
            raise RunError(msg)

    def _take_back(self) -> None:
        """Remove what `start_run` and this process made, where the run is new and nothing was simulated."""
        if self.made is None or any((self.folder / "artifacts").glob("**/*.safetensors")):
            return
        shutil.rmtree(self.folder / "artifacts", ignore_errors=True)
        with suppress(OSError):  # what can't be removed, or is not ours, stays
            for name in LEFT:
                (self.folder / name).unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()

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


def case_facts(path: Path, *, labelled: bool = False) -> CaseFacts:
    """What the planner keeps of a case folder; its files are verified.

    Raises:
        CaseError: the case is missing, damaged, of another schema version, or without labels where it is to be
            `labelled`.
    """
    case = Case.load(path)
    if labelled and case.labels is None:
        msg = f"The case {path} has no labels, so no tumour to plan for: import it again with --labels."
        raise CaseError(msg)
    return CaseFacts(
        case_id=case.case_id, origin=case.origin, origin_note=case.origin_note, content_hash=case.content_hash
    )


def start_run(
    case_path: Path,
    folder: Path | None,
    settings: PlannerSettings,
    goal: str = "",
    session_file: Path | None = None,
) -> Run:
    """Make a new run folder.

    Args:
        case_path: Case folder.
        folder: Run folder; None makes ``runs/<case>-<time>`` in the working directory.
        settings: Settings of the search.
        goal: Treatment goal in words.
        session_file: Where `settings.session` was read from, for the command that repeats the run.

    Raises:
        CaseError: the case can't be used, or has no labels.
        RunError: the folder holds a run already, or can't be written.
    """
    facts = case_facts(case_path, labelled=True)
    now = datetime.now(UTC)
    if folder is None:
        folder = Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', facts.case_id)}-{now:%Y%m%d-%H%M%S-%f}"
    target = folder / "run.json"
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
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
        session_file=None if session_file is None else str(session_file.resolve()),
    )
    write_text(target, record.model_dump_json(indent=2) + "\n")
    return Run(folder, record, made)


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
