"""Quantities: the numbers of a case and of a plan, each with its name and unit; what a text may state.

The same table is shown to the language model and checked against, so that it can't be asked for what it was not told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agent.policy import CaseSummary, DepthView, PlanFacts, RiskFacts
from agent.search import parse_key
from models.clinical_record import ClinicalRecord
from tools.rule_facts import Facts

_AGENTS = ("agent", "material", "item")
_PROTOCOLS = ("protocol", "candidate", "regimen", "combination", "option")
_DECIMALS = {"mm": 1, "ml": 1, "%": 1, "HU": 1, "months": 1, "": 3}


@dataclass(frozen=True)
class Quantity:
    """A number that is known.

    Attributes:
        name: What it is, in words.
        value: The exact value, in `unit`.
        unit: Its unit; empty for a ratio, a log-risk or a count.
        count: It counts something: written exactly, as an integer.
        nouns: What a count counts: the number stands before or after one of these words, or after "n =".
        near: Words of which one has to stand in the sentence, for numbers so common that they would fit anywhere.
        direction: How a negative value may be written: with its ``sign`` only, or also without it where the ``words``
            of the sentence say so; a positive ``change`` may not stand in a sentence that only speaks of less.
    """

    name: str
    value: float
    unit: str = ""
    count: bool = False
    nouns: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    direction: Literal["sign", "words", "change"] = "sign"

    @property
    def shown(self) -> str:
        """The value as it is shown to a language model, without the unit."""
        if self.count:
            return f"{self.value:.0f}"
        decimals = _DECIMALS.get(self.unit)
        if decimals is None:
            return f"{self.value:.6g}"
        sign = "" if self.direction == "sign" else "+"
        return f"{self.value:{sign}.{decimals}f}"

    def as_row(self) -> dict[str, str]:
        """The row of the table that a language model sees."""
        return {"what": self.name, "value": self.shown, "unit": self.unit}


def _known(rows: Iterable[tuple[str, float | None, str]]) -> list[Quantity]:
    return [Quantity(name, float(value), unit) for name, value, unit in rows if value is not None]


def case_quantities(case: CaseSummary) -> tuple[Quantity, ...]:
    """The numbers of a case: measured features, then the stated fields of the record."""
    share = case.hypodense_fraction
    found = _known(
        [
            ("largest diameter", case.largest_diameter_mm, "mm"),
            ("tumour volume", case.tumour_ml, "ml"),
            ("liver volume", case.liver_ml, "ml"),
            ("share of the liver taken by tumour", case.tumour_liver_percent, "%"),
            ("aorta, mean", case.aorta_hu, "HU"),
            ("liver, mean", case.liver_hu, "HU"),
            ("tumour, mean", case.tumour_hu, "HU"),
            ("standard deviation inside the tumour", case.heterogeneity_hu, "HU"),
            ("hypodense, necrosis-like share of the tumour", None if share is None else 100 * share, "%"),
        ]
    )
    if case.contrast_hu is not None:
        found.append(Quantity("tumour minus liver", case.contrast_hu, "HU", direction="words"))
    if case.lesion_count is not None:
        found.append(_count("labelled lesions", case.lesion_count, "lesion", "tumour", "tumor", "nodule", "number"))
    if case.phases:
        found.append(_count("contrast phases", len(case.phases), "phase"))
    record = ClinicalRecord.model_validate(case.record)
    for row in record.to_display():
        try:
            value = float(row.value)
        except ValueError:  # a word: "branch", "yes"
            continue
        bare = row.unit == ""
        near = tuple(re.findall(r"[a-z]{3,}", row.label.lower())) if bare else ()
        found.append(Quantity(f"record: {row.label}", value, row.unit, count=bare and value == int(value), near=near))
    points = Facts(record=record).value("derived.child_pugh_score").value
    if points is not None and record.child_pugh_score is None:
        found.append(Quantity("Child-Pugh points", float(points), count=True, near=("child", "pugh")))
    return tuple(found)


def _count(name: str, value: int, *nouns: str) -> Quantity:
    return Quantity(name, float(value), count=True, nouns=tuple(n + ending for n in nouns for ending in ("", "s")))


def view_quantities(view: DepthView) -> tuple[Quantity, ...]:
    """The numbers of a depth of the search."""
    found = [q for beam in view.beams for q in _known([("risk", beam.risk, ""), ("spread", beam.spread, "")])]
    found += _known([("gain", view.gain, ""), ("spread of the gain", view.gain_spread, "")])
    found += [
        _count("depth", view.depth, "depth"),
        _count("horizon", view.horizon, "depth"),
        _count("beams", len(view.beams), "beam"),
        _count("candidates", len(view.candidates), "candidate", view.kind, "agent"),
    ]
    if view.simulations_left is not None:
        found.append(_count("simulations left", view.simulations_left, "simulation"))
    return tuple(found)


def plan_quantities(facts: PlanFacts) -> tuple[Quantity, ...]:
    """All numbers of a plan that its rationale may state, the case's included."""
    found = list(_risk("chosen protocol", facts.chosen))
    if facts.runner_up is not None:
        found += _risk("runner-up", facts.runner_up)
    if facts.margin is not None:
        # The distance: a text may say that one is ahead or that the other is behind.
        found.append(Quantity("distance between the objectives of chosen protocol and runner-up", abs(facts.margin)))
    if facts.confidence is not None:
        found.append(Quantity("resamples that the chosen protocol wins", 100 * facts.confidence, "%"))
    found += [
        _count("finalists", facts.finalists, "finalist", *_PROTOCOLS),
        _count("simulated outcomes", facts.simulations, "simulation", "outcome"),
        _count("protocols that tie with the chosen one", len(facts.ties), "tie", "finalist", *_PROTOCOLS),
        _count("agents removed before the search", len(facts.removed), "removal", "drug", "embolic", *_AGENTS),
        _count("warnings on the chosen protocol", len(facts.warnings), "warning", "caution"),
        _count("rules that could not be judged", len(facts.not_evaluable), "rule", "input", "check", "condition"),
    ]
    for name, value in facts.goal.weights.model_dump().items():
        near = (name, "weigh", "weighs", "weight", "weights", "weighted")
        found.append(Quantity(f"weight of {name} in the objective", value, near=near))
    return (*found, *case_quantities(facts.case))


