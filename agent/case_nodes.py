"""Nodes from the case to the action space: load, observe, propose, refine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langgraph.runtime import Runtime

from agent.ask import ask, bare
from agent.faults import proposal_faults, refinement_faults
from agent.goal import interpret_goal
from agent.nodes import Nodes, Update, findings_of, verdicts_of
from agent.policy import CaseSummary, single_item_keys
from agent.search import Actions
from agent.settings import make_settings
from agent.state import PlannerState
from models.errors import PlanningError

if TYPE_CHECKING:  # a type only: the module loads the networks
    from tools.describe_case import CaseDescription


def summarise(description: CaseDescription) -> CaseSummary:
    """What a policy may see of a described case."""
    fields = set(CaseSummary.model_fields)
    return CaseSummary.model_validate({k: v for k, v in description.model_dump().items() if k in fields})


class CaseNodes(Nodes):
    """load, observe, propose, refine."""

    def load(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Check the case, the settings and the models, and read the goal."""
        settings = make_settings(**state.options)
        state = state.model_copy(update={"settings": settings})
        recorder = self.begin("load", "Loading the case", state, runtime)
        services = self.services(state)
        case = services.case(state.case_id)
        conditions = services.conditions()
        goal = interpret_goal(state.goal)
        inputs = {
            "case": case.content_hash, "goal": state.goal, "options": state.options, "conditions": conditions
        }  # fmt: skip
        result = {"case": case, "goal": goal, "settings": settings, "conditions": conditions}
        return {
            "settings": settings,
            "case": case,
            "conditions": conditions,
            "reading": goal,
            "decisions": recorder.close(inputs, result, f"Goal: {goal.note}"),
        }

    def observe(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Measure the case and let the policy describe it."""
        recorder = self.begin("observe", "Looking at the case", state, runtime)
        description = self.use(
            "describe_case",
            "what the image, its labels and the record show",
            state,
            runtime,
            recorder,
            lambda r: r.model_dump(mode="json", exclude={"record"}),
            1,
            case_id=state.case_id,
        )
        summary = summarise(description)
        answer, degraded = ask(
            self.services(state),
            "observe",
            summary,
            lambda policy: policy.observe(summary),
            lambda _: [],
            recorder,
            state.decisions,
        )
        return {
            "summary": summary,
            "scores": description.scores,
            "observation": answer,
            "degraded": (*state.degraded, *([degraded] if degraded else [])),
            "decisions": recorder.close(summary, {"summary": answer.summary}, answer.summary),
        }

    def propose(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Let the policy name the drugs and embolics worth trying."""
        recorder = self.begin("propose", "Proposing drugs and embolic agents", state, runtime)
        services, settings = self.services(state), state.settings
        assert state.summary is not None
        assert state.observation is not None
        assert state.reading is not None
        summary, observation, goal = state.summary, state.observation, state.reading
        formulary = services.formulary
        d, e = settings.proposed(formulary)
        answer, degraded = ask(
            services,
            "propose",
            {"observation": bare(observation), "d": d, "e": e, "formulary": formulary.content_hash, "goal": goal},
            lambda policy: policy.propose(summary, observation, formulary, d, e, goal),
            lambda proposal: proposal_faults(proposal, formulary, d, e),
            recorder,
            state.decisions,
        )
        drugs, embolics = [c.item for c in answer.drugs], [c.item for c in answer.embolics]
        if not drugs or not embolics:
            side = "drug" if not drugs else "embolic agent"
            raise PlanningError(
                f"The action set {formulary.name} gives no {side} to try: choose another with --actions."
            )
        return {
            "proposal": answer,
            "degraded": (*state.degraded, *([degraded] if degraded else [])),
            "decisions": recorder.close(
                {"d": d, "e": e, "actions": formulary.name},
                {"drugs": drugs, "embolics": embolics},
                f"{len(drugs)} drugs and {len(embolics)} embolic agents are worth trying",
            ),
        }

    def refine(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Take out what the rules forbid for this patient."""
        recorder = self.begin("refine", "Checking the action space against the rules", state, runtime)
        services, settings = self.services(state), state.settings
        assert state.proposal is not None
        assert state.summary is not None
        proposal, summary = state.proposal, state.summary
        d, e = settings.proposed(services.formulary)
        keys = single_item_keys(proposal.items, services.formulary)
        reason = "which of the proposed agents are forbidden for this patient"
        result = self.check(list(keys.values()), "partial", reason, state, runtime, recorder)
        by_key = {verdict.protocol: verdict for verdict in result.verdicts}
        blocked = [item for item, key in keys.items() if not by_key[key].allowed]
        update: Update = {
            "patient": findings_of(result.patient, None),
            "patient_allowed": result.patient_allowed,
        }
        if not result.patient_allowed:
            fired = [f for f in result.patient if f.status == "fired" and f.strength == "block"]
            why = "; ".join(f.message for f in fired)
            return {**update, "decisions": recorder.close(keys, {"blocked": True}, f"Every protocol is blocked: {why}")}
        answer, degraded = ask(
            services,
            "refine",
            {"proposal": bare(proposal), "verdicts": result.verdicts},
            lambda policy: policy.refine(summary, proposal, result.verdicts, d, e),
            lambda refinement: refinement_faults(refinement, proposal, blocked, d, e),
            recorder,
            state.decisions,
        )
        actions = Actions(drugs=tuple(c.item for c in answer.drugs), embolics=tuple(c.item for c in answer.embolics))
        removed = "; ".join(f"{r.item}: {r.reason}" for r in answer.removed) or "nothing had to be removed"
        return {
            **update,
            "refinement": answer,
            "actions": actions,
            "partial": {**state.partial, **verdicts_of(result)},
            "degraded": (*state.degraded, *([degraded] if degraded else [])),
            "decisions": recorder.close(keys, {"actions": actions, "removed": answer.removed}, removed),
        }
