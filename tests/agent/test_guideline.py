"""The embedded policy: what it proposes for hand-written patients, what it removes, when it stops, what it says."""

from __future__ import annotations

import ast
import inspect
import math
import re
from typing import Any

import pytest

import agent.guideline
import agent.policy
from agent.goal import interpret_goal
from agent.guideline import GuidelinePolicy, load_knowledge
from agent.policy import (
    BeamView,
    CaseSummary,
    Choice,
    DepthView,
    Expansion,
    Nomination,
    PlanFacts,
    Policy,
    Proposal,
    Removal,
    RiskFacts,
    nomination_errors,
    single_item_keys,
)
from models.clinical_record import ClinicalRecord
from models.errors import PlanningError
from models.formulary import ACTION_SETS, ITEM_ORDER, Formulary
from tools.check_rules import judge_protocols
from tools.rule_facts import Facts, known_agents
from tools.rulebook import ProtocolVerdict

POLICY = GuidelinePolicy()
DEFAULT = interpret_goal("")


def case(record: dict[str, Any] | None = None, **measured: Any) -> CaseSummary:
    return CaseSummary(case_id="c", origin="synthetic", phases=("arterial",), record=record or {}, **measured)


def order(
    summary: CaseSummary, formulary: str = "all", goal: str = "", d: int = 11, e: int = 7
) -> tuple[list[str], list[str]]:
    proposal = POLICY.propose(summary, POLICY.observe(summary), Formulary.load(formulary), d, e, interpret_goal(goal))
    return [c.item for c in proposal.drugs], [c.item for c in proposal.embolics]


def verdicts(proposal: Proposal, record: dict[str, Any]) -> tuple[ProtocolVerdict, ...]:
    keys = single_item_keys(proposal.items, Formulary.load("all"))
    protocols = [known_agents().parse(key) for key in keys.values()]
    return judge_protocols("c", Facts(record=ClinicalRecord(**record)), protocols, "eu", False, "partial").verdicts


def test_it_is_a_policy_and_no_llm() -> None:
    assert isinstance(POLICY, Policy)
    assert POLICY.name == "guideline"
    assert not POLICY.is_llm


# ------------------------------------------------------------------------------------------------------- observe
def test_observation_of_a_measured_case() -> None:
    seen = POLICY.observe(
        case(
            {"child_pugh_class": "B", "shunt": "arterioportal", "portal_vein_invasion": "none"},
            lesion_count=2,
            largest_diameter_mm=54.4,
            tumour_ml=75.0,
            liver_ml=1500.0,
            contrast_hu=35.0,
            hypodense_fraction=0.31,
            heterogeneity_hu=40.0,
        )
    )
    values = {f.name: f.value for f in seen.features}
    assert values["size"] == "largest diameter 54 mm"
    assert values["burden"] == "tumour takes 5.0 % of the liver"
    assert values["enhancement"] == "hypervascular (tumour +35 HU against liver)"
    assert values["necrosis"] == "necrotic part (hypodense share 31 %), heterogeneous"
    assert values["shunt"] == "shunt: arterioportal"
    assert values["liver_function"] == "Child-Pugh B"
    assert [f.name for f in seen.features if f.basis == "not_evaluable"] == ["location", "capsule"]
    assert seen.provenance is not None
    assert seen.provenance.backend == "guideline"


def test_observation_of_nothing_says_so() -> None:
    seen = POLICY.observe(case())
    assert {f.basis for f in seen.features} == {"not_evaluable"}
    assert seen.summary.startswith("Nothing is measured or stated. Not evaluable: size")


@pytest.mark.parametrize(("hu", "word"), [(20.0, "hyper"), (19.9, "iso"), (-9.9, "iso"), (-10.0, "hypo")])
def test_enhancement_words(hu: float, word: str) -> None:
    feature = POLICY.observe(case(contrast_hu=hu)).feature("enhancement")
    assert feature is not None
    assert feature.value.startswith(f"{word}vascular")


