from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    f1_score,
    jaccard_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)

from evals.metrics import (
    ItemCount,
    item_counts,
    micro_counts,
    micro_f1,
    reachable,
    recall_of,
    score_protocol,
    stability,
    violations,
)
from models.clinical_record import ClinicalRecord
from models.formulary import ITEM_ORDER, Formulary
from models.protocol import Protocol
from tools.check_rules import judge_protocols
from tools.rule_facts import Facts

ALL = Formulary.load("all")
TABLE = Formulary.load("hcc_tace_seg")
KINDS = {item.name: item.kind for item in ALL.items}


def protocol(*names: str) -> Protocol:
    return Protocol(
        drugs=tuple(n for n in names if KINDS[n] == "drug"), embolics=tuple(n for n in names if KINDS[n] == "embolic")
    )


def random_pairs(n: int, seed: int) -> list[tuple[Protocol, Protocol]]:
    rng = np.random.default_rng(seed)

    def one() -> Protocol:
        return protocol(*(name for name in ITEM_ORDER if rng.random() < 0.2))

    return [(one(), one()) for _ in range(n)]


def indicator(protocols: list[Protocol]) -> np.ndarray:
    return np.array([[name in p.items for name in ITEM_ORDER] for p in protocols], int)


def pooled_f1(pairs) -> float:
    return float(micro_f1(np.array(micro_counts(pairs, ALL), float)))


def test_case_metrics_agree_with_scikit_learn() -> None:
    pairs = random_pairs(300, 1)
    scores = [score_protocol(answer, gold, ALL) for answer, gold in pairs]
    some = [i for i, (a, g) in enumerate(pairs) if a.items or g.items]  # scikit-learn scores both-empty as 0
    assert any(not pairs[i][0].items or not pairs[i][1].items for i in some)
    answer = indicator([pairs[i][0] for i in some])
    gold = indicator([pairs[i][1] for i in some])
    theirs = {"f1": f1_score, "precision": precision_score, "recall": recall_score, "jaccard": jaccard_score}
    for name, function in theirs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            wanted = function(gold, answer, average="samples", zero_division=0)
        assert np.mean([getattr(scores[i], name) for i in some]) == pytest.approx(wanted, abs=1e-12)
    assert pooled_f1(pairs) == pytest.approx(
        f1_score(indicator([g for _, g in pairs]), indicator([a for a, _ in pairs]), average="micro")
    )
    matrices = multilabel_confusion_matrix(indicator([g for _, g in pairs]), indicator([a for a, _ in pairs]))
    counts = item_counts(pairs, ALL)
    assert tuple(counts) == ITEM_ORDER
    for name, matrix in zip(ITEM_ORDER, matrices, strict=True):
        (tn, fp), (fn, tp) = matrix
        assert counts[name] == ItemCount(tp, fp, fn, tn)
        assert counts[name].f1 == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_a_case_worked_by_hand() -> None:
    """Gold 3 drugs and oil; answered 2 of the drugs, another one and glue: 2 right of 4 answered and 4 wanted."""
    gold = protocol("Cisplatin", "Doxorubicin", "Mitomycin", "Lipiodol")
    score = score_protocol(protocol("Doxorubicin", "Mitomycin", "Oxaliplatin", "NBCA"), gold, ALL)
    assert (score.precision, score.recall, score.f1, score.jaccard) == (0.5, 0.5, 0.5, 2 / 6)
    assert score.drug_f1 == pytest.approx(2 * 2 / 6)
    assert score.embolic_f1 == 0.0
    # classes: platinum, anthracycline, antibiotic, oil wanted; platinum, anthracycline, antibiotic, liquid answered
    assert score.class_f1 == pytest.approx(2 * 3 / 8)
    assert not score.exact
    assert score.dose_within is None
    assert score_protocol(gold, gold, ALL).exact


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        (Protocol(), Protocol(), 1.0),
        ([], Protocol(), 1.0),
        (None, Protocol(), 1.0),
        (Protocol(), protocol("Cisplatin", "Lipiodol"), 0.0),
        (None, protocol("Cisplatin", "Lipiodol"), 0.0),
        (protocol("Cisplatin"), Protocol(), 0.0),
    ],
)
def test_the_two_conventions_for_empty_sets(answer, gold, value) -> None:
    score = score_protocol(answer, gold, ALL)
    assert {score.f1, score.jaccard, score.precision, score.recall, score.class_f1} == {value}
    assert score.exact is (value == 1.0)
    assert score.invalid is (answer is None)


