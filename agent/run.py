"""Run: a folder that holds one plan on its way: `run.json`, checkpoints, artifacts, and what the plan leaves.

run.json            format version, case and its content hash, settings, goal, changes of the record (a "what if")
checkpoints.sqlite  the planner's state after every node
artifacts/          simulated outcomes and segmentations; a conversation keeps those of all its runs in one place
plan.json, trace.jsonl, report.html, finalists/
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, RESUME
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, StateSnapshot
from pydantic import ValidationError

from agent.approval import GateAnswer, answer_fault
from agent.events import Event, Planned, Proposed, Waiting, events
from agent.files import is_empty, unwritable, write_text
from agent.nodes import Services
from agent.plan import Approval, Plan
from agent.planner import build_planner
from agent.run_record import FORMAT_VERSION, OPTIONS, RunRecord
from agent.settings import PlannerSettings
from agent.state import STATE_TYPES, CaseFacts, PlannerInput, PlannerState
from agent.trace import write_trace
from agent.what_if import changes_shown
from models.case import Case, remove_empty
from models.errors import ApprovalError, CaseError, MewmError, RunError, RunStopped
from models.formulary import Formulary

LEFT = (
    "checkpoints.sqlite", "checkpoints.sqlite-wal", "checkpoints.sqlite-shm", "plan.json", "trace.jsonl", "report.html",
    "spans.jsonl", "run.json",
)  # fmt: skip
"""Files of a run in which nothing was simulated, in the order in which they are removed: what says what it is, last."""
_THREAD: RunnableConfig = {"configurable": {"thread_id": "plan"}}


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        status: `unfinished` was stopped or killed, or runs right now.
        waiting: the gate that waits for an answer.
        plan: the plan: finished, or as it waits for approval.
        approvals: what people decided so far.
    """

    status: Literal["new", "unfinished", "waiting", "done"]
    waiting: Waiting | None = None
    plan: Plan | None = None
    approvals: tuple[Approval, ...] = ()


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
    def artifacts(self) -> Path:
        """Where what this run simulates is kept."""
        return self.folder / "artifacts" if self.record.artifacts is None else Path(self.record.artifacts)

    @property
    def formulary(self) -> Formulary:
        """The action set of this run."""
        return self.record.formulary

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        return self.record.command

    def execute(
        self, make_services: MakeServices, stop: threading.Event | None = None, answer: GateAnswer | None = None
    ) -> Iterator[Event]:
        """Run the planner from where it stands, and leave `plan.json` and `trace.jsonl`.

        A new run that fails before anything was simulated is taken back: repeating the command finds no leftovers.

        Args:
            make_services: Builds tools and policy.
            stop: Set from another thread or a signal handler to stop the run; it can be resumed.
            answer: What a person answers at the gate where the run waits.

        Yields:
            Events; the last one is `Planned` with the plan as it was written, or `Waiting` where a gate waits for an
            answer (after `Proposed`, where it is the plan that waits).

        Raises:
            RunError: the folder can't be written, its checkpoints can't be read, or the case, the weights, the device
                or the rules are not those that the run began with.
            CaseError: the case is missing or one of its files was changed.
            ApprovalError: the answer is to another question or case, or can't be used; nothing was changed.
            RunStopped: `stop` was set.
        """
        with self._alone():
            try:
                yield from self._execute(make_services, stop, answer)
            except (RunStopped, ApprovalError):
                raise
            except MewmError:
                self._take_back()
                raise

    def state(self) -> PlannerState | None:
        """The checkpointed state; None where the run has not begun.

        Raises:
            RunError: the checkpoints can't be read, or another version of the program wrote them.
        """
        snapshot = self._snapshot()
        return None if snapshot is None else self._state(snapshot.values)

    def look(self) -> Standing:
        """Where the run stands, from its checkpoints; nothing is run.

        Raises:
            RunError: the checkpoints can't be read, or another version of the program wrote them.
        """
        snapshot = self._snapshot()
        if snapshot is None:
            return Standing("new")
        state = self._state(snapshot.values)
        if waiting := _waiting(snapshot):
            return Standing("waiting", waiting, state.plan, state.approvals)
        if snapshot.tasks:
            return Standing("unfinished", approvals=state.approvals)
        return Standing("done", None, state.plan, state.approvals)

    def _snapshot(self) -> StateSnapshot | None:
        if not (self.folder / "checkpoints.sqlite").exists():
            return None
        with closing(self._connect()) as connection:
            try:
                snapshot = build_planner(_no_services, _saver(connection)).get_state(_THREAD)
            except sqlite3.DatabaseError as exc:
                raise RunError(self._unusable(exc)) from exc
        return snapshot if snapshot.values else None

    def _execute(
        self, make_services: MakeServices, stop: threading.Event | None, answer: GateAnswer | None
    ) -> Iterator[Event]:
        facts = self.case_facts()
        services = make_services(self, facts, stop or threading.Event())
        with closing(self._connect()) as connection:
            planner = build_planner(lambda _: services, _saver(connection))
            try:
                snapshot = planner.get_state(_THREAD)
                waits = _waiting(snapshot)
                given: dict[str, Any] | Command[Any] | None = None
                if answer is not None:
                    given = self._resume(answer, waits, snapshot, services)
                    _forget_answers(connection, snapshot)
                elif not snapshot.values:
                    given = PlannerInput(
                        case_id=self.record.case_id,
                        goal=self.record.goal,
                        options=self.record.settings.model_dump(mode="json"),
                    ).model_dump()
                elif snapshot.tasks and not waits:
                    self._same_conditions(self._state(snapshot.values), services)
                if given is not None or (snapshot.tasks and not waits):
                    for event in events(planner, given, _THREAD, durability="sync"):
                        if not isinstance(event, Planned | Waiting):
                            yield event
                snapshot = planner.get_state(_THREAD)
                state, waits = self._state(snapshot.values), _waiting(snapshot)
            except sqlite3.DatabaseError as exc:
                raise RunError(self._unusable(exc)) from exc
        if waits is None:
            yield Planned(plan=self._leave(state))
            return
        if state.plan is not None:
            yield Proposed(plan=state.plan)
        yield waits

    def _resume(
        self, answer: GateAnswer, waits: Waiting | None, snapshot: StateSnapshot, services: Services
    ) -> Command[Any]:
        """The command that hands an answer to the gate that it is for.

        Raises:
            ApprovalError: it is not for this gate or this case, or can't be used there.
            RunError: weights, device or rules are not those that the run began with.
        """
        if waits is None:
            raise ApprovalError(
                f"The run in {self.folder} waits for no answer, so none was taken: go on without one, with "
                f"`mewm resume {self.folder}`."
            )
        if answer.interrupt_id != waits.interrupt_id:
            raise ApprovalError(
                f"The answer is to question {answer.interrupt_id[:8]}, but the run in {self.folder} waits for an "
                f"answer to question {waits.interrupt_id[:8]}: look at what waits, then answer that."
            )
        state = self._state(snapshot.values)
        if fault := answer_fault(state, answer, services.formulary):
            raise ApprovalError(fault)
        self._same_conditions(state, services)
        stamped = answer.model_copy(update={"at": answer.at or datetime.now(UTC).isoformat(timespec="seconds")})
        return Command(resume={waits.interrupt_id: stamped.model_dump(mode="json")})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run: two processes or threads at once would answer or simulate twice. A kill lets go of it.

        Raises:
            RunError: somebody else holds it.
        """
        try:
            held = (self.folder / "run.json").open("rb")
        except (
            FileNotFoundError
        ):  # taken back after it failed: there is nothing to hold, the next step says what is wrong
            yield
            return
        except OSError as exc:
            raise RunError(unwritable(self.folder, exc)) from exc
        with held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"The run in {self.folder} is at work already, here or elsewhere: try again when it stops."
                ) from None
            yield

    def _unusable(self, exc: sqlite3.Error) -> str:
        return f"The checkpoints of {self.folder} can't be used ({exc}): start a new run with `mewm plan`."

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
        if self.record.artifacts is not None and self._has_simulated():  # a shared folder does not tell whose they are
            return
        shutil.rmtree(self.folder / "artifacts", ignore_errors=True)
        with suppress(OSError):  # what can't be removed, or is not ours, stays
            for name in LEFT:
                (self.folder / name).unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()

    def _has_simulated(self) -> bool:
        """Whether the checkpoints hold a finished simulation; damaged ones hold none."""
        with closing(self._connect()) as connection, suppress(sqlite3.DatabaseError):
            snapshot = build_planner(_no_services, _saver(connection)).get_state(_THREAD)
            return snapshot.values.get("models") is not None
        return False

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
        facts = case_facts(Path(self.record.case_path), changes=self.record.changes)
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


def _forget_answers(connection: sqlite3.Connection, snapshot: StateSnapshot) -> None:
    """Drop what an attempt that failed was answered: `interrupt` would take that again in place of the new answer."""
    where = snapshot.config["configurable"]
    with connection:
        connection.execute(
            "DELETE FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? AND channel IN (?, ?)",
            (where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"], RESUME, ERROR),
        )


def _saver(connection: sqlite3.Connection) -> SqliteSaver:
    return SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=STATE_TYPES))


def _no_services(state: PlannerState) -> Services:
    msg = f"the run of case {state.case_id} is only looked at"
    raise AssertionError(msg)


def _waiting(snapshot: StateSnapshot) -> Waiting | None:
    """The gate that a state waits at."""
    for found in snapshot.interrupts:
        schema = found.response_schema if isinstance(found.response_schema, dict) else None
        return Waiting(interrupt_id=found.id, value=found.value, response_schema=schema)
    return None


def case_facts(path: Path, *, labelled: bool = False, changes: Mapping[str, Any] | None = None) -> CaseFacts:
    """What the planner keeps of a case folder; its files are verified.

    Args:
        path: The folder.
        labelled: Whether labels are needed.
        changes: Fields of the clinical record that are another value in this run.

    Raises:
        CaseError: the case is missing, damaged, of another schema version, or without labels where it is to be
            `labelled`.
        RecordError: a change is impossible.
    """
    made = Case.load(path)
    case = made.with_changes(changes or {})
    if labelled and case.labels is None:
        msg = f"The case {path} has no labels, so no tumour to plan for: import it again with --labels."
        raise CaseError(msg)
    return CaseFacts(
        case_id=case.case_id,
        origin=case.origin,
        origin_note=" ".join(filter(None, [case.origin_note, case.image_note()])),
        content_hash=case.content_hash,
        what_if=changes_shown(made.record, case.record),
    )


def start_run(
    case_path: Path,
    folder: Path | None,
    settings: PlannerSettings,
    goal: str = "",
    session_file: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    artifacts: Path | None = None,
    agents: Sequence[str] = (),
) -> Run:
    """Make a new run folder.

    Args:
        case_path: Case folder.
        folder: Run folder; None makes ``runs/<case>-<time>`` in the working directory.
        settings: Settings of the search.
        goal: Treatment goal in words.
        session_file: Where `settings.session` was read from, for the command that repeats the run.
        changes: Fields of the clinical record, by their full names, that are another value in this run.
        artifacts: Where simulations are kept; None is a folder in the run folder.
        agents: The only agents that may be proposed; none: those of the action set.

    Raises:
        CaseError: the case can't be used, or has no labels.
        RecordError: a change of the record is impossible.
        RunError: the folder holds a run already, or can't be written.
    """
    facts = case_facts(case_path, labelled=True, changes=changes)
    now = datetime.now(UTC)
    if folder is None:
        folder = Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', facts.case_id)}-{now:%Y%m%d-%H%M%S-%f}"
    target = folder / "run.json"
    made: tuple[Path, ...] = ()
    try:
        made = tuple(path for path in (folder, *folder.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        taken = not is_empty(folder)
    except OSError as exc:
        remove_empty(made)
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
        changes=dict(changes or {}),
        artifacts=None if artifacts is None else str(artifacts.resolve()),
        agents=tuple(agents),
    )
    try:
        write_text(target, record.model_dump_json(indent=2) + "\n")
    except RunError:
        remove_empty(made)
        raise
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


__all__ = [
    "FORMAT_VERSION", "OPTIONS", "MakeServices", "Run", "RunRecord", "RunStopped", "Standing", "open_run", "start_run",
]  # fmt: skip
