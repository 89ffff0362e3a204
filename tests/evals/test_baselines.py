from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from evals.baselines import (
    NAMES,
    Constant,
    NearestNeighbour,
    PolicyAlone,
    RandomAllowed,
    RulesOnly,
    StratumFrequency,
    baselines_for,
)
from evals.datasets import load_dataset
from evals.datasets.eval_case import SearchSpace
from evals.datasets.hcc_tace_seg import gold_variants
from evals.datasets.phantom import PhantomCase, draw_cases
from evals.datasets.stored_case import StoredCase
from evals.metrics import score_protocol
from evals.published import load_published
from evals.regret import RiskTable
from models.clinical_record import ClinicalRecord
from models.phantom.patient import parameters
from models.protocol import Protocol

TABLE = "clinical/HCC-TACE-Seg_clinical_data-V2.dev.xlsx"
SPACE = SearchSpace("hcc_tace_seg")
AGENTS = [item.name for item in SPACE.formulary.items]


def protocol(*names: str) -> Protocol:
    drugs = {item.name for item in SPACE.formulary.drugs}
    return Protocol(drugs=tuple(n for n in names if n in drugs), embolics=tuple(n for n in names if n not in drugs))


def made(case_id: str, gold: Protocol, **record: object) -> StoredCase:
    return StoredCase(case_id, ClinicalRecord.model_validate(record), {"gold": gold}, SPACE)


TRIPLE = protocol("Cisplatin", "Doxorubicin", "Mitomycin", "Lipiodol")
BEADS = protocol("Doxorubicin", "Drug-eluting beads")


# ------------------------------------------------------------------------------------------------------ the real table
def f1(answer: set[str], gold: set[str]) -> float:
    return 2 * len(answer & gold) / (len(answer) + len(gold))


def gold_sets(path: Path, variant: str) -> dict[str, set[str]]:
    """The golds of the table, read and built without the program."""
    rows = list(openpyxl.load_workbook(path, read_only=True)["data table"].values)
    column = rows[0].index("chemotherapy")
    out = {}
    for row in rows[1:]:
        words = str(row[column]).casefold()
        pieces = {"Cisplatin": "cispl", "Doxorubicin": "doxo", "Mitomycin": "mito", "Drug-eluting beads": "beads"}
        gold = {name for name, piece in pieces.items() if piece in words}
        if gold:
            oil = variant == "paper_style" or (variant == "ctace_lipiodol" and "beads" not in words)
            out[str(row[0])] = gold | ({"Lipiodol"} if oil else set())
    return out


def constant_out_of_fold(golds: dict[str, set[str]], folds: Sequence[Sequence[str]]) -> float:
    """Mean F1 of the best subset of the other folds, every one tried, with plain sets."""
    subsets = [set(s) for size in range(1, 6) for s in combinations(sorted(AGENTS), size)]
    scores = []
    for fold in folds:
        train = [gold for name, gold in golds.items() if name not in fold]
        best = max(np.mean([f1(s, gold) for gold in train]) for s in subsets)
        winners = [s for s in subsets if np.mean([f1(s, gold) for gold in train]) == pytest.approx(best)]
        smallest = min(winners, key=len)  # of equally good answers the one with fewer agents
        assert [len(s) for s in winners].count(len(smallest)) == 1
        scores += [f1(smallest, golds[name]) for name in fold]
    return float(np.mean(scores))


@pytest.mark.parametrize("variant", ["paper_style", "ctace_lipiodol", "raw"])
def test_the_constant_on_the_real_table_by_an_independent_computation(real_data: Path, variant: str) -> None:
    """Every subset tried against every gold, fold by fold, with plain sets."""
    data = load_dataset("hcc-tace-seg", clinical=real_data / TABLE)
    golds = gold_sets(real_data / TABLE, variant)
    assert len(golds) == 57
    constant = baselines_for(data, variant, names=["constant"]).ready["constant"]
    ours = [
        score_protocol(constant.propose(case), case.gold[variant], data.formulary).f1 for case in data.cases
    ]  # fmt: skip
    assert np.mean(ours) == pytest.approx(constant_out_of_fold(golds, data.folds))


