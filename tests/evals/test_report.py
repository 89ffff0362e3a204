"""Reports: figures against the rows, Markdown and a page that loads nothing from outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sksurv.metrics import integrated_brier_score
from sksurv.util import Surv

from evals.metrics import score_protocol
from evals.regret import Regret
from evals.report.calibration import calibration_of
from evals.report.charts import Curve, Mark, calibration_svg, interval_svg, scatter_svg, strip_svg, survival_svg
from evals.report.markdown import report_markdown
from evals.report.page import report_html, report_json, write_reports
from evals.report.summary import Summary, summarise
from evals.report.survival import survival_panel, survival_text
from evals.report.tables import all_tables
from evals.results import NodeUse, RiskCurve, SimulatedRisk, Survival, Usage
from models.errors import InputError
from tests.evals.fake_dataset import SPACE
from tests.evals.test_compare import GOLD, HALF, RIGHT, WRONG, entry, row, run_of

USE = Usage(
    seconds=3.0, requests=2, input_tokens=100, output_tokens=20, cost_usd=0.02, tool_calls=4, simulations=28,
    by_node={"propose": NodeUse(seconds=1.0, requests=2, input_tokens=100, output_tokens=20, cost_usd=0.02),
             "simulate": NodeUse(seconds=2.0, tool_calls=4, simulations=28)},
)  # fmt: skip


@pytest.fixture
def run():
    answers = [RIGHT, HALF, WRONG, None, HALF]
    return run_of(
        row(str(i), said, regret=0.2 * i, usage=USE, trace=f"cases/{i}/1/run/trace.jsonl")
        for i, said in enumerate(answers)
    )


@pytest.fixture
def summary(run) -> Summary:
    return summarise([run], draws=300)


def test_the_leaderboard_is_the_mean_over_cases_with_every_contestant(run, summary):
    board = summary.boards[0]
    own, constant = board.line("own"), board.line("constant")
    assert own.figures["f1"].mean == pytest.approx(np.mean([1.0, 0.8, 0.0, 0.0, 0.8]))
    assert own.figures["regret"].mean == pytest.approx(0.4)
    assert own.figures["f1"].low < own.figures["f1"].mean < own.figures["f1"].high
    assert (own.n, own.empty) == (5, 1)
    said = [frozenset(r.own.protocol.items if r.own.protocol else ()) for r in run.rows]
    hits, either = sum(len(s & set(GOLD.items)) for s in said), sum(len(s) + len(GOLD.items) for s in said)
    assert own.micro_f1 == pytest.approx(2 * hits / either)
    assert own.micro_f1_low < own.micro_f1 < own.micro_f1_high
    assert constant.figures["f1"].mean == pytest.approx(0.8)
    assert board.line("alone").not_run.startswith("no endpoint")
    # The baseline learned one variant only and is not in the other's table.
    assert summary.boards[1].variant == "oil"
    assert summary.boards[1].line("constant").n == 0


def test_confusion_by_agent_and_effort_by_node(summary):
    counts = {item.item: item for item in summary.items["raw"]}
    assert (counts["Cisplatin"].true_positive, counts["Cisplatin"].false_negative) == (3, 2)
    assert (counts["Doxorubicin"].true_positive, counts["Doxorubicin"].false_negative) == (1, 4)
    assert (counts["Mitomycin"].false_positive, counts["Mitomycin"].true_negative) == (1, 4)
    assert summary.by_node["simulate"].simulations == 28
    assert summary.by_node["propose"].input_tokens == 100
    text = "\n".join(" | ".join(r.cells) for table in all_tables(summary) for r in table.rows)
    assert "of it propose | 2.0 | 120 | 0.0200 | 0.0 | 0.0 | 1.0" in text
    assert "of it simulate | 0.0 | 0 |  | 4.0 | 28.0 | 2.0" in text  # a price that is not known is no price


def test_the_interval_of_regret_of_random_resamples_both_losses_of_a_patient_together():
    """In the mean the choice loses half of what a random one does, and in every patient exactly half of it."""

    def judged(case_id, epoch, lost, random):
        found = Regret(of_range=0.5, of_random=lost / random, true_risk=2 + lost, best=2, worst=9,
                       random_mean=2 + random, win_vs_given=None, allowed=True)  # fmt: skip
        return row(case_id, HALF, epoch, own=entry(HALF).model_copy(update={"regret": found}))

    def figure(cases):
        return summarise([run_of(cases)], draws=4000).boards[0].line("own").figures["regret_of_random"]

    randoms = np.random.default_rng(1).gamma(1.0, 1.0, 12)
    # two epochs, which are one patient: they lose 0.4 and 0.6 of it
    halved = figure([judged(str(i), e, (0.2 + 0.2 * e) * r, r)
                     for i, r in enumerate(randoms) for e in (1, 2)])  # fmt: skip
    assert (halved.mean, halved.low, halved.high) == (pytest.approx(0.5),) * 3
    assert halved.n == 12

    lost = randoms * np.random.default_rng(2).uniform(0, 1, 12)
    found = figure([judged(str(i), 1, a, b) for i, (a, b) in enumerate(zip(lost, randoms, strict=True))])
    theirs = stats.bootstrap(
        (lost, randoms), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.mean == pytest.approx(lost.mean() / randoms.mean())
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=0.01), pytest.approx(theirs.high, abs=0.01))

    alone = figure([judged("0", 1, 0.2, 0.5)])
    assert (alone.mean, alone.low, alone.high, alone.n) == (pytest.approx(0.4), None, None, 1)
    nothing = figure([judged(str(i), 1, 0.0, 1e-300) for i in range(3)])  # 2 + 1e-300 is 2: nothing can be lost
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_the_interval_of_micro_f1_resamples_patients_with_all_their_agents():
    """Against 2 |answered and gold| / (|answered| + |gold|) of drawn patients; a patient's two epochs stay together."""
    rng = np.random.default_rng(5)
    items = [item.name for item in SPACE.formulary.items]
    said = [[[RIGHT, HALF, WRONG, None][k] for k in rng.integers(0, 4, 2)] for _ in range(15)]
    rows = [row(f"{i:02d}", answer, e) for i, answers in enumerate(said) for e, answer in enumerate(answers, 1)]
    summary = summarise([run_of(rows)], draws=4000)
    line = summary.boards[0].line("own")

    answered = np.array([[[name in (p.items if p else ()) for name in items] for p in answers] for answers in said])
    gold = np.broadcast_to([name in GOLD.items for name in items], answered.shape)
    index = rng.integers(0, 15, (4000, 15))
    hits, either = (values[index].sum((1, 2, 3)) for values in (answered & gold, answered.astype(int) + gold))
    low, high = np.quantile(2 * hits / either, (0.025, 0.975))
    assert line.micro_f1_low == pytest.approx(low, abs=0.015)
    assert line.micro_f1_high == pytest.approx(high, abs=0.015)
    shown = f"{100 * line.micro_f1:.1f} [{100 * line.micro_f1_low:.1f}, {100 * line.micro_f1_high:.1f}] |"
    assert next(x for x in report_markdown(summary).splitlines()[::-1] if shown in x).startswith("| MeWM planner")

    alone = summarise([run_of([row("1", HALF)])]).boards[0].line("own")
    assert (alone.micro_f1, alone.micro_f1_low, alone.micro_f1_high) == (pytest.approx(0.8), None, None)


