"""How a conversation looks in the terminal."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from agent.chat_store import Thread
from agent.cli.approve import waiting_panel
from agent.cli.plan_view import Progress
from agent.events import (
    Degraded,
    Event,
    Failed,
    NodeStarted,
    Planned,
    Proposed,
    Said,
    StepFinished,
    StepStarted,
    Stopped,
    Token,
    Waiting,
)

LONGEST_STEP = 100


class Screen:
    """Shows the events of one turn: words as they come, steps in one dim line each, a bar while a plan is at work."""

    def __init__(self, console: Console, budget: int) -> None:
        """Args: budget: most simulations of a plan."""
        self.console = console
        self.budget = budget
        self.writing = False
        self.progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()
        self._end_bar()

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Token(text=text):
                self._end_bar()
                self.writing = True
                self.console.print(Text(text), end="", soft_wrap=True)
            case Said(text=text, who="assistant"):
                if not self.writing:  # it did not come word by word
                    self.console.print(Text(text), soft_wrap=True)
                self._end_line()
            case Said(text=text):
                self.console.print(Text(f"you> {text}", style="bold"), soft_wrap=True)
            case StepStarted(tool=tool, arguments=arguments):
                self._end_line()
                self.console.print(Text(f"  {tool} {_short(arguments)}", style="dim"), soft_wrap=True)
            case StepFinished(ok=ok, tool=tool):
                self._end_bar()
                if not ok:
                    self.console.print(Text(f"  {tool} failed", style="red"), soft_wrap=True)
            case Degraded(reason=text):
                self.console.print(Text(f"  degraded: {text}", style="yellow"), soft_wrap=True)
            case Failed(text=text):
                self._end_bar()
                self._end_line()
                self.console.print(Text(text, style="bold red"), soft_wrap=True)
            case Stopped():
                self._end_bar()
                self._end_line()
                self.console.print(Text("Stopped. The conversation can go on.", style="yellow"))
            case Waiting():
                self._end_bar()
                self.console.print(waiting_panel(event))
            case Proposed() | Planned():
                pass
            case _:
                self._at_work(event)

    def _at_work(self, event: Event) -> None:
        if self.progress is None:
            if not isinstance(event, NodeStarted):
                return
            self._end_line()
            self.progress = Progress(self.console, self.budget)
            self.progress.__enter__()
        self.progress.show(event)

    def _end_bar(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None

    def _end_line(self) -> None:
        if self.writing:
            self.console.print()
            self.writing = False


def thread_lines(threads: list[Thread]) -> list[Text]:
    """The conversations, one on a line."""
    lines = []
    for thread in threads:
        case = thread.case_path.rpartition("/")[2] if thread.case_path else "no case"
        line = Text(f"{thread.thread_id:<22}", style="bold")
        line.append(f"{thread.updated[:16].replace('T', ' ')}  {case:<16} {thread.llm or 'no LLM':<14} {thread.title}")
        lines.append(line)
    return lines


def _short(arguments: dict[str, object]) -> str:
    text = json.dumps(arguments, ensure_ascii=False) if arguments else ""
    return text if len(text) <= LONGEST_STEP else f"{text[:LONGEST_STEP]}..."