def test_a_constant_is_hard_to_beat_on_the_real_table(real_data: Path) -> None:
    """Why no score stands alone: the constant answer of the issue, above the paper's 64.08 with the paper's gold."""
    golds = gold_sets(real_data / TABLE, "paper_style")
    constant = {"Cisplatin", "Doxorubicin", "Mitomycin", "Lipiodol"}
    counts = Counter(frozenset(gold) for gold in golds.values())
    by_hand = (
        35 * 1.0  # the triple
        + 19 * (2 * 2 / (4 + 3))  # doxorubicin on beads with oil
        + 2 * (2 * 3 / (4 + 3))  # cisplatin and mitomycin
        + 1 * (2 * 2 / (4 + 2))  # cisplatin alone
    ) / 57
    assert counts[frozenset(constant)] == 35
    assert np.mean([f1(constant, gold) for gold in golds.values()]) == pytest.approx(by_hand)
    assert 100 * by_hand > next(row for row in load_published().rows if row.method == "MeWM").public.f1


def test_the_constant_of_the_full_table() -> None:
    """F1 83.2, Jaccard 76.4, precision 80.1 and recall 87.5 over 88 usable rows, 33 with beads and 55 without.

    The full table is not here. With 33 rows of beads, two sets of counts give these four figures; only this one holds
    the rows that are here, which have two pairs of drugs and one single drug.
    """
    constant = Protocol(drugs=("Cisplatin", "Doxorubicin", "Mitomycin"), embolics=("Lipiodol",))
    counts = {TRIPLE: 52, BEADS: 33, protocol("Cisplatin", "Mitomycin"): 2, protocol("Cisplatin"): 1}
    golds = [gold_variants(regimen)["paper_style"] for regimen, n in counts.items() for _ in range(n)]
    assert len(golds) == 88
    scores = [score_protocol(constant, gold, SPACE.formulary) for gold in golds]
    found = [100 * np.mean([getattr(s, name) for s in scores]) for name in ("f1", "jaccard", "precision", "recall")]
    assert np.round(found, 1).tolist() == [83.2, 76.4, 80.1, 87.5]
    paper = {row.method: row.public.f1 for row in load_published().rows}
    assert found[0] > paper["Physician with MeWM"] > paper["MeWM"]


def test_every_baseline_answers_the_real_table_or_says_why_not(real_data: Path) -> None:
    data = load_dataset("hcc-tace-seg", clinical=real_data / TABLE, limit=4)
    found = baselines_for(data)
    assert set(found.ready) | set(found.not_run) == set(NAMES)
    assert set(found.not_run) == {"regressor", "regressor_told"}
    for name, baseline in found.ready.items():
        answers = [baseline.propose(case) for case in data.cases]
        assert any(answers), name
        assert all(set(answer.items) <= set(AGENTS) for answer in answers if answer), name
        assert baseline.name == name
    assert found.ready["constant"].label.endswith("(out of fold)")


# ----------------------------------------------------------------------------------------------------- learned, by hand
def test_no_case_is_answered_by_a_fit_that_saw_it() -> None:
    """One odd gold: the neighbour that is itself would give it away."""
    cases = [made(f"c{i}", TRIPLE, bclc="B", age_years=60.0 + i) for i in range(9)]
    cases.append(made("odd", BEADS, bclc="B", age_years=40.0))
    data = load_dataset_of(cases)
    for name in ("constant", "frequency", "neighbour"):
        baseline = baselines_for(data, names=[name]).ready[name]
        assert baseline.propose(cases[-1]) == TRIPLE, name


def load_dataset_of(cases: list[StoredCase]):
    from evals.datasets import Dataset

    ids = [case.case_id for case in cases]
    return Dataset(
        name="own", version="1", content_hash="0", card="", cases=tuple(cases), variants=("gold",), origin="real",
        space=SPACE, rows=len(cases), pool=tuple(cases), folds=(tuple(ids[0::2]), tuple(ids[1::2])),
    )  # fmt: skip


def test_frequency_follows_the_stage_and_a_small_stage_the_whole() -> None:
    train = [made(f"b{i}", TRIPLE, bclc="B") for i in range(6)] + [made(f"c{i}", BEADS, bclc="C") for i in range(5)]
    train += [made("d", protocol("Cisplatin"), bclc="D")]
    fitted = StratumFrequency.fit(train, "gold", obey=False)
    assert fitted.propose(made("x", TRIPLE, bclc="B")) == TRIPLE
    assert fitted.propose(made("x", TRIPLE, bclc="C")) == BEADS
    # over all 12: doxorubicin in 11, cisplatin and mitomycin in 7 and 6, oil in 6, beads in 5; sizes 2.0 -> 2 and 1
    assert fitted.propose(made("x", TRIPLE, bclc="D")) == protocol("Cisplatin", "Doxorubicin", "Lipiodol")
    assert fitted.propose(made("x", TRIPLE)) == protocol("Cisplatin", "Doxorubicin", "Lipiodol")


