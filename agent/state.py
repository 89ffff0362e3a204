"""State of the planner graph: typed, checkpointed after every node, free of volumes (artifacts are named by id)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.goal import Goal
from agent.plan import Approval, Before, Plan, PlanModel, Replica, RuleFinding, ToxicityPart
from agent.policy import CaseSummary, Observation, Proposal, Refinement
from agent.search import Actions, Job, SearchState
from agent.settings import PlannerSettings
from agent.trace import Decision
from models.clinical_survival import ClinicalRisk
from models.scores import Score


class PlannerInput(BaseModel):
    """What starts a plan. JSON only, so that a server, a chat tool and the command line can all send it."""

    model_config = ConfigDict(extra="forbid")

    case_id: str = Field(description="case that the services of this planner know")
    goal: str = Field(default="", description="treatment goal in words; may be empty")
    options: dict[str, Any] = Field(default_factory=dict, description="fields of PlannerSettings")


class CaseFacts(PlanModel):
    """What the planner keeps of the case itself."""

    case_id: str
    origin: Literal["synthetic", "real"]
    origin_note: str
    content_hash: str
    what_if: tuple[str, ...] = Field(default=(), description="values of the record that this run changes, as text")


class Verdict(PlanModel):
    """What the rules say about one protocol."""

    allowed: bool
    findings: tuple[RuleFinding, ...] = ()

    @property
    def reason(self) -> str:
        """The messages of the rules that block it."""
        blocks = [f for f in self.findings if f.status == "fired" and f.strength == "block"]
        return "; ".join(f"{f.rule_id}: {f.message}" for f in blocks) or "blocked by a rule on the patient"


class PendingOutcome(PlanModel):
    """A simulated outcome that is on its way through segmentation and scoring."""

    outcome_id: str
    protocol: str
    seed: int
    segmentation_id: str | None = None


class ProtocolNotes(PlanModel):
    """What does not depend on the replica."""

    toxicity_parts: tuple[ToxicityPart, ...] = ()
    not_evaluable: tuple[str, ...] = ()


class Conditions(PlanModel):
    """What the numbers of a run depend on besides its case and its settings: fixed when the run begins."""

    weights_hash: str
    preset: str
    precision: str
    device: str
    rules_hash: str

    def differences(self, other: Conditions) -> str:
        """Where `other` is not the same, for a sentence; empty where it is: ``device: cuda, now cpu``."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return "; ".join(f"{name.replace('_', ' ')}: {a[:12]}, now {b[:12]}" for name, a, b in pairs if a != b)


class ModelFacts(PlanModel):
    """What the tools say about the models behind the numbers."""

    weights_hash: str
    origin: str
    how: str


class Baseline(PlanModel):
    """Baseline survival of the survival model: S(t) = survival(t) ** exp(log-risk), fitted on `n` patients."""

    times_months: tuple[float, ...]
    survival: tuple[float, ...]
    n: int | None = None
    origin: str | None = None


class PlanEdit(PlanModel):
    """A protocol that a person puts in place of the chosen one; it is on its way through rules and simulation."""

    protocol: str
    instead_of: str | None
    by: str
    reason: str
    seeds: tuple[int, ...]


class Contest(PlanModel):
    """The last comparison: who takes part, on which seeds, in which round, and what `note` a reader needs of it.

    `fresh` is False where the budget left nothing for it and the seeds of the search stand in.
    """

    finalists: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    rounds: int = 0
    settled: bool = False
    fresh: bool = True
    note: str = ""


class PlannerState(BaseModel):
    """Everything that a resumed run needs. Nodes return partial updates; only `decisions` accumulates."""

    model_config = ConfigDict(extra="forbid")

    case_id: str = ""
    goal: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    settings: PlannerSettings = PlannerSettings()
    case: CaseFacts | None = None
    conditions: Conditions | None = None
    reading: Goal | None = None
    summary: CaseSummary | None = None
    scores: tuple[Score, ...] = ()
    observation: Observation | None = None
    proposal: Proposal | None = None
    refinement: Refinement | None = None
    actions: Actions | None = None

    patient: tuple[RuleFinding, ...] = ()
    patient_allowed: bool = True
    partial: dict[str, Verdict] = Field(default_factory=dict, description="protocol key -> partial verdict")
    complete: dict[str, Verdict] = Field(
        default_factory=dict, description="protocol key -> verdict on the finished one"
    )

    search: SearchState = SearchState()
    jobs: tuple[Job, ...] = ()
    pending: tuple[PendingOutcome, ...] = ()
    replicas: dict[str, tuple[Replica, ...]] = Field(
        default_factory=dict, description="protocol key -> outcomes by seed"
    )
    notes: dict[str, ProtocolNotes] = Field(default_factory=dict)
    before: Before = Before()
    baseline: Baseline | None = None
    clinical: ClinicalRisk | None = None
    models: ModelFacts | None = None
    contest: Contest = Contest()

    degraded: tuple[str, ...] = ()
    plan: Plan | None = None
    approvals: tuple[Approval, ...] = ()
    edit: PlanEdit | None = None
    gate_problem: str = Field(default="", description="why the last answer at the gate could not be used")
    decisions: Annotated[list[Decision], operator.add] = Field(default_factory=list)

    @property
    def table(self) -> dict[str, dict[int, float]]:
        """Objectives: protocol key -> seed -> objective."""
        return objectives(self.replicas)


def objectives(replicas: Mapping[str, tuple[Replica, ...]]) -> dict[str, dict[int, float]]:
    """The table that the search works on."""
    return {key: {replica.seed: replica.objective for replica in rows} for key, rows in replicas.items()}


STATE_TYPES: tuple[type[BaseModel], ...] = (
    Actions,
    Approval,
    Baseline,
    Before,
    CaseFacts,
    CaseSummary,
    ClinicalRisk,
    Conditions,
    Contest,
    Decision,
    Goal,
    Job,
    ModelFacts,
    Observation,
    PendingOutcome,
    Plan,
    PlanEdit,
    PlannerSettings,
    Proposal,
    ProtocolNotes,
    Refinement,
    Replica,
    RuleFinding,
    Score,
    SearchState,
    Verdict,
)
"""Types that a checkpoint may hold; anything else in a checkpoint file is refused when it is read."""
