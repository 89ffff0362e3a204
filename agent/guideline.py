"""Guideline policy: the embedded policy. Documented rules over formulary, record and measured features; no LLM.

It needs no key, no network and no GPU. What it knows is data (`guideline.yaml`): how often agents are used, what the
record and the image speak for or against, each with a source. It knows pharmacology and clinical rules and nothing of
any simulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from agent.goal import Goal
from agent.policy import (
    CaseSummary,
    Choice,
    DepthView,
    Expansion,
    Explanation,
    Feature,
    FeatureName,
    Nomination,
    Observation,
    PlanFacts,
    Proposal,
    Provenance,
    Refinement,
    Removal,
)
from models.clinical_record import ClinicalRecord
from models.errors import PlanningError
from prompts.loader import Prompt, load_prompt
from tools.rule_conditions import ConditionField
from tools.rule_facts import CaseFacts, Facts, known_agents
from tools.rulebook import Finding, ProtocolVerdict

if TYPE_CHECKING:
    from models.formulary import Formulary, Item

PROMPT_SET = "guideline"
BEADS = "Drug-eluting beads"
Basis = Literal["measured", "record", "image", "not_evaluable"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Practice(_Data):
    uses: int
    classical: int
    text: str


class _Shift(_Data):
    items: tuple[str, ...]
    points: float
    reason: str
    source: str


class _Adjustment(_Shift):
    id: str
    when: ConditionField


class _Points(_Data):
    per_classical: float
    same_class: float


class _Features(_Data):
    hypervascular_hu: float
    hypovascular_hu: float
    necrotic_fraction: float
    heterogeneous_hu: float
    large_cm: float


class _Nominate(_Data):
    stop_gain_in_spreads: float


class Knowledge(_Data):
    """The content of `guideline.yaml`."""

    version: int
    points: _Points
    features: _Features
    nominate: _Nominate
    loadable_into_beads: tuple[str, ...]
    items: dict[str, _Practice]
    adjustments: tuple[_Adjustment, ...]
    goals: dict[str, tuple[_Shift, ...]]


@lru_cache(maxsize=1)
def load_knowledge() -> Knowledge:
    """The shipped knowledge, checked against its schema."""
    return Knowledge.model_validate(
        yaml.safe_load(files("agent").joinpath("guideline.yaml").read_text(encoding="utf-8"))
    )


class GuidelinePolicy:
    """The embedded policy.

    Args:
        stop_gain_in_spreads: Stop a kind when the last depth gained less than this many standard errors; None takes the
            value of `guideline.yaml`, minus infinity never stops early.
    """

    name = "guideline"
    is_llm = False

    def __init__(self, stop_gain_in_spreads: float | None = None) -> None:
        """See the class."""
        self.knowledge = load_knowledge()
        shipped = self.knowledge.nominate.stop_gain_in_spreads
        self._stop_gain = shipped if stop_gain_in_spreads is None else stop_gain_in_spreads

    @cached_property
    def _explain_prompt(self) -> Prompt:
        return load_prompt(PROMPT_SET, "explain")

    @property
    def _provenance(self) -> Provenance:
        return Provenance(backend=self.name)

    # -------------------------------------------------------------------------------------------------- observe
    def observe(self, case: CaseSummary) -> Observation:
        """Put the measured features and the record into words; what is not known is `not_evaluable`.

        Args:
            case: The case.

        Returns:
            All ten features in a fixed order. Location and capsule need a reader and are never evaluable here.
        """
        record = _record_of(case)
        liver = _facts_of(case).value("derived.child_pugh_class").value
        features = (
            _measured("size", case.largest_diameter_mm, "largest diameter {:.0f} mm"),
            _measured("number", case.lesion_count, "{} labelled lesion(s)"),
            _absent("location"),
            self._enhancement(case),
            self._necrosis(case),
            _absent("capsule"),
            _stated("portal_vein", record.portal_vein_invasion, "portal vein invasion: {}"),
            _stated("shunt", record.shunt, "shunt: {}"),
            _measured("burden", case.tumour_liver_percent, "tumour takes {:.1f} % of the liver"),
            _stated("liver_function", liver, "Child-Pugh {}"),
        )
        known = [feature.value for feature in features if feature.basis != "not_evaluable"]
        unknown = [feature.name.replace("_", " ") for feature in features if feature.basis == "not_evaluable"]
        summary = f"{'; '.join(known)}." if known else "Nothing is measured or stated."
        summary += f" Not evaluable: {', '.join(unknown)}." if unknown else ""
        return Observation(features=features, summary=summary, provenance=self._provenance)

    def _enhancement(self, case: CaseSummary) -> Feature:
        if case.contrast_hu is None:
            return _absent("enhancement")
        limits = self.knowledge.features
        word = (
            "hypervascular"
            if case.contrast_hu >= limits.hypervascular_hu
            else "hypovascular"
            if case.contrast_hu <= limits.hypovascular_hu
            else "isovascular"
        )
        # Arterial enhancement can only be read from an arterial image.
        sure = 0.9 if "arterial" in case.phases else 0.4
        text = f"{word} (tumour {case.contrast_hu:+.0f} HU against liver)"
        return Feature(name="enhancement", value=text, basis="measured", confidence=sure)

    def _necrosis(self, case: CaseSummary) -> Feature:
        if case.hypodense_fraction is None:
            return _absent("necrosis")
        limits = self.knowledge.features
        word = "necrotic part" if case.hypodense_fraction >= limits.necrotic_fraction else "little necrosis"
        text = f"{word} (hypodense share {100 * case.hypodense_fraction:.0f} %)"
        if case.heterogeneity_hu is not None and case.heterogeneity_hu >= limits.heterogeneous_hu:
            text += ", heterogeneous"
        return Feature(name="necrosis", value=text, basis="measured", confidence=0.8)

    # -------------------------------------------------------------------------------------------------- propose
    def propose(
        self,
        case: CaseSummary,
        observation: Observation,  # noqa: ARG002 (this policy reads the measured features themselves)
        formulary: Formulary,
        d: int,
        e: int,
        goal: Goal,
    ) -> Proposal:
        """Rank the formulary by points and take the best, with all others as reserves.

        Args:
            case: The case.
            observation: Not needed by this policy, which reads the measured features themselves.
            formulary: The action set.
            d: Most drugs.
            e: Most embolics.
            goal: Adds the points of its kind.

        Returns:
            The proposal; reasons name use, adjustments and sources.

        Raises:
            PlanningError: No drug or no embolic in the formulary, or `d` or `e` is below 1.
        """
        if d < 1 or e < 1:
            raise PlanningError(f"The action space needs at least 1 drug and 1 embolic, it was to have {d} and {e}.")
        if not formulary.drugs or not formulary.embolics:
            raise PlanningError(f"The action set '{formulary.name}' has no drug or no embolic; choose another one.")
        facts = _facts_of(case)
        drugs = self._ranked(formulary.drugs, facts, goal)
        loadable = any(item.name in self.knowledge.loadable_into_beads for item in formulary.drugs)
        embolics = self._ranked(
            tuple(item for item in formulary.embolics if loadable or item.name != BEADS), facts, goal
        )
        return Proposal(
            drugs=drugs[:d],
            embolics=embolics[:e],
            reserve_drugs=drugs[d:],
            reserve_embolics=embolics[e:],
            provenance=self._provenance,
        )

    def _ranked(self, items: Sequence[Item], facts: Facts, goal: Goal) -> tuple[Choice, ...]:
        """Greedy order by points, where every agent of a class that is already in costs the next of that class."""
        scored = {item.name: self.points(item, facts, goal) for item in items}
        left = sorted(items, key=lambda item: item.name)
        taken: list[Item] = []
        while left:

            def worth(item: Item) -> float:
                siblings = sum(other.item_class == item.item_class for other in taken)
                return scored[item.name][0] + self.knowledge.points.same_class * siblings

            best = max(left, key=worth)  # ties: the first by name
            taken.append(best)
            left.remove(best)
        return tuple(Choice(item=item.name, reason=scored[item.name][1]) for item in taken)

    def points(self, item: Item, facts: Facts, goal: Goal) -> tuple[float, str]:
        """Points of one agent, and why.

        Args:
            item: The agent.
            facts: Record and measured features; no protocol.
            goal: The goal.

        Returns:
            Points (more is better) and the reason in words with sources.
        """
        practice = self.knowledge.items.get(item.name)
        if practice is None:
            total, reasons = 0.0, ["no practice data for this agent"]
        else:
            total = math.log2(1 + practice.uses) + practice.classical * self.knowledge.points.per_classical
            reasons = [practice.text]
        shifts: list[_Shift] = [
            adjustment
            for adjustment in self.knowledge.adjustments
            if _covers(adjustment, item) and adjustment.when.judge(facts).holds is True
        ]
        shifts += [shift for name in goal.names for shift in self.knowledge.goals.get(name, ()) if _covers(shift, item)]
        for shift in shifts:
            total += shift.points
            reasons.append(f"{'for' if shift.points > 0 else 'against'} it: {shift.reason} [{shift.source}]")
        return total, "; ".join(reasons)

    # -------------------------------------------------------------------------------------------------- refine
    def refine(
        self,
        case: CaseSummary,  # noqa: ARG002 (the verdicts are about this case)
        proposal: Proposal,
        verdicts: Sequence[ProtocolVerdict],
        d: int,
        e: int,
    ) -> Refinement:
        """Take out agents that a rule blocks by themselves and fill up from the reserves.

        Agents that only exclude each other (two platinums) stay: the search compares them and the rules keep them
        apart. A block of the patient as such takes out nothing here; it blocks every protocol.

        Args:
            case: The case; not needed by this policy.
            proposal: What was proposed.
            verdicts: One per proposed agent alone.
            d: Most drugs to keep.
            e: Most embolics to keep.

        Returns:
            The action space; a side may be empty when rules leave nothing.

        Raises:
            PlanningError: There is no verdict for a proposed agent.
        """
        findings = _findings_by_item(verdicts)
        if unasked := [item for item in proposal.items if item not in findings]:
            raise PlanningError(
                f"The rules were not asked about {', '.join(unasked)}; check every proposed agent alone."
            )
        removed = [
            Removal(item=item, rule_id=block.rule_id, reason=block.message)
            for item in proposal.items
            if (block := next((finding for finding in findings[item] if finding.blocks), None)) is not None
        ]
        out = {removal.item for removal in removed}
        drugs = tuple(choice for choice in (*proposal.drugs, *proposal.reserve_drugs) if choice.item not in out)[:d]
        if BEADS in proposal.items and BEADS not in out:
            left = {choice.item for choice in drugs}
            if not left & set(self.knowledge.loadable_into_beads):
                out.add(BEADS)
                reason = "No drug is left that beads can be loaded with."
                removed.append(Removal(item=BEADS, rule_id="E03", reason=reason))
        embolics = tuple(c for c in (*proposal.embolics, *proposal.reserve_embolics) if c.item not in out)[:e]
        kept = {choice.item for choice in (*drugs, *embolics)}
        cautions = tuple(
            Removal(item=item, rule_id=finding.rule_id, reason=finding.message)
            for item in proposal.items
            if item in kept
            for finding in findings[item]
            if finding.status == "fired" and finding.strength == "warn"
        )
        return Refinement(
            drugs=drugs, embolics=embolics, removed=tuple(removed), cautions=cautions, provenance=self._provenance
        )

    # -------------------------------------------------------------------------------------------------- nominate
    def nominate(self, view: DepthView) -> Nomination:
        """Expand every beam with every allowed agent; stop when the last depth gained less than its spread.

        Args:
            view: The search at this depth.

        Returns:
            The nomination. A mandatory depth stops only where the rules allow no agent on any beam.
        """
        expand = tuple(Expansion(protocol=beam.protocol, items=beam.allowed) for beam in view.beams if beam.allowed)
        if not expand:
            return self._stop(f"No further {view.kind} is allowed on any beam.")
        if not view.mandatory and view.gain is not None:
            spread = view.gain_spread or 0.0
            if view.gain <= self._stop_gain * spread:
                return self._stop(
                    f"The last {view.kind} improved the best objective by {view.gain:.3f}, within its spread of "
                    f"{spread:.3f}; more agents would add toxicity without a gain that can be told apart."
                )
        count = len({item for expansion in expand for item in expansion.items})
        why = f"the first {view.kind} is mandatory" if view.mandatory else "the objective still improves"
        if not view.mandatory and view.gain is None:
            why = "nothing to compare with yet"
        reason = f"Try {count} allowed {view.kind}(s) on {len(expand)} beam(s): {why}."
        return Nomination(expand=expand, stop=False, reason=reason, provenance=self._provenance)

    def _stop(self, reason: str) -> Nomination:
        return Nomination(stop=True, reason=reason, provenance=self._provenance)

    # -------------------------------------------------------------------------------------------------- explain
    def explain(self, facts: PlanFacts) -> Explanation:
        """Fill the prompt file `guideline/explain.md` with the plan's facts.

        Args:
            facts: What the plan holds.

        Returns:
            The rationale; every number in it is one of `facts`, rounded.
        """
        prompt = self._explain_prompt
        text = prompt.render(policy="embedded guideline policy", facts=facts)
        provenance = Provenance(backend=self.name, prompt_id=prompt.id, prompt_hash=prompt.content_hash)
        return Explanation(text=text, provenance=provenance)


def _record_of(case: CaseSummary) -> ClinicalRecord:
    return ClinicalRecord.model_validate(case.record)


def _facts_of(case: CaseSummary) -> Facts:
    measured = CaseFacts(
        lesion_count=case.lesion_count,
        largest_diameter_cm=None if case.largest_diameter_mm is None else case.largest_diameter_mm / 10.0,
        tumour_liver_percent=case.tumour_liver_percent,
        contrast_hu=case.contrast_hu,
        heterogeneity_hu=case.heterogeneity_hu,
        hypodense_fraction=case.hypodense_fraction,
    )
    return Facts(record=_record_of(case), case=measured)


def _covers(shift: _Shift, item: Item) -> bool:
    return item.name in shift.items or item.item_class in shift.items


def _findings_by_item(verdicts: Sequence[ProtocolVerdict]) -> Mapping[str, tuple[Finding, ...]]:
    found: dict[str, tuple[Finding, ...]] = {}
    for verdict in verdicts:
        items = known_agents().parse(verdict.protocol).items
        if len(items) == 1:
            found[items[0]] = verdict.findings
    return found


def _absent(name: FeatureName) -> Feature:
    return Feature(name=name, value="not evaluable", basis="not_evaluable", confidence=0.0)


def _measured(name: FeatureName, value: float | None, text: str) -> Feature:
    if value is None:
        return _absent(name)
    return Feature(name=name, value=text.format(value), basis="measured", confidence=0.9)


def _stated(name: FeatureName, value: str | None, text: str) -> Feature:
    if value is None:
        return _absent(name)
    return Feature(name=name, value=text.format(value.replace("_", " ")), basis="record", confidence=1.0)
