"""`mewm chat`: talk about a case in the terminal; with a language model, or with the embedded policy."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from agent.cli.options import (
    ActionsOption,
    BackendsOption,
    BudgetOption,
    ByOption,
    DeviceOption,
    ProfileOption,
    PromptsOption,
    SeedOption,
    StrictOption,
)
from agent.cli.plan import DEMO, demo_case, llm_settings, stopping
from models.errors import InputError, MewmError

if TYPE_CHECKING:  # the planner loads the networks' libraries: imported inside the command
    from agent.chat import Chat
    from agent.chat_store import ChatStore

FOLDER = Path("chats")
CASES = Path("cases")
LEAVE = ("exit", "quit", "bye", "q")
SHOWN_AGAIN = 6
"""Messages of a conversation that are shown when it is opened again."""


def chat(
    case: Annotated[
        str | None, typer.Argument(help="A case folder, or 'demo'; not needed with --thread or --list.")
    ] = None,
    thread: Annotated[str | None, typer.Option(help="Open this conversation again.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the conversations.")] = False,
    llm: Annotated[str | None, typer.Option(help="Backend (see `mewm backends list`).", show_default="no LLM")] = None,
    prompts: PromptsOption = None,
    backends: BackendsOption = None,
    by: ByOption = "",
    folder: Annotated[Path, typer.Option(help="Where conversations and their plans are kept.")] = FOLDER,
    cases: Annotated[Path, typer.Option(help="Folder of the cases that may be opened by name.")] = CASES,
    actions: ActionsOption = "policy",
    profile: ProfileOption = "eu",
    strict: StrictOption = False,
    budget: BudgetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Talk with the agent about a case: plan, ask why and what if, compare, approve. Without a language model the same
    works through a fixed set of requests in plain English: type help.
    """
    from agent.chat import open_chat
    from agent.chat_store import ChatStore
    from agent.cli.chat_view import thread_lines
    from agent.settings import make_settings

    store, console = ChatStore(folder), Console()
    if list_:
        found = store.threads()
        for line in thread_lines(found) or [Text(f"There is no conversation in {folder} yet.")]:
            console.print(line, soft_wrap=True, highlight=False)
        return
    if thread is None:
        if case is None:
            raise InputError("Which case? Give a case folder or 'demo', or a conversation with --thread.")
        chosen = llm_settings(llm, None, None, prompts, backends)
        settings = make_settings(
            actions=actions, profile=profile, strict=strict, budget=budget, seed=seed, device=device,
            approve_actions=True, approve_plan=True, backends=chosen["backends"],
        )  # fmt: skip
        path = demo_case() if case == DEMO and not Path(case).is_dir() else Path(case)
        thread = begin(store, path, settings, llm, chosen["prompts"])
    else:
        if case is not None:
            raise InputError("A conversation that is opened again has its case already: leave CASE out.")
        store.thread(thread)
        changed = {name: value for name, value in {"llm": llm, "prompts": prompts}.items() if value is not None}
        store.change(thread, **changed)
    talk(open_chat(store, thread, cases, by=by), console)


def begin(store: ChatStore, path: Path, settings: object, llm: str | None, prompts: str | None) -> str:
    """A new conversation about a case.

    Raises:
        CaseError: the case can't be used, or has no labels.
    """
    from agent.run import case_facts
    from agent.settings import PlannerSettings

    assert isinstance(settings, PlannerSettings)
    case_facts(path, labelled=True)
    thread = store.begin(settings, llm, prompts or settings.prompts)
    store.change(thread.thread_id, case_path=str(path.resolve()))
    return thread.thread_id


def talk(chat: Chat, console: Console) -> None:
    """Read, answer, and read again, until the person leaves. Ctrl-C stops a turn, and leaves between turns."""
    from agent.cli.approve import waiting_panel
    from agent.cli.chat_view import Screen

    budget = chat.desk.settings.budget
    console.print(Text(f"conversation {chat.thread_id} | {chat.who} | help, exit; Ctrl-C stops", style="dim"))
    with Screen(console, budget) as screen:
        for event in chat.history()[-SHOWN_AGAIN:]:
            screen.show(event)
    for waiting in chat.waiting():
        console.print(waiting_panel(waiting))
    if chat.unfinished:
        console.print(Text("The last turn was cut off: going on with it.", style="yellow"))
        _turn(chat, None, console)
    elif rows := chat.desk.stopped():
        console.print(Text(f"{rows[-1].plan_id} was stopped: say 'continue' to go on with it.", style="yellow"))
    while True:
        words = _typed(console)
        if words is None or words.lower() in LEAVE:
            console.print(Text(f"Open it again with: mewm chat --thread {chat.thread_id}", style="dim"))
            return
        if words:
            _turn(chat, words, console)


def _typed(console: Console) -> str | None:
    """What the person types; None at the end. Lines from a file or a pipe are shown as they are read."""
    try:
        if sys.stdin.isatty():
            return console.input("[bold]you> [/]").strip()
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        return None
    if not line:
        return None
    console.print(Text(f"you> {line.strip()}", style="bold"), soft_wrap=True)
    return line.strip()


def _turn(chat: Chat, words: str | None, console: Console) -> None:
    """One turn, shown as it goes; an error is a sentence and the conversation goes on."""
    from agent.cli.chat_view import Screen

    stop = threading.Event()
    try:
        with stopping(stop), Screen(console, chat.desk.settings.budget) as screen:
            for event in chat.resume(stop) if words is None else chat.say(words, stop):
                screen.show(event)
    except MewmError as exc:
        console.print(Text(str(exc), style="bold red"), soft_wrap=True)
    except KeyboardInterrupt:  # the second Ctrl-C
        console.print(Text("Left the turn as it was; it can be continued.", style="yellow"))


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(chat)
