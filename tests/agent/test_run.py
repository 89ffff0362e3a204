"""Run folders: kill and resume, stop and resume, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from agent.plan import read_plan
from agent.run import open_run, start_run
from agent.settings import PlannerSettings
from agent.trace import TIMING_FIELDS, read_trace
from models.errors import CaseError, RunError
from tests.agent.fake_tools import FakeWorld, fake_services, make_case

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = PlannerSettings(actions="hcc_tace_seg")


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "case")


def finish(run, world):
    return list(run.execute(fake_services(world)))[-1].plan


def child(case, folder, log, kill_after=0, delay=0.0):
    command = [sys.executable, "-m", "tests.agent.killed_run", case, folder, log, kill_after, delay]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def same(folder, other):
    """Plan and trace of two runs are equal but for timing."""
    one, two = read_plan(folder / "plan.json"), read_plan(other / "plan.json")
    drop = {"execution": True, "reproduction": {"command"}}
    assert one.model_dump(exclude=drop) == two.model_dump(exclude=drop)
    traces = [read_trace(path / "trace.jsonl") for path in (folder, other)]
    plain = [[d.model_dump(exclude=set(TIMING_FIELDS)) for d in trace] for trace in traces]
    assert plain[0] == plain[1]
    ids = [d.decision_id for d in traces[0]]
    assert len(set(ids)) == len(ids)


def test_killed_again_and_again_inside_the_search_the_run_gives_the_same_plan(tmp_path, case):
    unbroken = tmp_path / "unbroken"
    finish(start_run(case, unbroken, SETTINGS), FakeWorld(tmp_path / "unbroken.log"))
    folder, log = tmp_path / "run", tmp_path / "log"
    for kill_after in (5, 23):
        killed = child(case, folder, log, kill_after)
        _, errors = killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL, errors
        assert not (folder / "plan.json").exists()
    before = len(log.read_text().splitlines())
    assert before == 5 + 23
    world = FakeWorld(log)
    plan = finish(open_run(folder), world)
    same(folder, unbroken)
    # What the killed processes had simulated was not simulated again.
    assert set(Counter(world.simulated()).values()) == {1}
    assert plan.execution.from_cache > 0
    assert plan.chosen == read_plan(unbroken / "plan.json").chosen


def test_resuming_a_finished_run_exports_the_same_files_again(tmp_path, case):
    folder = tmp_path / "run"
    world = FakeWorld(tmp_path / "log")
    finish(start_run(case, folder, SETTINGS), world)
    kept = {name: (folder / name).read_bytes() for name in ("plan.json", "trace.jsonl")}
    calls = [len(tool.calls) for tool in world.tools.values()]
    (folder / "plan.json").unlink()
    (folder / "trace.jsonl").write_text("damaged\n")
    finish(open_run(folder), world)
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert [len(tool.calls) for tool in world.tools.values()] == calls


def test_ctrl_c_stops_within_seconds_says_how_to_resume_and_the_run_goes_on(tmp_path, case):
    folder, log = tmp_path / "run", tmp_path / "log"
    process = child(case, folder, log, delay=0.05)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 130, errors
    assert f"resume with: mewm resume {folder}" in errors
    assert "Traceback" not in errors
    finish(open_run(folder), FakeWorld(log))
    unbroken = tmp_path / "unbroken"
    finish(start_run(case, unbroken, SETTINGS), FakeWorld(tmp_path / "unbroken.log"))
    same(folder, unbroken)


def test_run_json_says_what_the_run_is(tmp_path, case):
    run = start_run(case, tmp_path / "run", PlannerSettings(seed=3, strict=True, beams=2), "spare the liver")
    data = json.loads((tmp_path / "run" / "run.json").read_text())
    assert data["format_version"] == 1
    assert data["case_path"] == str(case)
    assert len(data["case_hash"]) == 64
    assert data["settings"]["beams"] == 2
    assert run.command == f"mewm plan {case} --goal 'spare the liver' --beams 2 --seed 3 --strict"
    assert open_run(tmp_path / "run").record == run.record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "has format version 99, this program reads 1"),
        ({"format_version": None}, "has format version None"),
        ({"settings": {"beams": "many"}}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
    ],
)
def test_a_run_of_another_version_or_a_damaged_one_is_refused(tmp_path, case, change, message):
    start_run(case, tmp_path / "run", SETTINGS)
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=message):
        open_run(tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="There is no run in"):
        open_run(tmp_path / "nothing")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="can't be read"):
        open_run(tmp_path)


def test_a_case_that_changed_since_the_run_began_is_refused(tmp_path, case):
    run = start_run(case, tmp_path / "run", SETTINGS)
    path = case / "case.json"
    data = json.loads(path.read_text())
    data["origin_note"] = "another one"
    path.write_text(json.dumps(data))
    with pytest.raises(RunError, match="has changed since the run"):
        finish(run, FakeWorld(tmp_path / "log"))
    image = next(case.glob("pre_arterial*"))
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(CaseError):
        finish(run, FakeWorld(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_an_unwritable_run_folder_is_a_sentence_and_leaves_nothing(tmp_path, case):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(RunError, match=r"can't be written .*choose another with --run"):
        start_run(case, blocker / "run", SETTINGS)
    assert blocker.read_text() == "not a folder"


def test_a_folder_that_is_in_use_is_not_overwritten(tmp_path, case):
    start_run(case, tmp_path / "run", SETTINGS)
    with pytest.raises(RunError, match="holds a run already: go on with `mewm resume`"):
        start_run(case, tmp_path / "run", SETTINGS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        start_run(case, other, SETTINGS)


def test_a_missing_case_makes_no_run_folder(tmp_path):
    with pytest.raises(CaseError):
        start_run(tmp_path / "nowhere", tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_are_a_sentence(tmp_path, case):
    run = start_run(case, tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "checkpoints.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(RunError, match=r"checkpoints of .* can't be used"):
        finish(run, FakeWorld(tmp_path / "log"))
