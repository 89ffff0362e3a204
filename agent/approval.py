"""Approval: the two gates at which a person decides, as nodes that interrupt the planner.

The action space waits before the search, the plan after it; each gate is a setting, off by default. A person approves,
edits or rejects with a reason. An edited protocol goes through rules and simulation, on the seeds of the last
comparison, and waits again. A rule that blocks is overridden only with a typed reason, which the plan keeps.

An answer names the interrupt that it answers and the case, so that it can't reach another plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self

from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.assess import assessed_protocols, final_table, finalists, is_complete, margin_of, sureness
from agent.contest import paired, ranking
from agent.nodes import Update, verdicts_of
from agent.plan import Approval, Finalist, Plan, PlanModel, RuleFinding
from agent.plan_nodes import PlanNodes
from agent.policy import Choice, Refinement, Removal, single_item_keys
from agent.search import Actions, merge_jobs
from agent.state import PlanEdit, PlannerState
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol

Gate = Literal["actions", "plan"]
GATE_NAMES: dict[str, str] = {"actions": "action space", "plan": "plan"}
BY_A_PERSON = "a person"
"""Stands where the trace and the plan name a rule."""


class GateRequest(PlanModel):
    """What waits: the value of an interrupt."""

    gate: Gate
    case_id: str
    question: str
    drugs: tuple[str, ...] = ()
    embolics: tuple[str, ...] = ()
    removed: tuple[str, ...] = Field(default=(), description="agents that were taken out before, with the reason")
    protocol: str | None = Field(default=None, description="the protocol of the plan; None where all are blocked")
    runners_up: tuple[str, ...] = ()
    blocks: tuple[str, ...] = Field(default=(), description="rules that block it: approving needs an override reason")
    warnings: tuple[str, ...] = Field(default=(), description="rules that warn of it")
    problem: str = Field(default="", description="why the last answer could not be used")


class GateAnswer(BaseModel):
    """What a person answers at a gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    interrupt_id: str = Field(min_length=1, description="the interrupt that is answered")
    case_id: str = Field(min_length=1, description="the case that the person decides about")
    decision: Literal["approve", "edit", "reject"]
    by: str = Field(min_length=2, max_length=120, description="who decides")
    at: str = Field(default="", max_length=40, description="when, UTC, ISO 8601; empty: when it arrives")
    reason: str = Field(default="", max_length=2000, description="needed to reject")
    items: tuple[str, ...] = Field(default=(), max_length=40, description="edit: the agents of the new action space")
    protocol: str = Field(default="", max_length=500, description="edit: the new protocol, as 'Cisplatin | Lipiodol'")
    override_reason: str = Field(default="", max_length=2000, description="needed to approve what rules block")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.decision == "reject" and not self.reason:
            raise ValueError("a rejection needs a reason")
        if (self.decision == "edit") != bool(self.items or self.protocol):
            raise ValueError("an edit needs items or a protocol, and only an edit has them")
        return self


def answer_fault(state: PlannerState, answer: GateAnswer, formulary: Formulary) -> str:
    """Why an answer can't be used at the gate where the state waits, as a sentence; empty where it can.

    Only what needs no tool is judged: the rules on agents that a person added are asked by the gate itself.
    """
    gate = gate_of(state)
    if answer.case_id != state.case_id:
        return f"The answer is for case '{answer.case_id}', but the plan that waits is of case '{state.case_id}'."
    if answer.decision == "edit":
        try:
            edited_actions(answer, formulary) if gate == "actions" else edited_protocol(answer, formulary)
        except InputError as exc:
            return str(exc)
    if answer.decision == "approve" and gate == "plan" and not answer.override_reason:
        assert state.plan is not None
        if blocks := blocks_of(state.plan):
            return f"Rules block this protocol: {' '.join(blocks)} Approving it needs an override reason, typed."
    return ""


def gate_of(state: PlannerState) -> Gate:
    """The gate that a waiting state waits at."""
    return "actions" if state.plan is None else "plan"


