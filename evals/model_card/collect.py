"""Collect: measures patients in parallel, one file each, so that a long evaluation can be stopped and goes on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from models.errors import RunError
from models.worker_process import end_with_parent

Row = dict[str, Any]
Measure = Callable[[int], Row]
"""Seed of a patient -> what was measured. A module-level function or a picklable object."""

_measure: Measure | None = None


def folder_of(root: Path, conditions: Mapping[str, Any]) -> Path:
    """The folder of results under exactly these conditions, with the conditions written beside them.

    Raises:
        RunError: it can't be written.
    """
    text = json.dumps(conditions, sort_keys=True, indent=1)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "conditions.json", json.loads(text))
    except OSError as error:
        raise RunError(f"The results can't be written to {folder}: {error.strerror}; choose another --work.") from error
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a whole file or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def collect(
    folder: Path, seeds: Iterable[int], build: Callable[[], Measure], workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Measure patients, those apart whose file is there already.

    Args:
        folder: Of the files, `SEED.json`.
        seeds: The patients.
        build: Makes the measure once per process (it loads networks). Picklable where `workers` is above 1.
        workers: Processes; they share the cores.
        progress: Called with (done, wanted).

    Returns:
        The rows in the order of `seeds`.
    """
    wanted = list(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in wanted if not (folder / f"{seed}.json").exists()]
    done = len(wanted) - len(missing)
    if progress:
        progress(done, len(wanted))
    if missing and workers <= 1:
        measure = build()
        for seed in missing:
            write_json(folder / f"{seed}.json", measure(seed))
            done += 1
            if progress:
                progress(done, len(wanted))
    elif missing:
        threads = max(1, (os.cpu_count() or 1) // workers)
        # spawned: a process that is forked after torch has computed may hang in its threads
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(build, threads)) as executor:
            jobs = [executor.submit(_work, folder, seed) for seed in missing]
            try:
                for job in as_completed(jobs):
                    job.result()
                    done += 1
                    if progress:
                        progress(done, len(wanted))
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
    return [json.loads((folder / f"{seed}.json").read_text(encoding="utf-8")) for seed in wanted]


def _start(build: Callable[[], Measure], threads: int) -> None:
    global _measure
    end_with_parent()
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    _measure = build()


def _work(folder: Path, seed: int) -> None:
    assert _measure is not None
    write_json(folder / f"{seed}.json", _measure(seed))