def test_the_neighbour_is_the_nearest_record() -> None:
    train = [made("young", BEADS, age_years=40.0, bclc="A"), made("old", TRIPLE, age_years=80.0, bclc="C")]
    fitted = NearestNeighbour.fit(train, "gold", obey=False)
    assert fitted.propose(made("x", TRIPLE, age_years=45.0, bclc="A")) == BEADS
    assert fitted.propose(made("x", TRIPLE, age_years=78.0, bclc="C")) == TRIPLE


def test_the_best_constant_need_not_be_a_gold() -> None:
    """Golds {a, b}, {a, c}: F1 of {a} is 2/3 on both; of either gold (1 + 1/2) / 2; of {a, b, c} 4/5."""
    golds = [protocol("Cisplatin", "Doxorubicin"), protocol("Cisplatin", "Mitomycin")]
    fitted = Constant.fit([made(str(i), gold) for i, gold in enumerate(golds)], "gold", obey=False)
    assert fitted.propose(made("x", TRIPLE)) == protocol("Cisplatin", "Doxorubicin", "Mitomycin")


def test_a_large_action_set_tries_golds_and_frequent_agents() -> None:
    space = SearchSpace("all")
    common = Protocol(drugs=("Raltitrexed", "Lobaplatin"), embolics=("Lipiodol",))
    cases = [StoredCase(f"c{i}", ClinicalRecord(), {"gold": common}, space) for i in range(3)]
    cases.append(StoredCase("d", ClinicalRecord(), {"gold": Protocol(drugs=("Cisplatin",))}, space))
    assert Constant.fit(cases, "gold", obey=False).ranked[0] == common


# ----------------------------------------------------------------------------------------------------- phantom patients
@pytest.fixture(scope="module")
def phantoms() -> list[PhantomCase]:
    drawn = (case for case in draw_cases(840_000) if isinstance(case, PhantomCase))
    return [case for case, _ in zip(drawn, range(4), strict=False)]


def test_the_phantom_constant_has_the_lowest_mean_regret_by_brute_force(phantoms: list[PhantomCase]) -> None:
    """On two training patients; a third whose rules forbid it gets the next of the list."""
    train, scored = phantoms[:2], phantoms[2]
    fitted = Constant.fit(train, "best", obey=True)
    total: dict[Protocol, float] = {}
    for p in train[0].space.protocols:
        total[p] = sum(case.truth.judge(p).of_range for case in train)
    assert total[fitted.ranked[0]] == pytest.approx(min(total.values()))
    answer = fitted.propose(scored)
    assert answer in scored.allowed
    before = fitted.ranked[: fitted.ranked.index(answer)]
    assert not set(before) & set(scored.allowed)
    without = replace(fitted, ranked=fitted.ranked[1:])
    assert without.propose(scored) in scored.allowed


def test_random_and_rules_stay_inside_the_rules_and_repeat(phantoms: list[PhantomCase]) -> None:
    case = phantoms[0]
    drawn = {RandomAllowed(seed).propose(case) for seed in range(40)}
    assert len(drawn) > 30
    assert drawn <= set(case.allowed)
    assert RandomAllowed(3).propose(case) == RandomAllowed(3).propose(case)
    # a random choice loses on average what the table says that it loses
    regrets = [case.truth.judge(RandomAllowed(seed).propose(case)).of_random for seed in range(400)]
    assert np.mean(regrets) == pytest.approx(1.0, abs=4 * np.std(regrets) / 20)
    assert RulesOnly(0).propose(case) in case.allowed


def test_rules_only_takes_a_protocol_without_warnings_where_there_is_one() -> None:
    """Clearance 50: cisplatin draws a warning (C07), the other drugs none."""
    case = made("x", TRIPLE, child_pugh_class="A", creatinine_clearance_ml_min=50.0)
    assert any("Cisplatin" in p.drugs for p in case.allowed)
    for seed in range(10):
        answer = RulesOnly(seed).propose(case)
        assert answer is not None
        assert "Cisplatin" not in answer.drugs