def test_the_lead_is_compared_with_every_line_pairwise(summary):
    found = {(v.label, v.metric): v for v in summary.versus}
    f1 = found["constant", "f1"]
    assert f1.mean == pytest.approx(np.mean([0.2, 0.0, -0.8, -0.8, 0.0]))
    assert (f1.wins, f1.ties, f1.losses, f1.n) == (1, 2, 2, 5)
    assert found["constant", "regret"].mean == pytest.approx(0.4 - 0.5)


def test_a_second_run_is_a_line_of_its_own_and_runs_on_other_data_are_refused(run):
    other = run_of([row(str(i), RIGHT, regret=0.0) for i in range(5)], name="other", seed=7)
    summary = summarise([run, other], draws=300, not_run={"without X": "no weights"})
    labels = [line.label for line in summary.boards[0].lines]
    assert labels[0] == "MeWM planner (guideline)"
    assert "MeWM planner (guideline) [other]" in labels
    assert summary.boards[0].line("run2").figures["f1"].mean == 1.0
    assert summary.boards[0].line("without X").not_run == "no weights"
    assert any(v.label.endswith("[other]") and v.mean < 0 for v in summary.versus)
    with pytest.raises(InputError, match="can't be compared: dataset is"):
        summarise([run, run_of([row("0", RIGHT)], dataset="phantom")])
    with pytest.raises(InputError, match="has no finished case yet"):
        summarise([run_of([])])


