"""Chat commands: what a person decides past any language model: approve, edit, reject, and go on with what was stopped.

A command is read from the typed words (or made by a form) and bound to one interrupt before it enters the conversation;
the chat graph carries it out in its first node and ends the turn. A language model sees that it happened, and can't
cause it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.approval import GATE_NAMES, GateAnswer
from agent.chat_tools import clean
from agent.desk import Desk
from agent.digest import standing_text
from agent.events import TYPED, Event, StepFinished, StepStarted, Waiting
from agent.intents import load_intents, plain
from models.errors import MewmError

COMMAND = "command"
"""Key of a person's message that holds the command."""
_ADD_OR_REMOVE = re.compile(r"\b(add|remove)\s+(.+?)(?=(?:[,;]|\band\b)?\s*\b(?:add|remove)\b|$)", re.IGNORECASE)
_STARTS = re.compile(r"(i |we )?(approved?|reject(ed)?|edit)\b", re.IGNORECASE)


class Command(BaseModel):
    """What a person decided. `problem` is why the words could not be followed; then nothing is done but to say so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    do: Literal["answer", "go_on", "tell"]
    plan_id: str = ""
    answer: GateAnswer | None = None
    problem: str = ""
    shown: str = Field(description="what a language model reads in place of the typed words")

    def message(self, typed: str) -> HumanMessage:
        """The message that brings the command into the conversation."""
        kept = {COMMAND: self.model_dump(mode="json"), TYPED: typed}
        return HumanMessage(content=self.shown, additional_kwargs=kept)


def answering(waiting: Waiting, answer: GateAnswer) -> Command:
    """The command for an answer that a form made."""
    stamped = answer.model_copy(update={"at": answer.at or datetime.now(UTC).isoformat(timespec="milliseconds")})
    shown = f"({answer.decision}: the {GATE_NAMES[waiting.value['gate']]} of {waiting.plan_id})"
    return Command(do="answer", plan_id=waiting.plan_id, answer=stamped, shown=shown)


def command_of(text: str, waiting: Sequence[Waiting], stopped: Sequence[str], by: str = "") -> Command | None:
    """The command that typed words are, or None where they are something to talk about.

    Args:
        text: What was typed.
        waiting: What waits in this conversation.
        stopped: Plans that were stopped.
        by: Who types, where that is known.
    """
    table, words = load_intents(), plain(text)
    if (groups := table.go_on.match(words)) is not None:
        return _go_on(groups.get("plan", ""), stopped)
    if not _STARTS.match(words) or text.rstrip().endswith("?"):  # a question decides nothing
        return None
    if not waiting:
        return _tell("Nothing waits for approval in this conversation.")
    for reply in table.answers:
        if (groups := reply.match(words)) is not None:
            return _answer(reply.decision, groups, waiting, by)
    return None


def _go_on(plan_id: str, stopped: Sequence[str]) -> Command:
    named = plan_id.lower()
    if named and named not in stopped:
        return _tell(f"{named} was not stopped, so there is nothing to go on with.")
    if not stopped:
        return _tell("Nothing was stopped, so there is nothing to go on with.")
    which = named or stopped[-1]
    return Command(do="go_on", plan_id=which, shown=f"(go on with {which})")


def _answer(decision: str, groups: dict[str, str], waiting: Sequence[Waiting], by: str) -> Command:
    named = groups.get("plan", "").lower()
    fitting = [w for w in waiting if not named or w.plan_id == named]
    which = ", ".join(w.plan_id for w in waiting)
    if not fitting:
        return _tell(f"{named} does not wait for approval; what waits: {which}.")
    if len(fitting) > 1:
        return _tell(f"More than one plan waits ({which}): say which, as in '{decision} {fitting[0].plan_id}'.")
    target = fitting[0]
    value = target.value
    gate = "actions" if groups.get("what") in ("actions", "action space") else "plan"
    if "what" in groups and gate != value["gate"]:
        waits = GATE_NAMES[value["gate"]]
        return _tell(
            f"It is the {waits} of {target.plan_id} that waits, not the {GATE_NAMES[gate]}: say which you mean."
        )
    who = groups.get("by") or groups.get("by2") or by
    if not who:
        return _tell(f"Who decides? Say it with the name, as in '{decision} as Dr Chen'.")
    fields: dict[str, Any] = {"reason": groups.get("reason", ""), "override_reason": groups.get("override", "")}
    if decision == "edit":
        if value["gate"] == "actions":
            fields["items"] = _items(groups, [*value["drugs"], *value["embolics"]])
        elif "text" in groups:
            fields["protocol"] = groups["text"]
        else:
            return _tell("The plan waits: an edit of it names a whole protocol, as in 'edit to Cisplatin | Lipiodol'.")
    try:
        answer = GateAnswer.model_validate(
            {
                "interrupt_id": target.interrupt_id,
                "case_id": value["case_id"],
                "decision": decision,
                "by": who,
                **fields,
            }
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        why = first["msg"].removeprefix("Value error, ")
        where = ".".join(map(str, first["loc"]))
        return _tell(f"The answer can't be used ({where + ': ' if where else ''}{why}).")
    return answering(target, answer)


def _items(groups: dict[str, str], now: list[str]) -> tuple[str, ...]:
    """The action space after an edit in words: a list of agents, or "add X and Y, remove Z"."""
    if "text" in groups:
        return tuple(_split(groups["text"]))
    words = groups.get("add") or groups["remove"]
    gone: set[str] = set()
    added: list[str] = []
    for verb, names in _ADD_OR_REMOVE.findall(words):
        if verb.lower() == "add":
            added += _split(names)
        else:
            gone |= {name.lower() for name in _split(names)}
    return tuple(name for name in (*now, *added) if name.lower() not in gone)


def _split(names: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,;+|]|\band\b", names, flags=re.IGNORECASE) if part.strip()]


def _tell(problem: str) -> Command:
    return Command(do="tell", problem=problem, shown="(a request that could not be followed)")


class PersonCommands(AgentMiddleware[AgentState[Any], Any, Any]):
    """Carries out commands before any model is asked."""

    def __init__(self, desks: Callable[[str], Desk]) -> None:
        """Args: desks: Thread id -> its desk."""
        super().__init__()
        self._desks = desks

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Carry out the command of the last message, say what came of it, and end the turn.

        After a kill the node runs again: an answer that its run took already is not given twice.
        """
        last = state["messages"][-1]
        if not isinstance(last, HumanMessage) or COMMAND not in last.additional_kwargs:
            return None
        command = Command.model_validate(last.additional_kwargs[COMMAND])
        text = command.problem
        if command.do != "tell":
            text = self._carry_out(command, str(last.id), runtime)
        return {"messages": [AIMessage(content=text)], "jump_to": "end"}

    def _carry_out(self, command: Command, step: str, runtime: Runtime[Any]) -> str:
        desk = self._desks(str(get_config()["configurable"]["thread_id"]))

        def tell(event: Event) -> None:
            runtime.stream_writer(event.model_copy(update={"step": step}).model_dump(mode="json"))

        tool = command.answer.decision if command.answer else "continue"
        tell(StepStarted(step=step, tool=tool, arguments={"plan": command.plan_id}))
        try:
            with desk.at_work():
                row = desk.row(command.plan_id)
                standing, answer = desk.look(row), command.answer
                taken = {(approval.by, approval.at) for approval in standing.approvals}
                if answer is not None and (answer.by, answer.at) in taken:
                    answer = None
                if answer is not None or standing.status != "waiting":  # a finished one may not have been written yet
                    standing = desk.go_on(row, tell, answer)
            text, ok = standing_text(standing, row.plan_id), True
        except MewmError as exc:
            text, ok = str(exc), False
        tell(StepFinished(step=step, tool=tool, ok=ok, text=text))
        return clean(text, desk.private())