def test_a_patient_whom_the_rules_exclude_gets_no_answer() -> None:
    case = made("x", TRIPLE, child_pugh_class="C")
    assert RandomAllowed().propose(case) is None
    assert RulesOnly().propose(case) is None
    assert PolicyAlone(3, 2, "p", "p").propose(case) is None


def test_the_policy_alone_obeys_the_rules_and_its_sizes(phantoms: list[PhantomCase]) -> None:
    case = made("x", TRIPLE, child_pugh_class="A", lvef_percent=40.0)
    first, full = PolicyAlone(1, 1, "a", "a").propose(case), PolicyAlone(3, 2, "b", "b").propose(case)
    assert first is not None
    assert full is not None
    assert (len(first.drugs), len(first.embolics)) == (1, 1)
    assert "Doxorubicin" not in full.drugs  # a weak heart (P17)
    assert set(first.items) <= set(full.items)
    assert full in case.allowed
    assert PolicyAlone(3, 2, "b", "b").propose(phantoms[0]) in phantoms[0].allowed


def test_the_policy_knows_nothing_of_the_phantom(phantoms: list[PhantomCase], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the response parameters permuted among agents the truth changes and its proposals stay identical."""
    case = phantoms[0]
    policies = [PolicyAlone(1, 1, "a", "a"), PolicyAlone(3, 2, "b", "b")]
    before = [policy.propose(PhantomCase(case.patient)) for policy in policies]
    table = copy.deepcopy(parameters())
    for side in ("drugs", "embolics"):
        rows = table["response"][side]
        names = sorted(rows)
        table["response"][side] = {name: rows[names[i - 1]] for i, name in enumerate(names)}
    for module in ("response", "patient", "cohort"):
        monkeypatch.setattr(f"models.phantom.{module}.parameters", lambda: table)
    other = PhantomCase(case.patient)
    assert [policy.propose(other) for policy in policies] == before
    assert other.truth.best != case.truth.best
    assert not np.allclose(other.truth.log_hazard, case.truth.log_hazard)


def test_a_learner_that_obeys_rules_never_answers_with_a_forbidden_protocol(phantoms: list[PhantomCase]) -> None:
    train, scored = phantoms[:3], phantoms[3]
    for fit in (StratumFrequency.fit, NearestNeighbour.fit):
        answer = fit(train, "best", True).propose(scored)
        assert answer is None or answer in scored.allowed
    forbidden = Protocol(drugs=("Cisplatin", "Oxaliplatin"), embolics=("Lipiodol",))
    assert Constant((forbidden,), obey=True).propose(scored) is None
    assert Constant((forbidden,), obey=False).propose(scored) == forbidden


def test_broken_agents_land_where_theory_says_on_a_phantom(phantoms: list[PhantomCase]) -> None:
    """Empty, everything and always blocked: the worst; the truly best: 0; random: 1 on its own scale."""
    for case in phantoms[:2]:
        truth = case.truth
        assert isinstance(truth, RiskTable)
        everything = Protocol(
            drugs=tuple(i.name for i in case.space.formulary.drugs),
            embolics=tuple(i.name for i in case.space.formulary.embolics),
        )
        for broken in (None, Protocol(), everything, Protocol(drugs=("Cisplatin", "Oxaliplatin"), embolics=("PVA",))):
            assert truth.judge(broken).of_range == 1.0
        assert truth.judge(case.gold["best"]).of_range == 0.0
        assert truth.judge(case.gold["best"]).win_vs_given in (0.5, 1.0)


# ------------------------------------------------------------------------------------------------------------ published
def test_published_figures_are_complete_and_labelled() -> None:
    found = load_published()
    assert [row.table for row in found.rows] == [2] * 9 + [3] * 2
    by_name = {row.method: row for row in found.rows}
    assert by_name["MeWM"].public.f1 == 64.08
    assert by_name["Physician with MeWM"].public.f1 == 80.00
    assert by_name["MeWM"].in_house.f1 == 52.38
    for row in found.rows:
        for score in (row.in_house, row.public):
            assert score.jaccard < score.f1  # holds for every case, so for every mean
    assert found.caption("public") == "as published, other split, HCC-TACE-Seg, n about 14"
    assert "n about 30" in found.caption("in_house")
    assert json.loads(found.model_dump_json())["rows"]
