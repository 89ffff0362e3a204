"""`mewm plan` and `mewm resume`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from models.errors import PlanningError

if TYPE_CHECKING:  # the planner loads the networks' libraries: imported inside the commands
    from agent.run import Run

DEMO = "demo"
DEMO_FOLDER = Path("cases") / DEMO
STOPPED = 130

Strategy = Literal["beam", "paper", "exhaustive"]
ActionSet = Literal["policy", "in_house", "hcc_tace_seg"]
Profile = Literal["eu", "us", "cn"]
Device = Literal["auto", "cpu", "cuda"]


def plan(
    case: Annotated[str, typer.Argument(help="A case folder, or the word 'demo' for the embedded demo case.")],
    goal: Annotated[str, typer.Option(help="Treatment goal in words, e.g. 'spare liver function'.")] = "",
    strategy: Annotated[Strategy, typer.Option(help="Search strategy.")] = "beam",
    run: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/<case>-<time>.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan.json and nothing else on standard output.")
    ] = False,
    actions: Annotated[ActionSet, typer.Option(help="Action set of the formulary.")] = "policy",
    profile: Annotated[Profile, typer.Option(help="Guideline region of the rules.")] = "eu",
    strict: Annotated[
        bool, typer.Option("--strict", help="Rules whose strength is open block instead of warn.")
    ] = False,
    drugs: Annotated[int | None, typer.Option(help="D: drugs to try.", show_default="6")] = None,
    embolics: Annotated[int | None, typer.Option(help="E: embolic agents to try.", show_default="4")] = None,
    beams: Annotated[int | None, typer.Option(help="B: beams kept.", show_default="5")] = None,
    replicas: Annotated[int | None, typer.Option(help="T: most replicas in the search.", show_default="5")] = None,
    drug_horizon: Annotated[int | None, typer.Option(help="Most drugs in a protocol.", show_default="3")] = None,
    embolic_horizon: Annotated[
        int | None, typer.Option(help="Most embolic agents in a protocol.", show_default="2")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Most simulations of the run.", show_default="1000")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps of a simulation.", show_default="preset")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default="0")] = None,
    device: Annotated[Device, typer.Option(help="Where the networks run.")] = "auto",
    session: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with what is known of the session, e.g. technique: ctace.")
    ] = None,
) -> None:
    """Plan a TACE session for a case: search protocols by simulation, and leave plan, trace, volumes and report."""
    from agent.run import start_run
    from agent.settings import make_settings
    from tools.session_file import load_session

    settings = make_settings(
        strategy=strategy, actions=actions, profile=profile, strict=strict, drugs=drugs, embolics=embolics, beams=beams,
        replicas=replicas, drug_horizon=drug_horizon, embolic_horizon=embolic_horizon, budget=budget, steps=steps,
        seed=seed, device=device, session=None if session is None else load_session(session),
    )  # fmt: skip
    folder = demo_case() if case == DEMO and not Path(case).is_dir() else Path(case)
    execute(start_run(folder, run, settings, goal, session), as_json)


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder that `mewm plan` made.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan.json and nothing else on standard output.")
    ] = False,
) -> None:
    """Go on with a run that was stopped or killed; a finished run is exported again."""
    from agent.run import open_run

    execute(open_run(run), as_json)


def demo_case() -> Path:
    """The demo case in the working directory, written from its seed on first use.

    Raises:
        CaseError: it can't be written.
    """
    if not (DEMO_FOLDER / "case.json").is_file():
        from models.phantom.cohort import write_demo_case

        write_demo_case(DEMO_FOLDER)
    return DEMO_FOLDER


def execute(run: Run, as_json: bool) -> None:
    """Run to the end with progress on standard error, and show the plan on standard output.

    Raises:
        typer.Exit: the run was stopped, or its plan is that every protocol is blocked.
    """
    from agent.cli.plan_view import Progress, summary
    from agent.events import Planned
    from agent.run import RunStopped
    from agent.services import make_services

    errors = Console(stderr=True)
    stop = threading.Event()
    found = None
    try:
        with stopping(stop), Progress(errors, run.record.settings.budget) as progress:
            for event in run.execute(make_services, stop):
                progress.show(event)
                if isinstance(event, Planned):
                    found = event.plan
    except (RunStopped, KeyboardInterrupt):
        errors.print(f"Stopped; resume with: mewm resume {run.folder}", soft_wrap=True, highlight=False)
        raise typer.Exit(STOPPED) from None
    assert found is not None  # a run ends with its plan or with an error
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        summary(found, run.folder, Console())
    if found.blocked:
        raise typer.Exit(PlanningError.exit_code)


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C stop the run between two simulations, and the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> Any:  # noqa: ARG001 (the signature that signal asks for)
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command()(plan)
    app.command()(resume)