@pytest.mark.parametrize(
    "names",
    [("planner", "planner", "planner"), ("planner", "planner, 2", "planner", "planner"), ("", "", "")],
)
def test_no_run_is_lost_whatever_the_folders_are_called(run, names):
    """The same kind of run several times, in folders of one name: x0/planner, x1/planner, x2/planner."""
    others = [
        run_of([row(str(i), RIGHT, regret=0.1 * number) for i in range(5)], name=f"x{number}/{name}" if name else ".")
        for number, name in enumerate(names)
    ]
    summary = summarise([run, *others], draws=100)
    labels = [line.label for line in summary.boards[0].lines]
    assert len(set(labels)) == len(labels)
    for number in range(len(names)):
        label = summary.boards[0].line(f"run{number + 2}").label
        assert summary.regrets[label] == pytest.approx((0.1 * number,) * 5)
        (regret,) = (v for v in summary.versus if (v.variant, v.label, v.metric) == ("raw", label, "regret"))
        assert regret.mean == pytest.approx(0.4 - 0.1 * number)
        assert f">{label}<" in report_html(summary)


def test_the_lead_is_compared_on_every_gold_variant():
    """The lead is always right on the first gold and half right on the other, the second run the other way round."""
    gold = {"raw": RIGHT, "oil": HALF}

    def case(i, said):
        scores = {name: score_protocol(said, wanted, SPACE.formulary) for name, wanted in gold.items()}
        return row(str(i), said, gold=gold, own=entry(said).model_copy(update={"scores": scores}), baselines={})

    lead, other = (run_of([case(i, said) for i in range(6)], name=str(said.key)) for said in (RIGHT, HALF))
    summary = summarise([lead, other], draws=100)
    f1 = {v.variant: v for v in summary.versus if v.metric == "f1"}
    assert list(f1) == ["raw", "oil"]
    assert (f1["raw"].mean, f1["raw"].wins) == (pytest.approx(0.2), 6)
    assert (f1["oil"].mean, f1["oil"].losses) == (pytest.approx(-0.2), 6)
    assert f1["raw"].p_holm == f1["raw"].p  # one line in each table
    assert [v["variant"] for v in json.loads(report_json(summary))["versus"]] == ["raw", "oil"]
    raw, oil = "Against every other line, gold: raw", "Against every other line, gold: oil"
    text, html = report_markdown(summary), report_html(summary)
    assert text.index(f"## {raw}\n") < text.index("| +20.0 [") < text.index(f"## {oil}\n") < text.index("| -20.0 [")
    assert html.index(f"<h2>{raw}</h2>") < html.index(f"<h2>{oil}</h2>")


def test_with_one_gold_the_comparison_names_no_variant():
    gold = {"raw": GOLD}
    one, two = (run_of([row(str(i), said, gold=gold) for i in range(3)], name=said.key) for said in (RIGHT, HALF))
    summary = summarise([one, two], draws=100)
    assert {v.variant for v in summary.versus} == {"raw"}
    assert "## Against every other line\n" in report_markdown(summary)
    assert "<h2>Against every other line</h2>" in report_html(summary)


def test_cases_that_one_of_two_runs_lacks_are_listed_by_name(run):
    """The lead has the cases 0 to 4; the other lacks 3 and 4, has one of its own, and is not complete."""
    answers = [row(name, RIGHT, regret=0.0) for name in ("0", "1", "2", "stranger")]
    other = replace(run_of(answers, name="other", seed=7), complete=False)
    summary = summarise([run, other], draws=300)
    assert {v.missing for v in summary.versus if v.label.endswith("[other]")} == {("3", "4", "stranger")}
    assert {v.missing for v in summary.versus if not v.label.endswith("[other]")} == {()}
    text = report_markdown(summary)
    assert "[other]: 3, 4, stranger." in text
    assert "[other] lacks 2 cases of the first evaluation: 3, 4." in text
    assert "[other] has 1 cases that the first evaluation lacks: stranger." in text
    assert "[other] is not complete" in text


