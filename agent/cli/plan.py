"""`mewm plan` and `mewm resume`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agent.cli.options import (
    ActionsOption,
    BackendsOption,
    BeamsOption,
    BudgetOption,
    ByOption,
    DeviceOption,
    DrugsOption,
    EmbolicsOption,
    ProfileOption,
    PromptsOption,
    ReplicasOption,
    SeedOption,
    StepsOption,
    StrategyOption,
    StrictOption,
)
from models.errors import RunStopped

if TYPE_CHECKING:  # the planner loads the networks' libraries: imported inside the commands
    from agent.approval import GateAnswer
    from agent.events import Planned, Waiting
    from agent.plan import Plan
    from agent.run import Run

DEMO = "demo"
DEMO_FOLDER = Path("cases") / DEMO
NOTHING_PROPOSED = 6
"""Exit code: the rules block every protocol, or a person rejected what was proposed."""


def plan(
    case: Annotated[str, typer.Argument(help="A case folder, or the word 'demo' for the embedded demo case.")],
    goal: Annotated[str, typer.Option(help="Treatment goal in words, e.g. 'spare liver function'.")] = "",
    strategy: StrategyOption = "beam",
    run: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/<case>-<time>.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan.json and nothing else on standard output.")
    ] = False,
    actions: ActionsOption = "policy",
    profile: ProfileOption = "eu",
    strict: StrictOption = False,
    drugs: DrugsOption = None,
    embolics: EmbolicsOption = None,
    beams: BeamsOption = None,
    replicas: ReplicasOption = None,
    drug_horizon: Annotated[int | None, typer.Option(help="Most drugs in a protocol.", show_default="3")] = None,
    embolic_horizon: Annotated[
        int | None, typer.Option(help="Most embolic agents in a protocol.", show_default="2")
    ] = None,
    budget: BudgetOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    session: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with what is known of the session, e.g. technique: ctace.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Backend of the policy (see `mewm backends list`).", show_default="no LLM")
    ] = None,
    policy_llm: Annotated[
        str | None, typer.Option(help="Backend that observes, proposes and nominates.", show_default="--llm")
    ] = None,
    reasoning_llm: Annotated[
        str | None, typer.Option(help="Backend that refines and explains.", show_default="the policy's")
    ] = None,
    prompts: PromptsOption = None,
    backends: BackendsOption = None,
    llm_requests: Annotated[
        int | None, typer.Option(help="Most requests of the plan to backends.", show_default="120")
    ] = None,
    dry_run_llm: Annotated[
        bool, typer.Option("--dry-run-llm", help="Print what would be sent to the backends; send and plan nothing.")
    ] = False,
    approve: Annotated[bool, typer.Option("--approve", help="Wait for approval at both gates.")] = False,
    approve_actions: Annotated[
        bool, typer.Option("--approve-actions", help="Wait for approval of the action space before the search.")
    ] = False,
    approve_plan: Annotated[
        bool, typer.Option("--approve-plan", help="Wait for approval of the plan before it is reported.")
    ] = False,
    by: ByOption = "",
    change: Annotated[
        list[str] | None,
        typer.Option(help="What if: another value in the record, as 'creatinine_clearance=20 mL/min'; repeatable."),
    ] = None,
    spans: Annotated[
        bool, typer.Option("--spans", help="Also write OpenTelemetry spans to spans.jsonl of the run (extra trace).")
    ] = False,
) -> None:
    """Plan a TACE session for a case: search protocols by simulation, and leave plan, trace, volumes and report."""
    from agent.run import start_run
    from agent.settings import make_settings
    from agent.what_if import split_changes
    from tools.session_file import load_session

    settings = make_settings(
        strategy=strategy, actions=actions, profile=profile, strict=strict, drugs=drugs, embolics=embolics, beams=beams,
        replicas=replicas, drug_horizon=drug_horizon, embolic_horizon=embolic_horizon, budget=budget, steps=steps,
        seed=seed, device=device, session=None if session is None else load_session(session),
        **llm_settings(llm, policy_llm, reasoning_llm, prompts, backends, llm_requests),
        approve_actions=approve or approve_actions, approve_plan=approve or approve_plan,
    )  # fmt: skip
    folder = demo_case() if case == DEMO and not Path(case).is_dir() else Path(case)
    if dry_run_llm:
        from agent.cli.dry_run import dry_run

        dry_run(folder, run, settings, goal, split_changes(change or ()), Console())
        return
    with_spans(spans, lambda: start_run(folder, run, settings, goal, session, changes=split_changes(change or ())),
               lambda started: execute(started, as_json, by=by))  # fmt: skip


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder that `mewm plan` made.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print plan.json and nothing else on standard output.")
    ] = False,
    answer: Annotated[
        Path | None, typer.Option(help="JSON file with the answer to what waits; - reads standard input.")
    ] = None,
    by: ByOption = "",
    spans: Annotated[
        bool, typer.Option("--spans", help="Also write OpenTelemetry spans to spans.jsonl of the run (extra trace).")
    ] = False,
) -> None:
    """Go on with a run that was stopped or killed, or that waits; a finished run is exported again."""
    from agent.cli.approve import read_answer
    from agent.run import open_run

    given = None if answer is None else read_answer(answer)
    with_spans(spans, lambda: open_run(run), lambda opened: execute(opened, as_json, given, by))


def with_spans(wanted: bool, start: Callable[[], Run], execute: Callable[[Run], None]) -> None:
    """Start a run and execute it, with spans beside its trace where they are wanted.

    Raises:
        InputError: spans are wanted and the extra `trace` is not installed; nothing is made then.
    """
    if not wanted:
        execute(start())
        return
    from agent.spans import SPAN_FILE, need_spans, start_spans

    need_spans()
    run = start()
    with start_spans(run.folder / SPAN_FILE):
        execute(run)


def llm_settings(
    llm: str | None,
    policy_llm: str | None,
    reasoning_llm: str | None,
    prompts: str | None,
    backends: Path | None,
    llm_requests: int | None = None,
) -> dict[str, Any]:
    """The settings of the language models from the options, which a plan, a chat and an evaluation have in common.

    Args:
        llm: Backend for all questions.
        policy_llm: Backend that looks at the case, in place of `llm`.
        reasoning_llm: Backend that refines and explains, in place of the other one.
        prompts: Prompt set; a path is made absolute, so that a run can be resumed from anywhere.
        backends: The user's backend file.
        llm_requests: Most requests of a plan.

    Raises:
        InputError: a prompt set or a request limit is named, and no language model that it is for.
    """
    from models.errors import InputError
    from prompts.sets import absolute

    found = {"policy_llm": policy_llm or llm, "reasoning_llm": reasoning_llm, "llm_requests": llm_requests}
    if found["policy_llm"] is None and (prompts is not None or llm_requests is not None):
        raise InputError("The embedded policy reads no prompt set and sends no request: name a backend with --llm.")
    found["prompts"] = None if prompts is None else absolute(prompts)
    found["backends"] = None if backends is None else str(backends.resolve())
    return found


def demo_case() -> Path:
    """The demo case in the working directory, written from its seed where it is missing, damaged or out of date.

    Raises:
        CaseError: it can't be written.
        InputError: another case lies in its place.
    """
    write_demo(DEMO_FOLDER)
    return DEMO_FOLDER


def write_demo(folder: Path) -> None:
    """Write the demo case from its seed, unless it is there as this program writes it.

    Raises:
        CaseError: it can't be written.
        InputError: another case lies in its place.
    """
    from models.phantom.cohort import write_demo_case

    write_demo_case(folder)


def execute(run: Run, as_json: bool, answer: GateAnswer | None = None, by: str = "") -> None:
    """Run to the end with progress on standard error, and show the plan on standard output.

    At a gate the person at the terminal is asked; without a terminal the run is left waiting.

    Args:
        run: The run.
        as_json: Print JSON only, and ask nobody.
        answer: What a person answers at the gate where the run waits now.
        by: Name under answers that are given at the terminal.

    Raises:
        typer.Exit: the run was stopped, waits for an answer, was rejected, or every protocol is blocked.
    """
    try:
        _execute(run, as_json, answer, by)
    except (RunStopped, KeyboardInterrupt):
        again = f"Stopped; resume with: mewm resume {run.folder}"
        Console(stderr=True).print(again, soft_wrap=True, highlight=False)
        raise typer.Exit(RunStopped.exit_code) from None


def _execute(run: Run, as_json: bool, answer: GateAnswer | None, by: str) -> None:
    from agent.cli.approve import WAITING, ask, waiting_panel
    from agent.cli.plan_view import summary
    from agent.events import Planned

    errors = Console(stderr=True)
    while True:
        end, proposed = _go(run, answer, errors)
        if isinstance(end, Planned):
            break
        terminal = sys.stdin.isatty() and not as_json
        if proposed is not None and not as_json:
            summary(proposed, run.folder, Console())
        answer = ask(end, errors, by) if terminal else None
        if answer is None:
            if as_json:
                sys.stdout.write(end.model_dump_json(indent=2) + "\n")
            elif not terminal:
                errors.print(waiting_panel(end))
            errors.print(
                f"Waits for an answer to {end.interrupt_id}: mewm resume {run.folder} [--answer FILE]",
                soft_wrap=True,
                highlight=False,
            )
            raise typer.Exit(WAITING)
    found = end.plan
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        summary(found, run.folder, Console())
    if found.blocked or found.rejected:
        raise typer.Exit(NOTHING_PROPOSED)


def _go(run: Run, answer: GateAnswer | None, errors: Console) -> tuple[Planned | Waiting, Plan | None]:
    """Run until the plan is there or a gate waits; and the plan that waits, where one does."""
    from agent.cli.plan_view import Progress
    from agent.events import Planned, Proposed, Waiting
    from agent.services import make_services

    stop = threading.Event()
    end: Planned | Waiting | None = None
    proposed: Plan | None = None
    with stopping(stop), Progress(errors, run.record.settings.budget) as progress:
        for event in run.execute(make_services, stop, answer):
            progress.show(event)
            if isinstance(event, Planned | Waiting):
                end = event
            elif isinstance(event, Proposed):
                proposed = event.plan
    assert end is not None  # a run ends with its plan, at a gate or with an error
    return end, proposed


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
