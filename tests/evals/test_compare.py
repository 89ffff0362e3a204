"""Comparison of two runs: pairing, direction, missing cases, gates. Rows are built by hand, no runner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from evals.compare import Side, check_same_data, compare, comparison_markdown, failed_gates, parse_gates
from evals.measures import METRICS, per_case
from evals.metrics import score_protocol
from evals.regret import Regret
from evals.results import BaselineEntry, CaseRow, Entry, EvalRun, Usage
from models.errors import InputError
from models.protocol import Protocol
from tests.evals.fake_dataset import SPACE, dataset, protocol, spec

GOLD = protocol(["Cisplatin", "Doxorubicin"], ["Lipiodol"])
RIGHT, HALF, WRONG = GOLD, protocol(["Cisplatin"], ["Lipiodol"]), protocol(["Mitomycin"], ["Drug-eluting beads"])


def entry(said: Protocol | None, regret: float | None = None, variants=("raw", "oil")) -> Entry:
    scores = {name: score_protocol(said, GOLD, SPACE.formulary) for name in variants}
    found = None
    if regret is not None:
        found = Regret(of_range=regret, of_random=regret, true_risk=regret, best=0, worst=1, random_mean=0.5,
                       win_vs_given=None, allowed=True)  # fmt: skip
    return Entry(protocol=said, scores=scores, regret=found, violations=None)


def row(case_id: str, said: Protocol | None, epoch: int = 1, regret: float | None = None, **changes) -> CaseRow:
    values = {
        "case_id": case_id, "epoch": epoch, "tier": None, "status": "answered" if said else "blocked", "why": None,
        "gold": {"raw": GOLD, "oil": GOLD}, "given": None, "best": None, "reachable": {}, "own": entry(said, regret),
        "fallback": None, "alone": None, "not_run": {}, "space": None, "risks": (), "survival": None,
        "usage": Usage(seconds=2.0, cost_usd=None),
        "baselines": {"constant": BaselineEntry(label="constant", by_variant={"raw": entry(HALF, 0.5, ("raw",))})},
        "trace": None,
    }  # fmt: skip
    return CaseRow.model_validate({**values, **changes})


def run_of(rows, name="run", **changes) -> EvalRun:
    return EvalRun(Path(name), spec(dataset(2), **changes), tuple(rows), complete=True, log=Path("x.eval"))


def side(rows, who="own", name="run", **changes) -> Side:
    return Side(run_of(rows, name, **changes), who)


def test_the_difference_is_b_minus_a_by_case_and_missing_cases_are_listed():
    a = side([row("1", HALF), row("2", HALF), row("3", WRONG), row("only-a", RIGHT)])
    b = side([row("3", HALF), row("1", RIGHT), row("2", HALF), row("only-b", WRONG)])
    found = compare(a, b)
    f1 = found.difference("f1")
    assert (found.n_a, found.n_b, f1.n) == (4, 4, 3)
    assert (found.missing_in_a, found.missing_in_b) == (("only-b",), ("only-a",))
    assert f1.missing == ("only-a", "only-b")
    # F1: half the drugs 2*2/(2+3) = 0.8, all 1, none 0.
    assert f1.mean == pytest.approx(((1 - 0.8) + 0 + (0.8 - 0)) / 3)
    assert (f1.mean_a, f1.mean_b) == (pytest.approx(1.6 / 3), pytest.approx(2.6 / 3))
    assert (f1.wins, f1.ties, f1.losses) == (2, 1, 0)
    text = comparison_markdown(found)
    assert "Missing in A (1), not in any figure: only-b." in text
    assert "Missing in B (1), not in any figure: only-a." in text
    assert "2 / 1 / 0" in text


def test_p_is_the_exact_sign_flip_value_and_holm_runs_over_the_quality_metrics():
    answers = [RIGHT, RIGHT, HALF, RIGHT, WRONG, RIGHT, HALF, RIGHT]
    a = side([row(str(i), HALF, regret=0.5) for i in range(8)])
    b = side([row(str(i), said, regret=0.1 * i) for i, said in enumerate(answers)])
    found = compare(a, b, draws=500)
    ours = [score_protocol(said, GOLD, SPACE.formulary).f1 - 0.8 for said in answers]
    exact = stats.permutation_test(
        (ours,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=1e5
    )
    assert found.difference("f1").p == pytest.approx(exact.pvalue)
    quality = [d for d in found.differences if METRICS[d.metric].quality]
    assert all(d.p_holm >= d.p for d in quality)
    smallest = min(quality, key=lambda d: d.p)
    assert smallest.p_holm == pytest.approx(min(1.0, smallest.p * len(quality)))
    assert found.difference("seconds").p_holm is None
    # Less regret is better: B has less than 0.5 in cases 0 to 4.
    regret = found.difference("regret")
    assert (regret.lower_is_better, regret.wins, regret.ties, regret.losses) == (True, 5, 1, 2)


def test_regret_of_random_is_the_ratio_of_means_by_hand():
    """Losses 0.1 and 0.3; random loses 0.5 in one case and 0.001, a near tie, in the other: 0.4 / 0.501, not 150."""

    def judged(case_id, lost, random):
        found = Regret(of_range=0.5, of_random=lost / random, true_risk=2 + lost, best=2, worst=3,
                       random_mean=2 + random, win_vs_given=None, allowed=True)  # fmt: skip
        return row(case_id, HALF, own=entry(HALF).model_copy(update={"regret": found}))

    cases = [judged("1", 0.1, 0.5), judged("2", 0.3, 0.001)]
    # compared over the cases in common, whatever else one run holds
    a, b = side([*cases, judged("only-a", 9.0, 7.0)]), side([judged("1", 0.2, 0.5), judged("2", 0.0, 0.001)])
    found = compare(a, b).difference("regret_of_random")
    assert (found.mean_a, found.mean_b) == (pytest.approx(0.4 / 0.501), pytest.approx(0.2 / 0.501))
    assert found.mean == pytest.approx(-0.2 / 0.501)
    assert (found.wins, found.losses) == (1, 1)


def test_epochs_are_averaged_within_a_case_first():
    a = side([row("1", RIGHT, 1), row("1", WRONG, 2), row("2", RIGHT, 1), row("2", RIGHT, 2)])
    assert per_case(a.run, "own", "f1", "raw") == {"1": 0.5, "2": 1.0}
    assert per_case(a.run, "own", "stability", "raw") == {"1": 0.0, "2": 1.0}
    assert per_case(a.run, "constant", "stability", "raw") == {}  # a baseline is asked once, whatever the epochs
    b = side([row("1", RIGHT), row("2", RIGHT)])
    assert compare(a, b).difference("f1").n == 2


def test_lines_of_one_table_are_compared_too_on_the_variant_that_they_have():
    a = [row(str(i), RIGHT) for i in range(3)]
    found = compare(side(a, "constant"), side(a))
    assert found.difference("f1").mean == pytest.approx(0.2)
    assert found.settings == ()
    with pytest.raises(InputError, match="no gold variant 'other'"):
        compare(side(a, "constant"), side(a), variant="other")
    # The baseline learned `raw` only: nothing of it can be compared on the other variant.
    assert compare(side(a, "constant"), side(a), variant="oil").difference("f1") is None


def test_runs_on_other_data_or_without_common_cases_are_refused():
    a = side([row("1", RIGHT), row("2", RIGHT)])
    with pytest.raises(InputError, match="dataset version is 1 in the one and 2 in the other"):
        compare(a, side([row("1", RIGHT), row("2", RIGHT)], dataset_version="2"))
    other = row("1", RIGHT, gold={"raw": HALF, "oil": HALF})
    with pytest.raises(InputError, match="another gold for 1"):
        check_same_data(a, side([other, row("2", RIGHT)]))
    with pytest.raises(InputError, match="1 cases in common"):
        compare(a, side([row("2", RIGHT), row("9", RIGHT)]))


def test_settings_that_differ_are_named():
    a = side([row("1", RIGHT), row("2", RIGHT)])
    b = side([row("1", RIGHT), row("2", RIGHT)], prompts="other", limit=2)
    assert set(compare(a, b).settings) == {"prompts: A none, B other", "limit: A none, B 2"}
    one, two = (a.run.spec.settings.model_copy(update={"prompts": p, "policy_llm": p, "beams": n}) for p, n in
                (("mewm", 2), ("ours", 3)))  # fmt: skip
    told = {"dataset_hash": "a" * 64, "baselines": ("constant", "rules"), "prompts": "mewm", "backend": "x"}
    a = side([row("1", RIGHT), row("2", RIGHT)], settings=one, **told)
    told = {"dataset_hash": "b" * 64, "baselines": (), "prompts": "/somewhere/ours", "backend": "y"}
    b = side([row("1", RIGHT), row("2", RIGHT)], settings=two, **told)
    assert set(compare(a, b).settings) == {
        f"dataset hash: A {'a' * 12}, B {'b' * 12}", "baselines: A constant, rules, B none",
        "prompts: A mewm, B /somewhere/ours", "backend: A x, B y", "beams: A 2, B 3",
    }  # fmt: skip
    assert a.label != b.label
    assert "prompts mewm" in a.label
    assert "prompts ours" in b.label


def test_a_side_without_a_finished_case_is_named():
    a, b = side([row("1", RIGHT), row("2", RIGHT)]), side([], name="begun")
    with pytest.raises(InputError, match="in begun has no finished case yet: mewm eval resume begun"):
        compare(a, b)


@pytest.mark.parametrize(
    ("gate", "passes"),
    [("F1=-0.3", True), ("F1=-0.2", False), ("F1=0.01", False), ("regret=-0.2", True), ("regret=-0.05", False)],
)
def test_a_gate_bounds_the_gain_of_b_whatever_direction_is_better(gate, passes):
    a = side([row(str(i), RIGHT, regret=0.2) for i in range(4)])
    b = side([row(str(i), RIGHT if i else WRONG, regret=0.3) for i in range(4)])  # F1 -0.25 in one case of four
    found = compare(a, b)
    worse = {"f1": -0.25, "regret": 0.1}
    name = gate.split("=")[0].lower()
    assert found.difference(name).mean == pytest.approx(worse[name])
    gates = parse_gates([gate])
    assert gates == {name: float(gate.split("=")[1])}
    assert (failed_gates(found, gates) == []) is passes


def test_a_gate_on_equal_runs_does_not_call_one_of_them_better():
    a, b = (side([row(str(i), HALF) for i in range(3)]) for _ in range(2))
    (sentence,) = failed_gates(compare(a, b), {"f1": 0.01})
    assert sentence.startswith("F1: B is as good as A (n = 3)")


def test_a_gate_allows_exactly_what_it_says():
    """A loss that is the bound itself, but for how floating point adds it up, is allowed; a larger one is not."""
    fallen = protocol(["Cisplatin", "Mitomycin"], ["Lipiodol", "Drug-eluting beads"])
    a = side([row(str(i), HALF) for i in range(10)])
    b = side([row(str(i), fallen if i == 0 else HALF) for i in range(10)])
    found = compare(a, b)
    lost = -found.difference("f1").mean
    assert lost == pytest.approx((0.8 - 4 / 7) / 10)
    for bound, passes in ((lost, True), (lost - 1e-12, True), (lost - 1e-6, False)):
        assert (failed_gates(found, {"f1": -bound}) == []) is passes


def test_two_runs_without_any_difference_say_that_nothing_varies():
    a, b = (side([row(str(i), HALF, regret=0.2) for i in range(8)]) for _ in range(2))
    found = compare(a, b)
    assert found.difference("f1").smallest_detectable is None
    assert "no spread" in comparison_markdown(found)
    few = compare(*(side([row(str(i), said) for i, said in enumerate(two)]) for two in ((HALF, HALF), (HALF, RIGHT))))
    assert "n too small" in comparison_markdown(few)


def test_a_gate_fails_where_cases_are_missing_or_nothing_was_compared():
    a = side([row(str(i), RIGHT) for i in range(3)])
    found = compare(a, side([row("0", RIGHT), row("1", RIGHT)]))
    assert failed_gates(found, {"f1": -0.5}) == ["1 cases of A are missing in B."]
    with pytest.raises(InputError, match="metric regret could not be compared"):
        failed_gates(found, {"regret": 0.0})


@pytest.mark.parametrize("which", ["A", "B"])
def test_an_evaluation_that_is_not_complete_is_named_and_fails_every_gate(which):
    a, b = (side([row(str(i), RIGHT) for i in range(3)]) for _ in range(2))
    broken = replace(a.run, complete=False)
    found = compare(Side(broken, "own"), b) if which == "A" else compare(a, Side(broken, "own"))
    assert found.incomplete == (which,)
    assert f"The evaluation {which} is not complete" in comparison_markdown(found)
    assert failed_gates(found, {"f1": -0.5}) == [f"The evaluation {which} is not complete."]
    assert failed_gates(found, {}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("F2=-0.02", "no metric 'F2'"), ("F1", "takes NAME=NUMBER"), ("F1=low", "takes NAME"), ("F1=nan", "takes NAME")],
)
def test_a_gate_that_can_not_be_read_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_gates([text])
