"""`mewm eval`: run, list, report, compare, view and bundle evaluations, and make and score reader studies.

Only light modules are imported here; every command loads what it needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from agent.cli.options import (
    ActionSet,
    BeamsOption,
    BudgetOption,
    DeviceOption,
    DrugsOption,
    EmbolicsOption,
    Profile,
    ReplicasOption,
    StepsOption,
    StrategyOption,
    StrictOption,
)
from evals.study_cli import reader_app, turing_app
from models.errors import InputError

if TYPE_CHECKING:
    from evals.prepare import Evaluation
    from evals.report.summary import Summary
    from evals.results import Answer, EvalRun

app = typer.Typer(no_args_is_help=True, help="Evaluate the agent on cases with gold protocols.")
app.add_typer(turing_app, name="turing")
app.add_typer(reader_app, name="reader")

RUNS = Path("runs")
CACHE = RUNS / "model-answers.sqlite"
WIDE = 120
"""Columns of a terminal from which on the leaderboard has room for what its lines mean."""
FAILED, GATE = 1, 9
"""Exit codes: no case has an answer of its own, since all failed or the backend did; a gate was not passed."""

Stage = Literal["propose", "plan"]
Tier = Literal["easy", "standard", "hard"]
Parallel = Annotated[
    int | None,
    typer.Option(help="Cases at once in one process, where they wait for a language model: by default 4.", min=1),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes that answer cases, each with networks of its own (1.5 GB); by default one a core, at most 4, "
        "for plans without a language model on a CPU, else 1.",
        min=1,
    ),
]
CacheFile = Annotated[Path, typer.Option(help="File of model answers: equal questions are asked once.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Ask the model anew, and keep no answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


@app.command()
def run(
    dataset: Annotated[str, typer.Argument(help="phantom, hcc-tace-seg or own; see `mewm eval list`.")],
    backend: Annotated[str, typer.Option(help="Who the policy is: guideline, or a backend's name.")] = "guideline",
    reasoning: Annotated[
        str | None, typer.Option("--reasoning-llm", help="Backend that refines and explains; by default --backend.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompt set: a shipped one, or a folder.")] = None,
    strategy: StrategyOption = "beam",
    stage: Annotated[
        Stage, typer.Option(help="The whole plan, or the policy's answer before any simulation.")
    ] = "plan",
    epochs: Annotated[int, typer.Option(help="How often each case is asked, with another seed each time.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Most cases.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Which synthetic patients, and the planner's first seed.", min=0)] = 0,
    tier: Annotated[Tier | None, typer.Option(help="Difficulty of synthetic patients.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of imported cases, or the file of the dataset own.")] = None,
    clinical: Annotated[Path | None, typer.Option(help="Clinical table of hcc-tace-seg (XLSX).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the evaluation; one that is there goes on.")] = None,
    drugs: DrugsOption = None,
    embolics: EmbolicsOption = None,
    beams: BeamsOption = None,
    replicas: ReplicasOption = None,
    drug_horizon: Annotated[int | None, typer.Option(help="Most drugs in a protocol.")] = None,
    embolic_horizon: Annotated[int | None, typer.Option(help="Most embolic agents in a protocol.")] = None,
    budget: BudgetOption = None,
    steps: StepsOption = None,
    actions: Annotated[ActionSet | None, typer.Option(help="Action set; by default that of the gold.")] = None,
    strict: StrictOption = False,
    profile: Annotated[
        Profile | None, typer.Option(help="Guideline region of the rules; phantom has eu only.", show_default="eu")
    ] = None,
    device: DeviceOption = "auto",
    weights: Annotated[Path | None, typer.Option(help="Folder of a weight bundle; by default the shipped one.")] = None,
    without_assistant: Annotated[
        bool, typer.Option("--without-assistant", help="Switch the segmentation of what is left of the tumour off.")
    ] = False,
    baselines: Annotated[str, typer.Option(help="all, none, or names with commas.")] = "all",
    time_limit: Annotated[int | None, typer.Option(help="Most seconds of a case.", min=1)] = None,
    token_limit: Annotated[int | None, typer.Option(help="Most tokens of a case.", min=1)] = None,
    tool_limit: Annotated[int | None, typer.Option(help="Most tool calls of a case.", min=1)] = None,
    parallel: Parallel = None,
    processes: Processes = None,
    cache: CacheFile = CACHE,
    no_cache: NoCache = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep reports and simulated volumes of every plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put every case of a dataset to the agent and score its answers; the same command goes on where it was stopped."""
    _needs_inspect()
    from evals.ablation import ASSISTANT
    from evals.prepare import ALL_BASELINES, prepare
    from evals.results import Limits

    names = {"all": ALL_BASELINES, "none": ()}.get(
        baselines, tuple(n.strip() for n in baselines.split(",") if n.strip())
    )
    planner = {
        "strategy": strategy, "drugs": drugs, "embolics": embolics, "beams": beams, "replicas": replicas,
        "drug_horizon": drug_horizon, "embolic_horizon": embolic_horizon, "budget": budget, "steps": steps,
        "actions": actions, "strict": strict, "profile": profile, "device": device, "seed": seed,
    }  # fmt: skip
    evaluation = prepare(
        dataset, seed=seed, limit=limit, tier=tier, data=data, clinical=clinical, stage=stage, backend=backend,
        reasoning=reasoning, prompts=prompts, epochs=epochs,
        limits=Limits(seconds=time_limit, tokens=token_limit, tool_calls=tool_limit), weights=weights,
        parts_off=(ASSISTANT,) if without_assistant else (), baselines=names, planner=planner, keep=keep,
    )  # fmt: skip
    folder = out or RUNS / f"eval-{dataset}-{stage}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    execute(evaluation, folder, _Crew(parallel, processes, None if no_cache else cache), as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder that `mewm eval run` made.")],
    parallel: Parallel = None,
    processes: Processes = None,
    cache: CacheFile = CACHE,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Go on with an evaluation that was stopped or killed: finished cases are not asked again, failed ones are."""
    _needs_inspect()
    from evals.prepare import prepare_again
    from evals.results import read_spec

    crew = _Crew(parallel, processes, None if no_cache else cache)
    execute(prepare_again(read_spec(folder)), folder, crew, as_json)


@dataclass(frozen=True)
class _Crew:
    """How many cases are answered at once, and where model answers are kept."""

    parallel: int | None
    processes: int | None
    cache: Path | None


def execute(evaluation: Evaluation, folder: Path, crew: _Crew, as_json: bool) -> None:
    """Run an evaluation with progress on standard error, write its reports and show the leaderboard.

    Raises:
        typer.Exit: it was stopped, or every case failed, or the backend did in every case.
    """
    from evals.report.page import report_json, write_reports

    errors = Console(stderr=True)
    summary = write_reports([_run(evaluation, folder, crew)])
    if as_json:
        sys.stdout.write(report_json(summary))
    else:
        _show(summary, Console())
        Console().print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    if summary.failed:
        errors.print(
            f"{len(summary.failed)} case(s) failed; the first: {summary.failed[0]}", soft_wrap=True, markup=False
        )
        errors.print(f"Try them again with: mewm eval resume {folder}", soft_wrap=True, highlight=False)
    if set(summary.statuses) <= {"failed", "degraded"}:
        if "degraded" in summary.statuses:
            errors.print(
                "The language model gave no answer that can be used to any case: mend the backend, and run it anew in "
                "another folder.", soft_wrap=True, highlight=False,
            )  # fmt: skip
        raise typer.Exit(FAILED)


def _run(evaluation: Evaluation, folder: Path, crew: _Crew) -> EvalRun:
    """Run one evaluation with progress on standard error: in this process, or in several.

    Raises:
        InputError: options that exclude each other.
        typer.Exit: it was stopped.
    """
    from evals.answer_cache import cached_answers
    from evals.runner import run_evaluation
    from evals.workers import Job, default_processes, run_in_processes

    spec = evaluation.spec
    llm = spec.settings.policy_llm is not None
    cache = crew.cache if llm else None
    if crew.parallel is not None and (crew.processes or 1) > 1:
        raise InputError("--parallel is for cases in one process: leave it out, or give --processes 1.")
    processes = 1 if crew.parallel else crew.processes or default_processes(spec, len(evaluation.dataset.cases))
    total = len(evaluation.dataset.cases) * spec.epochs
    with _stoppable(f"mewm eval resume {folder}"), _Bar(Console(stderr=True), spec.label, total) as bar:
        if processes > 1:
            (found,) = run_in_processes([Job(folder, evaluation)], processes, cache=cache, done=bar.told)
            return found
        with cached_answers(cache):
            return run_evaluation(
                folder, spec, evaluation.dataset, evaluation.agent, evaluation.baselines,
                parallel=crew.parallel or (4 if llm else 1), keep=spec.keep, done=bar.told,
            )  # fmt: skip


@contextmanager
def _stoppable(again: str) -> Iterator[None]:
    """Ctrl-C ends the command with a word on how to go on.

    Raises:
        typer.Exit: it was stopped; `again` is the command that goes on.
    """
    from models.errors import RunStopped

    try:
        yield
    except (RunStopped, KeyboardInterrupt):
        Console(stderr=True).print(f"Stopped; go on with: {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(RunStopped.exit_code) from None


@app.command()
def table(
    out: Annotated[Path, typer.Option(help="Folder of the table; one that is there goes on.")] = RUNS / "eval-table",
    limit: Annotated[int, typer.Option(help="Synthetic patients.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Which synthetic patients, and the planner's first seed.", min=0)] = 0,
    beams: BeamsOption = None,
    replicas: ReplicasOption = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of a weight bundle; by default the shipped one.")] = None,
    weights_without: Annotated[
        list[str] | None,
        typer.Option(help="contrastive=FOLDER or attenuation=FOLDER: weights that were trained without it."),
    ] = None,
    device: DeviceOption = "auto",
    processes: Processes = None,
    publish: Annotated[
        Path | None, typer.Option(help="Folder of the repository that gets the figures as full-table.json and .md.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The full table on synthetic patients: the planner, each of its parts off, and every baseline.

    The same command goes on where it was stopped.
    """
    _needs_inspect()
    from agent.files import make_folder
    from evals.report.page import report_json, write_reports
    from evals.table import cost_estimate, evaluations, publish_table
    from evals.workers import default_processes, run_in_processes

    bundles = {}
    for text in weights_without or []:
        name, mark, folder = text.partition("=")
        if name not in ("contrastive", "attenuation") or not mark:
            raise InputError(f"--weights-without takes contrastive=FOLDER or attenuation=FOLDER, got '{text}'.")
        bundles[name] = Path(folder)
    parts, not_run = evaluations(
        out, n=limit, seed=seed, planner={"beams": beams, "replicas": replicas, "device": device}, weights=weights,
        weights_without=bundles,
    )  # fmt: skip
    if publish is not None:
        make_folder(publish)  # hours before anything is written there
    crew = processes or default_processes(parts[0].evaluation.spec, limit)
    Console(stderr=True).print(cost_estimate(parts, crew), soft_wrap=True, highlight=False)
    again = "the same command (mewm eval table)"
    with _stoppable(again), _Bar(Console(stderr=True), "the full table", limit * len(parts)) as bar:
        runs = run_in_processes(parts, crew, shared=out / "shared", done=bar.told)
    summary = write_reports(runs, out, not_run=not_run)
    if publish is not None:
        publish_table(summary, publish)
    if as_json:
        sys.stdout.write(report_json(summary))
    else:
        _show(summary, Console())
        Console().print(f"Report: {out / 'report.html'}", soft_wrap=True, highlight=False)


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(help="Where evaluations are looked for.")] = RUNS, as_json: AsJson = False
) -> None:
    """List the datasets, and the evaluations in a folder."""
    import json

    about = {
        "phantom": "unseen synthetic patients with a known best protocol; tiers easy, standard, hard",
        "hcc-tace-seg": "the real collection: --clinical TABLE.xlsx, and --data CASES where there are images",
        "own": "your own gold: --data FILE.jsonl or FILE.csv (docs/own-dataset.md)",
    }
    found: list[dict[str, object]] = []
    for path in sorted([*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]):  # parts of a table lie deeper
        try:  # read as plain JSON: the harness with its networks is not loaded for a list
            spec = json.loads(path.read_text(encoding="utf-8"))
            row = {name: str(spec[name]) for name in ("dataset", "dataset_version", "stage", "backend", "created")}
        except (OSError, ValueError, KeyError):  # a plan's run folder, or a file of another version
            continue
        answered = len(list(path.parent.glob("cases/*/*/answer.json")))
        found.append({"folder": str(path.parent), "answers": answered, **row})
    if as_json:
        typer.echo(json.dumps({"datasets": about, "evaluations": found}, indent=1))
        return
    shown = RichTable("dataset", "what", title="Datasets")
    for name, text in about.items():
        shown.add_row(name, text)
    console = Console()
    console.print(shown)
    if found:
        shown = RichTable("folder", "dataset", "stage", "policy", "answers", "begun", title=f"Evaluations in {folder}")
        for line in found:
            cells = (str(line[n]) for n in ("folder", "dataset", "stage", "backend", "answers", "created"))
            shown.add_row(*map(Text, cells))  # a folder's name is no markup
        console.print(shown)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Evaluations on the same data; the first one leads.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the reports; by default the first evaluation's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.md, report.html and report.json, in place of those that are there, and show the leaderboard."""
    _needs_inspect()
    from agent.files import make_folder
    from evals.report.page import report_json, write_reports
    from evals.results import read_run

    found = [read_run(folder) for folder in folders]
    if out is not None:
        make_folder(out)
    summary = write_reports(found, out)
    if as_json:
        sys.stdout.write(report_json(summary))
        return
    _show(summary, Console())
    Console().print(f"Report: {(out or folders[0]) / 'report.html'}", soft_wrap=True, highlight=False)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The reference: a folder, or FOLDER@LINE such as runs/x@constant.")],
    b: Annotated[str, typer.Argument(help="The candidate, likewise.")],
    gold: Annotated[
        str | None, typer.Option(help="Gold variant; by default the one that the dataset leads with.")
    ] = None,
    fail_below: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER: fail unless B gains at least so much on A, e.g. F1=-0.02.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations case by case: B minus A with interval, p value, wins, ties and losses."""
    _needs_inspect()
    from evals.compare import compare as pair
    from evals.compare import comparison_markdown, failed_gates, parse_gates, read_side

    gates = parse_gates(fail_below or [])
    found = pair(read_side(a), read_side(b), variant=gold)
    typer.echo(found.model_dump_json(indent=1) if as_json else comparison_markdown(found), nl=as_json)
    if sentences := failed_gates(found, gates):
        for sentence in sentences:
            typer.echo(f"mewm: {sentence}", err=True)
        raise typer.Exit(GATE)


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(help="An evaluation.")],
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 7575,
) -> None:
    """Look at an evaluation's log in inspect's viewer, in the browser at 127.0.0.1."""
    _needs_inspect()
    from inspect_ai import view as inspect_view

    from evals.results import LOGS, read_spec

    read_spec(folder)
    typer.echo(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", err=True)
    inspect_view(str(folder / LOGS), host="127.0.0.1", port=port)


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="An evaluation.")],
    out: Annotated[Path, typer.Option(help="New folder; it can be opened from any web server.")],
) -> None:
    """Write inspect's viewer with the log, and the report with its traces, as a folder of static files."""
    _needs_inspect()
    import shutil

    from inspect_ai.log import bundle_log_dir

    from agent.files import make_folder
    from evals.report.page import write_reports
    from evals.results import LOGS, inside, read_run
    from evals.study import refuse_taken

    refuse_taken(out)
    found = read_run(folder)
    linked = [trace for row in found.rows for trace in (row.trace, row.alone_trace)]
    traces = [trace for trace in linked if trace is not None and inside(folder, trace).is_file()]
    make_folder(out)
    bundle_log_dir(str(folder / LOGS), str(out), overwrite=True)  # of a folder that is empty
    for name in traces:
        make_folder((out / name).parent)
        shutil.copyfile(folder / name, out / name)
    write_reports([found], out, copied=True)
    typer.echo(f"Viewer: {out / 'index.html'}\nReport: {out / 'report.html'}")