def _risk(who: str, facts: RiskFacts) -> list[Quantity]:
    found = _known(
        [
            (f"{who}: objective", facts.risk, ""),
            (f"{who}: standard error of the objective", facts.standard_error, ""),
            (f"{who}: tumour's part of the log-risk", facts.tumour_log_risk, ""),
            (f"{who}: toxicity term", facts.toxicity_log_risk, ""),
            (f"{who}: median survival of the model", facts.median_survival_months, "months"),
            (f"{who}: viable tumour before", facts.viable_before_ml, "ml"),
            (f"{who}: simulated viable tumour after", facts.viable_ml, "ml"),
        ]
    )
    if facts.mrecist_change_percent is not None:
        found.append(Quantity(f"{who}: mRECIST change", facts.mrecist_change_percent, "%", direction="change"))
    if facts.viable_before_ml and facts.viable_ml is not None:
        change = 100 * (facts.viable_ml - facts.viable_before_ml) / facts.viable_before_ml
        found.append(Quantity(f"{who}: change of the viable volume", change, "%", direction="change"))
    protocol = parse_key(facts.protocol)
    return [
        *found,
        _count(f"{who}: drugs", len(protocol.drugs), "drug"),
        _count(f"{who}: embolic agents", len(protocol.embolics), "embolic", *_AGENTS),
        _count(f"{who}: agents", len(protocol.items), *_AGENTS),
        _count(f"{who}: simulated replicas", facts.replicas, "replica", "replicate", "simulation", "outcome"),
    ]
