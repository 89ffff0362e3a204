"""Plan: what a run of the planner leaves, as one schema-versioned, typed record (`plan.json`).

Log-risks are log hazard ratios against the survival model's baseline (no unit, lower is better); `objective` is what
the search minimises: the goal-weighted sum of `agent.goal`. Everything that a repeated or resumed run may change
(seconds, cache hits, the time of day) is in `Plan.execution`; all other fields are the same for the same case,
settings, weights and device.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.contest import t_interval
from models.clinical_survival import ClinicalRisk
from models.errors import RunError
from models.protocol import Kind, Protocol
from models.scores import Score

PLAN_SCHEMA_VERSION = 1
DISCLAIMER = "For research only: a simulation by models trained on synthetic data, not a treatment recommendation."

NodeStatus = Literal["kept", "pruned", "blocked", "duplicate", "unassessed"]


class PlanModel(BaseModel):
    """Base of the plan's parts: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(PlanModel):
    """A mean over replicas with its standard error (None where there is one replica only)."""

    mean: float
    se: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided 95 % Student t interval of the mean, or None for a single replica."""
        return t_interval(self.mean, self.se, self.n)


class Replica(PlanModel):
    """One outcome (protocol, seed) with everything that was measured on it."""

    seed: int
    outcome_id: str
    segmentation_id: str
    objective: float
    log_risk: float
    tumour_log_risk: float
    toxicity_log_risk: float
    median_survival_months: float | None
    viable_ml: float
    necrotic_fraction: float | None
    oil_fraction: float | None
    mrecist_mm: float | None
    mrecist_change_percent: float | None
    mrecist_category: str | None
    easl_mm2: float | None
    easl_change_percent: float | None
    easl_category: str | None
    oil_confounded: bool = False


class Before(PlanModel):
    """The tumour before treatment, measured once per case."""

    tumour_ml: float | None = None
    viable_ml: float | None = None
    longest_diameter_mm: float | None = None
    mrecist_mm: float | None = None
    easl_mm2: float | None = None


class ResponseSummary(PlanModel):
    """Response measures as means over replicas; categories as counts over replicas, e.g. ``{"PR": 6, "SD": 2}``."""

    viable_ml: Estimate
    necrotic_fraction: Estimate | None
    oil_fraction: Estimate | None
    mrecist_mm: Estimate | None
    mrecist_change_percent: Estimate | None
    mrecist_categories: dict[str, int]
    easl_mm2: Estimate | None
    easl_change_percent: Estimate | None
    easl_categories: dict[str, int]
    oil_confounded: bool


class ToxicityPart(PlanModel):
    """One addend of the fixed toxicity term (log hazard)."""

    item: str
    value: float
    reason: str


class SurvivalCurve(PlanModel):
    """S(t) at the mean log-risk, and at the ends of its 95 % t interval over replicas (simulation noise only, not
    model error).
    """

    times_months: tuple[float, ...]
    survival: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


class RuleFinding(PlanModel):
    """A rule's verdict on a protocol or, where `protocol` is None, on the patient."""

    rule_id: str
    strength: Literal["block", "warn", "info"]
    status: Literal["fired", "passed", "not_evaluable"]
    stage: str
    message: str
    source: str
    confidence: str
    protocol: str | None = None
    found: tuple[str, ...] = Field(default=(), description="values that made it fire")
    missing: tuple[str, ...] = Field(default=(), description="inputs that were absent; also where a milder level fired")

    @property
    def unclear(self) -> str | None:
        """What could not be judged, as a sentence: the whole rule, or a severer level than the one that fired."""
        if self.status == "not_evaluable":
            return f"{self.rule_id}: {self.message}"
        if self.status == "fired" and self.missing:
            absent = ", ".join(self.missing)
            return f"{self.rule_id}: fired as {self.strength}; a severer level is not evaluable (missing: {absent})."
        return None


class DoseShown(PlanModel):
    """How an agent is dosed: a range from the formulary, never a single invented dose."""

    item: str
    kind: Kind
    item_class: str
    low: float | None
    high: float | None
    unit: str | None
    text: str
    sources: tuple[str, ...] = ()
    note: str = ""


class AssessedProtocol(PlanModel):
    """Everything the run knows about one protocol.

    Numbers are means over the `objective.n` replicas in `replicas`: those of the last comparison for a finalist, those
    of the search for all others.
    """

    protocol: Protocol
    key: str
    objective: Estimate
    log_risk: Estimate
    tumour_log_risk: Estimate
    toxicity_log_risk: float
    toxicity_parts: tuple[ToxicityPart, ...]
    median_survival_months: float | None
    response: ResponseSummary
    replicas: tuple[Replica, ...]
    finalist: bool
    allowed: bool = Field(description="False when a complete rule blocks the finished protocol")
    complete: bool = Field(description="has at least one drug and one embolic")
    default_rank: int | None = Field(description="rank by the default goal's weights among allowed complete protocols")
    rank: int | None = Field(
        description="rank by this plan's objective among allowed complete protocols, 1 is best: finalists by means on "
        "common seeds, then the others by means that are corrected for the seeds they lack"
    )

    @property
    def shown_replica(self) -> Replica:
        """The replica to draw: the one whose objective is nearest to the mean (ties: the lower seed)."""
        return min(self.replicas, key=lambda r: (abs(r.objective - self.objective.mean), r.seed))


