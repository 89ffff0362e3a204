"""The runner: broken agents land where theory says, a killed run goes on, limits, failures, scripted policies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.guideline import GuidelinePolicy
from agent.policy import Choice, Proposal, Provenance
from agent.trace import read_trace
from evals.compare import Side, compare
from evals.measures import METRICS
from evals.report.summary import summarise
from evals.report.tables import effort
from evals.results import (
    ANSWER,
    CASES,
    SPEC_FILE,
    Answer,
    BaselineAnswer,
    BaselineAnswers,
    Limits,
    read_run,
)
from evals.runner import run_evaluation
from evals.solver import CaseJob, PlannerAgent, shared, usage_of
from models.clinical_record import ClinicalRecord
from models.errors import CaseError, RunError, RunStopped
from models.protocol import Dose, Protocol
from tests.agent.cut_off import killed_while_writing
from tests.agent.fake_tools import FakeWorld, fake_services
from tests.evals.fake_dataset import SETTINGS, SPACE, FakeCase, Says, dataset, protocol, spec

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
ROOT = Path(__file__).resolve().parents[2]
CONSTANT = protocol(["Doxorubicin"], ["Lipiodol"])
EVERYTHING = protocol([i.name for i in SPACE.formulary.drugs], [i.name for i in SPACE.formulary.embolics])
FORBIDDEN = protocol(["Cisplatin"], [])  # no embolic: outside the horizons and blocked as a finished protocol


def baselines(case: FakeCase) -> BaselineAnswers:
    said = dict.fromkeys(case.gold, CONSTANT)
    return BaselineAnswers(answers={"constant": BaselineAnswer(label="constant", protocols=said)}, not_run={})


def evaluate(folder, agent, data=None, **options):
    data = data or dataset(4)
    changes = {k: options.pop(k) for k in ("epochs", "stage", "limits", "settings", "backend") if k in options}
    return run_evaluation(folder, spec(data, **changes), data, agent, baselines, **options)


def worlds(log: Path, policy=None, **options):
    """Services over a scripted world, each case with a log of its own."""

    def make(run, facts, stop):
        world = FakeWorld(log / f"{facts.case_id}.log", **options)
        return fake_services(world, policy)(run, facts, stop)

    log.mkdir(parents=True, exist_ok=True)
    return make


# ---------------------------------------------------------------------------------------------- broken agents
def test_an_agent_that_says_nothing_scores_zero_and_the_worst_regret(folder):
    run = evaluate(folder, Says(None))
    for row in run.rows:
        for score in row.own.scores.values():
            assert (score.f1, score.jaccard, score.precision, score.recall, score.exact) == (0, 0, 0, 0, False)
            assert score.invalid
        assert row.own.regret.of_range == 1.0
        assert row.own.violations is None
        assert row.status == "blocked"
    line = summarise([run], draws=200).boards[0].line("own")
    assert line.empty == line.n == 4
    assert line.figures["f1"].mean == line.figures["f1"].high == 0.0
    assert line.micro_f1 == 0.0


def test_an_agent_that_says_everything_has_full_recall_and_the_precision_of_chance(folder):
    run = evaluate(folder, Says(EVERYTHING))
    items = len(EVERYTHING.items)
    for row in run.rows:
        gold = len(row.gold["best"].items)
        score = row.own.scores["best"]
        assert score.recall == 1.0
        assert score.precision == pytest.approx(gold / items)
        assert score.f1 == pytest.approx(2 * gold / (gold + items))
        assert score.jaccard == pytest.approx(gold / items)
        table = FakeCase(row.case_id).truth
        assert row.own.regret.allowed
        assert row.own.regret.of_range == pytest.approx(table.regret(EVERYTHING))
        assert row.own.regret.true_risk == pytest.approx(table.log_hazard[table.protocols.index(EVERYTHING)])


def test_a_constant_agent_equals_the_constant_baseline_in_every_figure(folder):
    run = evaluate(folder, Says(CONSTANT))
    for row in run.rows:
        by_hand = len(set(CONSTANT.items) & set(row.gold["best"].items))
        assert row.own.scores["best"].f1 == pytest.approx(2 * by_hand / (2 + len(row.gold["best"].items)))
        table = FakeCase(row.case_id).truth
        risks = dict(zip(table.protocols, table.log_hazard, strict=True))
        share = (risks[CONSTANT] - min(risks.values())) / (max(risks.values()) - min(risks.values()))
        assert row.own.regret.of_range == pytest.approx(share)
    found = compare(Side(run, "constant"), Side(run, "own"), draws=200)
    assert {d.mean for d in found.differences} == {0.0}
    assert {d.p for d in found.differences} == {1.0}
    summary = summarise([run], draws=200)
    assert summary.boards[0].line("own").figures["f1"] == summary.boards[0].line("constant").figures["f1"]


def test_an_agent_that_says_what_the_rules_forbid_is_counted_and_gains_nothing_by_it(folder):
    run = evaluate(folder, Says(FORBIDDEN))
    for row in run.rows:
        assert row.own.violations.count >= 1
        assert row.own.regret.of_range == 1.0
        assert row.own.regret.win_vs_given == 0.0
    line = summarise([run], draws=200).boards[0].line("own")
    assert line.figures["violations"].mean >= 1.0


def test_a_degraded_plan_is_empty_and_its_fallback_stands_beside_it(folder):
    class Degraded(Says):
        def __call__(self, job):
            found = super().__call__(job)
            return found.model_copy(update={"status": "degraded", "why": "the backend is down"})

    run = evaluate(folder, Degraded(CONSTANT))
    summary = summarise([run], draws=200)
    own, fallback, constant = (summary.boards[0].line(who) for who in ("own", "fallback", "constant"))
    assert own.figures["f1"].mean == 0.0
    assert own.figures["gold_recall"].mean == own.figures["best_recall"].mean == 0.0
    assert own.figures["best_within"].mean == 1.0
    assert own.empty == 4
    assert fallback.figures["seconds"] == own.figures["seconds"]  # it is the same run
    assert fallback.figures["f1"] == constant.figures["f1"]
    assert summary.cases[0].protocol == "none"
    assert summary.cases[0].fallback == CONSTANT.key


def by_hand(answer, gold, case):
    """Every quality metric of one answer from its definition, with plain sets; None answers nothing."""
    kinds = {i.name: i.kind for i in SPACE.formulary.items}
    classes = {i.name: i.name if i.item_class == "unclassified" else i.item_class for i in SPACE.formulary.items}
    said, wanted = set(answer.items) if answer else set(), set(gold.items)

    def f1(a, b):
        return 1.0 if not a and not b else 2 * len(a & b) / (len(a) + len(b))

    def side(names, kind):
        return {name for name in names if kinds[name] == kind}

    risks = dict(zip(case.truth.protocols, case.truth.log_hazard, strict=True))
    best, worst, mean = min(risks.values()), max(risks.values()), sum(risks.values()) / len(risks)
    risk = risks.get(answer, worst)
    given = case.truth.given_log_hazard
    return {
        "f1": f1(said, wanted), "jaccard": len(said & wanted) / len(said | wanted),
        "precision": len(said & wanted) / len(said) if said else 0.0, "recall": len(said & wanted) / len(wanted),
        "exact": float(said == wanted), "drug_f1": f1(side(said, "drug"), side(wanted, "drug")),
        "embolic_f1": f1(side(said, "embolic"), side(wanted, "embolic")),
        "class_f1": f1({classes[n] for n in said}, {classes[n] for n in wanted}),
        "regret": (risk - best) / (worst - best), "regret_of_random": risk - best, "random": mean - best,
        "win_vs_given": float(answer in risks and risk < given) + 0.5 * float(answer in risks and risk == given),
        "violations": float(answer is not None and answer not in risks), "stability": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("answer", [None, EVERYTHING, CONSTANT, FORBIDDEN], ids=["empty", "everything", "constant",
                                                                                 "blocked"])  # fmt: skip
def test_a_broken_agent_lands_where_theory_says_in_every_metric(folder, answer):
    data = dataset(6)
    run = evaluate(folder, Says(answer), data, epochs=2)
    for board in summarise([run], draws=200).boards:
        figures = board.line("own").figures
        expected = [by_hand(answer, case.gold[board.variant], case) for case in data.cases]
        known = {name for name, metric in METRICS.items() if metric.quality or name == "stability"} & set(figures)
        # no gold of this dataset has a dose, and the agent proposes no action space; of those see below
        # of random: a ratio of means, so that no case in which all protocols are near ties rules it
        random = np.mean([one.pop("random") for one in expected])
        assert known == set(expected[0]), board.variant
        for name in expected[0]:
            wanted = np.mean([one[name] for one in expected]) / (random if name == "regret_of_random" else 1.0)
            assert figures[name].mean == pytest.approx(wanted, abs=1e-12), (board.variant, name)
        hits, said, wanted = (sum(sizes) for sizes in zip(*(
            (len(set(case.gold[board.variant].items) & set(answer.items if answer else ())),
             len(answer.items) if answer else 0, len(case.gold[board.variant].items))
            for case in data.cases
        ), strict=True))  # fmt: skip
        assert board.line("own").micro_f1 == pytest.approx(2 * hits / (said + wanted))


def test_a_full_protocol_that_the_rules_block_counts_as_the_worst_and_scores_as_what_it_names(folder):
    """No anthracycline with a weak heart: Doxorubicin | Lipiodol is complete, within the horizons, and blocked."""
    record = ClinicalRecord(lvef_percent=40.0)
    cases = tuple(FakeCase(f"case-{index}", record=record) for index in range(1, 5))
    data = replace(dataset(4), cases=cases, pool=cases)
    run = evaluate(folder, Says(CONSTANT), data)
    for row in run.rows:
        assert row.own.violations.blocking == ("P17",)
        assert (row.own.regret.of_range, row.own.regret.allowed) == (1.0, False)
    figures = summarise([run], draws=200).boards[0].line("own").figures
    expected = [by_hand(CONSTANT, case.gold["best"], case) for case in cases]
    for name in ("f1", "jaccard", "precision", "recall", "regret", "win_vs_given", "violations"):
        assert figures[name].mean == pytest.approx(np.mean([one[name] for one in expected])), name
    assert figures["violations"].mean == 1.0


DOSED = Protocol(
    drugs=("Cisplatin", "Doxorubicin"), embolics=("Lipiodol",),
    doses=(("Cisplatin", Dose(amount=50, unit="mg")), ("Doxorubicin", Dose(amount=60, unit="mg"))),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "space", "doses"),
    [
        (None, (), None),
        (CONSTANT, ("Doxorubicin", "Lipiodol"), None),  # states no dose: not judged
        (EVERYTHING, EVERYTHING.items, None),
        (DOSED, DOSED.items, 1.0),
        # Doxorubicin is 50 to 75 mg in the formulary
        (DOSED.model_copy(update={"doses": (DOSED.doses[0], ("Doxorubicin", Dose(amount=500, unit="mg")))}), (), 0.5),
    ],
    ids=["empty", "constant", "everything", "gold", "overdosed"],
)
def test_doses_and_action_spaces_of_broken_agents(folder, said, space, doses):
    class Dosed(FakeCase):
        @property
        def gold(self):
            return {"best": DOSED, "with_oil": DOSED}

    class Spaced(Says):
        def __call__(self, job):
            return super().__call__(job).model_copy(update={"space": space})

    cases = tuple(Dosed(f"case-{index}") for index in range(1, 4))
    run = evaluate(folder, Spaced(said), replace(dataset(3), cases=cases, pool=cases))
    figures = summarise([run], draws=200).boards[0].line("own").figures
    assert (figures["dose_within"].mean if "dose_within" in figures else None) == doses
    assert figures["gold_recall"].mean == pytest.approx(len(set(space) & set(DOSED.items)) / 3)
    best = [set(case.truth.best.items) for case in cases]
    assert figures["best_recall"].mean == pytest.approx(np.mean([len(set(space) & one) / len(one) for one in best]))


# ------------------------------------------------------------------------------------- the planner as the agent
def test_the_planner_is_evaluated_on_one_engine_case_by_case(tmp_path, folder):
    agent = PlannerAgent(SETTINGS, shared(worlds(tmp_path / "logs")))
    run = evaluate(folder, agent, parallel=3)
    assert [row.case_id for row in run.rows] == ["case-1", "case-2", "case-3", "case-4"]
    for row in run.rows:
        assert row.status == "answered"
        assert row.own.protocol.drugs
        assert row.own.protocol.embolics
        simulated = (tmp_path / "logs" / f"{row.case_id}.log").read_text().splitlines()
        assert row.usage.simulations == row.usage.by_node["simulate"].simulations == len(simulated)
        decisions = read_trace(folder / row.trace)
        assert row.usage.tool_calls == sum(d.kind == "tool" for d in decisions)
        assert row.usage.seconds == pytest.approx(sum(d.seconds for d in decisions if d.kind == "node"))
        assert row.usage.cost_usd == 0.0
        assert row.space.gold_recall["best"] == 1.0
        assert row.risks
        assert all(risk.true is not None for risk in row.risks)
    # What a finished case needs no longer is gone; what a reader may want to see is there.
    left = {path.name for path in (folder / CASES / "case-1").rglob("*") if path.is_file()}
    assert left == {"baselines.json", ANSWER, "plan.json", "run.json", "trace.jsonl"}


def test_cases_that_run_at_once_never_use_the_engine_at_once(tmp_path, folder):
    at_work, most, lock = [0], [0], threading.Lock()

    class Busy(FakeWorld):
        def simulate_tumor(self, *arguments, **named):
            with lock:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            time.sleep(0.005)
            found = super().simulate_tumor(*arguments, **named)
            with lock:
                at_work[0] -= 1
            return found

    def make(run, facts, stop):
        return fake_services(Busy(tmp_path / f"{facts.case_id}.log"))(run, facts, stop)

    run = evaluate(folder, PlannerAgent(SETTINGS, shared(make)), parallel=4)
    assert {row.status for row in run.rows} == {"answered"}
    assert most[0] == 1


def test_epochs_plan_with_other_seeds_and_give_a_stability(tmp_path, folder):
    run = evaluate(folder, PlannerAgent(SETTINGS, shared(worlds(tmp_path / "logs"))), dataset(2), epochs=2)
    assert [(row.case_id, row.epoch) for row in run.rows] == [(c, e) for c in ("case-1", "case-2") for e in (1, 2)]
    seeds = [json.loads((folder / Path(r.trace).parent / "run.json").read_text())["settings"]["seed"] for r in run.rows]
    assert seeds == [0, 1, 0, 1]
    first, second = (run.rows[i].own.protocol for i in (0, 1))
    same = len(set(first.items) & set(second.items)) / len(set(first.items) | set(second.items))
    summary = summarise([run], draws=200)
    assert summary.boards[0].line("own").n == 2
    assert summary.stability.n == 2
    other = [run.rows[i].own.protocol for i in (2, 3)]
    theirs = len(set(other[0].items) & set(other[1].items)) / len(set(other[0].items) | set(other[1].items))
    assert summary.stability.mean == pytest.approx((same + theirs) / 2)


class Scripted(GuidelinePolicy):
    """Proposes a fixed list; otherwise the embedded policy."""

    name = "scripted"

    def __init__(self, drugs, embolics, tokens=0):
        super().__init__()
        self.drugs, self.embolics, self.tokens = drugs, embolics, tokens

    def propose(self, case, observation, formulary, d, e, goal):
        sides = [tuple(Choice(item=i, reason="scripted") for i in side) for side in (self.drugs, self.embolics)]
        source = Provenance(backend="scripted", requests=1, input_tokens=self.tokens, output_tokens=10, cost_usd=0.01)
        return Proposal(drugs=sides[0], embolics=sides[1], provenance=source)


@pytest.mark.parametrize("image", [True, False])
def test_stage_propose_scores_the_policy_before_anything_is_simulated(tmp_path, folder, image):
    policy = Scripted(("Mitomycin", "Cisplatin"), ("Lipiodol",), tokens=500)
    agent = PlannerAgent(SETTINGS, shared(worlds(tmp_path / "logs", policy)), stage="propose")
    run = evaluate(folder, agent, dataset(3, image), stage="propose")
    assert not list((tmp_path / "logs").glob("*.log"))
    for row in run.rows:
        assert row.own.protocol == protocol(["Mitomycin"], ["Lipiodol"])  # the first pair that the rules allow
        assert set(row.space.items) == {"Mitomycin", "Cisplatin", "Lipiodol"}
        gold = set(row.gold["best"].items)
        assert row.space.gold_recall["best"] == pytest.approx(len(gold & set(row.space.items)) / len(gold))
        assert row.space.best_recall == row.space.gold_recall["best"]
        truth = FakeCase(row.case_id).truth
        pairs = zip(truth.protocols, truth.regrets, strict=True)
        inside = [regret for p, regret in pairs if set(p.items) <= set(row.space.items)]
        assert row.space.best_within == pytest.approx(min(inside))
        assert (row.usage.requests, row.usage.tokens, row.usage.simulations) == (1, 510, 0)
        assert row.usage.cost_usd == pytest.approx(0.01)
        assert row.usage.by_node["propose"].input_tokens == 500


def test_cases_without_an_image_are_not_planned_and_say_so(tmp_path, folder):
    run = evaluate(folder, PlannerAgent(SETTINGS, shared(worlds(tmp_path / "logs"))), dataset(2, image=False))
    assert {row.status for row in run.rows} == {"no_image"}
    assert all(row.own.protocol is None for row in run.rows)


def test_two_scripted_policies_that_differ_in_known_ways_are_found_by_compare(tmp_path):
    """B answers one drug more than A, which is in gold in some cases: the difference follows by hand."""
    data = dataset(8)
    runs = []
    for name, drugs in (("a", ("Cisplatin",)), ("b", ("Doxorubicin",))):
        agent = PlannerAgent(SETTINGS, shared(worlds(tmp_path / name, Scripted(drugs, ("Lipiodol",)))), stage="propose")
        runs.append(evaluate(tmp_path / f"run-{name}", agent, data, stage="propose"))
    expected = []
    for case in data.cases:
        gold = set(case.gold["best"].items)
        one, two = (2 * len(gold & {drug, "Lipiodol"}) / (len(gold) + 2) for drug in ("Cisplatin", "Doxorubicin"))
        expected.append(two - one)
    found = compare(Side(runs[0], "own"), Side(runs[1], "own")).difference("f1")
    assert found.mean == pytest.approx(np.mean(expected))
    assert (found.wins, found.losses) == (sum(e > 1e-12 for e in expected), sum(e < -1e-12 for e in expected))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    means = np.abs((signs * np.array(expected)[:, None]).mean(axis=0))
    assert found.p == pytest.approx((means >= abs(np.mean(expected)) - 1e-12).mean())


# --------------------------------------------------------------------------------------------- resume and faults
def plain(run):
    """Everything that is reported, without what a clock decides."""
    drop = {"seconds", "by_node"}
    return [row.model_dump(mode="json", exclude={"usage": drop, "trace": True}) for row in run.rows]


def test_a_killed_evaluation_goes_on_asks_no_finished_case_and_equals_an_unbroken_one(tmp_path, folder):
    unbroken = evaluate(tmp_path / "unbroken", PlannerAgent(SETTINGS, shared(worlds(tmp_path / "unbroken-logs"))))
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "tests.evals.killed_evaluation", str(folder), str(logs), "70"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert child.returncode == -signal.SIGKILL, child.stderr
    finished = sorted(path.parent.parent.name for path in folder.glob(f"{CASES}/*/*/{ANSWER}"))
    assert finished == ["case-1", "case-2"]
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"{CASES}/*/*/{ANSWER}")}
    asked, lock = [], threading.Lock()

    def done(answer, kept):
        with lock:
            asked.append((answer.case_id, kept))

    run = evaluate(folder, PlannerAgent(SETTINGS, shared(worlds(logs))), done=done)
    assert sorted(asked) == [("case-1", True), ("case-2", True), ("case-3", False), ("case-4", False)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run.complete
    assert plain(run) == plain(unbroken)
    # The case that was under way went on from its checkpoint: nothing was simulated twice.
    for log in logs.glob("*.log"):
        assert set(Counter(log.read_text().splitlines()).values()) == {1}
    one, two = (summarise([r], draws=200) for r in (run, unbroken))
    assert one.boards[0].line("own").figures["f1"] == two.boards[0].line("own").figures["f1"]
    assert one.versus == two.versus
    drop = {"by_node": True, "cases": {"__all__": {"seconds", "trace"}}}
    for summary in (one, two):
        for board in summary.boards:
            for line in board.lines:
                line.figures.pop("seconds", None)
    assert one.model_dump(exclude=drop) == two.model_dump(exclude=drop)
    assert len(list((folder / "logs").glob("*.eval"))) == 1  # the broken attempt's log is superseded


def test_ctrl_c_ends_the_evaluation_says_how_to_go_on_and_it_goes_on(tmp_path, folder):
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "tests.evals.killed_evaluation", str(folder), str(logs), "0", "0.5"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(logs.glob("*.log")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == RunStopped.exit_code, errors
    assert f"go on with: mewm eval resume {folder}" in errors
    assert "Traceback" not in errors
    run = evaluate(folder, PlannerAgent(SETTINGS, shared(worlds(logs))))
    unbroken = evaluate(tmp_path / "unbroken", PlannerAgent(SETTINGS, shared(worlds(tmp_path / "unbroken-logs"))))
    assert plain(run) == plain(unbroken)


def test_failed_cases_are_counted_as_empty_and_tried_again_on_resume(folder):
    class Sometimes(Says):
        broken = True

        def __call__(self, job: CaseJob) -> Answer:
            answer = super().__call__(job)
            if self.broken and job.case.case_id == "case-2":
                raise CaseError("The case can't be read.")
            return answer

    agent = Sometimes(CONSTANT)
    run = evaluate(folder, agent)
    assert [row.status for row in run.rows] == ["answered", "failed", "answered", "answered"]
    assert run.rows[1].why == "The case can't be read."
    assert run.rows[1].own.scores["best"].f1 == 0.0
    agent.broken = False
    again = evaluate(folder, agent)
    assert [row.status for row in again.rows] == ["answered"] * 4
    assert Counter(case for case, _ in agent.asked) == {"case-1": 1, "case-2": 2, "case-3": 1, "case-4": 1}


def test_what_a_failed_case_used_is_no_effort_of_an_answer(tmp_path, folder):
    """One case of four fails while it simulates: effort is the mean of the three others, and a table says so."""

    class Breaks(FakeWorld):
        def simulate_tumor(self, case_id, *arguments, **named):
            if case_id == "case-2":
                raise CaseError("The scan can't be read.")
            return super().simulate_tumor(case_id, *arguments, **named)

    def make(run, facts, stop):
        return fake_services(Breaks(tmp_path / f"{facts.case_id}.log"))(run, facts, stop)

    run = evaluate(folder, PlannerAgent(SETTINGS, shared(make)))
    assert [row.status for row in run.rows] == ["answered", "failed", "answered", "answered"]
    broken = run.rows[1]
    assert broken.why == "The scan can't be read."
    assert not (folder / CASES / "case-2" / "1" / ANSWER).exists()  # it is tried again
    assert [d.node for d in read_trace(folder / broken.trace)][:1] == ["load"]
    assert broken.usage.tool_calls > 0
    summary = summarise([run], draws=200)
    figures = summary.boards[0].line("own").figures
    others = [row for row in run.rows if row is not broken]
    for name in ("simulations", "tool_calls", "seconds"):
        assert figures[name].n == 3
        assert figures[name].mean == pytest.approx(np.mean([getattr(row.usage, name) for row in others]))
    calls = sum(node.tool_calls for node in summary.by_node.values())
    assert calls == pytest.approx(figures["tool_calls"].mean)
    assert "1 failed answers are left out" in effort(summary).note
    assert figures["f1"].n == 4  # as an answer it is empty, and counts


def test_a_bug_is_raised_and_keeps_what_was_finished(folder):
    def broken(job: CaseJob) -> Answer:
        if job.case.case_id == "case-3":
            raise ZeroDivisionError("a bug")
        return Answer(case_id=job.case.case_id, epoch=job.epoch, status="answered", protocol=CONSTANT)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        evaluate(folder, broken)
    assert len(list(folder.glob(f"{CASES}/*/*/{ANSWER}"))) == 2


def test_a_kill_while_an_evaluation_is_begun_does_not_keep_its_folder_from_use(folder):
    killed_while_writing(folder / SPEC_FILE)
    evaluate(folder, Says(CONSTANT), dataset(2))
    assert len(read_run(folder).rows) == 2


def test_other_conditions_or_another_folder_are_refused(tmp_path, folder):
    evaluate(folder, Says(CONSTANT), dataset(2))
    with pytest.raises(RunError, match=r"under other conditions \(beams 2, now 3\)"):
        evaluate(folder, Says(CONSTANT), dataset(2), settings=SETTINGS.model_copy(update={"beams": 3}))
    with pytest.raises(RunError, match="dataset hash"):
        evaluate(folder, Says(CONSTANT), dataset(3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no evaluation"):
        evaluate(tmp_path / "full", Says(CONSTANT))
    with pytest.raises(RunError, match="There is no evaluation in"):
        read_run(tmp_path / "nowhere")
    (folder / "logs" / "9999-cut-off.eval").write_bytes(b"PK\x03\x04 cut off by a kill")
    assert len(read_run(folder).rows) == 2
    (folder / SPEC_FILE).write_text("{")
    with pytest.raises(RunError, match="can't be read"):
        read_run(folder)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(seconds=3), "stopped at the limit of 3 s"),
        (Limits(tool_calls=5), "stopped at the limit of 5 tool calls"),
        (Limits(tokens=400), "stopped at the limit of 400 tokens"),
    ],
)
def test_a_case_at_its_limit_is_an_empty_answer_with_its_reason(tmp_path, folder, limits, why):
    delay = 1.0 if limits.seconds else 0.0
    services = shared(worlds(tmp_path / "logs", Scripted(("Cisplatin", "Mitomycin"), ("Lipiodol",), 500), delay=delay))
    run = evaluate(folder, PlannerAgent(SETTINGS, services, limits=limits), dataset(2), limits=limits)
    assert [(row.status, row.why) for row in run.rows] == [("limit", why)] * 2
    assert all(row.own.protocol is None for row in run.rows)
    if limits.tokens:
        assert run.rows[0].usage.tokens == 510
    for row in run.rows:  # what it did until then can be looked at
        assert usage_of(read_trace(folder / row.trace)) == row.usage


def test_waiting_for_other_cases_is_not_on_the_time_limit(tmp_path, folder):
    """Three cases share a tool that takes 5 s of each: with a limit of 12 s, the last one still comes to its end."""

    class Slow(FakeWorld):
        def describe_case(self, case_id):
            time.sleep(5.0)
            return super().describe_case(case_id)

    def make(run, facts, stop):
        return fake_services(Slow(tmp_path / f"{facts.case_id}.log"))(run, facts, stop)

    limits = Limits(seconds=12)
    agent = PlannerAgent(SETTINGS, shared(make), stage="propose", limits=limits)
    run = evaluate(folder, agent, dataset(3), stage="propose", limits=limits, parallel=3)
    assert {row.status for row in run.rows} == {"answered"}
    assert max(row.usage.seconds for row in run.rows) > 12.0  # the last one waited for both others


def test_the_model_alone_is_asked_also_where_the_plan_ended_at_its_limit_and_has_an_effort_of_its_own(tmp_path, folder):
    policy = Scripted(("Cisplatin", "Mitomycin"), ("Lipiodol",), 500)
    services, limits = shared(worlds(tmp_path / "logs", policy)), Limits(tool_calls=5)
    agent = PlannerAgent(SETTINGS, services, limits=limits, alone=SETTINGS)
    run = evaluate(folder, agent, dataset(2), limits=limits)
    assert {row.status for row in run.rows} == {"limit"}
    assert [row.alone.protocol for row in run.rows] == [protocol(["Cisplatin", "Mitomycin"], ["Lipiodol"])] * 2
    board = summarise([run], draws=200).boards[0]
    assert (board.line("alone").n, board.line("alone").empty) == (2, 0)
    assert board.line("alone").figures["cost_usd"].mean == pytest.approx(0.01)
    assert board.line("alone").figures["simulations"].mean == 0.0
    assert "cost_usd" not in board.line("constant").figures
    # with fewer tokens than one answer takes it has no answer either, and is counted
    limits = Limits(tokens=400)
    agent = PlannerAgent(SETTINGS, services, limits=limits, alone=SETTINGS)
    run = evaluate(tmp_path / "other", agent, dataset(2), limits=limits)
    assert summarise([run], draws=200).boards[0].line("alone").empty == 2


def test_usage_knows_no_cost_where_a_price_is_missing():
    def decision(**fields):
        from agent.trace import Decision

        base = {"decision_id": "0", "step": 0, "node": "propose", "kind": "policy", "inputs_hash": "", "reason": "",
                "seconds": 1.0, "time": ""}  # fmt: skip
        return Decision(**(base | fields))

    free = decision(backend="guideline")
    priced = decision(backend="x", requests=2, input_tokens=10, output_tokens=5, cost_usd=0.5)
    unknown = decision(backend="y", requests=1, input_tokens=10, output_tokens=5)
    assert usage_of([free, priced]).cost_usd == 0.5
    used = usage_of([free, priced, unknown, priced.model_copy(update={"node": "explain"})])
    assert used.cost_usd is None
    assert {name: node.cost_usd for name, node in used.by_node.items()} == {"propose": None, "explain": 0.5}
    total = usage_of([priced, unknown, decision(kind="node", seconds=3.0)])
    assert (total.requests, total.input_tokens, total.output_tokens, total.seconds) == (3, 20, 10, 3.0)


def test_the_inspect_log_holds_the_same_figures(folder):
    from inspect_ai.log import read_eval_log

    run = evaluate(folder, Says({"case-1": CONSTANT, "case-2": EVERYTHING}), epochs=2)
    log = read_eval_log(str(run.log))
    assert log.status == "success"
    metrics = next(score.metrics for score in log.results.scores if score.name == "f1")
    by_hand = np.mean([row.own.scores["best"].f1 for row in run.rows])
    assert metrics["mean"].value == pytest.approx(by_hand)
    assert log.eval.model == "none/none"
    assert Protocol.model_validate(run.rows[0].own.protocol) == CONSTANT
