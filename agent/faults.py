"""Faults: what is wrong with a policy's answer for the graph, as sentences; empty where the graph can follow it.

The same checks guard every policy, and a language model is asked again with their sentences. Truth of texts is checked
in `agent.fact_check`, nominations in `agent.policy.nomination_errors`.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.policy import Proposal, Refinement
from models.formulary import Formulary


def proposal_faults(proposal: Proposal, formulary: Formulary, d: int, e: int) -> list[str]:
    """What is wrong with a proposal: unknown agents, an agent of the wrong kind, more than asked for."""
    wrong: list[str] = []
    for kind, choices, most in (("drug", proposal.drugs, d), ("embolic", proposal.embolics, e)):
        if len(choices) > most:
            wrong.append(f"{len(choices)} {kind}s were proposed, at most {most} were asked for.")
        known = {item.name for item in formulary.items if item.kind == kind}
        reserves = proposal.reserve_drugs if kind == "drug" else proposal.reserve_embolics
        if strangers := [c.item for c in (*choices, *reserves) if c.item not in known]:
            wrong.append(f"{', '.join(strangers)} is no {kind} of the action set {formulary.name}.")
    return wrong


def refinement_faults(refinement: Refinement, proposal: Proposal, blocked: Sequence[str], d: int, e: int) -> list[str]:
    """What is wrong with a refinement: an agent that was not proposed or is blocked, or more than asked for."""
    wrong: list[str] = []
    for kind, choices, most in (("drug", refinement.drugs, d), ("embolic", refinement.embolics, e)):
        if len(choices) > most:
            wrong.append(f"{len(choices)} {kind}s were kept, at most {most} were asked for.")
        mine = (
            (*proposal.drugs, *proposal.reserve_drugs)
            if kind == "drug"
            else (*proposal.embolics, *proposal.reserve_embolics)
        )
        proposed = {choice.item for choice in mine}
        if strangers := [c.item for c in choices if c.item not in proposed]:
            wrong.append(f"{', '.join(strangers)} was not proposed as a {kind}.")
        if kept := [c.item for c in choices if c.item in blocked]:
            wrong.append(f"{', '.join(kept)} is blocked by a rule and was kept.")
        names = [c.item for c in choices]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            wrong.append(f"{', '.join(twice)} was kept twice.")
    return wrong


def removal_faults(
    refinement: Refinement, proposal: Proposal, blocked: Sequence[str], rules_of: dict[str, set[str]]
) -> list[str]:
    """What is wrong with the removals of a language model's refinement.

    Args:
        refinement: The answer.
        proposal: What was proposed.
        blocked: Agents that a rule blocks by themselves.
        rules_of: Agent -> ids of the rules that say something about it.

    Returns:
        One sentence per fault: an agent that vanished without a rule, one that is kept and removed, a rule that is
        unknown or says nothing about the agent, or a kind of which nothing is left although an agent is allowed.
    """
    wrong: list[str] = []
    kept = {choice.item for choice in (*refinement.drugs, *refinement.embolics)}
    removed = {removal.item for removal in refinement.removed}
    if both := sorted(kept & removed):
        wrong.append(f"{', '.join(both)} is kept and removed; decide.")
    first = [choice.item for choice in (*proposal.drugs, *proposal.embolics)]
    if gone := [item for item in first if item not in kept | removed]:
        wrong.append(f"{', '.join(gone)} was proposed and is neither kept nor removed; give the rule that removes it.")
    for removal in (*refinement.removed, *refinement.cautions):
        if removal.item not in rules_of:
            wrong.append(f"{removal.item} was not proposed, so no rule can be applied to it.")
        elif removal.rule_id not in rules_of[removal.item]:
            known = ", ".join(sorted(rules_of[removal.item])) or "none"
            wrong.append(
                f"The rule '{removal.rule_id}' says nothing about {removal.item}; rules about it are: {known}."
            )
    if strangers := [caution.item for caution in refinement.cautions if caution.item not in kept]:
        wrong.append(f"{', '.join(strangers)} has a caution and is not kept.")
    for kind, choices, offered in (
        ("drug", refinement.drugs, (*proposal.drugs, *proposal.reserve_drugs)),
        ("embolic agent", refinement.embolics, (*proposal.embolics, *proposal.reserve_embolics)),
    ):
        allowed = [choice.item for choice in offered if choice.item not in blocked]
        if not choices and allowed:
            wrong.append(f"No {kind} is kept although {', '.join(allowed)} is allowed; keep at least one.")
    return wrong