class Finalist(PlanModel):
    """A protocol of the last comparison with what a reader needs to judge it."""

    assessed: AssessedProtocol
    place: int = Field(description="1 is the chosen protocol")
    margin: Estimate | None = Field(
        description="objective minus the chosen one's, paired by seed; None for the chosen one"
    )
    margin_interval: tuple[float, float] | None = Field(description="95 % t interval of `margin`")
    tied_with_chosen: bool
    doses: tuple[DoseShown, ...]
    findings: tuple[RuleFinding, ...]
    survival: SurvivalCurve | None
    not_evaluable: tuple[str, ...]


class TreeNode(PlanModel):
    """One candidate at one depth of the search tree. The root has depth 0 and no parent."""

    node_id: str
    parent: str | None
    phase: Literal["root", "drug", "embolic", "protocol"] = Field(
        description="`protocol`: whole ones (strategy `exhaustive`)"
    )
    depth: int = Field(description="counted over drugs, then embolics: 1 ... H_d + H_e")
    beam: int | None = Field(default=None, description="index of the beam that held it (strategy `paper`)")
    protocol: str = Field(description="protocol key")
    added: str | None = Field(description="item added at this depth; None where the beam stays as it is")
    objective: float | None = Field(description="mean, corrected for seeds that not all candidates of the depth have")
    se: float | None
    n: int
    status: NodeStatus
    reason: str


class GoalReading(PlanModel):
    """How the goal text was understood and what it changed."""

    text: str
    names: tuple[str, ...] = Field(description="recognised goals; ('default',) when none")
    understood: bool
    weights: dict[str, float]
    note: str
    default_choice: str | None = Field(
        description="protocol that the default weights would choose among those assessed"
    )
    changed: str = Field(description="one sentence: what the goal changed in the choice")


class PolicyNote(PlanModel):
    """An item that the policy proposed or removed, with its reason."""

    item: str
    kind: Kind
    kept: bool
    reason: str
    rule_id: str | None = None


class Origin(PlanModel):
    """What the numbers come from; shown wherever a number is shown."""

    case_origin: str
    case_note: str
    model_origin: str
    weights_hash: str
    policy: str
    policy_is_llm: bool
    simulated_how: str
    baseline_n: int | None = Field(default=None, description="patients behind the baseline survival; None without one")
    baseline_origin: str | None = Field(default=None, description="data that the baseline survival was fitted on")


class Reproduction(PlanModel):
    """What is needed to get the same plan again."""

    command: str
    case_id: str
    case_hash: str
    seed: int
    seeds: tuple[int, ...]
    device: str = Field(description="where the networks ran: cpu or cuda")
    precision: str = Field(description="of the networks: bf16 or fp32")
    preset: str = Field(description="sizes of the networks")
    rules_hash: str = Field(description="SHA-256 of the rules file")
    versions: dict[str, str]


class Approval(PlanModel):
    """What a person decided at a gate. `before` and `after` are the action space or the protocol, as text."""

    gate: Literal["actions", "plan"]
    decision: Literal["approve", "edit", "reject"]
    by: str
    at: str = Field(description="UTC, ISO 8601")
    reason: str = ""
    before: str
    after: str
    override_reason: str = Field(default="", description="why it was approved although rules block it")
    overridden: tuple[str, ...] = Field(default=(), description="the rules that block it, with their messages")


class LlmQuestion(PlanModel):
    """A question that was put to language models: which backend of the chain answered it, by which prompt."""

    question: str = Field(description="observe, propose, refine, nominate or explain")
    backend: str = Field(description="the one that answered; where none did, the policy that was asked")
    model: str | None
    prompt_id: str | None
    prompt_hash: str | None
    requests: int
    answered: bool = Field(description="False where the embedded policy had to answer")


