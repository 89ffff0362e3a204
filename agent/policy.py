"""Policy: the controlling role of the planner, as an interface with typed answers.

The graph asks, the policy answers, the graph validates: every answer is a pydantic model whose JSON schema is what a
language model is asked to fill in, and a policy reaches neither files, nor models, nor the truth of a phantom case. It
sees a case through `CaseSummary` alone (what is measured in the image and its labels, and the clinical record).

The embedded policy is `agent.guideline.GuidelinePolicy`; backends with a language model implement the same interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from agent.goal import Goal
from models.protocol import Kind
from tools.rulebook import ProtocolVerdict

if TYPE_CHECKING:
    from models.formulary import Formulary


class CaseSummary(BaseModel):
    """Everything that a policy may know about a case: measured features and the clinical record.

    A feature that could not be measured (no such label, no such phase) is None; a record field that nobody stated is
    absent from `record`. HU features are means over labels on the default (arterial where present) pre-treatment image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    origin: Literal["synthetic", "real"]
    phases: tuple[str, ...] = Field(default=(), description="Contrast phases of the pre-treatment images")
    lesion_count: int | None = Field(default=None, ge=0, description="Separate tumour components in the labels")
    largest_diameter_mm: float | None = Field(default=None, gt=0)
    tumour_ml: float | None = Field(default=None, ge=0)
    liver_ml: float | None = Field(default=None, ge=0, description="Whole liver, tumour included")
    aorta_hu: float | None = None
    liver_hu: float | None = None
    tumour_hu: float | None = None
    contrast_hu: float | None = Field(
        default=None, description="Tumour mean minus liver mean; above 0 is hypervascular"
    )
    heterogeneity_hu: float | None = Field(default=None, ge=0, description="Standard deviation of HU inside the tumour")
    hypodense_fraction: float | None = Field(default=None, ge=0, le=1, description="Necrosis-like share of the tumour")
    record: dict[str, Any] = Field(
        default_factory=dict, description="Stated fields of the clinical record, unit in the name"
    )

    @property
    def tumour_liver_percent(self) -> float | None:
        """Tumour volume as percent of the whole liver's; None where either volume is unknown."""
        if self.tumour_ml is None or not self.liver_ml:
            return None
        return 100.0 * self.tumour_ml / self.liver_ml


class Provenance(BaseModel):
    """Who made an answer and what it cost; goes into the trace. Never asked from a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    prompt_id: str | None = None
    prompt_hash: str | None = None
    model: str | None = Field(default=None, description="The model, as its endpoint names it; None where none answered")
    requests: int = Field(default=0, ge=0)
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cost_usd: float | None = Field(default=None, ge=0, description="List price; None where no price is known")
    failures: tuple[str, ...] = Field(default=(), description="Failed attempts before the answer, in order")
    notes: tuple[str, ...] = Field(default=(), description="How the answer was read, where it was not word for word")
    reasoning: str | None = Field(default=None, description="Reasoning content of the backend; kept, never parsed")


class Answer(BaseModel):
    """Base of every answer. `provenance` is filled in by the policy and hidden from the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provenance: SkipJsonSchema[Provenance | None] = None


FeatureName = Literal[
    "size",
    "number",
    "location",
    "enhancement",
    "necrosis",
    "capsule",
    "portal_vein",
    "shunt",
    "burden",
    "liver_function",
]


class Feature(BaseModel):
    """One observed feature, its value in words with the unit, and how it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FeatureName
    value: str = Field(min_length=1, description="For example '54 mm' or 'hypervascular (tumour 38 HU above liver)'")
    basis: Literal["measured", "record", "image", "not_evaluable"]
    confidence: float = Field(ge=0, le=1)


class Observation(Answer):
    """What the policy sees. Features that it could not judge are there too, with basis `not_evaluable`."""

    features: tuple[Feature, ...]
    summary: str = Field(min_length=1)

    @model_validator(mode="after")
    def _each_feature_once(self) -> Self:
        names = [feature.name for feature in self.features]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"feature observed twice: {', '.join(repeated)}")
        return self

    def feature(self, name: FeatureName) -> Feature | None:
        """The feature of that name, or None where the policy did not mention it."""
        return next((feature for feature in self.features if feature.name == name), None)


class Choice(BaseModel):
    """One agent by canonical name, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    reason: str = Field(min_length=1)