def test_enhancement_without_arterial_phase_is_less_sure() -> None:
    portal = CaseSummary(case_id="c", origin="real", phases=("portal",), contrast_hu=30.0)
    seen, sure = (
        POLICY.observe(portal).feature("enhancement"),
        POLICY.observe(case(contrast_hu=30.0)).feature("enhancement"),
    )
    assert seen is not None
    assert sure is not None
    assert seen.confidence < sure.confidence


# ------------------------------------------------------------------------------------------------------- propose
def test_points_by_hand() -> None:
    """log2(1 + 38) + 3 for epirubicin, log2(1 + 302) + 3 for Lipiodol; minus 4 where the kidney forbids cisplatin."""
    formulary = Formulary.load("all")
    assert POLICY.points(formulary.item("Epirubicin"), Facts(), DEFAULT)[0] == pytest.approx(math.log2(39) + 3)
    assert POLICY.points(formulary.item("Lipiodol"), Facts(), DEFAULT)[0] == pytest.approx(math.log2(303) + 3)
    weak = Facts(record=ClinicalRecord(creatinine_clearance_ml_min=50.0))
    points, reason = POLICY.points(formulary.item("Cisplatin"), weak, DEFAULT)
    assert points == pytest.approx(math.log2(13) + 3 - 4)
    assert "clearance below 60" in reason
    assert "[cisplatin label" in reason


def test_default_backbone() -> None:
    drugs, embolics = order(case(), d=6, e=4)
    assert embolics[:2] == ["Lipiodol", "Gelatin sponge"]
    classes = [Formulary.load("all").item(name).item_class for name in drugs[:3]]
    assert len(set(classes)) == 3  # mechanisms before siblings


@pytest.mark.parametrize("name", ACTION_SETS)
def test_every_agent_is_ranked_once_and_has_a_reason(name: str) -> None:
    formulary = Formulary.load(name)
    proposal = POLICY.propose(case(), POLICY.observe(case()), formulary, 2, 1, DEFAULT)
    assert (len(proposal.drugs), len(proposal.embolics)) == (2, 1)
    assert sorted(proposal.items) == sorted(item.name for item in formulary.items)
    assert all(choice.reason for choice in (*proposal.drugs, *proposal.reserve_embolics))


@pytest.mark.parametrize(
    ("record", "item"),
    [
        ({"creatinine_clearance_ml_min": 59.0}, "Cisplatin"),
        ({"creatinine_clearance_ml_min": 64.0}, "Raltitrexed"),
        ({"creatinine_mg_dl": 1.8}, "Mitomycin"),
        ({"bilirubin_mg_dl": 1.5}, "Doxorubicin"),
        ({"child_pugh_class": "B"}, "Epirubicin"),
        ({"jaundice": True}, "Raltitrexed"),
        ({"lvef_percent": 45.0}, "Idarubicin"),
        ({"platelets_10e9_l": 80.0}, "Mitomycin"),
        ({"neuropathy_grade": 2}, "Oxaliplatin"),
        ({"hearing_loss": True}, "Cisplatin"),
        ({"shunt": "arterioportal"}, "Lipiodol"),
        ({"shunt": "hepatic_vein"}, "PVA"),
        ({"child_pugh_class": "B"}, "PVA"),
        ({"cirrhosis": False}, "Drug-eluting beads"),
        ({"hyperthyroidism": True}, "Lipiodol"),
        ({"severe_lung_impairment": True}, "Lipiodol"),
    ],
)
def test_what_demotes(record: dict[str, Any], item: str) -> None:
    entry = Formulary.load("all").item(item)
    healthy = POLICY.points(entry, Facts(), DEFAULT)[0]
    ill, reason = POLICY.points(entry, Facts(record=ClinicalRecord(**record)), DEFAULT)
    assert ill <= healthy - 1
    assert "against it" in reason


def test_demoted_agents_come_later() -> None:
    record = {"creatinine_clearance_ml_min": 50.0, "lvef_percent": 45.0, "shunt": "arterioportal"}
    (drugs, embolics), (ill_drugs, ill_embolics) = order(case()), order(case(record))
    assert drugs.index("Epirubicin") == 0
    assert ill_drugs.index("Epirubicin") > 3
    assert ill_drugs.index("Cisplatin") > drugs.index("Cisplatin")
    assert embolics[0] == "Lipiodol"
    assert ill_embolics[0] == "Gelatin sponge"


