"""Fact check: what a language model wrote against what the case and the plan hold, as fault sentences.

The graph's own checks of structure stand in `agent.faults`; these are about truth. A fault is shown to the model, which
is asked again; a text that never becomes right is not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

from agent.name_check import KnownNames, agents_in, rules_in
from agent.number_check import KnownNumbers
from agent.policy import CaseSummary, FeatureName, Observation, PlanFacts
from agent.quantities import Quantity, case_quantities, plan_quantities
from agent.search import parse_key
from models.clinical_record import ClinicalRecord
from tools.rule_facts import Facts, known_agents

MEASURES: dict[FeatureName, tuple[str, ...]] = {
    "size": ("largest_diameter_mm",),
    "number": ("lesion_count",),
    "enhancement": ("contrast_hu", "tumour_hu"),
    "necrosis": ("hypodense_fraction", "heterogeneity_hu"),
    "burden": ("tumour_liver_percent",),
}
"""Fields of the case summary that measure a feature."""
RECORDS: dict[FeatureName, tuple[str, ...]] = {
    "number": ("tumour_number",),
    "portal_vein": ("portal_vein_invasion", "hepatofugal_flow"),
    "shunt": ("shunt", "shunt_marked"),
    "burden": ("tumour_liver_fraction_percent",),
    "liver_function": (
        "child_pugh_class", "child_pugh_score", "bilirubin_mg_dl", "albumin_g_dl", "inr", "ascites", "encephalopathy",
        "cirrhosis", "jaundice",
    ),
}  # fmt: skip
"""Fields of the clinical record that state a feature."""
ALWAYS_MEASURED: tuple[FeatureName, ...] = ("size", "number", "burden")
"""Features whose measurement is not to be replaced by a reading of pictures."""


_WORDS: dict[FeatureName, str] = {"portal_vein": "portal_vein_invasion", "shunt": "shunt"}
"""Features that a word of the record states."""


def observation_faults(observation: Observation, case: CaseSummary, pictures: int) -> list[str]:
    """What is wrong with an observation.

    Args:
        observation: The answer; `Observation` itself refuses a feature that is there twice.
        case: What is measured and stated.
        pictures: How many pictures were sent.

    Returns:
        One sentence per fault: a missing feature, a basis that the case does not have, a reading in place of a
        measurement, or a number that is neither measured, stated nor, in a reading, its own.
    """
    faults: list[str] = []
    every: tuple[FeatureName, ...] = get_args(FeatureName)
    if missing := [name for name in every if observation.feature(name) is None]:
        faults.append(f"Features are missing: {', '.join(missing)}; give each of the ten.")
    numbers = KnownNumbers(case_quantities(case), names=_names_with_digits())
    names = KnownNames(agents=(), grades=_grades(case))  # an observation recommends nothing
    readings: list[str] = []
    for feature in observation.features:
        measured = [field for field in MEASURES.get(feature.name, ()) if getattr(case, field) is not None]
        stated = [field for field in RECORDS.get(feature.name, ()) if field in case.record]
        if feature.basis == "measured" and not measured:
            faults.append(f"{feature.name}: nothing of it is measured; its basis can't be 'measured'.")
        elif feature.basis == "record" and not stated:
            faults.append(f"{feature.name}: the record does not state it; its basis can't be 'record'.")
        elif feature.basis == "image":
            readings.append(feature.value)
            if not pictures:
                faults.append(f"{feature.name}: there are no pictures; its basis can't be 'image'.")
            elif feature.name in ALWAYS_MEASURED and measured:
                faults.append(f"{feature.name}: it is measured; give the measured value with the basis 'measured'.")
        if feature.basis in ("measured", "record"):
            faults += [f"{feature.name}: {fault}" for fault in numbers.faults(f"{feature.name}: {feature.value}")]
        word = case.record.get(_WORDS.get(feature.name, ""))
        if feature.basis == "record" and word is not None and not _stated_in(word, feature.value):
            faults.append(f"{feature.name}: the record says '{word}'; repeat it.")
        faults += [f"{feature.name}: {fault}" for fault in names.faults(feature.value)]
    own = KnownNumbers(case_quantities(case), texts=readings, names=_names_with_digits())
    text = observation.summary
    return faults + [f"summary: {fault}" for fault in (*own.faults(text), *names.faults(text))]


def reason_faults(
    reasons: Sequence[tuple[str, str]], quantities: Sequence[Quantity], agents: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """What is wrong with the reasons of an answer: an invented number, drug, rule or source.

    Args:
        reasons: What each reason is about, and the reason.
        quantities: Numbers that may be named.
        agents: Canonical names that may be named.
        texts: Sentences that the policy was shown; what stands in them may be repeated.
    """
    numbers = KnownNumbers(quantities, texts=texts, names=(*_names_with_digits(), *rules_in(texts)))
    names = KnownNames(agents=agents, texts=texts)
    return [
        f"Reason for {what}: {fault}"
        for what, text in reasons
        for fault in (*numbers.faults(text), *names.faults(text))
    ]


def explanation_faults(text: str, facts: PlanFacts) -> list[str]:
    """What is wrong with the rationale of a plan; empty where every number, agent, rule and source is in `facts`.

    Args:
        text: The rationale.
        facts: The plan. What a person wrote as the goal is not part of the facts.

    Returns:
        One sentence per fault, for the model that is asked again.
    """
    chosen = parse_key(facts.chosen.protocol)
    others = [parse_key(key) for key in (*((facts.runner_up.protocol,) if facts.runner_up else ()), *facts.ties)]
    texts = [
        *(choice.reason for choice in facts.choices),
        *(removal.reason for removal in facts.removed),
        *facts.warnings,
        *facts.not_evaluable,
    ]
    rules = (*(removal.rule_id for removal in facts.removed), *rules_in(texts))
    agents = [*chosen.items, *(item for p in others for item in p.items), *(r.item for r in facts.removed)]
    grades = _grades(facts.case)
    categories = [r.mrecist_category for r in (facts.chosen, facts.runner_up) if r is not None and r.mrecist_category]
    grades["mRECIST"] = tuple(categories)
    numbers = KnownNumbers(plan_quantities(facts), texts=texts, names=(*_names_with_digits(), *rules))
    named = agents_in(text)
    unnamed = [f"{item} is part of the chosen protocol and is not named." for item in chosen.items if item not in named]
    return [*unnamed, *numbers.faults(text), *KnownNames(agents, rules, texts, grades).faults(text)]


@lru_cache(maxsize=1)
def _names_with_digits() -> tuple[str, ...]:
    """Spellings of agents that hold a digit, such as "Glubran 2": no numbers."""
    spellings = (s for item in known_agents().items for s in (item.name, *item.synonyms))
    return tuple(spelling for spelling in spellings if re.search(r"\d", spelling))


def _grades(case: CaseSummary) -> dict[str, Sequence[str]]:
    facts = Facts(record=ClinicalRecord.model_validate(case.record))
    paths = {"Child-Pugh": "derived.child_pugh_class", "BCLC": "record.bclc", "ECOG": "record.ecog"}
    found = {scale: facts.value(path).value for scale, path in paths.items()}
    return {scale: () if value is None else (str(value),) for scale, value in found.items()}


def _stated_in(value: object, text: str) -> bool:
    """Whether a text repeats a word of the record: ``arterioportal`` in "arterio-portal shunt"."""
    if value == "none":
        return re.search(r"\b(no|none|absent|without)\b", text, re.IGNORECASE) is not None
    return re.sub(r"[^a-z]", "", str(value).lower()) in re.sub(r"[^a-z]", "", text.lower())