class Proposal(Answer):
    """The action space, best first: at most D drugs and E embolics, and reserves that may replace what rules remove."""

    drugs: tuple[Choice, ...]
    embolics: tuple[Choice, ...]
    reserve_drugs: tuple[Choice, ...] = ()
    reserve_embolics: tuple[Choice, ...] = ()

    @property
    def items(self) -> tuple[str, ...]:
        """Every agent named, reserves included, each once: what the rules have to be asked about."""
        every = (*self.drugs, *self.embolics, *self.reserve_drugs, *self.reserve_embolics)
        return tuple(dict.fromkeys(choice.item for choice in every))

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        every = [c.item for c in (*self.drugs, *self.embolics, *self.reserve_drugs, *self.reserve_embolics)]
        if repeated := sorted({item for item in every if every.count(item) > 1}):
            raise ValueError(f"agent proposed twice: {', '.join(repeated)}")
        return self


class Removal(BaseModel):
    """An agent taken out of the action space, with the rule that asked for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    rule_id: str
    reason: str = Field(min_length=1)


class Refinement(Answer):
    """The action space that the search may use, and what was taken out."""

    drugs: tuple[Choice, ...]
    embolics: tuple[Choice, ...]
    removed: tuple[Removal, ...] = ()
    cautions: tuple[Removal, ...] = Field(default=(), description="Kept although a warning rule fired")


class BeamView(BaseModel):
    """One beam as the policy sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str = Field(description="Key of the protocol")
    risk: float | None = Field(
        default=None, description="Mean objective, lower is better; None before anything is simulated"
    )
    spread: float | None = Field(default=None, ge=0, description="Standard error of the mean over replicas")
    allowed: tuple[str, ...] = Field(default=(), description="Candidates that the rules allow for this beam")


class DepthView(BaseModel):
    """The search at one depth, before anything is expanded.

    `gain` is the best risk one depth earlier minus the best risk now (positive is better), and `gain_spread` the
    standard error of that difference, paired over common seeds, its variance pooled over the beams; both None where
    there is no earlier depth of this kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    depth: int = Field(ge=1, description="1 is the first agent of this kind")
    horizon: int = Field(ge=1)
    mandatory: bool = Field(description="The first drug and the first embolic can't be skipped")
    beams: tuple[BeamView, ...]
    candidates: tuple[str, ...]
    gain: float | None = None
    gain_spread: float | None = Field(default=None, ge=0)
    simulations_left: int | None = Field(default=None, ge=0)


class Expansion(BaseModel):
    """The agents to try on one beam."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    items: tuple[str, ...]


class Nomination(Answer):
    """What to expand at this depth; with `stop`, nothing more of this kind is tried and the beams stay as they are."""

    expand: tuple[Expansion, ...] = ()
    stop: bool = False
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _either_stop_or_expand(self) -> Self:
        if self.stop and self.expand:
            raise ValueError("a nomination either stops or expands, not both")
        if not self.stop and not any(expansion.items for expansion in self.expand):
            raise ValueError("a nomination that does not stop has to name at least one agent to try")
        return self


def nomination_errors(view: DepthView, nomination: Nomination) -> list[str]:
    """Why the graph can't follow a nomination; empty when it can.

    Args:
        view: What the policy was shown.
        nomination: What it answered.

    Returns:
        One sentence per fault: an unknown beam, an agent that is no allowed candidate, or a stop before the mandatory
        agent although the rules allow one.
    """
    faults: list[str] = []
    if nomination.stop and view.mandatory and any(beam.allowed for beam in view.beams):
        faults.append(f"The first {view.kind} is mandatory, so the search can't stop here; name agents to try.")
    beams = {beam.protocol: beam for beam in view.beams}
    for expansion in nomination.expand:
        beam = beams.get(expansion.protocol)
        if beam is None:
            faults.append(f"There is no beam '{expansion.protocol}'; the beams are {', '.join(beams)}.")
            continue
        if strangers := [item for item in expansion.items if item not in beam.allowed]:
            allowed = ", ".join(beam.allowed) or "none"
            faults.append(f"{', '.join(strangers)} may not be added to '{beam.protocol}'; allowed: {allowed}.")
    return faults


