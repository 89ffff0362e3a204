"""Desk: what the tools of one conversation work on: the open case, its plans, the person's stop.

A plan of a conversation is a run folder like any other: `mewm resume` can go on with it, and a person can answer its
gates there. The desk runs it apart from the chat graph, so that neither's checkpoints hold the other.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.runnables.config import var_child_runnable_config

from agent.approval import GateAnswer
from agent.chat_store import ChatStore, PlanKind, PlanRow, Thread
from agent.deidentify import NEUTRAL_ID
from agent.events import Event, Planned, Proposed, Waiting
from agent.plan import Plan
from agent.run import MakeServices, Run, Standing, case_facts, open_run, start_run
from agent.settings import PlannerSettings
from models.case import Case, safe_name
from models.errors import InputError, MewmError, RunStopped
from tools.registry import RegisteredTool, build_tools
from tools.workspace import Workspace

MakeTools = Callable[[Path, Mapping[str, Any], Path, PlannerSettings], Mapping[str, RegisteredTool]]
"""Case folder, changes of its record, artifacts and settings -> the registered tools; the case is called "case"."""
Tell = Callable[[Event], None]
T = TypeVar("T")
_SHORT_NAME = 2
"""Letters of a case's name that may be part of what is talked about: the Child-Pugh class A."""


def make_tools(
    case: Path, changes: Mapping[str, Any], artifacts: Path, settings: PlannerSettings
) -> Mapping[str, RegisteredTool]:
    """The registered tools on one case folder, which they call "case"."""
    changed = {NEUTRAL_ID: changes}
    return build_tools(Workspace({NEUTRAL_ID: case}, artifacts, device=settings.device, record_changes=changed))


