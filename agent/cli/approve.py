"""Approval in the terminal: what waits, the question, and answers from a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from models.errors import InputError

if TYPE_CHECKING:
    from agent.approval import GateAnswer
    from agent.events import Waiting

WAITING = 8
"""Exit code of a run that waits for an answer."""
LONGEST_ANSWER = 20_000


def waiting_panel(waiting: Waiting) -> Panel:
    """What waits for approval."""
    value = waiting.value
    lines: list[Text] = []
    if value["problem"]:
        lines.append(Text(value["problem"], style="bold red"))
    if value["gate"] == "actions":
        lines.append(Text(f"Drugs            {', '.join(value['drugs'])}"))
        lines.append(Text(f"Embolic agents   {', '.join(value['embolics'])}"))
        lines += [Text(f"Taken out: {text}", style="dim") for text in value["removed"]]
        ways = "approve | edit: add X, remove Y | edit to A, B, C | reject because ..."
    else:
        lines.append(Text(value["protocol"] or "No protocol is proposed.", style="bold"))
        lines += [Text(f"or {key}", style="dim") for key in value["runners_up"]]
        ways = "approve | edit to X + Y | Z because ... | reject because ..."
    lines += [Text(f"Blocked by {text}", style="bold red") for text in value["blocks"]]
    lines += [Text(f"Warning {text}", style="yellow") for text in value.get("warnings", ())]
    if value["blocks"] and value["protocol"]:
        ways = "approve, override because ... | edit to X + Y | Z | reject because ..."
    lines += [Text(value["question"]), Text(ways, style="dim")]
    where = f"{waiting.plan_id}, case {value['case_id']}" if waiting.plan_id else f"case {value['case_id']}"
    return Panel(Group(*lines), title=Text(f"waits for approval: {where}", style="bold yellow"), expand=False)


def ask(waiting: Waiting, console: Console, by: str) -> GateAnswer | None:
    """Ask the person at the terminal until there is an answer; None where it is to wait on.

    Args:
        waiting: What waits.
        console: Of the terminal.
        by: Name under the answer; asked for where it is empty.
    """
    from agent.chat_commands import command_of

    console.print(waiting_panel(waiting))
    while not by.strip():
        if not (by := _typed(console, "Your name (Enter leaves it waiting): ")):
            return None
    while True:
        if not (words := _typed(console, "Answer (Enter leaves it waiting): ")):
            return None
        command = command_of(words, [waiting], (), by.strip())
        if command is not None and command.answer is not None:
            return command.answer
        said = command.problem if command is not None else "That is no answer: begin with approve, edit or reject."
        console.print(Text(said, style="red"))


def _typed(console: Console, question: str) -> str:
    """What the person types; nothing where the input ends or is interrupted."""
    try:
        return console.input(question).strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def read_answer(source: Path) -> GateAnswer:
    """An answer from a JSON file, or from standard input for ``-``.

    Raises:
        InputError: it can't be read, or is no answer.
    """
    from pydantic import ValidationError

    from agent.approval import GateAnswer

    try:
        if source == Path("-"):
            text = sys.stdin.read(LONGEST_ANSWER + 1)
        else:
            with source.open(encoding="utf-8") as file:
                text = file.read(LONGEST_ANSWER + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"The answer {source} can't be read ({exc}): give a JSON file.") from exc
    try:
        return GateAnswer.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"The answer {source} can't be used ({where + ': ' if where else ''}{why}): it needs interrupt_id, "
            "case_id, decision (approve, edit or reject) and by; an edit has items or protocol, a rejection a reason."
        ) from exc
