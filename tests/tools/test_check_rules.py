"""Rules: every rule on hand-written patients and protocols, three ways each; conditions against a truth table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.errors import InputError, ToolError, UnknownItemError
from models.formulary import ITEM_ORDER, Formulary
from models.protocol import Protocol
from models.volume import Volume
from tools.check_rules import check_rules, judge_protocols
from tools.rule_conditions import AllOf, AnyOf, Compare, Not
from tools.rule_facts import CaseFacts, Facts, SessionFacts, known_agents
from tools.rulebook import Finding, Profile, Rule, Rulebook, judge, load_rulebook
from tools.workspace import Workspace


class Given(NamedTuple):
    """A protocol and what is known; written in the tests as Given("Cisplatin | Lipiodol", record={...})."""

    protocol: str = ""
    record: dict[str, Any] = {}  # noqa: RUF012
    session: dict[str, Any] = {}  # noqa: RUF012
    case: dict[str, Any] = {}  # noqa: RUF012

    def facts(self) -> Facts:
        return Facts(
            record=ClinicalRecord(**self.record),
            session=SessionFacts(**self.session),
            case=CaseFacts(**self.case),
            protocol=known_agents().parse(self.protocol),
        )


def find(
    rule_id: str, given: Given, profile: Profile = "eu", strict: bool = False, stage: str = "complete"
) -> Finding | None:
    return judge(load_rulebook().rule(rule_id), given.facts(), profile, strict, stage)  # type: ignore[arg-type]


G = Given
DECOMPENSATION_ABSENT = {
    "child_pugh_score": 6,
    "jaundice": False,
    "encephalopathy": 0,
    "refractory_ascites": False,
    "hepatorenal_syndrome": False,
}
OIL_FINE = {
    "lipiodol_hypersensitivity": False,
    "hyperthyroidism": False,
    "bile_duct_dilatation_undrained": False,
    "active_gi_bleeding": False,
}

# id: (strength, input that fires, input that passes or to which the rule does not apply, input that leaves it unknown)
CASES: dict[str, tuple[str, Given, Given, Given | None]] = {
    "C01": ("block", G("Cisplatin + Nedaplatin"), G("Cisplatin + Mitomycin"), None),
    "C02": ("block", G("Doxorubicin + Epirubicin"), G("Doxorubicin + Cisplatin"), None),
    "C03": ("warn", G("Raltitrexed + 5-FU"), G("Raltitrexed + Cisplatin"), None),
    "C04": (
        "block",
        G("Raltitrexed", session={"folinic_acid": True}),
        G("Raltitrexed", session={"folinic_acid": False}),
        G("Raltitrexed"),
    ),
    "C05": (
        "warn",
        G("Raltitrexed + Cisplatin", session={"raltitrexed_mixed": True}),
        G("Raltitrexed + Cisplatin", session={"raltitrexed_mixed": False}),
        G("Raltitrexed + Cisplatin"),
    ),
    "C06": (
        "warn",
        G("Cisplatin + Mitomycin + Doxorubicin + Raltitrexed"),
        G("Cisplatin + Mitomycin + Doxorubicin"),
        None,
    ),
    "C07": (
        "warn",
        G("Cisplatin", {"creatinine_clearance_ml_min": 59.0}),
        G("Cisplatin", {"creatinine_clearance_ml_min": 60.0}),
        G("Cisplatin"),
    ),
    "C08": (
        "block",
        G("Oxaliplatin", session={"chloride_diluent": True}),
        G("Oxaliplatin", session={"chloride_diluent": False}),
        G("Lobaplatin"),
    ),
    "C09": (
        "warn",
        G("Mitomycin + Cisplatin", {"platelets_10e9_l": 99.0}),
        G("Mitomycin + Cisplatin", {"platelets_10e9_l": 100.0}),
        G("Mitomycin + Cisplatin"),
    ),
    "E01": (
        "block",
        G("Cisplatin | Gelatin sponge", session={"technique": "ctace"}),
        G("Cisplatin | Lipiodol", session={"technique": "ctace"}),
        G("Cisplatin | Gelatin sponge"),
    ),
    "E02": ("warn", G("Doxorubicin | Drug-eluting beads + Lipiodol"), G("Doxorubicin | Drug-eluting beads"), None),
    "E03": ("block", G("Hydroxycamptothecin | Drug-eluting beads"), G("Idarubicin | Drug-eluting beads"), None),
    "E04": ("warn", G("Irinotecan | Drug-eluting beads"), G("Doxorubicin | Drug-eluting beads"), None),
    "E05": ("warn", G("Cisplatin | PVA + Gelatin sponge"), G("Cisplatin | PVA"), None),
    "E06": ("block", G("Cisplatin | PVA + Absolute alcohol"), G("Cisplatin | Absolute alcohol"), None),
    "E07": ("warn", G("Cisplatin | NBCA", {"shunt": "none"}), G("Cisplatin | NBCA", {"shunt": "arterioportal"}), None),
    "E08": ("block", G("Cisplatin"), G("Cisplatin | PVA"), None),
    "E09": ("info", G("- | PVA"), G("Cisplatin | PVA"), None),
    "E10": ("info", G("Cisplatin | Lipiodol + Gelatin sponge"), G("Cisplatin | Gelatin sponge"), None),
    "L01": ("warn", G("Cisplatin | Lipiodol 16 ml"), G("Cisplatin | Lipiodol 15 ml"), G("Cisplatin | Lipiodol")),
    "L02": (
        "warn",
        G("Cisplatin | Lipiodol 11 ml", {"child_pugh_score": 7}),
        G("Cisplatin | Lipiodol 11 ml", {"child_pugh_class": "A"}),
        G("Cisplatin | Lipiodol 11 ml"),
    ),
    "L03": (
        "block",
        G("Cisplatin | PVA", {"shunt": "hepatic_vein"}),
        G("Cisplatin | PVA", {"shunt": "arterioportal"}),
        G("Cisplatin | Lipiodol"),
    ),
    "L04": (
        "warn",
        G("Cisplatin | Lipiodol", {"shunt": "arterioportal", "shunt_marked": False}),
        G("Cisplatin | Lipiodol", {"shunt": "none"}),
        G("Cisplatin | Lipiodol"),
    ),
    "L05": (
        "block",
        G("Cisplatin | Lipiodol", {"hyperthyroidism": True}),
        G("Cisplatin | Lipiodol", OIL_FINE, {"recent_trauma_or_haemorrhage": False}),
        G("Cisplatin | Lipiodol", OIL_FINE),
    ),
    "L06": (
        "warn",
        G("Cisplatin | Lipiodol", {"severe_lung_impairment": True}),
        G("Cisplatin | Lipiodol", {"severe_lung_impairment": False}, {"heart_failure_or_overload": False}),
        G("Cisplatin | Lipiodol", {"severe_lung_impairment": False}),
    ),
    "P01": ("block", G(record={"child_pugh_score": 10}), G(record={"child_pugh_score": 9}), G()),
    "P02": (
        "block",
        G(record={"child_pugh_score": 8}),
        G(record=DECOMPENSATION_ABSENT),
        G(record={**DECOMPENSATION_ABSENT, "jaundice": None}),
    ),
    "P03": (
        "warn",
        G(record={"child_pugh_score": 7}),
        G(record={"child_pugh_score": 6}),
        G(record={"child_pugh_class": "B"}),
    ),
    "P04": ("block", G(record={"bilirubin_mg_dl": 3.1}), G(record={"bilirubin_mg_dl": 1.9}), G()),
    "P05": (
        "block",
        G(record={"portal_vein_invasion": "main"}, session={"portal_collaterals": "few"}),
        G(record={"hepatofugal_flow": False, "portal_vein_invasion": "none"}),
        G(record={"portal_vein_invasion": "branch"}),
    ),
    "P06": ("warn", G(record={"portal_vein_invasion": "branch"}), G(record={"portal_vein_invasion": "none"}), G()),
    "P07": (
        "warn",
        G(record={"extrahepatic_spread": True}),
        G(record={"extrahepatic_spread": False}, session={"life_expectancy_months": 3}),
        G(record={"extrahepatic_spread": False}),
    ),
    "P08": (
        "block",
        G(case={"tumour_liver_percent": 70.0}),
        G(record={"tumour_liver_fraction_percent": 50.0}, case={"tumour_liver_percent": 90.0}),
        G(),
    ),
    "P09": (
        "block",
        G(record={"creatinine_mg_dl": 2.0}),
        G(record={"creatinine_mg_dl": 1.9, "creatinine_clearance_ml_min": 30.0}),
        G(record={"creatinine_mg_dl": 1.9}),
    ),
    "P10": (
        "warn",
        G(record={"platelets_10e9_l": 49.0}),
        G(record={"platelets_10e9_l": 49.0}, session={"hypersplenism": True}),
        G(record={"platelets_10e9_l": 60.0}),
    ),
    "P11": ("block", G(record={"inr": 1.8}), G(record={"inr": 1.5}), G()),
    "P12": (
        "block",
        G(record={"active_infection": True}),
        G(record={"active_infection": False, "active_gi_bleeding": False, "contrast_allergy_severe": False}),
        G(record={"active_infection": False}),
    ),
    "P13": ("block", G(record={"ecog": 3}), G(record={"ecog": 1}), G()),
    "P14": (
        "warn",
        G(case={"largest_diameter_cm": 10.1}),
        G(record={"high_risk_varices": False, "bile_duct_occlusion": False}, case={"largest_diameter_cm": 10.0}),
        G(case={"largest_diameter_cm": 10.0}),
    ),
    "P15": (
        "info",
        G(session={"resectable_or_ablatable": True}, case={"lesion_count": 1}),
        G(
            record={"bclc": "B", "tumour_number": 2},
            session={"resectable_or_ablatable": True},
            case={"lesion_count": 1},
        ),
        G(record={"tumour_number": 2}),
    ),
    "P16": ("warn", G(session={"diffuse_bilobar": True}), G(session={"diffuse_bilobar": False}), G()),
    "P17": (
        "block",
        G("Idarubicin", {"lvef_percent": 49.0}),
        G("Idarubicin", {"lvef_percent": 50.0, "neutrophils_10e9_l": 1.5, "wbc_10e9_l": 3.0}),
        G("Idarubicin", {"lvef_percent": 50.0}),
    ),
    "P18": (
        "warn",
        G(record={"prior_tace_sessions": 3, "prior_tace_without_response": 2}),
        G(record={"prior_tace_sessions": 0}),
        G(record={"prior_tace_sessions": 2}),
    ),
    "D01": (
        "block",
        G("Pirarubicin", {"bilirubin_mg_dl": 5.1}),
        G("Pirarubicin", {"bilirubin_mg_dl": 5.0, "child_pugh_class": "B"}),
        G("Pirarubicin", {"bilirubin_mg_dl": 5.0}),
    ),
    "D02": (
        "block",
        G("Doxorubicin", session={"recent_myocardial_infarction": True}),
        G("Doxorubicin", session={"recent_myocardial_infarction": False}),
        G("Doxorubicin"),
    ),
    "D03": (
        "block",
        G("Idarubicin", {"bilirubin_mg_dl": 5.1}),
        G("Idarubicin", {"bilirubin_mg_dl": 5.0}),
        G("Idarubicin"),
    ),
    # Mosteller: 180 cm, 80 kg -> sqrt(4) = 2 m2, so 60 mg is 30 mg/m2.
    "D04": (
        "block",
        G("Doxorubicin 60 mg", {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 521.0}),
        G("Doxorubicin 60 mg", {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 370.0}),
        G("Doxorubicin 60 mg", {"height_cm": 180.0, "prior_anthracycline_mg_m2": 370.0}),
    ),
    "D05": (
        "block",
        G("Epirubicin 60 mg", {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 871.0}),
        G("Epirubicin 60 mg", {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 870.0}),
        G("Epirubicin 60 mg", {"weight_kg": 80.0, "prior_anthracycline_mg_m2": 870.0}),
    ),
    "D06": (
        "warn",
        G("Doxorubicin 151 mg | Drug-eluting beads"),
        G("Doxorubicin 150 mg | Drug-eluting beads"),
        G("Doxorubicin | Drug-eluting beads"),
    ),
    "D07": (
        "warn",
        G("Doxorubicin 101 mg | Lipiodol", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 1.5}),
        G("Doxorubicin 101 mg | Lipiodol", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 1.4}),
        G("Doxorubicin 101 mg | Lipiodol", {"height_cm": 180.0, "bilirubin_mg_dl": 1.4}),
    ),
    "D08": ("warn", G("Mitomycin 21 mg"), G("Mitomycin 20 mg"), G("Mitomycin 20 mg + Cisplatin")),
    "D09": (
        "block",
        G("Cisplatin", {"creatinine_clearance_ml_min": 29.0}),
        G("Cisplatin", {"creatinine_clearance_ml_min": 60.0}),
        G("Cisplatin"),
    ),
    "D10": ("warn", G("Cisplatin", {"hearing_loss": True}), G("Cisplatin", {"hearing_loss": False}), G("Cisplatin")),
    "D11": (
        "warn",
        G("Nedaplatin", session={"marrow_failure": True}),
        G("Nedaplatin", session={"marrow_failure": False}),
        G("Nedaplatin"),
    ),
    "D12": (
        "warn",
        G("Cisplatin 201 mg", {"height_cm": 180.0, "weight_kg": 80.0}),
        G("Cisplatin 200 mg", {"height_cm": 180.0, "weight_kg": 80.0}),
        G("Cisplatin 200 mg"),
    ),
    "D13": (
        "warn",
        G("Oxaliplatin", {"creatinine_clearance_ml_min": 29.0}),
        G("Oxaliplatin", {"creatinine_clearance_ml_min": 30.0}),
        G("Oxaliplatin"),
    ),
    "D14": (
        "warn",
        G("Oxaliplatin", {"neuropathy_grade": 2}),
        G("Oxaliplatin", {"neuropathy_grade": 1}),
        G("Oxaliplatin"),
    ),
    "D15": (
        "warn",
        G("Oxaliplatin 100 mg", {"height_cm": 180.0, "weight_kg": 80.0}, {"prior_oxaliplatin_mg_m2": 731}),
        G("Oxaliplatin 100 mg", {"height_cm": 180.0, "weight_kg": 80.0}, {"prior_oxaliplatin_mg_m2": 730}),
        G("Oxaliplatin 100 mg", {"height_cm": 180.0, "weight_kg": 80.0}),
    ),
    "D16": (
        "warn",
        G("Lobaplatin", {"platelets_10e9_l": 99.0}),
        G(
            "Lobaplatin",
            {"platelets_10e9_l": 100.0, "creatinine_clearance_ml_min": 60.0, "uncorrectable_coagulopathy": False},
        ),
        G("Lobaplatin", {"platelets_10e9_l": 100.0}),
    ),
    "D17": (
        "warn",
        G("Nedaplatin", {"creatinine_clearance_ml_min": 29.0}),
        G("Nedaplatin", {"creatinine_clearance_ml_min": 30.0}),
        G("Nedaplatin"),
    ),
    "D18": (
        "warn",
        G("Mitomycin", {"wbc_10e9_l": 3.9}),
        G("Mitomycin", {"wbc_10e9_l": 4.0, "platelets_10e9_l": 100.0, "creatinine_mg_dl": 1.7}),
        G("Mitomycin", {"wbc_10e9_l": 4.0}),
    ),
    "D19": (
        "warn",
        G("Mitomycin", {"uncorrectable_coagulopathy": True}),
        G("Mitomycin", {"uncorrectable_coagulopathy": False}),
        G("Mitomycin"),
    ),
    "D20": (
        "warn",
        G("Mitomycin 10 mg", session={"prior_mitomycin_mg": 50}),
        G("Mitomycin 10 mg", session={"prior_mitomycin_mg": 49}),
        G("Mitomycin", session={"prior_mitomycin_mg": 49}),
    ),
    "D21": (
        "block",
        G("Raltitrexed 6.1 mg", {"height_cm": 180.0, "weight_kg": 80.0}),
        G("Raltitrexed 6 mg", {"height_cm": 180.0, "weight_kg": 80.0}),
        G("Raltitrexed 6 mg", {"height_cm": 180.0}),
    ),
    "D22": (
        "block",
        G("Raltitrexed", {"creatinine_clearance_ml_min": 24.0}),
        G("Raltitrexed", {"creatinine_clearance_ml_min": 66.0}),
        G("Raltitrexed"),
    ),
    "D23": (
        "block",
        G("Raltitrexed", {"jaundice": True}),
        G("Raltitrexed", {"jaundice": False, "child_pugh_class": "B"}),
        G("Raltitrexed", {"jaundice": False}),
    ),
    "D24": (
        "warn",
        G("Doxorubicin | Drug-eluting beads", {"shunt": "arterioportal"}),
        G("Doxorubicin | Drug-eluting beads", {"shunt": "none"}),
        G("Doxorubicin | Drug-eluting beads"),
    ),
    "D25": (
        "warn",
        G("Doxorubicin | Drug-eluting beads", {"cirrhosis": False}),
        G("Doxorubicin | Drug-eluting beads", {"cirrhosis": True}),
        G("Doxorubicin | Drug-eluting beads"),
    ),
}
IDS = sorted(CASES)


def test_the_table_covers_every_rule() -> None:
    assert {rule.id for rule in load_rulebook().rules} == set(CASES)


@pytest.mark.parametrize("rule_id", IDS)
def test_fires(rule_id: str) -> None:
    strength, fires, _, _ = CASES[rule_id]
    finding = find(rule_id, fires)
    assert finding is not None
    assert (finding.status, finding.strength) == ("fired", strength)
    assert finding.blocks == (strength == "block")
    if finding.scope == "protocol":
        assert set(finding.items) <= set(fires.facts().protocol.items)
        assert finding.items or rule_id in {"E01", "E08", "E09"}  # these are about what is not there


@pytest.mark.parametrize("rule_id", IDS)
def test_passes_or_does_not_apply(rule_id: str) -> None:
    finding = find(rule_id, CASES[rule_id][2])
    assert finding is None or finding.status == "passed"


@pytest.mark.parametrize("rule_id", [rule_id for rule_id in IDS if CASES[rule_id][3] is not None])
def test_missing_input_is_not_evaluable(rule_id: str) -> None:
    given = CASES[rule_id][3]
    assert given is not None
    finding = find(rule_id, given)
    assert finding is not None
    assert finding.status == "not_evaluable"
    assert finding.missing
    assert all(name in finding.message for name in finding.missing)
    assert not finding.blocks


@pytest.mark.parametrize("rule_id", [rule_id for rule_id in IDS if CASES[rule_id][3] is None])
def test_rules_without_that_case_read_the_protocol_alone(rule_id: str) -> None:
    """Where the table has no 'missing' case, the rule reads the protocol, or an exemption."""
    fields = {name for name in load_rulebook().rule(rule_id).inputs if "." in name}
    assert fields <= {"session.technique", "record.shunt"}


@pytest.mark.parametrize("item", ITEM_ORDER)
def test_a_rule_about_another_agent_is_not_reported(item: str) -> None:
    kind = Formulary.load("all").item(item).kind
    protocol = Protocol().with_item(kind, item)
    verdict = judge_protocols("x", Facts(), [protocol], "eu", False, "partial").verdicts[0]
    assert all(finding.items in {(item,)} for finding in verdict.findings)


LEVELS = [
    ("L01", G("| Lipiodol 21 ml"), "eu", False, "block"),
    ("L01", G("| Lipiodol 20 ml"), "us", False, "warn"),
    ("L01", G("| Lipiodol 20 ml"), "cn", False, None),
    ("L01", G("| Lipiodol 21 ml"), "cn", False, "warn"),
    ("L01", G("| Lipiodol 30 ml"), "cn", False, "warn"),
    ("L01", G("| Lipiodol 31 ml"), "cn", False, "block"),
    (
        "L04",
        G("| Lipiodol", {"shunt": "arterioportal", "shunt_marked": True, "hepatofugal_flow": True}),
        "eu",
        False,
        "block",
    ),
    ("P02", G(record={"child_pugh_score": 8}), "us", False, "block"),
    ("P02", G(record={"child_pugh_score": 8}), "cn", False, "warn"),
    ("P04", G(record={"bilirubin_mg_dl": 3.5, "transplant_listed": True}), "eu", False, "warn"),
    ("P04", G(record={"bilirubin_mg_dl": 3.5}, session={"superselective": True}), "eu", False, "warn"),
    ("P04", G(record={"bilirubin_mg_dl": 2.0}), "eu", False, "warn"),
    ("P05", G(record={"portal_vein_invasion": "main"}), "eu", False, "warn"),
    ("P05", G(record={"portal_vein_invasion": "main"}), "eu", True, "block"),
    ("P05", G(record={"hepatofugal_flow": True}), "eu", False, "block"),
    ("P07", G(session={"life_expectancy_months": 2.9}), "eu", True, "block"),
    ("P08", G(case={"tumour_liver_percent": 50.1}), "eu", False, "warn"),
    ("P10", G(record={"wbc_10e9_l": 2.9}), "eu", True, "block"),
    ("P11", G(record={"inr": 1.8, "uncorrectable_coagulopathy": False}), "eu", False, "warn"),
    ("P11", G(record={"uncorrectable_coagulopathy": True}), "eu", False, "block"),
    ("P13", G(record={"ecog": 2}), "eu", False, "warn"),
    ("E03", G("Cisplatin | Drug-eluting beads"), "eu", False, "warn"),
    ("E03", G("| Drug-eluting beads"), "eu", False, "block"),
    ("D04", G("Doxorubicin", {"prior_anthracycline_mg_m2": 550.0}), "eu", False, "block"),
    (
        "D04",
        G("Doxorubicin", {"prior_anthracycline_mg_m2": 400.0}, {"cardiotoxic_exposure": True}),
        "eu",
        False,
        "block",
    ),
    ("D09", G("Cisplatin", {"creatinine_clearance_ml_min": 45.0}), "eu", False, "warn"),
    ("D10", G("Cisplatin", {"hearing_loss": True}), "eu", True, "block"),
    ("D22", G("Raltitrexed", {"creatinine_clearance_ml_min": 54.0}), "eu", False, "warn"),
    ("D22", G("Raltitrexed", {"creatinine_clearance_ml_min": 65.0}), "eu", False, "warn"),
    ("L02", G("| Lipiodol 10 ml", {"child_pugh_class": "B"}), "eu", False, None),
    (
        "P02",
        G(record={"child_pugh_score": 7, "jaundice": False, "encephalopathy": 0, "refractory_ascites": False}),
        "eu",
        False,
        None,
    ),
    ("P02", G(record={"encephalopathy": 1}), "eu", False, "block"),
    ("P04", G(record={"bilirubin_mg_dl": 3.0}), "eu", False, "warn"),
    ("P08", G(case={"tumour_liver_percent": 69.9}), "eu", False, "warn"),
    ("P09", G(record={"creatinine_clearance_ml_min": 29.9}), "eu", False, "block"),
    ("P10", G(record={"platelets_10e9_l": 50.0, "wbc_10e9_l": 3.0}), "eu", False, None),
    ("P11", G(record={"inr": 1.7}), "eu", False, "warn"),
    ("P17", G("Doxorubicin", {"neutrophils_10e9_l": 1.4}), "eu", False, "block"),
    ("P17", G("Doxorubicin", {"wbc_10e9_l": 2.9}), "eu", False, "block"),
    (
        "P18",
        G(
            record={"prior_tace_sessions": 2, "prior_tace_without_response": 1},
            session={"new_invasion_or_spread": False},
        ),
        "eu",
        False,
        None,
    ),
    ("P18", G(record={"prior_tace_sessions": 2, "prior_tace_without_response": 2}), "eu", False, "warn"),
    ("P18", G(record={"prior_tace_without_response": 2}), "eu", False, "warn"),
    ("P18", G(record={"prior_tace_sessions": 1}, session={"new_invasion_or_spread": True}), "eu", False, "warn"),
    ("P18", G(record={"prior_tace_sessions": 0}, session={"new_invasion_or_spread": True}), "eu", False, None),
    ("D04", G("Doxorubicin", {"prior_anthracycline_mg_m2": 549.0}), "eu", False, None),
    (
        "D04",
        G("Doxorubicin 60 mg", {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 520.0}),
        "eu",
        False,
        None,
    ),
    ("D04", G("Doxorubicin", {"prior_anthracycline_mg_m2": 399.0}, {"cardiotoxic_exposure": True}), "eu", False, None),
    (
        "D04",
        G(
            "Doxorubicin 60 mg",
            {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 370.0},
            {"cardiotoxic_exposure": True},
        ),
        "eu",
        False,
        None,
    ),
    (
        "D04",
        G(
            "Doxorubicin 60 mg",
            {"height_cm": 180.0, "weight_kg": 80.0, "prior_anthracycline_mg_m2": 371.0},
            {"cardiotoxic_exposure": True},
        ),
        "eu",
        False,
        "block",
    ),
    ("D05", G("Epirubicin", {"prior_anthracycline_mg_m2": 899.0}), "eu", False, None),
    ("D05", G("Epirubicin", {"prior_anthracycline_mg_m2": 900.0}), "eu", False, "block"),
    (
        "D07",
        G("Doxorubicin 151 mg", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 1.0}),
        "eu",
        False,
        "warn",
    ),
    (
        "D07",
        G("Doxorubicin 150 mg", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 1.0}),
        "eu",
        False,
        None,
    ),
    (
        "D07",
        G("Doxorubicin 100 mg", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 3.0}),
        "eu",
        False,
        None,
    ),
    (
        "D07",
        G("Doxorubicin 51 mg", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 3.1}),
        "eu",
        False,
        "warn",
    ),
    ("D07", G("Doxorubicin 50 mg", {"height_cm": 180.0, "weight_kg": 80.0, "bilirubin_mg_dl": 3.1}), "eu", False, None),
    ("D09", G("Cisplatin", {"creatinine_clearance_ml_min": 30.0}), "eu", False, "warn"),
    ("D09", G("Cisplatin", {"creatinine_clearance_ml_min": 59.9}), "eu", False, "warn"),
    ("D16", G("Lobaplatin", {"creatinine_clearance_ml_min": 59.9}), "eu", False, "warn"),
    ("D16", G("Lobaplatin", {"uncorrectable_coagulopathy": True}), "eu", False, "warn"),
    ("D18", G("Mitomycin", {"creatinine_mg_dl": 1.75}), "eu", False, "warn"),
    ("D18", G("Mitomycin", {"platelets_10e9_l": 99.9}), "eu", False, "warn"),
    ("D20", G("Mitomycin", session={"prior_mitomycin_mg": 60}), "eu", False, "warn"),
    ("D20", G("Mitomycin", session={"prior_mitomycin_mg": 59.9}), "eu", False, None),
    ("D22", G("Raltitrexed", {"creatinine_clearance_ml_min": 25.0}), "eu", False, "warn"),
]


@pytest.mark.parametrize(("rule_id", "given", "profile", "strict", "strength"), LEVELS)
def test_levels_edges_profiles_and_strict(
    rule_id: str, given: Given, profile: Profile, strict: bool, strength: str | None
) -> None:
    finding = find(rule_id, given, profile, strict)
    assert finding is not None
    assert (finding.strength if finding.status == "fired" else None) == strength


@pytest.mark.parametrize(("clearance", "share"), [(54.9, "Half"), (55.0, "Three quarters")])
def test_raltitrexed_share_by_clearance(clearance: float, share: str) -> None:
    finding = find("D22", G("Raltitrexed", {"creatinine_clearance_ml_min": clearance}))
    assert finding is not None
    assert finding.message.startswith(share)


def test_a_milder_finding_names_what_could_make_it_severer() -> None:
    finding = find("P05", G(record={"portal_vein_invasion": "main", "hepatofugal_flow": False}))
    assert finding is not None
    assert (finding.strength, finding.missing) == ("warn", ("session.portal_collaterals",))


def test_partial_stage_judges_only_what_no_later_agent_cures() -> None:
    complete = {rule.id for rule in load_rulebook().rules if rule.stage == "complete"}
    assert complete == {"E01", "E08", "E09"}
    empty_beads = G("| Drug-eluting beads")
    assert find("E03", empty_beads, stage="partial") is None  # a drug may still come
    finding = find("E03", G("Hydroxycamptothecin | Drug-eluting beads"), stage="partial")
    assert finding is not None
    assert finding.blocks


def test_no_partial_block_is_ever_cured_by_adding_an_agent() -> None:
    """Brute force over all pairs and triples of agents: blocked at the partial stage stays blocked with one agent more.

    Drugs are added before embolics, so a drug is only added to protocols without an embolic.
    """
    formulary = Formulary.load("all")
    names = [item.name for item in formulary.items]
    kinds = {item.name: item.kind for item in formulary.items}
    facts = Facts(record=ClinicalRecord(shunt="hepatic_vein", lvef_percent=40.0, creatinine_clearance_ml_min=20.0))

    def blocked(items: tuple[str, ...]) -> bool:
        protocol = Protocol(
            drugs=tuple(i for i in items if kinds[i] == "drug"),
            embolics=tuple(i for i in items if kinds[i] == "embolic"),
        )
        return not judge_protocols("x", facts, [protocol], "eu", False, "partial").verdicts[0].allowed

    seen = 0
    for pair in itertools.combinations(names, 2):
        if not blocked(pair):
            continue
        for extra in names:
            if extra in pair or (kinds[extra] == "drug" and any(kinds[i] == "embolic" for i in pair)):
                continue
            seen += 1
            assert blocked((*pair, extra)), (pair, extra)
    assert seen > 300


# ---------------------------------------------------------------------------------------------------- conditions
def _leaf(value: bool | None) -> tuple[Compare, Facts]:
    return Compare(field="record.jaundice", op="==", value=True), Facts(record=ClinicalRecord(jaundice=value))


@pytest.mark.parametrize(("a", "b"), list(itertools.product([True, False, None], repeat=2)))
def test_kleene_logic(a: bool | None, b: bool | None) -> None:
    facts = Facts(record=ClinicalRecord(jaundice=a, cirrhosis=b))
    one = Compare(field="record.jaundice", op="==", value=True)
    two = Compare(field="record.cirrhosis", op="==", value=True)
    order = {False: 0, None: 1, True: 2}  # Kleene: or is the maximum, and the minimum
    back = {number: truth for truth, number in order.items()}
    assert AnyOf(any=(one, two)).judge(facts).holds is back[max(order[a], order[b])]
    assert AllOf(all=(one, two)).judge(facts).holds is back[min(order[a], order[b])]
    assert Not(**{"not": one}).judge(facts).holds is back[2 - order[a]]


@pytest.mark.parametrize(
    "broken",
    [
        {"field": "record.platelets", "op": "<", "value": 50},
        {"field": "record.ecog", "op": "=<", "value": 50},
        {"field": "record.ecog", "op": "in", "value": 2},
        {"field": "record.ecog", "op": "<", "value": 2, "eval": "1"},
        {"field": "__class__.x", "op": "<", "value": 2},
        {"field": "dose.Aspirin", "op": "<", "value": 2},
        {"present": "Aspirin"},
        {"any": []},
        {"any": [{"present": "Lipiodol"}], "all": [{"present": "Lipiodol"}]},
        "record.ecog < 2",
    ],
)
def test_a_broken_condition_is_refused(broken: object) -> None:
    data = yaml.safe_load((_rules_path()).read_text(encoding="utf-8"))
    rule = next(rule for rule in data["rules"] if rule["id"] == "P13")
    rule["levels"][0]["when"] = broken
    with pytest.raises(ValidationError):
        Rulebook.model_validate(data)


def _rules_path() -> Any:
    from importlib.resources import files

    return files("tools").joinpath("rules.yaml")


def test_the_file_is_sound() -> None:
    book = load_rulebook()
    text = _rules_path().read_text(encoding="utf-8")
    assert "UNSURE" not in text
    for rule in book.rules:
        assert rule.source
        assert rule.confidence in ("V", "B")
        assert rule.inputs
        assert all(level.message.endswith(".") for level in rule.levels)
        ranks = [{"block": 2, "warn": 1, "info": 0}[level.strength] for level in rule.levels if "eu" in level.profiles]
        assert ranks == sorted(ranks, reverse=True), f"{rule.id}: the most severe level has to come first"


def test_inputs_have_to_be_declared() -> None:
    rule = load_rulebook().rule("P13").model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="inputs are"):
        Rule.model_validate({**rule, "inputs": ["record.inr"]})


# ---------------------------------------------------------------------------------------------------- the tool
class _Labelled:
    """What `check_rules` needs of a workspace when a case has no labels."""

    def __init__(self, record: ClinicalRecord) -> None:
        self.record, self.labels, self.content_hash = record, None, "h"

    def case(self, case_id: str) -> _Labelled:
        return self


def _workspace(**record: Any) -> Any:
    return _Labelled(ClinicalRecord(**record))


def test_tool_with_no_protocol_returns_patient_findings_only() -> None:
    result = check_rules("c", [], workspace=_workspace(child_pugh_class="C"))
    assert not result.patient_allowed
    assert result.verdicts == ()
    assert {finding.scope for finding in result.patient} == {"patient"}
    assert [finding.rule_id for finding in result.patient if finding.blocks] == ["P01"]


def test_tool_keeps_order_and_repeats_and_canonicalises() -> None:
    protocols = ["DDP; 碘化油", "Cisplatin + Carboplatin | Lipiodol", "Lipiodol; cisplatin"]
    result = check_rules("c", protocols, workspace=_workspace())
    assert [v.protocol for v in result.verdicts] == [
        "Cisplatin | Lipiodol",
        "Carboplatin + Cisplatin | Lipiodol",
        "Cisplatin | Lipiodol",
    ]
    assert [v.allowed for v in result.verdicts] == [True, False, True]


def test_patient_block_disallows_every_protocol() -> None:
    result = check_rules("c", ["Cisplatin | Lipiodol"], workspace=_workspace(ecog=4))
    assert not result.verdicts[0].allowed
    assert not any(finding.blocks for finding in result.verdicts[0].findings)


def test_nothing_known_is_nothing_passed_for_the_patient() -> None:
    result = check_rules("c", [], workspace=_workspace())
    assert result.patient
    assert {finding.status for finding in result.patient} == {"not_evaluable"}


@pytest.mark.parametrize(
    ("protocols", "error"),
    [
        (["Oxaliplatin 100 ml | Lipiodol"], InputError),
        (["Aspirin"], UnknownItemError),
        (["Lipiodol 10 mg"], InputError),
    ],
)
def test_unit_guard_and_unknown_agents(protocols: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_rules("c", protocols, workspace=_workspace())


def test_unknown_profile() -> None:
    with pytest.raises(ToolError, match="profile 'jp'"):
        check_rules("c", [], profile="jp", workspace=_workspace())  # type: ignore[arg-type]


def test_child_pugh_is_computed_where_it_is_not_stated() -> None:
    labs = {
        "bilirubin_mg_dl": 3.5,
        "albumin_g_dl": 2.5,
        "inr": 2.5,
        "ascites": "none",
        "encephalopathy": 0,
    }  # 3+3+3+1+1
    finding = find("P01", G(record=labs))
    assert finding is not None
    assert finding.blocks
    assert find("P01", G(record={**labs, "inr": 1.0})).status == "passed"  # type: ignore[union-attr]  # 9 points, class B


def test_measured_facts_come_from_the_image(tmp_path: Path) -> None:
    """A 12 cm tumour in a box-shaped liver of 1,728 ml: the shares are counted by hand, not by the code under test."""
    shape, spacing = (40, 40, 40), 5.0  # 0.125 ml a voxel
    labels = np.zeros(shape, dtype=np.uint8)
    labels[5:29, 5:29, 5:29] = 1  # 24^3 voxels = 1,728 ml
    labels[5:29, 10:15, 10:15] = 2  # 24 x 5 x 5 voxels = 75 ml, 4.34 % of the liver, 12 cm long
    data = np.full(shape, -1000, dtype=np.int16)
    data[3:37, 3:37, 3:37] = 40
    data[labels == 1], data[labels == 2] = 60, 90
    volume = Volume(data, np.diag([spacing, spacing, spacing, 1.0]))
    meta = ImageMeta(name="pre_arterial", role="pre", phase="arterial")
    write_case(tmp_path / "c", "c", "synthetic", "a box", {meta: volume}, labels, ClinicalRecord())
    workspace = Workspace({"c": tmp_path / "c"}, tmp_path / "artifacts")
    findings = {f.rule_id: f for f in check_rules("c", [], workspace=workspace).patient}
    assert findings["P08"].status == "passed"
    assert findings["P14"].status == "fired"
    assert float(findings["P14"].found[0].split()[1]) == pytest.approx(
        12.0, abs=0.6
    )  # ends of the voxels, or a diagonal
