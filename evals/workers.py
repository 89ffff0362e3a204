"""Workers: processes that answer cases, each with an engine of its own.

On a CPU two processes with one thread each plan more than one process with two threads. The workers only answer; what
they answered is in the folders of the evaluations, and `run_evaluation` reads, judges and logs it as if it had asked
itself. Several evaluations of the same cases are answered case by case: what one of them simulated for a case is there
for the others, and is removed when all of them are through with it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from evals.answer_cache import cached_answers
from evals.datasets import Dataset, EvalCase
from evals.prepare import Evaluation, agent_for
from evals.results import ANSWER, CASES, Answer, BaselineAnswers, EvalRun, RunSpec, safe_folder
from evals.runner import Done, Session, prepare_folder, read_kept, run_evaluation
from evals.solver import Agent, CaseJob
from models.errors import RunError, RunStopped

MOST_BY_DEFAULT = 4
"""Processes that a command takes by itself: each holds 1 to 1.5 GB."""
WATCH_SECONDS = 0.5
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
"""glibc gives the memory of every large tensor back and asks again: a fifth of the CPU time of a plan (measured). These
variables, read when a process starts, make it keep what it has; elsewhere they mean nothing."""

MakeAgent = Callable[[RunSpec, Dataset], Agent]


@dataclass(frozen=True)
class Job:
    """One evaluation that workers answer."""

    folder: Path
    evaluation: Evaluation


@dataclass(frozen=True)
class _Orders:
    """What a worker is told when it starts."""

    parts: tuple[tuple[Path, RunSpec], ...]
    dataset: Dataset
    make_agent: MakeAgent
    shared: Path | None
    cache: Path | None
    threads: int


class _Worker:
    """The state of a worker process."""

    def __init__(self, orders: _Orders, line: Connection) -> None:
        self.cases = {case.case_id: case for case in orders.dataset.cases}
        self.sessions = tuple(
            Session(folder, spec, orders.dataset, orders.make_agent(spec, orders.dataset), _no_baselines,
                    keep=spec.keep, shared=orders.shared)
            for folder, spec in orders.parts
        )  # fmt: skip
        self.ended, self.stop = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, args=(line,), daemon=True).start()

    def _watch(self, line: Connection) -> None:
        """Stop when the evaluation does, and never outlive it: the line of a parent that was killed ends unsaid."""
        try:
            line.recv_bytes()
        except EOFError:
            os._exit(1)
        self.ended.set()
        self.stop.set()

    def answer(self, part: int, case_id: str, epoch: int) -> Answer:
        """Answer one case of one evaluation.

        Raises:
            RunStopped: the evaluation was stopped.
        """
        self.stop = threading.Event()  # a case that is stopped at its limit stops no other
        if self.ended.is_set():
            raise RunStopped("The evaluation was stopped.")
        session = self.sessions[part]
        return session.answer(session.job(self.cases[case_id], epoch, self.stop))


def _no_baselines(case: EvalCase) -> BaselineAnswers:
    raise AssertionError(f"workers ask no baseline, also not about {case.case_id}")


_worker: _Worker | None = None


def _begin(orders: _Orders, line: Connection) -> None:
    """Initialise a worker process."""
    global _worker  # a worker process has one state, and its pool calls plain functions
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to stop
    torch.set_num_threads(orders.threads)
    _open.enter_context(cached_answers(orders.cache))
    _worker = _Worker(orders, line)


_open = ExitStack()
"""What a worker process keeps open as long as it lives."""


def _answer(part: int, case_id: str, epoch: int) -> Answer:
    """Called by the pool in a worker process; see `_Worker.answer`."""
    assert _worker is not None
    return _worker.answer(part, case_id, epoch)


def default_processes(spec: RunSpec, cases: int) -> int:
    """How many processes a command takes by itself: plans of the embedded policy on a CPU share its cores."""
    if spec.stage != "plan" or spec.settings.policy_llm is not None or spec.conditions.get("device") != "cpu":
        return 1
    return max(1, min(MOST_BY_DEFAULT, _cores(), cases))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    parts: Sequence[Job],
    processes: int,
    *,
    shared: Path | None = None,
    cache: Path | None = None,
    done: Done,
    make_agent: MakeAgent = agent_for,
) -> list[EvalRun]:
    """Run evaluations of the same cases, or go on with them.

    Args:
        parts: The evaluations; the cases, epochs and their order are those of the first.
        processes: Workers.
        shared: Folder in which all parts keep scans and simulations of a case until the case is done; None: each
            part for itself.
        cache: File of model answers.
        done: Told of every answer, and whether it was there already.
        make_agent: Makes the agent in a worker; a function of a module.

    Returns:
        The evaluations, as they are read back from their logs.

    Raises:
        RunError: a folder holds another evaluation or can't be written, or a worker was killed.
        RunStopped: it was stopped; the same call goes on.
    """
    for part in parts:
        prepare_folder(part.folder, part.evaluation.spec)
    told_before = _tell_kept(parts, done)
    failed, asked = _answer_all(parts, processes, shared, cache, done, make_agent)
    runs = []
    for number, part in enumerate(parts):
        found = part.evaluation

        def told(answer: Answer, kept: bool, number: int = number) -> None:
            if (number, answer.case_id, answer.epoch) not in asked | told_before:
                done(answer, kept)

        agent = _AnsweredBefore({key[1:]: answer for key, answer in failed.items() if key[0] == number})
        runs.append(
            run_evaluation(
                part.folder, found.spec, found.dataset, agent, found.baselines, keep=found.spec.keep, done=told
            )
        )
    return runs


class _AnsweredBefore:
    """Stands in for the agent when all cases were asked: a case whose answer was not kept failed."""

    def __init__(self, failed: Mapping[tuple[str, int], Answer]) -> None:
        self.failed = failed

    def __call__(self, job: CaseJob) -> Answer:
        return self.failed[job.case.case_id, job.epoch]


Asked = tuple[int, str, int]
"""Number of the part, case id, epoch."""


def _tell_kept(parts: Sequence[Job], done: Done) -> set[Asked]:
    """Tell of the answers that are there already, before any is asked: the time that is left is that of the others."""
    told: set[Asked] = set()
    for number, part in enumerate(parts):
        for case in part.evaluation.dataset.cases:
            for epoch in range(1, part.evaluation.spec.epochs + 1):
                if is_answered(part, case, epoch):
                    done(read_kept(Answer, _answer_file(part, case, epoch)), True)
                    told.add((number, case.case_id, epoch))
    return told


def _answer_all(
    parts: Sequence[Job],
    processes: int,
    shared: Path | None,
    cache: Path | None,
    done: Done,
    make_agent: MakeAgent,
) -> tuple[dict[Asked, Answer], set[Asked]]:
    """Let workers answer what is not answered yet, and meanwhile ask the baselines.

    Returns:
        The answers of cases that failed, and what was asked.
    """
    first = parts[0].evaluation
    epochs = range(1, first.spec.epochs + 1)
    wanted: list[tuple[EvalCase, list[tuple[int, int]]]] = []  # the epochs and parts of a case share its scans
    for case in first.dataset.cases:
        open_ = [(e, n) for e in epochs for n, part in enumerate(parts) if not is_answered(part, case, e)]
        if open_:
            wanted.append((case, open_))
    failed: dict[Asked, Answer] = {}
    asked: set[Asked] = set()
    lock = threading.Lock()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the modules are loaded once, and shared by all workers
    ended = _End()
    queue = iter(wanted)
    lanes = min(processes, len(wanted))
    orders = _Orders(
        tuple((part.folder, part.evaluation.spec) for part in parts), first.dataset, make_agent, shared, cache,
        max(1, min(torch.get_num_threads(), _cores() // max(lanes, 1))),
    )  # fmt: skip

    def answer_next(pool: ProcessPoolExecutor) -> bool:
        """Have a worker answer the next case in every epoch and part that is open; False where there is none."""
        with lock:
            job = None if ended.is_set() else next(queue, None)
        if job is None:
            return False
        case, open_ = job
        for epoch, number in open_:
            answer = pool.submit(_answer, number, case.case_id, epoch).result()
            with lock:
                asked.add((number, case.case_id, epoch))
                if answer.status == "failed":
                    failed[number, case.case_id, epoch] = answer
                done(answer, False)
        if shared is not None and all(is_answered(part, case, e) for part in parts for e in epochs):
            shutil.rmtree(shared / safe_folder(case.case_id), ignore_errors=True)
        return True

    def lane() -> None:
        """One worker and the cases that it takes; an error ends the other lanes too."""
        try:
            reader, writer = context.Pipe(duplex=False)
            with reader, writer, ProcessPoolExecutor(1, context, initializer=_begin, initargs=(orders, reader)) as pool:
                ended.tell(writer)
                while answer_next(pool):
                    pass
        except BaseException:
            ended.set()
            raise

    with _environment(KEEP_MEMORY), ThreadPoolExecutor(max(lanes, 1)) as threads:
        running = [threads.submit(lane) for _ in range(lanes)]
        try:
            for part in parts:
                _ask_baselines(part, ended)
            while not all(future.done() for future in running):
                time.sleep(WATCH_SECONDS)  # Ctrl-C reaches a main thread that is awake
        except BaseException:
            ended.set()
            raise
    _raise_first([error for future in running if (error := future.exception()) is not None])
    if shared is not None and not failed:
        shutil.rmtree(shared, ignore_errors=True)
    return failed, asked


class _End(threading.Event):
    """Set when the evaluation is to end; the workers are told. No lock is shared with them: a worker can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self._writers: list[Connection] = []
        self._telling = threading.Lock()

    def tell(self, writer: Connection) -> None:
        """Tell this worker too."""
        with self._telling:
            self._writers.append(writer)
            if self.is_set():
                _say_stop(writer)

    def set(self) -> None:
        """End the evaluation."""
        with self._telling:
            super().set()
            for writer in self._writers:
                _say_stop(writer)