def test_shunt_promotes_glue_and_gelatin() -> None:
    embolics = order(case({"shunt": "arterioportal"}), "policy", e=4)[1]
    assert embolics.index("NBCA") < embolics.index("Lipiodol")
    assert "NBCA" not in order(case({"shunt": "none"}), "policy", e=4)[1]


def test_enhancement_moves_lipiodol_points() -> None:
    def points(hu: float) -> float:
        from tools.rule_facts import CaseFacts

        facts = Facts(case=CaseFacts(contrast_hu=hu))
        return POLICY.points(Formulary.load("all").item("Lipiodol"), facts, DEFAULT)[0]

    assert points(25.0) > points(0.0) > points(-15.0)


def test_beads_need_a_loadable_drug_in_the_action_set() -> None:
    assert "Drug-eluting beads" in order(case(), "hcc_tace_seg")[1]
    bare = Formulary.load("all").only(["Cisplatin", "Lipiodol", "LC beads"])
    proposal = POLICY.propose(case(), POLICY.observe(case()), bare, 3, 3, DEFAULT)
    assert [c.item for c in proposal.embolics] == ["Lipiodol"]


def test_goal_moves_points_and_says_why() -> None:
    pva = Formulary.load("all").item("PVA")
    usual = POLICY.points(pva, Facts(), DEFAULT)[0]
    spared, reason = POLICY.points(pva, Facts(), interpret_goal("spare the liver"))
    assert spared < usual
    assert "the goal spares the liver" in reason


def test_missing_record_changes_nothing() -> None:
    assert order(case()) == order(case({"age_years": 60.0}))


@pytest.mark.parametrize(("d", "e"), [(0, 1), (1, 0)])
def test_empty_action_space_is_refused(d: int, e: int) -> None:
    with pytest.raises(PlanningError, match="at least 1"):
        POLICY.propose(case(), POLICY.observe(case()), Formulary.load("all"), d, e, DEFAULT)


def test_one_sided_action_set_is_refused() -> None:
    with pytest.raises(PlanningError, match="no drug or no embolic"):
        POLICY.propose(case(), POLICY.observe(case()), Formulary.load("all").only(["Cisplatin"]), 3, 3, DEFAULT)


def test_knowledge_is_sourced_and_about_known_agents() -> None:
    knowledge = load_knowledge()
    classes = {item.item_class for item in known_agents().items}
    assert set(knowledge.items) == set(ITEM_ORDER)
    shifts = [*knowledge.adjustments, *(s for shifts in knowledge.goals.values() for s in shifts)]
    for shift in shifts:
        assert shift.source
        assert shift.reason
        assert set(shift.items) <= set(ITEM_ORDER) | classes
    ids = [adjustment.id for adjustment in knowledge.adjustments]
    assert len(set(ids)) == len(ids)


def test_the_policy_imports_no_simulator() -> None:
    for module in (agent.guideline, agent.policy):
        names = {
            node.module or ""
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.ImportFrom)
        }
        assert not [n for n in names if re.match(r"models\.(phantom|engine|networks|training|toxicity|weights)", n)]


# -------------------------------------------------------------------------------------------------------- refine
def test_refine_takes_out_blocked_agents_and_fills_from_reserves() -> None:
    record = {"lvef_percent": 45.0, "creatinine_clearance_ml_min": 50.0}
    healthy = case()
    proposal = POLICY.propose(healthy, POLICY.observe(healthy), Formulary.load("all"), 4, 3, DEFAULT)
    refined = POLICY.refine(healthy, proposal, verdicts(proposal, record), 4, 3)
    anthracyclines = {"Doxorubicin", "Epirubicin", "Idarubicin", "Pirarubicin"}
    assert {r.item for r in refined.removed} == anthracyclines | {"Drug-eluting beads"}
    assert {r.rule_id for r in refined.removed} == {"P17", "E03"}
    assert len(refined.drugs) == 4
    assert not anthracyclines & {c.item for c in refined.drugs}
    cautions = {(c.item, c.rule_id) for c in refined.cautions}
    assert ("Cisplatin", "D09") in cautions
    assert ("Cisplatin", "C07") in cautions
    assert {item for item, _ in cautions} <= {c.item for c in (*refined.drugs, *refined.embolics)}


