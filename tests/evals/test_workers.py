"""Workers: cases answered in other processes give what one process gives, also stopped, killed and tried again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.prepare import Evaluation
from evals.results import ANSWER, CASES, Answer, Limits
from evals.runner import run_evaluation
from evals.solver import PlannerAgent, shared
from evals.workers import Job, default_processes, run_in_processes
from models.errors import CaseError, RunError, RunStopped
from tests.agent.fake_tools import FakeWorld, fake_services
from tests.evals.fake_dataset import SETTINGS, dataset, spec
from tests.evals.test_runner import CONSTANT, baselines, plain

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
ROOT = Path(__file__).resolve().parents[2]


def planner(spec, data):
    """The planner on a scripted world; called in the worker, so that it is a function of a module."""

    def make(run, facts, stop):
        log = run.folder.parent / "simulated.log"
        delay = 0.15 if (run.folder.parents[4] / "slow").exists() else 0.0
        return fake_services(FakeWorld(log, delay=delay))(run, facts, stop)

    return PlannerAgent(spec.settings, shared(make), limits=spec.limits)


def who(spec, data):
    """Says which process answers; a file `break` beside the evaluation's folder asks for a fault in a case."""

    def agent(job):
        switch = job.root.parent / "break"
        asked = switch.read_text() if switch.exists() else ""
        if job.case.case_id == "case-2" and asked == "fail":
            raise CaseError("The case can't be read.")
        if job.case.case_id == "case-3" and asked == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.case.case_id == "case-3" and asked == "bug":
            raise ZeroDivisionError("a bug")
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "pid").write_text(str(os.getpid()))
        if job.shared is not None:
            job.shared.mkdir(parents=True, exist_ok=True)
            before = [path.name for path in job.shared.iterdir()]
            (job.folder / "found").write_text(" ".join(before))
            (job.shared / job.root.name).touch()
        return Answer(case_id=job.case.case_id, epoch=job.epoch, status="answered", protocol=CONSTANT)

    return agent


def job(folder, data=None, **changes):
    data = data or dataset(4)
    return Job(folder, Evaluation(spec(data, **changes), data, who(None, None), baselines))


def run(jobs, make_agent, processes=1, **options):
    told = []
    found = run_in_processes(
        jobs, processes, done=lambda answer, kept: told.append((answer.case_id, kept)), make_agent=make_agent, **options
    )
    return found, told


