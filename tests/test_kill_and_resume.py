"""A plan on the shipped weights whose process is killed inside the search and resumed: the same run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from agent.plan import read_plan
from agent.trace import TIMING_FIELDS, read_trace
from models.phantom.cohort import write_cohort

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "-"
TINY = (
    "--drugs", "2", "--embolics", "1", "--beams", "2", "--replicas", "2", "--drug-horizon", "1",
    "--embolic-horizon", "1",
)  # fmt: skip


def mewm(log: Path, kill_after: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.killed_engine", log, kill_after, WEIGHTS, *arguments]
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folder of an unbroken run, of one that was killed twice and resumed, and the log of the second."""
    folder = tmp_path_factory.mktemp("killed")
    case = write_cohort(1, 900_003, folder / "cases")[0]
    unbroken, broken, log = folder / "unbroken", folder / "broken", folder / "log"
    done = mewm(folder / "unbroken-log", 0, "plan", case, "--run", unbroken, *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    # The first depth has 4 outcomes: one kill is inside the batch of the second depth, the other in the comparison.
    killed = mewm(log, 6, "plan", case, "--run", broken, *TINY)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert len(log.read_text().splitlines()) == 6
    killed = mewm(log, 5, "resume", broken)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert not (broken / "plan.json").exists()
    done = mewm(log, 0, "resume", broken)
    assert done.returncode == 0, done.stderr[-3000:]
    return unbroken, broken, log


def test_a_killed_and_resumed_run_gives_the_same_plan_and_risks(runs: tuple[Path, Path, Path]) -> None:
    one, two = (read_plan(folder / "plan.json") for folder in runs[:2])
    assert one.chosen is not None
    assert one.chosen.assessed.replicas
    assert one.model_dump(exclude={"execution"}) == two.model_dump(exclude={"execution"})
    assert two.execution.from_cache > one.execution.from_cache


def test_the_trace_of_a_resumed_run_is_that_of_an_unbroken_one(runs: tuple[Path, Path, Path]) -> None:
    traces = [read_trace(folder / "trace.jsonl") for folder in runs[:2]]
    plain = [[d.model_dump(exclude=set(TIMING_FIELDS)) for d in trace] for trace in traces]
    assert plain[0] == plain[1]
    ids = [decision.decision_id for decision in traces[1]]
    assert len(set(ids)) == len(ids)


def test_nothing_is_simulated_twice(runs: tuple[Path, Path, Path]) -> None:
    simulated = Counter(runs[2].read_text().splitlines())
    assert set(simulated.values()) == {1}
    assert len(simulated) == read_plan(runs[0] / "plan.json").simulations
    stored = {path.stem for path in (runs[1] / "artifacts").glob("outcomes/*/*.safetensors")}
    assert stored == set(simulated)


def test_the_resumed_run_leaves_the_same_volumes(runs: tuple[Path, Path, Path]) -> None:
    found = [sorted((folder / "finalists").glob("*/*.nii.gz")) for folder in runs[:2]]
    names = [[path.relative_to(folder) for path in paths] for folder, paths in zip(runs[:2], found, strict=True)]
    assert names[0] == names[1] != []
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(np.asanyarray(nib.load(one).dataobj), np.asanyarray(nib.load(two).dataobj))
