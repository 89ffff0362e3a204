"""What the plan keeps of the rules' findings."""

from __future__ import annotations

from agent.nodes import findings_of, verdicts_of
from models.clinical_record import ClinicalRecord
from models.protocol import Protocol
from tools.check_rules import judge_protocols
from tools.rule_facts import Facts
from tools.rulebook import CheckRulesResult

OIL = Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))


def judged(**record: object) -> CheckRulesResult:
    facts = Facts(record=ClinicalRecord.model_validate(record))
    return judge_protocols("case", facts, [OIL], "eu", strict=False, stage="complete")


def test_a_warning_with_an_unknown_severer_level_says_what_was_missing() -> None:
    result = judged(shunt="arterioportal")
    finding = next(f for f in verdicts_of(result)[OIL.key].findings if f.rule_id == "L04")
    assert (finding.status, finding.strength) == ("fired", "warn")
    assert set(finding.missing) == {"record.shunt_marked", "record.hepatofugal_flow"}
    assert finding.unclear is not None
    assert "record.shunt_marked" in finding.unclear
    assert finding.found
    patient = judged(portal_vein_invasion="main", hepatofugal_flow=False)
    portal = next(f for f in findings_of(patient.patient, None) if f.rule_id == "P05")
    assert (portal.strength, portal.missing) == ("warn", ("session.portal_collaterals",))


def test_nothing_is_unclear_where_every_level_was_judged() -> None:
    result = judged(shunt="arterioportal", shunt_marked=False, hepatofugal_flow=False)
    finding = next(f for f in verdicts_of(result)[OIL.key].findings if f.rule_id == "L04")
    assert (finding.status, finding.missing, finding.unclear) == ("fired", (), None)
    absent = next(f for f in verdicts_of(judged())[OIL.key].findings if f.rule_id == "L04")
    assert absent.status == "not_evaluable"
    assert absent.unclear == f"L04: {absent.message}"