def test_one_empty_side_does_not_touch_the_other() -> None:
    score = score_protocol(protocol("Cisplatin"), protocol("Cisplatin", "Lipiodol"), ALL)
    assert (score.drug_f1, score.embolic_f1) == (1.0, 0.0)
    assert score_protocol(protocol("Cisplatin"), protocol("Cisplatin"), ALL).embolic_f1 == 1.0


def test_names_are_read_as_people_write_them() -> None:
    """Synonyms, Chinese, case and repetition name one agent; THP is Pirarubicin."""
    gold = protocol("Pirarubicin", "Cisplatin", "Lipiodol")
    score = score_protocol(["THP", "pirarubicin", "顺铂", "CDDP 50 mg", "iodized oil"], gold, ALL)
    assert score.exact
    assert score.unknown_items == ()


def test_unknown_agents_are_false_positives_once_each() -> None:
    gold = protocol("Cisplatin", "Lipiodol")
    score = score_protocol(["Cisplatin", "Lipiodol", "Wondermycin", " wondermycin", "Snake oil"], gold, ALL)
    assert score.unknown_items == ("Wondermycin", "Snake oil")
    assert (score.precision, score.recall) == (2 / 4, 1.0)
    # nobody knows which side it belongs to, so it counts against both
    assert score.drug_f1 == pytest.approx(2 / 4)
    assert score.embolic_f1 == pytest.approx(2 / 4)
    assert score.class_f1 == pytest.approx(4 / 6)


def test_a_known_agent_outside_the_action_set_is_a_false_positive_of_its_side() -> None:
    """Oxaliplatin is no agent of the public table's action set, and must not pass for the platinum that gold has."""
    gold = protocol("Cisplatin", "Lipiodol")
    for answer in (["Oxaliplatin", "L-OHP", "Lipiodol"], protocol("Oxaliplatin", "Lipiodol")):
        score = score_protocol(answer, gold, TABLE)
        assert score.unknown_items == ("Oxaliplatin",)
        assert (score.precision, score.drug_f1, score.embolic_f1) == (0.5, 0.0, 1.0)
        assert score.class_f1 == 0.5
    assert item_counts([(["Oxaliplatin"], gold)], TABLE)["Oxaliplatin"] == ItemCount(0, 1, 0, 0)


def test_a_drug_in_millilitres_can_not_be_read_and_counts_against_the_answer() -> None:
    score = score_protocol(["Oxaliplatin 100 ml", "Lipiodol"], protocol("Oxaliplatin", "Lipiodol"), ALL)
    assert score.unknown_items == ("Oxaliplatin 100 ml",)
    assert (score.precision, score.recall) == (0.5, 0.5)


def test_gold_outside_the_action_set_is_refused() -> None:
    with pytest.raises(ValueError, match="Oxaliplatin, outside the action set 'hcc_tace_seg'"):
        score_protocol(None, protocol("Oxaliplatin"), TABLE)


def test_doses_are_judged_by_the_formulary_where_gold_has_some() -> None:
    """Cisplatin 10-100 mg; Doxorubicin 50-75 mg, on beads 50-150 mg; beads take no dose."""
    gold = ALL.parse("Cisplatin 50 mg; Doxorubicin 60 mg; Mitomycin; Lipiodol")

    def within(text: str, wanted: Protocol = gold) -> float | None:
        return score_protocol(ALL.parse(text), wanted, ALL).dose_within

    assert within("Cisplatin 40 mg; Doxorubicin 50 mg; Lipiodol 10 ml") == 1.0
    assert within("Cisplatin 40 mg; Doxorubicin 120 mg") == 0.5
    assert within("Cisplatin; Mitomycin 10 mg") == 0.0  # no dose, and no doxorubicin
    assert within("Cisplatin; Doxorubicin") is None  # agents only: nobody stated a dose that could be wrong
    assert score_protocol(None, gold, ALL).dose_within is None
    on_beads = ALL.parse("Doxorubicin 75 mg; LC Beads")
    assert within("Doxorubicin 120 mg; LC Beads", on_beads) == 1.0
    assert within("Doxorubicin 120 mg", on_beads) == 0.0
    assert within("Cisplatin 40 mg", protocol("Cisplatin", "Lipiodol")) is None