def test_markdown_and_json_hold_the_same_figures(summary):
    text = report_markdown(summary)
    assert "| MeWM planner (guideline) | 5 | 52.0 [" in text
    assert "not run: no endpoint was given (--backend)" in text
    assert "as published, other split" in text
    assert "64.08" in text
    assert "[0](cases/0/1/run/trace.jsonl)" in text
    assert "Synthetic patients: no figure here" in text
    for line in text.splitlines():
        if line.startswith("|") and "---" not in line:
            assert line.count("|") - line.count("\\|") >= 3
    data = json.loads(report_json(summary))
    assert data["boards"][0]["lines"][0]["figures"]["f1"]["mean"] == pytest.approx(0.52)
    assert Summary.model_validate(data) == summary


def test_the_page_loads_nothing_and_is_drawn(summary, tmp_path):
    html = report_html(summary)
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?:https?:)?//", html)
    assert not re.search(r"<(?:script|link|iframe|object|embed)\b", html)
    assert not re.search(r"url\((?!['\"]?data:)", html)
    assert html.count('<svg class="chart"') >= 4
    assert 'href="cases/0/1/run/trace.jsonl"' in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(svg)


def test_what_data_brings_in_is_escaped():
    evil = run_of([row("<script>alert(1)</script>", RIGHT, why="a & b <img>"), row("2", HALF)])
    html = report_html(summarise([evil], draws=100))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "<img>" not in html


def test_reports_are_written_beside_the_lead_and_link_to_its_traces(run, tmp_path):
    lead = run_of(run.rows, name=str(tmp_path / "lead"))
    (tmp_path / "lead").mkdir()
    (tmp_path / "table").mkdir()
    write_reports([lead])
    assert {p.name for p in (tmp_path / "lead").iterdir()} == {"report.md", "report.html", "report.json"}
    write_reports([lead], tmp_path / "table")
    assert "(../lead/cases/0/1/run/trace.jsonl)" in (tmp_path / "table" / "report.md").read_text()