class LlmUsage(PlanModel):
    """What language models did in a run. Tokens and cost count as far as the endpoints said."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None = Field(description="list price; None where a price or a token count is not known")
    failures: int = Field(description="failed attempts; the trace has every one")
    questions: tuple[LlmQuestion, ...]

    @property
    def sentence(self) -> str:
        """Who answered what, by which prompts, and what it cost."""
        answered = Counter(f"{q.backend} ({q.model})" for q in self.questions if q.answered)
        by = "; ".join(f"{who} answered {n}" for who, n in answered.items()) or "no language model answered any"
        unanswered = ", ".join(dict.fromkeys(q.question for q in self.questions if not q.answered))
        left = f"; the embedded policy had to answer {unanswered}" if unanswered else ""
        attempts = f", {self.failures} failed attempts" if self.failures else ""
        cost = "cost not known" if self.cost_usd is None else f"list price {self.cost_usd:.4f} USD"
        prompts = {q.prompt_id: f"{q.prompt_id} ({(q.prompt_hash or '')[:8]})" for q in self.questions if q.prompt_id}
        return (
            f"Of {len(self.questions)} questions {by}{left}. {self.requests} requests{attempts}, {self.input_tokens} "
            f"tokens read, {self.output_tokens} written, {cost}. Prompts: {', '.join(prompts.values())}."
        )


class Execution(PlanModel):
    """What may differ between two runs of the same plan."""

    created: str
    seconds: float
    seconds_by_node: dict[str, float]
    simulated: int
    from_cache: int
    llm: LlmUsage | None = Field(default=None, description="None where no language model was asked")


class Plan(PlanModel):
    """The result of a run. `chosen` is None exactly when `blocked` is True: the rules leave no protocol, or a person
    rejected the action space.
    """

    schema_version: Literal[1] = 1
    case_id: str
    blocked: bool
    blocked_by: tuple[RuleFinding, ...]
    degraded: bool
    degraded_reason: str | None
    stopped_early: str | None = Field(description="why the search ended before its horizons (budget, policy), or None")
    goal: GoalReading
    settings: dict[str, str | int | float | bool | None]
    session: dict[str, str | float | bool] = Field(description="what was stated about the session, unit in the name")
    before: Before
    scores: tuple[Score, ...] = Field(default=(), description="prognostic scores; the search does not use them")
    clinical: ClinicalRisk | None = Field(
        default=None,
        description="what a separate model reads from the record alone; the same for every protocol, part of no risk",
    )
    observation: str
    proposals: tuple[PolicyNote, ...]
    chosen: Finalist | None
    runners_up: tuple[Finalist, ...]
    ties: tuple[str, ...] = Field(description="protocol keys that can't be told apart from the chosen one")
    margin: Estimate | None = Field(description="runner-up minus chosen, paired by seed")
    margin_interval: tuple[float, float] | None
    confidence: float | None = Field(
        description="share of bootstrap resamples of the seeds in which the chosen one is best; a tie counts in parts"
    )
    confidence_note: str
    assessed: tuple[AssessedProtocol, ...] = Field(description="best objective first")
    tree: tuple[TreeNode, ...]
    rules: tuple[RuleFinding, ...] = Field(
        description="patient-level findings and every finding that fired in the search"
    )
    not_evaluable: tuple[str, ...]
    not_modelled: tuple[str, ...]
    explanation: str
    origin: Origin
    reproduction: Reproduction
    simulations: int = Field(description="distinct (protocol, seed) outcomes that the search used")
    execution: Execution
    disclaimer: str = DISCLAIMER
    approvals: tuple[Approval, ...] = Field(default=(), description="what people decided at the gates, in order")
    what_if: tuple[str, ...] = Field(
        default=(), description="values of the clinical record that were changed to ask what if; none in a real plan"
    )
    artifacts: dict[str, str] = Field(description="files of the run folder, relative to it, by what they are")

    @property
    def patient_blocked(self) -> bool:
        """True where a rule on the patient blocks every protocol, not only those that were tried."""
        return any(finding.protocol is None for finding in self.blocked_by)

    @property
    def rejected(self) -> Approval | None:
        """The rejection that ended the run, or None."""
        last = self.approvals[-1] if self.approvals else None
        return last if last is not None and last.decision == "reject" else None

    @property
    def approved(self) -> Approval | None:
        """The approval of the protocol as it stands, or None."""
        last = self.approvals[-1] if self.approvals else None
        return last if last is not None and (last.gate, last.decision) == ("plan", "approve") else None

    @property
    def finalists(self) -> tuple[Finalist, ...]:
        """The chosen protocol, then the runners-up."""
        return (() if self.chosen is None else (self.chosen,)) + self.runners_up

    def to_json(self) -> str:
        """The text of `plan.json`."""
        return self.model_dump_json(indent=2) + "\n"


def read_plan(path: Path) -> Plan:
    """Read a `plan.json`.

    Raises:
        RunError: the file is missing, damaged or of another schema version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"There is no plan at {path}: run `mewm plan` first, or `mewm resume` where it was stopped."
        ) from None
    except (OSError, ValueError) as exc:
        raise RunError(f"The plan at {path} can't be read ({exc}): run `mewm plan` again.") from exc
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != PLAN_SCHEMA_VERSION:
        raise RunError(
            f"The plan at {path} has schema version {version}, this program reads {PLAN_SCHEMA_VERSION}: "
            "run `mewm plan` again."
        )
    try:
        return Plan.model_validate(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"The plan at {path} is damaged ({where}: {first['msg']}): run `mewm plan` again.") from exc