def test_stability_is_the_mean_over_pairs() -> None:
    a, b, c = protocol("Cisplatin", "Lipiodol"), protocol("Cisplatin", "Lipiodol"), protocol("Cisplatin", "PVA")
    assert stability([a, b, c]) == pytest.approx((1.0 + 1 / 3 + 1 / 3) / 3)
    assert stability([None, None]) == 1.0
    assert stability([a, None]) == 0.0
    assert stability([a]) is None


def test_violations_and_reachability_follow_the_rules() -> None:
    record = ClinicalRecord(child_pugh_class="A", creatinine_clearance_ml_min=50.0)
    two_platinums = protocol("Cisplatin", "Oxaliplatin", "Lipiodol")
    renal = protocol("Cisplatin", "Lipiodol")
    bare = protocol("Cisplatin")
    rules = judge_protocols("x", Facts(record=record), [two_platinums, renal, bare], "eu", False, "complete")
    found = violations(two_platinums, rules)
    assert found.blocking == ("C01",)
    assert found.count == 1
    assert "C07" in violations(renal, rules).warnings
    assert violations(renal, rules).count == 0
    assert violations(bare, rules).blocking == ("E08",)
    assert "D20" not in violations(renal, rules).patient
    assert violations(renal, rules).not_evaluable
    with pytest.raises(KeyError):
        violations(protocol("Mitomycin"), rules)

    assert reachable(renal, rules, (3, 2)).reachable
    assert not reachable(two_platinums, rules, (3, 2)).reachable
    why = reachable(two_platinums, rules, (1, 1)).reasons
    assert why[0] == "Gold has 2 drugs, the horizon is 1."
    assert why[1].startswith("C01")
    oxaliplatin = reachable(two_platinums, rules, (3, 2), TABLE).reasons
    assert oxaliplatin[0] == "Gold has Oxaliplatin, outside the action set of the search."
    assert reachable(renal, rules, (3, 2), TABLE).reachable
    assert reachable(bare, rules, (3, 2)).reasons[0] == "Gold has no embolic, which a search always adds."


def test_a_patient_block_makes_everything_unreachable() -> None:
    rules = judge_protocols(
        "x", Facts(record=ClinicalRecord(child_pugh_class="C")), [protocol("Cisplatin", "Lipiodol")], "eu", False,
        "complete",
    )  # fmt: skip
    assert violations(protocol("Cisplatin", "Lipiodol"), rules).patient == ("P01",)
    assert not reachable(protocol("Cisplatin", "Lipiodol"), rules, (3, 2)).reachable


def test_recall_of_an_action_space() -> None:
    gold = protocol("Cisplatin", "Mitomycin", "Lipiodol")
    assert recall_of(["Cisplatin", "Lipiodol", "PVA"], gold) == pytest.approx(2 / 3)
    assert recall_of([], gold) == 0.0
    assert recall_of([], Protocol()) == 1.0


def test_broken_agents_land_where_theory_says() -> None:
    """Always empty 0; always everything: recall 1, precision |G|/N, F1 2|G|/(N+|G|), Jaccard |G|/N; always gold 1."""
    golds = [gold for _, gold in random_pairs(40, 5) if gold.items]
    n = len(ITEM_ORDER)
    for gold in golds:
        k = len(gold.items)
        nothing = score_protocol(Protocol(), gold, ALL)
        assert {nothing.f1, nothing.jaccard, nothing.precision, nothing.recall, nothing.class_f1} == {0.0}
        everything = score_protocol(protocol(*ITEM_ORDER), gold, ALL)
        assert everything.recall == 1.0
        assert everything.precision == pytest.approx(k / n)
        assert everything.f1 == pytest.approx(2 * k / (n + k))
        assert everything.jaccard == pytest.approx(k / n)
        assert score_protocol(gold, gold, ALL).f1 == 1.0
    assert pooled_f1([(None, gold) for gold in golds]) == 0.0
    assert pooled_f1([(None, Protocol())]) == 1.0
    wanted = 2 * sum(len(g.items) for g in golds) / (n * len(golds) + sum(len(g.items) for g in golds))
    assert pooled_f1([(protocol(*ITEM_ORDER), gold) for gold in golds]) == pytest.approx(wanted)
