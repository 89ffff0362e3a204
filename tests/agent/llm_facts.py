"""Facts of a case and of a plan for tests of what a language model is told and may say."""

from __future__ import annotations

from typing import Any

from agent.goal import interpret_goal
from agent.policy import CaseSummary, Choice, PlanFacts, Removal, RiskFacts

CASE = CaseSummary(
    case_id="HCC_017",
    origin="real",
    phases=("arterial", "portal"),
    lesion_count=2,
    largest_diameter_mm=54.3,
    tumour_ml=61.2,
    liver_ml=1387.0,
    aorta_hu=280.4,
    liver_hu=101.2,
    tumour_hu=139.6,
    contrast_hu=38.4,
    heterogeneity_hu=22.1,
    hypodense_fraction=0.127,
    record={
        "age_years": 67.0,
        "bilirubin_mg_dl": 1.4,
        "albumin_g_dl": 3.6,
        "creatinine_clearance_ml_min": 55.0,
        "platelets_10e9_l": 140.0,
        "child_pugh_class": "A",
        "bclc": "B",
        "ecog": 1,
        "portal_vein_invasion": "branch",
        "shunt": "none",
    },
)


def facts(**changes: Any) -> PlanFacts:
    """A plan of Doxorubicin with Lipiodol and a sponge, ahead of Epirubicin."""
    chosen = RiskFacts(
        protocol="Doxorubicin | Gelatin sponge + Lipiodol", risk=-0.5249, standard_error=0.0312, replicas=8,
        tumour_log_risk=-0.8101, toxicity_log_risk=0.2852, median_survival_months=26.34, viable_before_ml=52.7,
        viable_ml=20.3, mrecist_change_percent=-38.4, mrecist_category="PR",
    )  # fmt: skip
    runner = RiskFacts(
        protocol="Epirubicin | Lipiodol", risk=-0.4126, standard_error=0.0401, replicas=8, tumour_log_risk=-0.6502,
        toxicity_log_risk=0.2376, median_survival_months=24.91, viable_before_ml=52.7, viable_ml=23.9,
        mrecist_change_percent=-31.0, mrecist_category="PR",
    )  # fmt: skip
    plain = PlanFacts(
        case=CASE,
        goal=interpret_goal("spare liver function; I think 99 months and Sorafenib"),
        chosen=chosen,
        choices=(
            Choice(item="Doxorubicin", reason="loadable, and the tumour of 54 mm is hypervascular"),
            Choice(item="Lipiodol", reason="taken up by a hypervascular tumour [Lipiodol label: 15 mL (background)]"),
            Choice(item="Gelatin sponge", reason="temporary occlusion"),
        ),
        runner_up=runner,
        margin=0.1123,
        confidence=0.923,
        finalists=5,
        simulations=412,
        removed=(
            Removal(item="Cisplatin", rule_id="D09", reason="Avoid cisplatin at a clearance below 60 mL/min."),
            Removal(item="Mitomycin", rule_id="C09", reason="Low platelets."),
        ),
        warnings=("L02: At most 10 mL of Lipiodol in Child-Pugh B.",),
        not_evaluable=("P14: portal hypertension is not stated", "D10: hearing is not stated"),
        model_origin="synthetic",
    )
    return plain.model_copy(update=changes)
