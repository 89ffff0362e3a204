"""Runner: an evaluation as an inspect_ai task, one sample a case, many cases at once on one engine.

inspect_ai runs the samples, repeats them in epochs, averages and logs; planning is ours and synchronous, so each case
works in a thread of its own. What a case answered is kept in its folder as soon as it is there: a run that was stopped
or killed goes on with the same command, asks no case twice, and its log is complete as if nothing had happened. Failed
cases are tried again.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from inspect_ai import Epochs, Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from agent.files import is_empty, make_folder, write_text
from evals.datasets import Dataset, EvalCase
from evals.judge import judge_answer
from evals.results import (
    ANSWER,
    BASELINES,
    CARD,
    CASES,
    LOGS,
    SCORER,
    SPEC_FILE,
    STATUS_TEXT,
    Answer,
    BaselineAnswers,
    CaseRow,
    EvalRun,
    ResultModel,
    RunSpec,
    read_run,
    read_spec,
    safe_folder,
)
from evals.solver import GENERATED, Agent, CaseJob
from models.errors import InputError, MewmError, RunError, RunStopped

LOGGED = ("f1", "jaccard", "precision", "recall")
"""Metrics of the lead gold variant that inspect's own log and viewer show; the report has all of them."""

Baselines = Callable[[EvalCase], BaselineAnswers]
"""What every baseline says to a case; asked once a case, and fitted no sooner."""

Done = Callable[[Answer, bool], None]
"""Told of every answer, and whether it was there already."""


def _nobody(answer: Answer, kept: bool) -> None:
    """Nobody listens."""


@dataclass
class Session:
    """What the cases of a run share in this process.

    Attributes:
        folder: Of the evaluation.
        spec: What is evaluated.
        dataset: Cases with gold.
        agent: Answers a case.
        baselines: What they say to a case.
        done: Told of every answer.
        keep: Keep simulated volumes, checkpoints and generated scans of finished cases.
        shared: Folder in which several evaluations of the same cases keep scans and simulations; whoever made it
            removes it.
        bug: The first exception that is nobody's fault but ours; raised when inspect has closed its log.
    """

    folder: Path
    spec: RunSpec
    dataset: Dataset
    agent: Agent
    baselines: Baselines
    done: Done = _nobody
    keep: bool = False
    shared: Path | None = None
    bug: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def job(self, case: EvalCase, epoch: int, stop: threading.Event) -> CaseJob:
        """A case in an epoch with its folder."""
        name = safe_folder(case.case_id)
        folder = self.folder / CASES / name / str(epoch)
        return CaseJob(case, epoch, folder, self.folder, stop, None if self.shared is None else self.shared / name)

    def answer(self, job: CaseJob) -> Answer:
        """Ask the agent, or take what it answered before. A failed case is not kept, so that it is tried again."""
        if (job.folder / ANSWER).is_file():
            found = read_kept(Answer, job.folder / ANSWER)
            self._tidy(job)
            self.done(found, True)
            return found
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            answer = self.agent(job)
        except RunStopped:
            raise
        except MewmError as exc:
            answer = Answer(case_id=job.case.case_id, epoch=job.epoch, status="failed", why=str(exc))
        if answer.status != "failed":
            write_text(job.folder / ANSWER, answer.model_dump_json(indent=1) + "\n")
            self._tidy(job)
        self.done(answer, False)
        return answer

    def said_by_baselines(self, case: EvalCase) -> BaselineAnswers:
        """What every baseline says to a case: the same in every epoch, and when the run goes on."""
        file = self.folder / CASES / safe_folder(case.case_id) / BASELINES
        if file.is_file():
            return read_kept(BaselineAnswers, file)
        said = self.baselines(case)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, said.model_dump_json(indent=1) + "\n")
        return said

    def judge(self, job: CaseJob, answer: Answer) -> CaseRow:
        """The row of a case; then what a finished case needs no longer is removed."""
        with self._lock:  # baselines are fitted once, and a scan is not removed while another epoch reads it
            said = self.said_by_baselines(job.case)
            row = judge_answer(job.case, answer, said, self.spec.settings)
            epochs = range(1, self.spec.epochs + 1)
            if not self.keep and all((job.folder.parent / str(epoch) / ANSWER).is_file() for epoch in epochs):
                shutil.rmtree(job.folder.parent / GENERATED, ignore_errors=True)
        return row

    def _tidy(self, job: CaseJob) -> None:
        """Remove the volumes and checkpoints of a case that is answered."""
        if self.keep:
            return
        for name in ("artifacts", "finalists"):
            shutil.rmtree(job.folder / "run" / name, ignore_errors=True)
        for path in (job.folder / "run").glob("checkpoints.sqlite*"):
            path.unlink(missing_ok=True)


KeptT = TypeVar("KeptT", bound=ResultModel)


