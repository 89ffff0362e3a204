"""Run folders: kill and resume, stop and resume, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from agent.plan import read_plan
from agent.run import open_run, start_run
from agent.settings import PlannerSettings
from agent.trace import TIMING_FIELDS, read_trace
from models.case import Case, ImageMeta, write_case
from models.errors import CaseError, PlanningError, RunError, RunStopped, ToolError, WeightsError
from models.volume import Volume
from tests.agent.cut_off import copied_after_every_write, killed_while_writing
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


def test_cut_off_after_any_write_of_the_checkpoints_the_run_gives_the_same_plan(tmp_path, case):
    """The output of a node and the checkpoint that follows it are two writes, and a kill falls between them too."""
    unbroken = tmp_path / "unbroken"
    run = start_run(case, unbroken, PlannerSettings(actions="hcc_tace_seg", beams=1))
    with copied_after_every_write(unbroken, tmp_path) as copies:
        finish(run, FakeWorld(tmp_path / "log"))
    assert {copy.name.split("-")[1] for copy in copies} == {"put", "put_writes"}
    assert len(copies) > 20
    for copy in copies[:-1]:
        standing = open_run(copy).look()
        assert standing.status in ("new", "unfinished") or standing.plan is not None, copy.name
    for copy in copies[:-1:5]:
        finish(open_run(copy), FakeWorld(tmp_path / "log"))
        same(copy, unbroken)


def test_a_run_that_another_process_is_at_work_on_is_not_taken_back(tmp_path, case):
    run = start_run(case, tmp_path / "run", SETTINGS)
    with (run.folder / "run.json").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RunError, match="at work already"):
            finish(run, FakeWorld(tmp_path / "log"))
    assert (run.folder / "run.json").exists()
    finish(run, FakeWorld(tmp_path / "log"))


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


def test_ctrl_c_stops_between_two_simulations_says_how_to_resume_and_the_run_goes_on(tmp_path, case):
    folder, log = tmp_path / "run", tmp_path / "log"
    process = child(case, folder, log, delay=0.2)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    simulated = len(log.read_text().splitlines())
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    # Counted in simulations and not in seconds, so that a busy machine can't fail it: the one at work is finished.
    assert len(log.read_text().splitlines()) <= simulated + 5
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
    with pytest.raises(RunError, match=r"can't be written .*choose another"):
        start_run(case, blocker / "run", SETTINGS)
    assert blocker.read_text() == "not a folder"


@pytest.mark.parametrize("inner", ["x" * 300, f"{'x' * 300}/run"])
def test_a_run_folder_that_can_not_be_made_leaves_no_parents(tmp_path, case, inner):
    with pytest.raises(RunError, match=r"can't be written \(File name too long\): choose another"):
        start_run(case, tmp_path / "new" / "runs" / inner, SETTINGS)
    assert not (tmp_path / "new").exists()


def test_a_run_folder_in_one_that_may_not_be_searched_is_a_sentence(tmp_path, case, monkeypatch):
    def closed(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)  # root, as tests may run, may search every folder
    with pytest.raises(RunError, match=r"can't be written \(Permission denied\)"):
        start_run(case, tmp_path / "run", SETTINGS)


def test_a_run_json_that_can_not_be_written_leaves_no_folder(tmp_path, case, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agent.files.tempfile.mkstemp", full)
    with pytest.raises(RunError, match="No space left on device"):
        start_run(case, tmp_path / "new" / "run", SETTINGS)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="No space left on device"):
        start_run(case, tmp_path / "mine", SETTINGS)
    assert (tmp_path / "mine").is_dir()  # a folder that was there stays


def test_a_folder_that_is_in_use_is_not_overwritten(tmp_path, case):
    start_run(case, tmp_path / "run", SETTINGS)
    with pytest.raises(RunError, match="holds a run already: go on with `mewm resume`"):
        start_run(case, tmp_path / "run", SETTINGS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        start_run(case, other, SETTINGS)


def test_a_kill_while_a_run_is_begun_does_not_keep_its_folder_from_use(tmp_path, case):
    killed_while_writing(tmp_path / "run" / "run.json")
    start_run(case, tmp_path / "run", SETTINGS)
    assert open_run(tmp_path / "run").record.case_path == str(case.resolve())


def test_a_missing_case_makes_no_run_folder(tmp_path):
    with pytest.raises(CaseError):
        start_run(tmp_path / "nowhere", tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_are_a_sentence(tmp_path, case):
    run = start_run(case, tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "checkpoints.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(RunError, match=r"checkpoints of .* can't be used"):
        finish(run, FakeWorld(tmp_path / "log"))


def test_a_case_without_labels_makes_no_run_folder(tmp_path, case):
    whole = Case.load(case)
    images = {ImageMeta("pre_arterial", "pre", "arterial"): whole.volume("pre_arterial")}
    write_case(tmp_path / "bare", "bare", "synthetic", "made for a test", images)
    with pytest.raises(CaseError, match="has no labels"):
        start_run(tmp_path / "bare", tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_plan_says_which_phase_it_left_out_because_the_labels_do_not_fit_it(tmp_path, case):
    whole = Case.load(case)
    volume = whole.volume("pre_arterial")
    moved = Volume(volume.data, volume.affine + np.array([[0, 0, 0, 9.0], *[[0] * 4] * 3]))
    images = {ImageMeta("portal", "pre", "portal"): volume, ImageMeta("arterial", "pre", "arterial"): moved}
    write_case(tmp_path / "two", "two", "real", "Made for a test.", images, whole.label_array(), labels_image="portal")
    world = FakeWorld(tmp_path / "log")
    plan = finish(start_run(tmp_path / "two", tmp_path / "run", SETTINGS), world)
    assert plan.origin.case_note == (
        "Made for a test. Planned on portal (portal phase), because arterial (arterial phase) is on another grid than "
        "the labels."
    )


class BrokenWorld(FakeWorld):
    def conditions(self):
        raise WeightsError("The weights are damaged; restore them.")


def test_a_new_run_that_fails_before_anything_was_simulated_leaves_nothing(tmp_path, case):
    world = BrokenWorld(tmp_path / "log")
    folder = tmp_path / "runs" / "one" / "run"
    for _ in range(2):  # the second time it fails for the same reason, not for what the first left
        with pytest.raises(WeightsError):
            finish(start_run(case, folder, SETTINGS), world)
        assert not (tmp_path / "runs").exists()
    small = SETTINGS.model_copy(update={"strategy": "paper", "budget": 30})
    (tmp_path / "mine").mkdir()
    with pytest.raises(PlanningError, match="budget"):
        finish(start_run(case, tmp_path / "mine", small), FakeWorld(tmp_path / "log"))
    assert list((tmp_path / "mine").iterdir()) == []  # a folder that was there stays


def test_what_was_simulated_or_was_there_before_is_never_taken_back(tmp_path, case):
    folder = tmp_path / "run"
    start_run(case, folder, SETTINGS)
    with pytest.raises(WeightsError):
        finish(open_run(folder), BrokenWorld(tmp_path / "log"))
    assert (folder / "run.json").is_file()
    run = start_run(case, tmp_path / "other", SETTINGS)
    stored = tmp_path / "other" / "artifacts" / "outcomes" / "ab" / "outcome-ab.safetensors"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"")
    with pytest.raises(WeightsError):
        finish(run, BrokenWorld(tmp_path / "log"))
    assert stored.is_file()
    assert open_run(tmp_path / "other").record == run.record


def stopped_in_the_search(case, folder, log):
    """A run that was stopped after a few simulations."""
    world = FakeWorld(log)
    stop = threading.Event()

    def listen(listener):
        def heard(*progress):
            if listener is not None:
                listener(*progress)
            if len(world.simulated()) > 7:
                stop.set()

        world.listener = heard

    world.listen = listen
    with pytest.raises(RunStopped):
        list(start_run(case, folder, SETTINGS).execute(fake_services(world), stop))
    assert len(world.simulated()) > 7


def test_a_run_is_not_resumed_under_other_weights(tmp_path, case):
    stopped_in_the_search(case, tmp_path / "run", tmp_path / "log")
    other = FakeWorld(tmp_path / "log")
    other.weights_hash = "otherweights"
    with pytest.raises(RunError, match="weights hash: fakeweights, now otherweights"):
        finish(open_run(tmp_path / "run"), other)
    plan = finish(open_run(tmp_path / "run"), FakeWorld(tmp_path / "log"))
    assert (plan.reproduction.device, plan.reproduction.precision, plan.reproduction.preset) == ("cpu", "fp32", "fake")
    finish(open_run(tmp_path / "run"), other)  # a finished run computes nothing more


def test_checkpoints_of_older_code_are_a_sentence(tmp_path, case):
    stopped_in_the_search(case, tmp_path / "run", tmp_path / "log")
    with closing(sqlite3.connect(tmp_path / "run" / "checkpoints.sqlite")) as database, database:
        for table, column in (("checkpoints", "checkpoint"), ("writes", "value")):
            rows = database.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            renamed = [(blob.replace(b"origin_note", b"origin_word"), row) for row, blob in rows]
            database.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", renamed)
    with pytest.raises(RunError, match=r"another version of this program \(case.origin_note does not fit\)"):
        finish(open_run(tmp_path / "run"), FakeWorld(tmp_path / "log"))


def test_the_command_says_which_settings_it_cannot_give(tmp_path, case):
    settings = PlannerSettings(finalists=3, beams=2)
    command = start_run(case, tmp_path / "run", settings).command
    assert command == f"mewm plan {case} --beams 2  # with finalists=3, which have no option"


def test_a_run_with_shared_artifacts_is_taken_back_only_where_nothing_was_simulated(tmp_path, case):
    shared = tmp_path / "shared"
    (shared / "outcomes").mkdir(parents=True)
    (shared / "outcomes" / "another-run.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError):
        finish(start_run(case, tmp_path / "new", SETTINGS, artifacts=shared), BrokenWorld(tmp_path / "log"))
    assert not (tmp_path / "new").exists()
    world = FakeWorld(tmp_path / "log")

    def broken(**arguments):
        raise ToolError("The segmenter is gone.")

    segment, world.tools["segment"].function = world.tools["segment"].function, broken
    run = start_run(case, tmp_path / "run", SETTINGS, artifacts=shared)
    with pytest.raises(ToolError):
        finish(run, world)
    assert run.look().status == "unfinished"
    world.tools["segment"].function = segment
    assert finish(open_run(tmp_path / "run"), world).chosen is not None
    assert set(Counter(world.simulated()).values()) == {1}
    assert (shared / "outcomes" / "another-run.safetensors").exists()


def test_only_the_agents_that_were_left_are_proposed(tmp_path, case):
    run = start_run(case, tmp_path / "run", SETTINGS, agents=("Cisplatin", "Lipiodol"))
    assert [item.name for item in run.formulary.items] == ["Cisplatin", "Lipiodol"]
    assert open_run(tmp_path / "run").record.agents == ("Cisplatin", "Lipiodol")
    assert "agents=Cisplatin, Lipiodol" in run.command