class Desk:
    """One conversation's working place. Its tools run one at a time: the engine is shared."""

    def __init__(
        self,
        store: ChatStore,
        thread: Thread,
        make_services: MakeServices,
        make_tools: MakeTools,
        cases: Path,
    ) -> None:
        """Nothing is read before a tool needs it.

        Args:
            store: The conversations.
            thread: The one that this desk is for.
            make_services: Builds what a run of the planner works with.
            make_tools: Builds the registered tools.
            cases: Folder of the cases that may be opened by name.
        """
        self.store = store
        self.thread_id = thread.thread_id
        self.stop = threading.Event()
        self._make_services, self._make_tools = make_services, make_tools
        self._cases = cases
        self._busy = threading.Lock()
        self._kept: dict[str, Mapping[str, RegisteredTool]] = {}
        self._looked: dict[str, tuple[tuple[tuple[str, int, int], ...], Standing]] = {}

    @property
    def thread(self) -> Thread:
        """The conversation as it is stored now."""
        return self.store.thread(self.thread_id)

    @property
    def settings(self) -> PlannerSettings:
        """Settings of the conversation's plans: its language model and prompt set drive them too."""
        thread = self.thread
        return thread.settings.model_copy(update={"policy_llm": thread.llm, "prompts": thread.prompts})

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Holds the desk: tools of one turn that run at once take turns.

        Raises:
            RunStopped: the person stopped the turn while its tool waited; the next turn may have begun.
        """
        stop = self.stop
        with self._busy:
            if stop.is_set():
                raise RunStopped("Stopped before it began.")
            yield

    def case_path(self) -> Path:
        """Folder of the open case.

        Raises:
            InputError: none is open.
        """
        path = self.thread.case_path
        if path is None:
            raise InputError("No case is open: load one by its name first.")
        return Path(path)

    def case(self) -> Case:
        """The open case, its files verified.

        Raises:
            InputError: none is open.
            CaseError: it is damaged.
        """
        return Case.load(self.case_path())

    def open_case(self, name: str) -> None:
        """Open a case of the cases folder, by the name of its folder; "case" is the one that is open.

        Raises:
            InputError: there is none of that name.
            CaseError: it can't be used, or has no labels.
        """
        path = self._cases / name
        if name == NEUTRAL_ID and self.thread.case_path is not None:
            if self.case_path().resolve() != path.resolve() and (path / "case.json").is_file():
                raise InputError(
                    f"'{NEUTRAL_ID}' is what the open case is called here: rename that folder, or begin a conversation "
                    "with it."
                )
            return
        if safe_name(name) != name or not (path / "case.json").is_file():
            raise InputError(f"There is no case '{name[:80]}' among the cases that can be opened.")
        self.open_case_at(path)

    def open_case_at(self, path: Path) -> None:
        """Open a case folder that the person named to the program itself.

        Raises:
            CaseError: it can't be used, or has no labels.
        """
        case_facts(path, labelled=True)
        self.store.change(self.thread_id, case_path=str(path.resolve()))

    def private(self) -> dict[str, str]:
        """What names the patient, a person or a place on this machine, and what a language model reads instead.

        Names stand with the words that go before them: a case may be called "A", and the Child-Pugh class is A too.
        """
        folders = {self.store.folder, self.store.folder.resolve(), self._cases, self._cases.resolve()}
        found = {str(folder): "[path]" for folder in folders if len(folder.parts) > 1}
        for path in {Path(p) for p in (self.thread.case_path, *(row.case_path for row in self.plans())) if p}:
            found[str(path)] = "[path]"
            for name in _names_of(path):
                found |= {f"case {name}": "case", f"'{name}'": f"'{NEUTRAL_ID}'"}
        for row in self.plans():
            if (plan := self.look(row).plan) is not None:
                found |= {f"by {approval.by}": "by a person" for approval in plan.approvals}
        return found

    def case_names(self) -> tuple[set[str], set[str]]:
        """Names that a person may type: those of the open case, and those of the others that can be opened.

        Names too short to be told from other words are left out.
        """
        path = self.thread.case_path
        mine = set() if path is None else _names_of(Path(path))
        others = {found.parent.name for found in self._cases.glob("*/case.json")} - mine
        return {n for n in mine if len(n) > _SHORT_NAME}, {n for n in others if len(n) > _SHORT_NAME}

    def tools(self, row: PlanRow | None = None) -> Mapping[str, RegisteredTool]:
        """The registered tools on the open case, or on the case of a plan with what that plan changes."""
        record = self.run_of(row).record if row else None
        path = Path(record.case_path) if record else self.case_path()
        changes = record.changes if record else {}
        key = f"{path}\n{sorted(changes.items())}"
        if key not in self._kept:
            self._kept = {key: self._make_tools(path, changes, self.store.artifacts, self.settings)}
        stop = self.stop  # of this turn: the desk has another one in the next

        def halt(tool: str, done: int, total: int) -> None:
            """Leave a tool between two outcomes where the person stopped the turn; what is done is stored."""
            if stop.is_set():
                raise RunStopped(f"Stopped: {tool} had done {done} of {total}.")

        for registered in self._kept[key].values():
            registered.workspace.progress = halt
        return self._kept[key]

    def plans(self) -> list[PlanRow]:
        """The plans of this conversation that have begun, oldest first."""
        rows = self.store.plans(self.thread_id)
        return [row for row in rows if (self.store.plan_folder(row) / "run.json").is_file()]

    def run_of(self, row: PlanRow) -> Run:
        """The run behind a plan."""
        return open_run(self.store.plan_folder(row))

    def look(self, row: PlanRow) -> Standing:
        """Where a plan stands. Reading a whole plan takes a moment: it is read again only after it changed."""
        folder = self.store.plan_folder(row)
        files = [path for name in ("checkpoints.sqlite", "checkpoints.sqlite-wal") if (path := folder / name).exists()]
        mark = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
        known = self._looked.get(row.plan_id)
        if known is None or known[0] != mark:
            known = self._looked[row.plan_id] = (mark, self.run_of(row).look())
        return known[1]

    def row(self, plan_id: str = "") -> PlanRow:
        """A plan by its name; without one the latest real plan of the open case, no what-if.

        Raises:
            InputError: there is none.
        """
        rows = self.plans()
        if plan_id:
            for row in rows:
                if row.plan_id == plan_id.strip().lower():
                    return row
            known = ", ".join(row.plan_id for row in rows) or "none yet"
            raise InputError(f"There is no plan '{plan_id[:80]}' in this conversation; its plans: {known}.")
        path = str(self.case_path())
        for row in reversed(rows):
            if row.kind == "plan" and row.case_path == path:
                return row
        raise InputError("There is no plan of this case in this conversation yet: ask for one first.")

    def plan(self, plan_id: str = "") -> tuple[PlanRow, Plan]:
        """A plan that is ready, approved or not.

        Raises:
            InputError: there is none, or it is not ready.
        """
        row = self.row(plan_id)
        plan = self.look(row).plan
        if plan is None:
            raise InputError(f"The plan {row.plan_id} is not ready: its action space waits, or it was stopped.")
        return row, plan

    def waiting(self) -> tuple[Waiting, ...]:
        """Every gate of this conversation that waits for an answer."""
        found = [(row, self.look(row).waiting) for row in self.plans()]
        return tuple(w.model_copy(update={"plan_id": row.plan_id}) for row, w in found if w is not None)

    def stopped(self) -> tuple[PlanRow, ...]:
        """Plans that were stopped or killed before they were ready."""
        return tuple(row for row in self.plans() if self.look(row).status in ("new", "unfinished"))

    def begin(
        self,
        call_id: str,
        kind: PlanKind,
        settings: PlannerSettings,
        goal: str,
        tell: Tell,
        changes: Mapping[str, Any] | None = None,
        agents: Sequence[str] = (),
    ) -> tuple[PlanRow, Standing]:
        """Plan the open case, or go on with what the same call began before it was stopped or killed.

        Args:
            call_id: The call that asks for it.
            kind: A plan, or a what-if.
            settings: Of the search.
            goal: Treatment goal in words.
            tell: Who hears of the run's events.
            changes: Values of the record that are another one here.
            agents: The only agents that may be proposed; none: those of the action set.

        Raises:
            MewmError: what a run raises; but a stop leaves a standing.
        """
        row = self.store.plan_for(self.thread_id, call_id, kind, self.case_path())
        folder = self.store.plan_folder(row)
        try:
            if (folder / "run.json").is_file():
                run = open_run(folder)
            else:
                case = self.case_path()
                kept = self.store.artifacts
                run = start_run(case, folder, settings, goal, changes=changes, artifacts=kept, agents=agents)
            return row, self._execute(row, run, tell)
        except MewmError:
            if not (folder / "run.json").is_file():  # it never began, or was taken back
                self.store.forget_plan(row)
            raise

    def go_on(self, row: PlanRow, tell: Tell, answer: GateAnswer | None = None) -> Standing:
        """Go on with a plan that was stopped, or answer the gate where it waits.

        Raises:
            MewmError: what a run raises; but a stop leaves a standing.
        """
        return self._execute(row, self.run_of(row), tell, answer)

    def _execute(self, row: PlanRow, run: Run, tell: Tell, answer: GateAnswer | None = None) -> Standing:
        try:
            for event in apart(run.execute(self._make_services, self.stop, answer)):
                if isinstance(event, Waiting | Proposed | Planned):
                    event = event.model_copy(update={"plan_id": row.plan_id})
                tell(event)
        except RunStopped:
            pass
        return self.look(row)


def _names_of(path: Path) -> set[str]:
    """What a case is called: its folder, and its id."""
    known = (path / "case.json").is_file()
    return {path.name, Case.load(path, verify=False).case_id} if known else {path.name}


def apart(items: Iterator[T]) -> Iterator[T]:
    """Iterate as if no graph ran around it: LangGraph would take a graph inside a tool for a part of the outer one, and
    keep its state in the outer one's checkpoints.
    """
    context = contextvars.copy_context()
    context.run(var_child_runnable_config.set, None)
    missing = object()
    while (item := context.run(next, items, missing)) is not missing:
        yield item  # type: ignore[misc]  # never the sentinel
