"""`mewm`: mounts the command groups and turns every `MewmError` into one sentence and an exit code."""

from __future__ import annotations

import os

# Read by the OpenMP runtime when torch is loaded: idle threads must not spin on a shared laptop.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from agent.cli import backends, case, chat, data, evaluate, plan, prompts, report, serve, train
from evals.cli import app as evaluations  # light: its commands load the harness when they run
from models.errors import MewmError


class _SentenceGroup(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MewmError as error:
            Console(stderr=True).print(f"[bold red]mewm:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_SentenceGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MeWM plans transarterial chemoembolization (TACE) by simulation. For research only.",
)
app.add_typer(case.app, name="case")
app.add_typer(backends.app, name="backends")
app.add_typer(data.app, name="data")
app.add_typer(evaluations, name="eval")
app.add_typer(prompts.app, name="prompts")
app.add_typer(report.app, name="report")
plan.register(app)
chat.register(app)
serve.register(app)
train.register(app)
evaluate.register(app)


def main() -> None:
    """Entry point of the `mewm` command."""
    app()
