"""The planner graph.

load -> observe -> propose -> refine -> [approve_actions] -> expand -> simulate -> segment -> score -> prune
                                                               ^          ^                     |        |
                                                               |          +---- replicas -------+        |
                                                               +---------- next drug, then embolic ------+
        finalise (with simulate, segment, score until the comparison is settled) -> explain -> [approve_plan] -> report

The gates in brackets are settings. A rejected action space goes through `refuse` to the report; an edited protocol goes
through simulate, segment, score and `revise` back to approve_plan.
"""

from __future__ import annotations

from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer, RetryPolicy

from agent.approval import ApprovalNodes
from agent.case_nodes import CaseNodes
from agent.nodes import ServicesOf
from agent.plan_nodes import PlanNodes
from agent.search_nodes import SearchNodes
from agent.state import PlannerInput, PlannerState
from models.errors import TransientToolError

AfterRefine = Literal["approve_actions", "expand", "finalise"]
AfterApproveActions = Literal["approve_actions", "refuse", "expand"]
AfterExpand = Literal["expand", "simulate", "prune", "finalise"]
AfterScore = Literal["simulate", "prune", "finalise", "revise"]
AfterPrune = Literal["expand", "finalise"]
AfterFinalise = Literal["simulate", "finalise", "explain"]
AfterExplain = Literal["approve_plan", "report"]
AfterApprovePlan = Literal["approve_plan", "simulate", "revise", "report"]


def after_refine(state: PlannerState) -> AfterRefine:
    """A patient whom the rules exclude, or an action space that they empty, needs no search."""
    if not state.patient_allowed or state.actions is None or not (state.actions.drugs and state.actions.embolics):
        return "finalise"
    return "approve_actions" if state.settings.approve_actions else "expand"


def after_approve_actions(state: PlannerState) -> AfterApproveActions:
    """Wait again where the answer could not be used, else search, or end where it was rejected."""
    if state.gate_problem:
        return "approve_actions"
    return "refuse" if state.approvals[-1].decision == "reject" else "expand"


def after_expand(state: PlannerState) -> AfterExpand:
    """To the simulator, or on where nothing new has to be simulated."""
    if state.jobs:
        return "simulate"
    if state.search.candidates:
        return "prune"
    return "finalise" if state.search.phase == "final" else "expand"


def after_score(state: PlannerState) -> AfterScore:
    """More replicas where the contest is close, else prune; in the last comparison and after an edit back to it."""
    if state.jobs:
        return "simulate"
    if state.edit is not None:
        return "revise"
    return "finalise" if state.search.phase == "final" else "prune"


def after_prune(state: PlannerState) -> AfterPrune:
    """The next agent, or the last comparison."""
    return "finalise" if state.search.phase == "final" else "expand"


def after_finalise(state: PlannerState) -> AfterFinalise:
    """Replicas for the finalists until the comparison is settled; then the plan is there."""
    if state.jobs:
        return "simulate"
    return "explain" if state.plan is not None else "finalise"


def after_explain(state: PlannerState) -> AfterExplain:
    """To the second gate, where there is one."""
    return "approve_plan" if state.settings.approve_plan else "report"


def after_approve_plan(state: PlannerState) -> AfterApprovePlan:
    """Wait again where the answer could not be used; an edit is simulated where that is still to do."""
    if state.gate_problem:
        return "approve_plan"
    if state.edit is not None:
        return "simulate" if state.jobs else "revise"
    return "report"


def build_planner(
    services: ServicesOf, checkpointer: Checkpointer = None, *, name: str = "planner"
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The compiled planner.

    Args:
        services: State -> tools, policy and the rest that nodes work with; never checkpointed.
        checkpointer: Where states are kept; None inherits that of a graph which runs the planner inside.
        name: Name of the graph.

    Returns:
        A graph that takes `PlannerInput` and leaves `PlannerState`, with the plan in `plan`.
    """
    case, search, plan, gates = CaseNodes(services), SearchNodes(services), PlanNodes(services), ApprovalNodes(services)
    once_more = RetryPolicy(max_attempts=2, retry_on=TransientToolError)
    graph = StateGraph(PlannerState, input_schema=PlannerInput)
    graph.add_node("load", case.load)
    graph.add_node("observe", case.observe, retry_policy=once_more)
    graph.add_node("propose", case.propose)
    graph.add_node("refine", case.refine, retry_policy=once_more)
    graph.add_node("approve_actions", gates.approve_actions, retry_policy=once_more)
    graph.add_node("refuse", gates.refuse)
    graph.add_node("expand", search.expand, retry_policy=once_more)
    graph.add_node("simulate", search.simulate, retry_policy=once_more)
    graph.add_node("segment", search.segment, retry_policy=once_more)
    graph.add_node("score", search.score, retry_policy=once_more)
    graph.add_node("prune", search.prune)
    graph.add_node("finalise", plan.finalise, retry_policy=once_more)
    graph.add_node("explain", plan.explain)
    graph.add_node("approve_plan", gates.approve_plan, retry_policy=once_more)
    graph.add_node("revise", gates.revise)
    graph.add_node("report", plan.report)
    graph.add_edge(START, "load")
    graph.add_edge("load", "observe")
    graph.add_edge("observe", "propose")
    graph.add_edge("propose", "refine")
    graph.add_conditional_edges("refine", after_refine)
    graph.add_conditional_edges("approve_actions", after_approve_actions)
    graph.add_edge("refuse", "report")
    graph.add_conditional_edges("expand", after_expand)
    graph.add_edge("simulate", "segment")
    graph.add_edge("segment", "score")
    graph.add_conditional_edges("score", after_score)
    graph.add_conditional_edges("prune", after_prune)
    graph.add_conditional_edges("finalise", after_finalise)
    graph.add_conditional_edges("explain", after_explain)
    graph.add_conditional_edges("approve_plan", after_approve_plan)
    graph.add_edge("revise", "approve_plan")
    graph.add_edge("report", END)
    return graph.compile(checkpointer=checkpointer, name=name)
