from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evals.regret import RiskTable, allowed_by_rules, allowed_protocols, patient_blocked, true_risks
from models.clinical_record import ClinicalRecord
from models.formulary import Formulary
from models.phantom.cohort import all_protocols, write_phantom_case
from models.phantom.patient import draw_patient
from models.phantom.response import clinician_protocol, respond
from models.protocol import Dose, Protocol
from tools.check_rules import judge_protocols
from tools.rule_facts import CaseFacts, Facts
from tools.workspace import Workspace


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory):
    patient = draw_patient(900_001)
    folder = tmp_path_factory.mktemp("oracle")
    write_phantom_case(patient, folder / "case")
    workspace = Workspace({patient.patient_id: folder / "case"}, folder / "artifacts")
    return patient, true_risks(patient, allowed_protocols(patient.patient_id, workspace, "policy", 2, 1))


def made_table() -> RiskTable:
    """Four protocols with risks -1, 0, 1, 2: best, and 1/3, 2/3 and all of the range above it; random mean 0.5."""
    names = ("Cisplatin", "Mitomycin", "Epirubicin", "Raltitrexed")
    protocols = tuple(Protocol(drugs=(name,), embolics=("Lipiodol",)) for name in names)
    return RiskTable(protocols, np.array([-1.0, 0.0, 1.0, 2.0]), given_log_hazard=0.0)


def test_no_allowed_protocol_breaks_a_blocking_class_rule(table) -> None:
    _, risks = table
    classes = {item.name: item.item_class for item in Formulary.load("policy").items}
    for protocol in risks.protocols:
        used = [classes[name] for name in protocol.drugs]
        assert used.count("platinum") <= 1
        assert used.count("anthracycline") <= 1
    # 10 drugs: 10 single + 45 pairs - 6 platinum pairs - 3 anthracycline pairs; 6 embolics
    assert len(risks.protocols) == (10 + 45 - 6 - 3) * 6


def test_regret_is_zero_for_the_best_and_one_for_the_worst_by_brute_force(table) -> None:
    patient, risks = table
    values = {p.key: respond(patient, p).log_hazard for p in risks.protocols}
    assert risks.best.key == min(values, key=values.__getitem__)
    assert risks.regret(risks.best) == 0.0
    worst = risks.protocols[int(risks.log_hazard.argmax())]
    assert risks.regret(worst) == 1.0
    assert 0.0 < float(np.mean(risks.regrets)) < 1.0
    for protocol in risks.protocols[::25]:
        share = (values[protocol.key] - min(values.values())) / (max(values.values()) - min(values.values()))
        assert risks.judge(protocol).of_range == pytest.approx(share)


def test_a_protocol_outside_the_table_is_refused(table) -> None:
    with pytest.raises(KeyError):
        table[1].regret(Protocol(drugs=("Cisplatin", "Oxaliplatin"), embolics=("Lipiodol",)))


def test_a_choice_is_judged_by_hand() -> None:
    table = made_table()
    second = table.judge(table.protocols[1])
    assert second.of_range == pytest.approx(1 / 3)
    assert second.of_random == pytest.approx(1 / 1.5)
    assert (second.best, second.worst, second.random_mean, second.true_risk) == (-1.0, 2.0, 0.5, 0.0)
    assert [table.judge(p).win_vs_given for p in table.protocols] == [1.0, 0.5, 0.0, 0.0]
    assert second.allowed
    assert replace(table, given_log_hazard=None).judge(table.best).win_vs_given is None


def test_the_mean_over_all_choices_is_that_of_a_random_one() -> None:
    table = made_table()
    judged = [table.judge(protocol) for protocol in table.protocols]
    assert np.mean([one.of_random for one in judged]) == pytest.approx(1.0)


def test_doses_do_not_move_a_choice() -> None:
    table = made_table()
    dosed = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol",), doses=(("Mitomycin", Dose(amount=10, unit="mg")),))
    assert table.judge(dosed) == table.judge(table.protocols[1])


@pytest.mark.parametrize(
    "choice",
    [None, Protocol(), Protocol(drugs=("Cisplatin", "Oxaliplatin"), embolics=("Lipiodol",)), Protocol(drugs=("NBCA",))],
)
def test_a_broken_agent_can_not_gain_by_breaking_rules(choice: Protocol | None) -> None:
    """Nothing, the empty protocol and forbidden ones count as the worst allowed protocol."""
    judged = made_table().judge(choice)
    assert (judged.of_range, judged.true_risk, judged.win_vs_given, judged.allowed) == (1.0, 2.0, 0.0, False)
    assert judged.of_random == pytest.approx(2.0)


def test_the_best_within_an_action_space_is_found_by_brute_force(table) -> None:
    _, risks = table
    names = {"Cisplatin", "Raltitrexed", "Lipiodol"}
    inside = [risks.regret(p) for p in risks.protocols if set(p.items) <= names]
    assert len(inside) == 3
    assert risks.best_within(names) == min(inside)
    assert risks.best_within(["Lipiodol"]) == 1.0


def test_what_is_allowed_is_what_check_rules_allows() -> None:
    """On the blocking rules alone, for patients whose records differ; one of them is excluded."""
    candidates = list(all_protocols("policy", 2, 1))
    records = [draw_patient(seed).record for seed in (900_002, 900_007)]
    records += [
        ClinicalRecord(),
        ClinicalRecord(child_pugh_class="C"),
        ClinicalRecord(creatinine_clearance_ml_min=45.0, lvef_percent=40.0, shunt="hepatic_vein"),
    ]
    lengths = []
    for record in records:
        facts = Facts(record=record, case=CaseFacts(tumour_liver_percent=30.0))
        full = judge_protocols("x", facts, candidates, "eu", False, "complete")
        allowed = allowed_by_rules(facts, candidates)
        assert allowed == tuple(p for p, v in zip(candidates, full.verdicts, strict=True) if v.allowed)
        assert patient_blocked(facts) is not full.patient_allowed
        lengths.append(len(allowed))
    assert lengths[3] == 0
    assert len(set(lengths)) > 2
    large = Facts(case=CaseFacts(tumour_liver_percent=75.0))
    assert patient_blocked(large)


def test_the_given_protocol_is_judged_outside_the_table(table) -> None:
    """A clinician may give what the action set does not hold."""
    patient, risks = table
    given = clinician_protocol(patient)
    again = true_risks(patient, risks.protocols, given)
    assert again.given_log_hazard == respond(patient, given).log_hazard
    assert again.judge(again.best).win_vs_given == float(again.log_hazard.min() < again.given_log_hazard)