class RiskFacts(BaseModel):
    """A protocol's figures as the plan holds them. `risk` is the objective that decided: goal-weighted log-risk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    risk: float
    standard_error: float | None = Field(default=None, ge=0)
    replicas: int = Field(ge=1)
    tumour_log_risk: float | None = None
    toxicity_log_risk: float | None = None
    median_survival_months: float | None = None
    viable_before_ml: float | None = None
    viable_ml: float | None = None
    mrecist_change_percent: float | None = None
    mrecist_category: str | None = None


class PlanFacts(BaseModel):
    """All that an explanation may draw on. A number that is not in here must not be in the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: CaseSummary
    goal: Goal
    chosen: RiskFacts
    choices: tuple[Choice, ...] = Field(
        default=(), description="The chosen agents with the reasons they were proposed for"
    )
    runner_up: RiskFacts | None = None
    margin: float | None = Field(default=None, description="Risk of the runner-up minus risk of the chosen protocol")
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="Share of bootstrap draws that the chosen one wins"
    )
    ties: tuple[str, ...] = ()
    finalists: int = Field(ge=1, description="Protocols of the last comparison, the chosen one included")
    choice_is_fixed: bool = Field(
        default=False, description="The strategy itself named the chosen one; the last comparison only measured it"
    )
    simulations: int = Field(ge=0)
    removed: tuple[Removal, ...] = ()
    warnings: tuple[str, ...] = Field(
        default=(), description="Messages of warning rules that fired on the chosen protocol"
    )
    not_evaluable: tuple[str, ...] = ()
    model_origin: Literal["synthetic", "real"] = Field(description="What the world model was trained on")
    people: tuple[str, ...] = Field(default=(), description="Who decided so far; no language model is told")


class Explanation(Answer):
    """The rationale in plain words."""

    text: str = Field(min_length=1)


@runtime_checkable
class Policy(Protocol):
    """The controlling policy. Every method is pure with respect to the run: same arguments, same question."""

    @property
    def name(self) -> str:
        """Short name for the trace, for example ``guideline``."""
        ...

    @property
    def is_llm(self) -> bool:
        """Whether a language model answers."""
        ...

    def observe(self, case: CaseSummary) -> Observation:
        """Describe what the image and the record show."""
        ...

    def propose(
        self, case: CaseSummary, observation: Observation, formulary: Formulary, d: int, e: int, goal: Goal
    ) -> Proposal:
        """Name at most `d` drugs and `e` embolics of the formulary worth trying, best first, with reasons.

        Raises:
            PlanningError: The formulary has no drug or no embolic, or `d` or `e` is below 1.
        """
        ...

    def refine(
        self, case: CaseSummary, proposal: Proposal, verdicts: Sequence[ProtocolVerdict], d: int, e: int
    ) -> Refinement:
        """Take out what the rules forbid.

        Args:
            case: The case.
            proposal: The action space with its reserves.
            verdicts: `check_rules` with ``stage="partial"`` on each agent of `Proposal.items` alone.
            d: Most drugs to keep.
            e: Most embolics to keep.
        """
        ...

    def nominate(self, view: DepthView) -> Nomination:
        """Say what to expand at this depth, or stop. The graph checks the answer with `nomination_errors`."""
        ...

    def explain(self, facts: PlanFacts) -> Explanation:
        """Say why the plan is what it is, with numbers from `facts` only."""
        ...


@runtime_checkable
class Metered(Protocol):
    """A policy whose questions cost requests to a backend."""

    def check_configured(self) -> None:
        """Refuse what could answer no question, before a run begins or goes on.

        Raises:
            BackendError: a key or an address is not set on this machine.
        """
        ...

    def after(self, requests: int) -> Policy:
        """The same policy when the plan has already sent so many requests."""
        ...

    def prompt_of(self, question: str) -> tuple[str, str]:
        """Id and content hash of the prompt for a question, answered or not."""
        ...


def single_item_keys(items: Sequence[str], formulary: Formulary) -> Mapping[str, str]:
    """Protocol keys of each agent alone, for asking the rules about an action space.

    Args:
        items: Canonical names.
        formulary: Where the kind of each agent is looked up.

    Returns:
        item -> key of the protocol that holds that agent and nothing else, in the order given.

    Raises:
        UnknownItemError: An agent is not in the formulary.
    """
    from models.protocol import Protocol as ProtocolOf

    return {item: ProtocolOf().with_item(formulary.item(item).kind, item).key for item in items}