def edited_actions(answer: GateAnswer, formulary: Formulary) -> Actions:
    """The action space that an answer names, in its order.

    Raises:
        InputError: no agents, an unknown one, or none of a kind.
    """
    if not answer.items:
        raise InputError("The action space waits: an edit of it lists its agents, not a protocol.")
    items = [formulary.canonical(name) for name in answer.items]
    drugs = tuple(dict.fromkeys(item.name for item in items if item.kind == "drug"))
    embolics = tuple(dict.fromkeys(item.name for item in items if item.kind == "embolic"))
    if not drugs or not embolics:
        raise InputError(f"The action space has no {'drug' if not drugs else 'embolic agent'}: add at least one.")
    return Actions(drugs=drugs, embolics=embolics)


def edited_protocol(answer: GateAnswer, formulary: Formulary) -> Protocol:
    """The protocol that an answer names.

    Raises:
        InputError: no protocol, an unknown agent, a dose without sense, or no drug or no embolic agent.
    """
    if not answer.protocol:
        raise InputError("The plan waits: an edit of it names a protocol, not an action space.")
    protocol = formulary.parse(answer.protocol)
    if not is_complete(protocol):
        side = "drug" if not protocol.drugs else "embolic agent"
        raise InputError(
            f"The protocol {protocol.key} has no {side}: a TACE protocol needs a drug and an embolic agent."
        )
    return protocol


def fired_rules(findings: Sequence[RuleFinding], strength: Literal["block", "warn"] = "block") -> tuple[str, ...]:
    """The rules among the findings that block, or that warn, each as one sentence with its id."""
    fired = [f for f in findings if f.status == "fired" and f.strength == strength]
    return tuple(dict.fromkeys(f"{f.rule_id}: {f.message.rstrip('.')}." for f in fired))


def blocks_of(plan: Plan) -> tuple[str, ...]:
    """The rules that block the chosen protocol, or the patient as a whole; none where nothing is proposed."""
    if plan.chosen is None:
        return ()
    return fired_rules([*(f for f in plan.rules if f.protocol is None), *plan.chosen.findings])


def warnings_of(plan: Plan) -> tuple[str, ...]:
    """The rules that warn of the chosen protocol; none where nothing is proposed."""
    return fired_rules(plan.chosen.findings, "warn") if plan.chosen is not None else ()