def test_refine_keeps_alternatives_of_one_class() -> None:
    proposal = POLICY.propose(case(), POLICY.observe(case()), Formulary.load("policy"), 6, 4, DEFAULT)
    refined = POLICY.refine(case(), proposal, verdicts(proposal, {}), 6, 4)
    assert refined.removed == ()
    assert (refined.drugs, refined.embolics) == (proposal.drugs, proposal.embolics)


def test_refine_wants_a_verdict_for_each_agent() -> None:
    proposal = POLICY.propose(case(), POLICY.observe(case()), Formulary.load("policy"), 2, 2, DEFAULT)
    with pytest.raises(PlanningError, match="were not asked about"):
        POLICY.refine(case(), proposal, verdicts(proposal, {})[1:], 2, 2)


# ------------------------------------------------------------------------------------------------------ nominate
def view(**change: Any) -> DepthView:
    beams = (
        BeamView(protocol="Cisplatin | -", risk=0.2, spread=0.05, allowed=("Mitomycin", "Doxorubicin")),
        BeamView(protocol="Doxorubicin | -", risk=0.3, spread=0.05, allowed=("Mitomycin",)),
    )
    given = {
        "kind": "drug",
        "depth": 2,
        "horizon": 3,
        "mandatory": False,
        "beams": beams,
        "candidates": ("Cisplatin", "Doxorubicin", "Mitomycin"),
    }
    return DepthView(**{**given, **change})


def test_it_expands_every_beam_with_everything_allowed() -> None:
    nomination = POLICY.nominate(view())
    assert [(e.protocol, e.items) for e in nomination.expand] == [
        ("Cisplatin | -", ("Mitomycin", "Doxorubicin")),
        ("Doxorubicin | -", ("Mitomycin",)),
    ]
    assert nomination_errors(view(), nomination) == []


@pytest.mark.parametrize(
    ("gain", "spread", "stops"),
    [(0.11, 0.1, False), (0.1, 0.1, True), (0.0, 0.1, True), (-0.2, 0.1, True), (0.01, None, False), (0.0, None, True)],
)
def test_it_stops_without_a_gain_beyond_the_spread(gain: float, spread: float | None, stops: bool) -> None:
    assert POLICY.nominate(view(gain=gain, gain_spread=spread)).stop is stops
    mandatory = view(gain=gain, gain_spread=spread, mandatory=True, depth=1)
    assert not POLICY.nominate(mandatory).stop
    never = GuidelinePolicy(stop_gain_in_spreads=-math.inf)
    assert not never.nominate(view(gain=gain, gain_spread=spread)).stop


def test_it_stops_when_nothing_is_allowed() -> None:
    empty = tuple(beam.model_copy(update={"allowed": ()}) for beam in view().beams)
    nomination = POLICY.nominate(view(beams=empty))
    assert nomination.stop
    assert "allowed" in nomination.reason


def test_nomination_errors_name_each_fault() -> None:
    wrong = Nomination(
        expand=(
            Expansion(protocol="X | -", items=("Mitomycin",)),
            Expansion(protocol="Doxorubicin | -", items=("PVA",)),
        ),
        reason="because",
    )
    faults = nomination_errors(view(), wrong)
    assert len(faults) == 2
    assert "no beam 'X | -'" in faults[0]
    assert "PVA may not be added" in faults[1]
    stop = Nomination(stop=True, reason="enough")
    assert "mandatory" in nomination_errors(view(mandatory=True), stop)[0]
    assert nomination_errors(view(), stop) == []