def _say_stop(writer: Connection) -> None:
    with suppress(OSError):  # a line that is closed, or whose worker is gone
        writer.send_bytes(b"stop")


def _raise_first(errors: Sequence[BaseException]) -> None:
    """Raise what went wrong; the lanes that were stopped because of it only say so."""
    wrong = [error for error in errors if not isinstance(error, RunStopped)] or list(errors)
    if wrong and isinstance(wrong[0], BrokenProcessPool):
        raise RunError(
            "A process that answered cases was killed, perhaps for its memory: go on with the same command and fewer "
            "--processes."
        ) from wrong[0]
    if wrong:
        raise wrong[0]


def _answer_file(part: Job, case: EvalCase, epoch: int) -> Path:
    return part.folder / CASES / safe_folder(case.case_id) / str(epoch) / ANSWER


def is_answered(part: Job, case: EvalCase, epoch: int) -> bool:
    """Whether a case is answered already."""
    return _answer_file(part, case, epoch).is_file()


def _ask_baselines(part: Job, ended: threading.Event) -> None:
    found = part.evaluation
    session = Session(part.folder, found.spec, found.dataset, _AnsweredBefore({}), found.baselines)
    for case in found.dataset.cases:
        if ended.is_set():
            return
        session.said_by_baselines(case)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile; what the user has set stays."""
    new = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