class ApprovalNodes(PlanNodes):
    """approve_actions, refuse, approve_plan, revise."""

    def approve_actions(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Wait until a person approves, edits or rejects the action space."""
        recorder = self.begin("approve_actions", "The action space waits for approval", state, runtime)
        answer = _ask(actions_request(state))
        formulary, actions = self.services(state).formulary, state.actions
        assert actions is not None
        if fault := answer_fault(state, answer, formulary):
            return {"gate_problem": fault, "decisions": recorder.close(answer, {}, fault)}
        update: Update = {"gate_problem": "", "approvals": state.approvals}
        after = edited_actions(answer, formulary) if answer.decision == "edit" else actions
        known = dict(state.partial)
        keys = single_item_keys((*after.drugs, *after.embolics), formulary)
        if new := [key for key in keys.values() if key not in known]:
            reason = "which of the added agents are forbidden for this patient"
            known.update(verdicts_of(self.check(new, "partial", reason, state, runtime, recorder)))
            update["partial"] = known
        if blocked := [f"{item} ({known[key].reason})" for item, key in keys.items() if not known[key].allowed]:
            fault = f"Rules forbid for this patient: {'; '.join(blocked)}. Leave them out of the action space."
            return {**update, "gate_problem": fault, "decisions": recorder.close(answer, {}, fault)}
        if answer.decision == "edit":
            assert state.refinement is not None
            update |= {"actions": after, "refinement": refined(state.refinement, after, answer)}
        record = _record("actions", answer, _text(actions), _text(after))
        closed = recorder.close(answer, record.model_dump(), f"{answer.by}: {answer.decision}")
        return {**update, "approvals": (*state.approvals, record), "decisions": closed}

    def refuse(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """End a run whose action space was rejected: a plan that proposes nothing and says why."""
        recorder = self.begin("refuse", "Closing the rejected plan", state, runtime)
        last = state.approvals[-1]
        why = f"The action space was rejected by {last.by}, so nothing was simulated or is proposed: {last.reason}"
        plan = self._plan(state).model_copy(update={"blocked_by": (), "explanation": why})
        return {"plan": plan, "decisions": recorder.close(last, {"rejected": True}, why)}

    def approve_plan(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Wait until a person approves, edits or rejects the plan."""
        recorder = self.begin("approve_plan", "The plan waits for approval", state, runtime)
        assert state.plan is not None
        answer = _ask(plan_request(state, state.plan))
        formulary, plan = self.services(state).formulary, state.plan
        if fault := answer_fault(state, answer, formulary):
            return {"gate_problem": fault, "decisions": recorder.close(answer, {}, fault)}
        before = plan.chosen.assessed.key if plan.chosen else "no protocol"
        edit = edited_protocol(answer, formulary).key if answer.decision == "edit" else None
        record = _record("plan", answer, before, edit or before)
        if answer.decision == "approve" and (blocks := blocks_of(plan)):
            record = record.model_copy(update={"override_reason": answer.override_reason, "overridden": blocks})
        approvals = (*state.approvals, record)
        update: Update = {"gate_problem": "", "approvals": approvals}
        update["plan"] = plan.model_copy(update={"approvals": approvals})
        if edit is not None:
            contest, settings = state.contest, state.settings
            seeds = contest.seeds or settings.seeds(settings.finalist_replicas, start=settings.replicas)
            reason = "whether the rules allow the protocol that a person put in"
            found = self.check([edit], "complete", reason, state, runtime, recorder)
            update["complete"] = {**state.complete, **verdicts_of(found)}
            update["jobs"] = merge_jobs(dict.fromkeys((edit, *contest.finalists), seeds), state.table)
            update["edit"] = PlanEdit(
                protocol=edit,
                instead_of=before if plan.chosen else None,
                by=answer.by,
                reason=answer.reason,
                seeds=seeds,
            )
        closed = recorder.close(answer, record.model_dump(), f"{answer.by}: {answer.decision}")
        return {**update, "decisions": closed}

    def revise(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Make the plan again with the edited protocol as the chosen one, compared on the finalists' seeds."""
        recorder = self.begin("revise", "Making the plan with the edited protocol", state, runtime)
        edit = state.edit
        assert edit is not None
        allowed = state.patient_allowed and state.complete[edit.protocol].allowed
        before = state.contest
        part = [key for key in before.finalists if key != edit.protocol] + ([edit.protocol] if allowed else [])
        contest = before.model_copy(
            update={
                "finalists": tuple(part),
                "seeds": edit.seeds,
                "allowed": tuple(dict.fromkeys((*before.allowed, *([edit.protocol] if allowed else [])))),
            }
        )
        state = state.model_copy(update={"contest": contest})
        ranked = tuple(ranking(final_table(state, part), part)) if part else ()
        contest = contest.model_copy(update={"finalists": ranked})
        plan = self._edited(state.model_copy(update={"contest": contest}), edit)
        assert plan.chosen is not None
        result = {
            "chosen": edit.protocol,
            "allowed": allowed,
            "objective": round(plan.chosen.assessed.objective.mean, 4),
        }
        closed = recorder.close(edit, result, f"{edit.by} put in {edit.protocol}")
        return {"plan": plan, "contest": contest, "edit": None, "decisions": closed}

    def _edited(self, state: PlannerState, edit: PlanEdit) -> Plan:
        """The plan whose ranks are by the objective and whose chosen protocol is the person's."""
        assert state.plan is not None
        plan = self._plan(state)
        order = [edit.protocol, *(key for key in state.contest.finalists if key != edit.protocol)]
        contest = state.contest.model_copy(update={"finalists": tuple(order)})
        placed = state.model_copy(update={"contest": contest})
        assessed = {a.key: a for a in plan.assessed}
        if edit.protocol not in state.contest.finalists:  # blocked by rules: compared, but without a rank
            mine = next(a for a in assessed_protocols(placed, order) if a.key == edit.protocol)
            assessed[edit.protocol] = mine.model_copy(update={"rank": None, "default_rank": None})
        places = finalists(placed, order, assessed, self.services(state).formulary)
        difference = paired(final_table(placed, order), order[0], order[1]) if len(order) > 1 else None
        margin, interval = margin_of(difference)
        share, note = sureness(placed, order)
        return plan.model_copy(
            update={
                "blocked": False,
                "blocked_by": (),
                "chosen": places[0],
                "runners_up": places[1:],
                "ties": tuple(f.assessed.key for f in places if f.tied_with_chosen),
                "margin": margin,
                "margin_interval": interval,
                "confidence": share,
                "confidence_note": note,
                "assessed": tuple(assessed.values()),
                "goal": state.plan.goal,
                "explanation": edit_text(edit, places),
                "approvals": state.approvals,
            }
        )


def actions_request(state: PlannerState) -> GateRequest:
    """What the first gate shows."""
    assert state.actions is not None
    removed = state.refinement.removed if state.refinement else ()
    return GateRequest(
        gate="actions",
        case_id=state.case_id,
        question="May the search use these drugs and embolic agents?",
        drugs=state.actions.drugs,
        embolics=state.actions.embolics,
        removed=tuple(f"{r.item}: {r.reason} ({r.rule_id})" for r in removed),
        problem=state.gate_problem,
    )


def plan_request(state: PlannerState, plan: Plan) -> GateRequest:
    """What the second gate shows."""
    chosen = plan.chosen
    return GateRequest(
        gate="plan",
        case_id=state.case_id,
        question="May this plan be reported as approved?" if chosen else "Do you agree that nothing is proposed?",
        protocol=chosen.assessed.key if chosen else None,
        runners_up=tuple(place.assessed.key for place in plan.runners_up),
        blocks=blocks_of(plan) if chosen else fired_rules(plan.blocked_by),
        warnings=warnings_of(plan),
        problem=state.gate_problem,
    )


def refined(refinement: Refinement, actions: Actions, answer: GateAnswer) -> Refinement:
    """The refinement after a person's edit: what was added and taken out says by whom."""
    why = f"by {answer.by}" + (f": {answer.reason}" if answer.reason else "")
    known = {choice.item: choice for choice in (*refinement.drugs, *refinement.embolics)}
    added = {name: Choice(item=name, reason=f"Added {why}") for name in (*actions.drugs, *actions.embolics)}
    gone = [name for name in known if name not in added]
    return refinement.model_copy(
        update={
            "drugs": tuple(known.get(name, added[name]) for name in actions.drugs),
            "embolics": tuple(known.get(name, added[name]) for name in actions.embolics),
            "removed": (
                *(removal for removal in refinement.removed if removal.item not in added),
                *(Removal(item=name, rule_id=BY_A_PERSON, reason=f"Taken out {why}") for name in gone),
            ),
        }
    )


def edit_text(edit: PlanEdit, places: Sequence[Finalist]) -> str:
    """Why the plan is what it is after an edit: who put it in, and how it compares with what the search chose."""
    reason = f": {edit.reason}" if edit.reason else ""
    lines = [f"{edit.protocol} was put in by {edit.by}{reason}. The search did not choose it."]
    if edit.instead_of is None:
        lines.append("The rules left no protocol to choose from.")
    for place in places[1:]:
        margin = place.margin
        if place.assessed.key == edit.instead_of and margin is not None:
            span = place.margin_interval
            seen = f", 95 % interval {span[0]:+.3f} to {span[1]:+.3f}" if span else ""
            tie = "; the two can't be told apart" if place.tied_with_chosen else ""
            lines.append(
                f"The objective of {edit.instead_of}, which it replaces, is {margin.mean:+.3f} against it (lower is "
                f"better{seen}, n = {margin.n} common seeds{tie})."
            )
    if blocks := fired_rules(places[0].findings):
        lines.append(f"Rules block it: {' '.join(blocks)}")
    return " ".join(lines)


def _ask(request: GateRequest) -> GateAnswer:
    answer: GateAnswer = interrupt(request.model_dump(mode="json"), response_schema=GateAnswer)
    return answer


def _record(gate: Gate, answer: GateAnswer, before: str, after: str) -> Approval:
    at = answer.at or datetime.now(UTC).isoformat(timespec="seconds")
    return Approval(
        gate=gate, decision=answer.decision, by=answer.by, at=at, reason=answer.reason, before=before, after=after
    )


def _text(actions: Actions) -> str:
    return f"{', '.join(actions.drugs)} | {', '.join(actions.embolics)}"
