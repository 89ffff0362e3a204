"""Measured patients are kept: a stopped evaluation goes on, alone and in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from evals.model_card.collect import Measure, Row, collect, folder_of
from models.errors import RunError


def square(log: Path | None, seed: int) -> Row:
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{seed} {os.getpid()}\n")
        if seed == 5 and not log.with_suffix(".second").exists():
            log.with_suffix(".second").touch()
            raise RuntimeError("killed")
    return {"seed": seed, "value": seed * seed}


@dataclass(frozen=True)
class Build:
    """Picklable, as for processes."""

    log: Path | None = None

    def __call__(self) -> Measure:
        return partial(square, self.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    rows = collect(tmp_path, range(4), Build(), workers, lambda done, wanted: seen.append((done, wanted)))
    assert rows == [{"seed": seed, "value": seed * seed} for seed in range(4)]
    assert seen == [(done, 4) for done in range(5)]


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log"
    folder = tmp_path / "rows"
    with pytest.raises(RuntimeError, match="killed"):
        collect(folder, range(8), Build(log))
    assert sorted(path.name for path in folder.iterdir()) == [f"{seed}.json" for seed in range(5)]
    rows = collect(folder, range(8), Build(log))
    assert [row["value"] for row in rows] == [seed**2 for seed in range(8)]
    measured = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert measured == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    # more patients later: only the new ones
    collect(folder, range(10), Build(log))
    assert len(log.read_text().splitlines()) == 11


def test_other_conditions_lie_in_another_folder(tmp_path: Path) -> None:
    one, again, other = (folder_of(tmp_path, {"weights": name, "n": 1}) for name in ("a", "a", "b"))
    assert one == again != other
    assert json.loads((one / "conditions.json").read_text()) == {"weights": "a", "n": 1}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="can't be written"):
        folder_of(tmp_path / "file", {"a": 1})


ENDLESS = """
import os, sys, time
from pathlib import Path
from evals.model_card.collect import collect

def measure(seed):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

def build():
    return measure

if __name__ == "__main__":
    collect(Path(sys.argv[2]), range(4), build, 2)
"""


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script, pids = tmp_path / "endless.py", tmp_path / "pids"
    script.write_text(ENDLESS)
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids), str(tmp_path / "rows")])
    try:
        deadline = time.monotonic() + 120
        while len(list(pids.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [int(path.name) for path in pids.iterdir()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