@pytest.mark.parametrize("answer", [{"stop": True, "expand": [{"protocol": "x", "items": ["y"]}]}, {"stop": False}])
def test_contradictory_nominations_are_no_answers(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nomination"):
        Nomination(reason="r", **answer)


def test_provenance_is_not_asked_from_a_model() -> None:
    for model in (agent.policy.Observation, Proposal, agent.policy.Refinement, Nomination, agent.policy.Explanation):
        assert "provenance" not in model.model_json_schema()["properties"]


# ------------------------------------------------------------------------------------------------------- explain
def plan_facts(**change: Any) -> PlanFacts:
    chosen = RiskFacts(
        protocol="Cisplatin + Mitomycin | Lipiodol",
        risk=-0.4127,
        standard_error=0.0314,
        replicas=8,
        tumour_log_risk=-0.5731,
        toxicity_log_risk=0.1604,
        median_survival_months=23.46,
        viable_before_ml=61.26,
        viable_ml=17.58,
        mrecist_change_percent=-44.7,
        mrecist_category="PR",
    )
    runner_up = RiskFacts(protocol="Epirubicin | Lipiodol", risk=-0.3519, standard_error=0.0299, replicas=8)
    given: dict[str, Any] = {
        "case": case(largest_diameter_mm=54.0),
        "goal": interpret_goal("spare liver function"),
        "chosen": chosen,
        "choices": (Choice(item="Cisplatin", reason="platinum"),),
        "runner_up": runner_up,
        "margin": 0.0608,
        "confidence": 0.873,
        "ties": (),
        "finalists": 5,
        "simulations": 214,
        "removed": (Removal(item="Doxorubicin", rule_id="P17", reason="Weak heart."),),
        "warnings": ("Reduce cisplatin.",),
        "not_evaluable": ("P09",),
        "model_origin": "synthetic",
    }
    return PlanFacts(**{**given, **change})


def test_explanation_draws_every_number_from_the_plan() -> None:
    answer = POLICY.explain(plan_facts())
    # Written by hand from the facts above: rounded values, goal weights, rule ids.
    known = {
        "-0.413",
        "0.031",
        "8",
        "5",
        "-0.573",
        "0.160",
        "61.3",
        "17.6",
        "-45",
        "23.5",
        "-0.352",
        "0.030",
        "0.061",
        "87",
    }
    known |= {"1", "2", "0", "17", "09"}  # weights of the goal; P17, P09
    text = answer.text.replace("P17", "").replace("P09", "")
    numbers = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?", text)
    assert numbers
    assert set(numbers) <= known
    for needed in ("-0.413", "61.3 ml", "17.6 ml", "-45 %", "23.5 months", "87 %", "(PR)"):
        assert needed in answer.text
    for words in (
        "not a language model",
        "trained on synthetic data",
        "research only",
        "spare liver function",
        "Weak heart.",
    ):
        assert words in answer.text
    assert answer.provenance is not None
    assert answer.provenance.prompt_id == "guideline-explain@3"
    assert answer.provenance.prompt_hash is not None
    assert len(answer.provenance.prompt_hash) == 64


def test_explanation_claims_the_lowest_objective_only_where_it_decided() -> None:
    assert "has the lowest objective of the 5 finalists" in POLICY.explain(plan_facts()).text
    fixed = POLICY.explain(plan_facts(choice_is_fixed=True, margin=-0.0312)).text
    assert "lowest objective" not in fixed
    assert "what the search strategy itself chose" in fixed
    assert "ahead by 0.031 in the last comparison" in fixed


def test_explanation_of_a_bare_plan_invents_nothing() -> None:
    chosen = RiskFacts(protocol="Cisplatin | Lipiodol", risk=0.1, replicas=1)
    bare = PlanFacts(case=case(), goal=DEFAULT, chosen=chosen, finalists=1, simulations=1, model_origin="synthetic")
    text = POLICY.explain(bare).text
    assert "spread not known" in text
    assert "the only finalist" in text
    for absent in ("runner-up", "mRECIST", "months", "None", "resamples", "Warnings", "Taken out"):
        assert absent not in text