def test_calibration_is_the_slope_within_cases_by_hand():
    """Two cases whose true risk is half the simulated one, with other offsets: slope 0.5, rank 1."""
    rows = [
        row(str(case), RIGHT, risks=tuple(
            SimulatedRisk(protocol=f"P{k} | X", simulated=float(k) + 10 * case, se=None, true=0.5 * k - 3 * case)
            for k in range(4)
        ))
        for case in range(2)
    ]  # fmt: skip
    found = calibration_of(run_of(rows), draws=200)
    assert found.slope == pytest.approx(0.5)
    assert (found.slope_low, found.slope_high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.rank == pytest.approx(1.0)
    assert (found.cases, len(found.pairs)) == (2, 8)
    assert calibration_of(run_of([row("1", RIGHT)])) is None


def test_the_survival_panel_splits_at_the_median_simulated_risk():
    """Risk orders death times perfectly: c-index 1, the high-risk curve below the other."""

    def patient(i, given_risk=None):
        # RIGHT is chosen: its risk, here the wrong way round, says nothing about those who were given HALF
        risks = (SimulatedRisk(protocol=RIGHT.key, simulated=-float(i), se=None),)
        follow_up = Survival(months=40.0 - 3 * i, died=True)
        return row(str(i), RIGHT, given=HALF, given_risk=given_risk, risks=risks, survival=follow_up)

    without_plan = [patient(i) for i in range(10, 13)]
    panel = survival_panel(run_of([*(patient(i, float(i)) for i in range(10)), *without_plan]))
    assert panel.scores.harrell.mean == 1.0
    assert (panel.scores.n, panel.not_assessed) == (10, 3)
    assert "3 patients without a plan are in no figure" in survival_text(panel)
    assert "integrated_brier (there are no predicted survival curves)" in survival_text(panel)
    assert panel.ipcw.low <= panel.ipcw.mean == panel.scores.ipcw <= panel.ipcw.high
    assert panel.mean_auc.low <= panel.mean_auc.mean == panel.scores.mean_auc <= panel.mean_auc.high
    # Nelson-Aalen by hand: five deaths, one at a time.
    assert panel.higher_hazard.values == pytest.approx(np.cumsum([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1]))
    assert (panel.lower.at_risk, panel.higher.at_risk) == (5, 5)
    assert max(panel.higher.months) < min(panel.lower.months)
    assert survival_panel(run_of([patient(i, float(i)) for i in range(5)])) is None


def test_the_brier_score_is_that_of_the_plans_curves_at_the_risk_of_what_was_given():
    """Exponential survival: the curve is drawn at another log-risk and has to be brought to that of the given one."""
    rng = np.random.default_rng(3)
    risk = rng.normal(0.0, 1.0, 40)
    months = rng.exponential(12.0 / np.exp(risk)) + 0.1
    died = rng.random(40) < 0.8
    grid = np.arange(0.0, 200.0, 0.5)

    def patient(i, chosen, last=None):
        told = tuple(float(s) for s in np.exp(-grid[:last] / 12.0 * np.exp(chosen)))
        return row(
            str(i), RIGHT, given=HALF, given_risk=float(risk[i]),
            curve=RiskCurve(log_risk=chosen, months=tuple(map(float, grid[:last])), survival=told),
            survival=Survival(months=float(months[i]), died=bool(died[i])),
        )  # fmt: skip

    panel = survival_panel(run_of([patient(i, chosen=-0.7) for i in range(40)]))
    follow = Surv.from_arrays(died, months)
    times = np.array(panel.scores.times)
    at = grid[np.searchsorted(grid, times, side="right") - 1]
    expected = integrated_brier_score(follow, follow, np.exp(-at[None] / 12.0 * np.exp(risk)[:, None]), times)
    assert panel.scores.integrated_brier == pytest.approx(expected)
    assert "integrated Brier score" in survival_text(panel)
    short = survival_panel(run_of([patient(i, chosen=-0.7, last=3) for i in range(40)]))
    assert short.scores.integrated_brier is None
    assert "the predicted survival curves end at 1 months" in survival_text(short)


def test_empty_charts_are_empty_and_drawn_ones_are_well_formed():
    assert interval_svg([], "x") == strip_svg({}, "x", "") == scatter_svg([], "x", "y") == survival_svg([]) == ""
    assert calibration_svg([], "x", "y") == ""
    drawn = [
        interval_svg([Mark("a & b", 1.0), Mark("c", 2.0, 1.5, 2.5, lead=True)], "F1 %"),
        strip_svg({"a": [0.1, 0.9], "b": []}, "regret", "a"),
        scatter_svg([("a", 0.0, 0.5, True), ("b", 0.0, 0.5, False)], "seconds", "F1"),
        survival_svg([Curve("a", (1.0, 2.0), (0.8, 0.5), (0.7, 0.4), (0.9, 0.6), 5)]),
        survival_svg([Curve("a", (1.0, 2.0), (0.2, 1.7), (), (), 5)], hazard=True),
        calibration_svg([(0.0, 0.1), (1.0, 0.9)], "simulated", "true"),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert not re.search(r"\bnan\b|\binf\b", svg)


@pytest.mark.parametrize("name", ["report.html.j2", "turing.html.j2", "reader.html.j2"])
def test_no_template_names_anything_outside(name):
    text = (Path(__file__).resolve().parents[2] / "evals" / "report" / name).read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"(?:https?:)?//(?!\s)[a-z0-9.-]+\.[a-z]{2,}", text)


def test_a_fallback_line_appears_where_a_plan_was_degraded():
    rows = [row("1", None, status="degraded", fallback=entry(RIGHT)), row("2", HALF)]
    board = summarise([run_of(rows)], draws=100).boards[0]
    assert board.line("own").figures["f1"].mean == pytest.approx(0.4)
    assert board.line("fallback").figures["f1"].mean == pytest.approx(0.9)


def test_cost_against_quality_shows_who_cost_something_at_its_cost():
    """The fallback and the model alone are no free baselines: at their own cost, or where it is unknown not at all."""

    def drawn(alone_usage):
        rows = [
            row("1", None, regret=1.0, status="degraded", fallback=entry(RIGHT, 0.1), usage=USE),
            row("2", HALF, regret=0.2, usage=USE),
        ]
        rows = [r.model_copy(update={"alone": entry(HALF, 0.3), "alone_usage": alone_usage}) for r in rows]
        html = report_html(summarise([run_of(rows)], draws=100))
        chart = html[html.index("Cost against quality") : html.index("<h2>Effort")]
        pairs = re.findall(r'<circle cx="([0-9.]+)"[^>]*/><text[^>]*>([^<]+)</text>', chart)
        return {label.partition("the paper")[0]: float(x) for x, label in pairs}

    found = drawn(USE.model_copy(update={"cost_usd": 0.01}))
    own, alone, free = (found[name] for name in ("MeWM planner (guideline)", "VLM alone, ", "constant"))
    assert found["MeWM planner (guideline), fallback counted"] == own
    assert alone - free == pytest.approx((own - free) / 2, abs=0.2)
    assert set(drawn(None)) == set(found) - {"VLM alone, "}