def _needs_inspect() -> None:
    from importlib.util import find_spec

    if find_spec("inspect_ai") is None:
        raise InputError("Evaluations need the extra `eval`: install it with pip install 'mewm[eval]'.")


class _Bar:
    """Progress on standard error: a bar with the time that is left, and a line for every answer that is not plain."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console,
        )  # fmt: skip
        self.task = self.bars.add_task(label, total=total, left="")
        self.total, self.kept, self.new = total, 0, 0
        self.begun = time.monotonic()

    def __enter__(self) -> _Bar:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()
        if self.kept:
            self.console.print(f"{self.kept} answers were there already.", highlight=False)

    def told(self, answer: Answer, kept: bool) -> None:
        """One answer is there."""
        self.kept += kept
        self.new += not kept
        left = self.total - self.kept - self.new
        if self.new and left > 0:
            minutes = (time.monotonic() - self.begun) / self.new * left / 60.0
            self.bars.update(self.task, left=f"about {minutes:.0f} min left" if minutes < 120 else
                             f"about {minutes / 60.0:.1f} h left")  # fmt: skip
        else:
            self.bars.update(self.task, left="")
        self.bars.advance(self.task)
        if not kept and answer.status not in ("answered", "no_image"):
            line = f"{answer.case_id}: {answer.status}, {answer.why}"
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _show(summary: Summary, console: Console) -> None:
    from rich import box

    from evals.baselines import NAMES
    from evals.report.tables import TERMINAL, leaderboard

    for board in summary.boards:
        main = leaderboard(summary, board, TERMINAL)
        shown = RichTable(title=f"{main.title} ({summary.n_cases} cases)", title_justify="left", box=box.SIMPLE)
        shown.add_column(main.columns[0], min_width=max(map(len, NAMES)))
        for column in main.columns[1:]:
            shown.add_column(column)
        not_run = []
        for row, line in zip(main.rows, board.lines, strict=True):
            if line.not_run is not None:
                not_run.append(f"{line.label}: not run: {line.not_run}")
                continue
            # by the name that `compare FOLDER@NAME` takes; what it means stands in the report, or where there is room
            named = line.who in (*NAMES, "fallback", "alone")
            who = line.who if named else line.label
            if named and console.width >= WIDE:
                who = f"{line.who}: {line.label}"
            cells = (who, *(cell.replace(" [", "\n[") for cell in row.cells[1:]))
            shown.add_row(*map(Text, cells), style="bold" if line.lead else None)
        console.print(shown)
        for text in not_run:
            console.print(text, style="dim", markup=False, highlight=False)
    for note in summary.notes:
        console.print(note, markup=False, highlight=False)
