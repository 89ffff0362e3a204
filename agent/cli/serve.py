"""`mewm serve`: the workbench in the browser: the conversation beside the CT."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agent.cli.options import (
    ActionsOption,
    BackendsOption,
    BudgetOption,
    DeviceOption,
    ProfileOption,
    SeedOption,
    StrictOption,
)
from agent.cli.plan import llm_settings, write_demo
from models.errors import InputError

if TYPE_CHECKING:  # the page's libraries take seconds to load: imported inside the command
    from fastapi import FastAPI

    from agent.settings import PlannerSettings

FOLDER = Path("workbench")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CLOSING_S = 3
"""Seconds that open pages get when the server ends."""


def serve(
    host: Annotated[str, typer.Option(help="Address to serve on; other than loopback needs --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65_535)] = 7860,
    auth: Annotated[
        list[str] | None,
        typer.Option(help="USER:PASSWORD of a person; repeatable. Others on this machine can read a command line."),
    ] = None,
    auth_file: Annotated[
        Path | None, typer.Option(help="File with USER:PASSWORD on each line, in place of --auth.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Work folder: cases, conversations, uploads of everybody.")] = FOLDER,
    llm: Annotated[
        str | None, typer.Option(help="Backend of new conversations (see `mewm backends list`).", show_default="no LLM")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompt set of new conversations.", show_default="mewm")] = None,
    backends: BackendsOption = None,
    actions: ActionsOption = "policy",
    profile: ProfileOption = "eu",
    strict: StrictOption = False,
    budget: BudgetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Serve the workbench: open cases, see them in slices, talk with the agent, follow its search, approve its plans.

    Without --auth every browser has its own cases and conversations; with it every person, by name.
    """
    passwords = read_passwords(auth or (), auth_file)
    if host not in LOOPBACK and not passwords:
        raise InputError(
            f"Serving on {host} lets other machines in: name who may enter with --auth USER:PASSWORD or --auth-file."
        )
    try:
        import gradio  # noqa: F401  (the extra is there)
    except ImportError as exc:
        raise InputError("The workbench needs the extra 'ui': pip install 'mewm[ui]'.") from exc
    from agent.settings import make_settings

    chosen = llm_settings(llm, None, None, prompts, backends)
    settings = make_settings(
        actions=actions, profile=profile, strict=strict, budget=budget, seed=seed, device=device,
        approve_actions=True, approve_plan=True, **{k: v for k, v in chosen.items() if k in ("backends", "prompts")},
        policy_llm=llm,
    )  # fmt: skip
    listening = listen(host, port)
    app = workbench(folder, passwords or None, settings, () if passwords else LOOPBACK)
    where = f"http://{'localhost' if host in LOOPBACK else host}:{listening.getsockname()[1]}"
    Console().print(f"The workbench is at {where} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    run(app, listening)


def read_passwords(given: Any, file: Path | None) -> dict[str, str]:
    """Login names and passwords from the command line or a file.

    Raises:
        InputError: both are given, the file can't be read, or an entry is not USER:PASSWORD.
    """
    if given and file is not None:
        raise InputError("Give the people by --auth or by --auth-file, not by both.")
    lines = list(given)
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(f"The file {file} can't be read ({exc}): give lines of USER:PASSWORD.") from exc
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            raise InputError(f"The file {file} names nobody: give lines of USER:PASSWORD.")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        user, colon, password = line.strip().partition(":")
        if not colon or not user or not password:
            raise InputError(f"Entry {number} of the people who may enter is not USER:PASSWORD: both are needed.")
        if user in found:
            raise InputError(f"The name {user} is there twice: every person needs a name of their own.")
        found[user] = password
    return found


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)  # who comes before the page is ready waits
    except OSError as exc:
        made.close()
        raise InputError(f"{host}:{port} can't be served on ({exc.strerror or exc}): choose another --port.") from exc
    return made


def workbench(
    folder: Path, passwords: dict[str, str] | None, settings: PlannerSettings, hosts: tuple[str, ...]
) -> FastAPI:
    """The page as an application; the demo case is written meanwhile.

    Raises:
        RunError: the work folder can't be used.
        DownloadError: the viewer's script was not fetched.
    """
    from agent.web.access import Access
    from agent.web.app import make_workbench
    from agent.web.cases import Shelf

    shelf = Shelf(write_demo)
    access = Access(folder, passwords)
    app = make_workbench(access, shelf, settings, hosts=hosts)
    threading.Thread(target=shelf.prepare, args=(folder,), name="demo-case", daemon=True).start()
    return app


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C. Addresses carry session names, so no access is logged."""
    import uvicorn

    logging.getLogger("uvicorn.error").addFilter(_not_cut_off)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=CLOSING_S
    )
    uvicorn.Server(config).run(sockets=[listening])


def _not_cut_off(record: logging.LogRecord) -> bool:
    """False for the trace of a page that was still open when the server ended: that is no error."""
    return record.exc_info is None or record.exc_info[0] is not asyncio.CancelledError


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(serve)