def read_kept(kind: type[KeptT], file: Path) -> KeptT:
    """What was kept of a case.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # pydantic's error is a ValueError
        raise RunError(f"{file} can't be read ({type(exc).__name__}): remove it and go on.") from exc


def planner_task(session: Session) -> Task:
    """The inspect task of a session."""
    cases = {case.case_id: case for case in session.dataset.cases}
    variant = session.dataset.variants[0]
    with_truth = any(case.truth is not None for case in session.dataset.cases[:1])
    names = [*LOGGED, *(["regret"] if with_truth else [])]

    async def in_thread(work: Callable[[], Any], stop: threading.Event) -> Any:
        try:
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            stop.set()  # the thread ends between two simulations, and the case goes on from there next time
            raise
        except RunStopped:
            raise
        except BaseException as exc:
            session.bug = session.bug or exc
            raise

    @solver(name="mewm")
    def ask() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001 (inspect's signature)
            stop = threading.Event()
            job = session.job(cases[str(state.sample_id)], state.epoch, stop)
            answer: Answer = await in_thread(partial(session.answer, job), stop)
            state.metadata["answer"] = answer.model_dump(mode="json")
            state.output.completion = answer.protocol.key if answer.protocol is not None else answer.status
            return state

        return solve

    @scorer(name=SCORER, metrics={name: [mean(), stderr()] for name in names})
    def judged() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 (inspect's signature)
            answer = Answer.model_validate(state.metadata["answer"])
            stop = threading.Event()
            job = session.job(cases[answer.case_id], answer.epoch, stop)
            row: CaseRow = await in_thread(partial(session.judge, job, answer), stop)
            score = row.own.scores[variant]
            values: dict[str, str | int | float | bool | None] = {name: getattr(score, name) for name in LOGGED}
            if with_truth:
                values["regret"] = row.own.regret.of_range if row.own.regret is not None else math.nan
            return Score(
                value=values,
                answer=row.own.protocol.key if row.own.protocol is not None else "",
                explanation=row.why or STATUS_TEXT[row.status],
                metadata={"row": row.model_dump(mode="json")},
            )

        return score

    samples = [
        Sample(input=f"Case {c.case_id}", id=c.case_id, target=c.gold[variant].key, metadata={"position": position})
        for position, c in enumerate(session.dataset.cases)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=session.dataset.name),
        solver=ask(),
        scorer=judged(),
        name=f"mewm-{session.dataset.name}",
        version=session.dataset.version,
        metadata={"dataset_hash": session.dataset.content_hash, "label": session.spec.label},
    )


def run_evaluation(
    folder: Path,
    spec: RunSpec,
    dataset: Dataset,
    agent: Agent,
    baselines: Baselines,
    *,
    parallel: int = 1,
    keep: bool = False,
    done: Done = _nobody,
) -> EvalRun:
    """Run an evaluation, or go on with one.

    Args:
        folder: Of the evaluation; one that holds a `run.json` is continued.
        spec: What is evaluated.
        dataset: Its cases.
        agent: Answers a case.
        baselines: What they say to a case.
        parallel: Cases at once.
        keep: Keep simulated volumes, checkpoints and generated scans of finished cases.
        done: Told of every answer.

    Returns:
        The evaluation as it is read back from its log.

    Raises:
        RunError: the folder holds another evaluation or can't be written.
        RunStopped: it was stopped (Ctrl-C); the same call goes on.
    """
    prepare_folder(folder, spec)
    write_text(folder / CARD, dataset.card)
    session = Session(folder, spec, dataset, agent, baselines, done, keep)
    before = list((folder / LOGS).glob("*.eval"))
    log = _inspect(session, parallel)
    if session.bug is not None:
        raise session.bug
    if log is None or log.status != "success":
        raise RunStopped(f"The evaluation was stopped; go on with: mewm eval resume {folder}")
    for old in before:  # what a broken attempt had logged is in the new log
        with suppress(OSError):
            old.unlink()
    return read_run(folder)


def prepare_folder(folder: Path, spec: RunSpec) -> None:
    """Make the folder of an evaluation, or check that the one that is there measures the same.

    Raises:
        RunError: it holds something else.
    """
    if (folder / SPEC_FILE).is_file():
        if different := read_spec(folder).differences(spec):
            changes = "; ".join(f"{name} {before}, now {now}" for name, before, now in different)
            raise RunError(
                f"{folder} holds an evaluation under other conditions ({changes}): bring them back, or "
                "choose another folder with --out."
            )
    else:
        if not is_empty(make_folder(folder)):
            raise RunError(f"The folder {folder} is not empty and holds no evaluation: choose another with --out.")
        write_text(folder / SPEC_FILE, spec.model_dump_json(indent=1) + "\n")
    make_folder(folder / LOGS)


def _inspect(session: Session, parallel: int) -> EvalLog | None:
    """The finished log; None where Ctrl-C ended it."""
    if parallel < 1:
        raise InputError(f"--parallel must be at least 1, got {parallel}.")
    logs = inspect_eval(
        planner_task(session),
        model=None,
        log_dir=str(session.folder / LOGS),
        log_format="eval",
        display="none",
        log_level="error",
        epochs=Epochs(session.spec.epochs, "mean"),
        max_samples=parallel,
        fail_on_error=True,  # failed cases are answers; what raises is a bug
        log_images=False,
        log_realtime=False,
        ctl_server=False,
        acp_server=False,
        score_display=False,
    )
    return logs[0] if logs else None


def failed(rows: Sequence[CaseRow]) -> tuple[str, ...]:
    """Ids of the cases that failed in some epoch."""
    return tuple(dict.fromkeys(row.case_id for row in rows if row.status == "failed"))
