"""`mewm backends`: list the language-model backends, and try one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli.options import BackendsOption

app = typer.Typer(no_args_is_help=True, help="List the language-model backends, and check whether one works.")


@app.command("list")
def list_(
    json_: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
    file: BackendsOption = None,
) -> None:
    """Print every backend: the built-in ones and those of your own file."""
    from agent.backends import default_user_file, load_backends

    backends = load_backends(file)
    if json_:
        _print_json(
            [{**backend.model_dump(mode="json"), "key_is_set": backend.key_is_set} for backend in backends.values()]
        )
        return
    table = Table(box=SIMPLE_HEAD, show_lines=True)
    for heading in ("backend\nmodel", "images", "schema by", "USD per\nMtoken", "API key"):
        table.add_column(heading, overflow="fold")
    for backend in backends.values():
        priced = backend.input_price is not None and backend.output_price is not None
        unpriced = "local" if backend.local else "unknown"
        key = "none needed" if backend.api_key_env is None else backend.api_key_env
        table.add_row(
            f"[bold]{' then '.join((backend.name, *backend.fallback))}[/]\n{escape(backend.model)}",
            "yes" if backend.vision else "no",
            backend.structured,
            f"{backend.input_price:.2f} in\n{backend.output_price:.2f} out" if priced else unpriced,
            key if backend.key_is_set else f"{key}\nnot set",
        )
    console = Console()
    console.print(table)
    path = file or default_user_file()
    console.print(
        f"Your own backends: {escape(str(path))}{'' if path.exists() else ' (not there)'}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of the backend.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    file: BackendsOption = None,
) -> None:
    """Reach the endpoint and try text, streaming, an image, structured output and a tool call. Costs a few requests."""
    from agent.backend_check import check_backend
    from agent.backends import load_backends, resolve_chain
    from models.errors import BackendError

    backend = resolve_chain(name, load_backends(file))[0]
    console = Console()
    with Console(stderr=True).status(f"Checking {escape(name)}...") as status:
        report = check_backend(
            backend, lambda done: status.update(f"Checking {escape(name)}: {done.name} {done.status}...")
        )
    if json_:
        _print_json({**report.model_dump(mode="json"), "usable": report.usable})
    else:
        table = Table("check", "result", "seconds", "detail", title=f"{escape(name)}: {escape(report.model)}")
        colours = {"works": "green", "fails": "red", "not tried": "yellow"}
        for done in report.checks:
            seconds = f"{done.seconds:.1f}" if done.seconds else ""
            table.add_row(done.name, f"[{colours[done.status]}]{done.status}[/]", seconds, escape(done.detail))
        console.print(table)
        console.print(
            "Usable for planning." if report.usable else "[red]Not usable for planning as it is registered.[/]"
        )
    if not report.usable:
        raise typer.Exit(BackendError.exit_code)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