def test_two_processes_give_what_one_gives(tmp_path, folder):
    ((found,), told) = run([job(folder)], planner, processes=2)
    data = dataset(4)
    alone = run_evaluation(tmp_path / "alone", spec(data), data, planner(spec(data), data), baselines)
    assert plain(found) == plain(alone)
    assert sorted(told) == [(f"case-{n}", False) for n in (1, 2, 3, 4)]
    assert {path.name for path in (folder / CASES / "case-1").iterdir()} == {"1", "baselines.json"}
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"{CASES}/*/*/{ANSWER}")}
    ((again,), told) = run([job(folder)], planner)
    assert plain(again) == plain(found)
    assert sorted(told) == [(f"case-{n}", True) for n in (1, 2, 3, 4)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_epochs_of_a_case_are_answered_by_one_process(folder):
    """They share its scans, which are written once and removed when all epochs are through."""
    run([job(folder, epochs=3)], who, processes=2)
    pids = [{(folder / CASES / f"case-{n}" / str(e) / "pid").read_text() for e in (1, 2, 3)} for n in (1, 2, 3, 4)]
    assert all(len(found) == 1 for found in pids)
    assert len(set.union(*pids)) == 2


def test_the_parts_of_a_case_are_answered_by_one_process_and_share_a_folder_until_all_are_through(tmp_path):
    together = tmp_path / "shared"
    jobs = [job(tmp_path / name) for name in ("first", "second")]
    _, told = run(jobs, who, processes=2, shared=together)
    assert len(told) == 8
    pids = set()
    for n in (1, 2, 3, 4):
        one, two = (tmp_path / name / CASES / f"case-{n}" / "1" for name in ("first", "second"))
        assert (one / "pid").read_text() == (two / "pid").read_text()
        assert ((one / "found").read_text(), (two / "found").read_text()) == ("", "first")
        pids.add((one / "pid").read_text())
    assert len(pids) == 2
    assert str(os.getpid()) not in pids
    assert not together.exists()


def test_a_failed_case_is_counted_and_tried_again(folder):
    (folder.parent / "break").write_text("fail")
    ((found,), told) = run([job(folder)], who, shared=folder.parent / "shared")
    assert [row.status for row in found.rows] == ["answered", "failed", "answered", "answered"]
    assert found.rows[1].why == "The case can't be read."
    assert len(told) == 4
    (folder.parent / "break").unlink()
    ((found,), told) = run([job(folder)], who)
    assert [row.status for row in found.rows] == ["answered"] * 4
    # first what is there: the bar counts the time that the others take
    assert told == [("case-1", True), ("case-3", True), ("case-4", True), ("case-2", False)]


def test_a_case_at_its_limit_stops_no_other(folder):
    limits = Limits(tool_calls=5)
    ((found,), _) = run([job(folder, dataset(2), limits=limits)], planner)
    assert [(row.status, row.why) for row in found.rows] == [("limit", "stopped at the limit of 5 tool calls")] * 2


@pytest.mark.parametrize(
    ("broken", "error", "words"), [("kill", RunError, "was killed"), ("bug", ZeroDivisionError, "a bug")]
)
def test_a_worker_that_dies_or_has_a_bug_ends_the_evaluation_and_keeps_what_was_finished(folder, broken, error, words):
    (folder.parent / "break").write_text(broken)
    with pytest.raises(error, match=words):
        run([job(folder)], who)
    assert len(list(folder.glob(f"{CASES}/*/*/{ANSWER}"))) == 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_no_process_behind_and_the_evaluation_goes_on(tmp_path, folder, sent):
    script = (
        "import sys; from pathlib import Path; from models.errors import RunStopped\n"
        "from tests.evals.test_workers import job, planner, run\n"
        "if __name__ == '__main__':\n"
        "    try: run([job(Path(sys.argv[1]))], planner, processes=2)\n"
        "    except (KeyboardInterrupt, RunStopped): sys.exit(130)\n"
    )
    (tmp_path / "evaluate.py").write_text(script)
    (tmp_path / "slow").touch()
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "evaluate.py"), str(folder)], cwd=ROOT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(folder.glob(f"{CASES}/*/*/simulated.log")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, sent)  # to the parent only: the workers have to notice by themselves
    _, errors = child.communicate(timeout=120)
    assert child.returncode == (RunStopped.exit_code if sent == signal.SIGINT else -sent), errors
    while _group(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    data = dataset(4)
    runs = [
        run_evaluation(at, spec(data), data, planner(spec(data), data), baselines) for at in (folder, tmp_path / "new")
    ]
    assert plain(runs[0]) == plain(runs[1])


def _group(group: int) -> bool:
    """Whether any process of a process group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_only_plans_of_the_embedded_policy_on_a_cpu_take_several_processes_by_themselves():
    data = dataset(4)
    on_cpu = {"weights": "none", "device": "cpu"}
    assert default_processes(spec(data, conditions=on_cpu), 1) == 1
    assert 1 <= default_processes(spec(data, conditions=on_cpu), 100) <= 4
    assert default_processes(spec(data, conditions={"device": "cuda"}), 100) == 1
    assert default_processes(spec(data, conditions=on_cpu, stage="propose"), 100) == 1
    asks = SETTINGS.model_copy(update={"policy_llm": "mine"})
    assert default_processes(spec(data, conditions=on_cpu, settings=asks), 100) == 1
