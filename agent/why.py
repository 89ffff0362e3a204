"""Why: what a plan's search tree, rules and figures say about an agent or a protocol. Pure.

Answers "why was X dropped?" and "why not X?" from the plan alone; nothing is computed anew.
"""

from __future__ import annotations

from agent.approval import BY_A_PERSON
from agent.digest import figure
from agent.plan import AssessedProtocol, Plan, TreeNode
from agent.search import parse_key
from models.errors import UnknownItemError
from models.formulary import Formulary
from models.protocol import Protocol


def why(plan: Plan, about: str) -> tuple[str, str]:
    """What became of an agent or a protocol in a plan.

    Args:
        plan: The plan.
        about: An agent or a protocol, in any known spelling.

    Returns:
        Canonical name or key, and the answer in words.

    Raises:
        UnknownItemError: it names no known agent.
        InputError: it is no protocol.
    """
    known = Formulary.load("all_known")
    try:
        item = known.canonical(about).name
    except UnknownItemError:
        protocol = known.parse(about)
        if not protocol.items:
            raise
        if len(protocol.items) > 1:
            return protocol.key, protocol_reason(plan, protocol)
        item = protocol.items[0]
    return item, item_reason(plan, item)


def item_reason(plan: Plan, item: str) -> str:
    """What became of one agent."""
    chosen = plan.chosen.assessed if plan.chosen else None
    lines = []
    note = next((n for n in plan.proposals if n.item == item), None)
    if note is None:
        lines.append(f"{item} was not tried: it was not among the agents proposed ({_proposed(plan)}).")
        return " ".join([*lines, *_rules_about(plan, item)])
    if note.rule_id == BY_A_PERSON:
        return f"{item} was not tried: {note.reason[0].lower()}{note.reason[1:].rstrip('.')}."
    if not note.kept:
        rule = f" ({note.rule_id})" if note.rule_id else ""
        lines.append(f"{item} was taken out before the search{rule}: {note.reason}")
        return " ".join(lines)
    lines.append(f"{item} was tried. It was proposed because: {note.reason.rstrip('.')}.")
    if chosen is not None and item in chosen.protocol.items:
        lines.append(f"It is in the chosen protocol, {chosen.key}.")
        without = [a for a in plan.assessed if a.rank is not None and item not in a.protocol.items]
        if without:
            best = min(without, key=lambda a: a.rank or 0)
            lines.append(f"The best finished protocol without it is {_placed(best)}.")
        return " ".join(lines)
    lines += _fate([node for node in plan.tree if node.added == item], item)
    with_it = [a for a in plan.assessed if a.rank is not None and item in a.protocol.items]
    if with_it:
        best = min(with_it, key=lambda a: a.rank or 0)
        lines.append(f"The best finished protocol with it is {_placed(best)}.")
        if chosen is not None:
            lines.append(f"The chosen one, {chosen.key}, has {figure(chosen.objective)}; lower is better.")
    elif chosen is not None:
        lines.append(f"No finished protocol with it was compared. The chosen one is {chosen.key}.")
    return " ".join([*lines, *_rules_about(plan, item)])


def protocol_reason(plan: Plan, protocol: Protocol) -> str:
    """What became of one protocol."""
    key = protocol.key
    assessed = next((a for a in plan.assessed if a.key == key), None)
    nodes = [node for node in plan.tree if node.protocol == key]
    blocks = [f for f in plan.rules if f.protocol == key and f.status == "fired" and f.strength == "block"]
    if plan.chosen is not None and key == plan.chosen.assessed.key:
        return f"{key} is the chosen protocol. {plan.explanation}"
    lines = []
    if assessed is not None:
        lines.append(f"{key} was simulated: {_placed(assessed)}.")
        if (place := next((f for f in plan.runners_up if f.assessed.key == key), None)) and place.margin is not None:
            tie = "; the two can't be told apart" if place.tied_with_chosen else ""
            lines.append(f"In the last comparison it is behind the chosen one by {figure(place.margin, 3)}{tie}.")
    if blocks:
        lines.append("Rules block it: " + " ".join(f"{f.rule_id}: {f.message}" for f in blocks))
    if nodes:
        lines += _fate(nodes, key)
    if not lines:
        never = [item for item in protocol.items if item not in {n.item for n in plan.proposals if n.kept}]
        if never:
            return f"{key} was not tried, because {', '.join(never)} was not in the action space. " + " ".join(
                item_reason(plan, item) for item in never
            )
        lines.append(f"{key} was not tried: {_never_reached(plan, protocol)}")
    return " ".join(lines)


def _fate(nodes: list[TreeNode], what: str) -> list[str]:
    """How the search treated its candidates: one sentence for each status, with the best candidate's reason."""
    words = {"kept": "kept", "pruned": "pruned", "blocked": "blocked by rules", "unassessed": "not assessed"}
    lines = []
    for status, name in words.items():
        of_it = [node for node in nodes if node.status == status]
        if not of_it:
            continue
        best = min(of_it, key=lambda n: (n.objective is None, n.objective or 0.0, n.depth))
        seen = "" if best.objective is None else f" with objective {best.objective:+.2f}"
        times = "" if len(of_it) == 1 else f" (and {len(of_it) - 1} more)"
        here = "it" if best.protocol == what else best.protocol
        reason = best.reason.removeprefix(f"{status}:").strip().rstrip(".")
        lines.append(f"In the search {here} was {name} at depth {best.depth}{seen}{times}: {reason}.")
    return lines


def _never_reached(plan: Plan, protocol: Protocol) -> str:
    """Which smaller protocol the search left before it could grow to this one."""
    for node in sorted(plan.tree, key=lambda n: -n.depth):
        if node.status not in ("pruned", "blocked", "unassessed"):
            continue
        part = parse_key(node.protocol)
        if set(part.items) < set(protocol.items):
            return f"its part {node.protocol} was {node.status} at depth {node.depth}: {node.reason.rstrip('.')}."
    return "the search ended before it came to it."


def _placed(assessed: AssessedProtocol) -> str:
    rank = "without a rank, because rules block it" if assessed.rank is None else f"rank {assessed.rank}"
    return f"{assessed.key} ({rank}, objective {figure(assessed.objective)}, n = {assessed.objective.n})"


def _proposed(plan: Plan) -> str:
    return ", ".join(note.item for note in plan.proposals if note.kept) or "none"


def _rules_about(plan: Plan, item: str) -> list[str]:
    """Blocking rules that fired on protocols with the agent, once each."""
    fired = {
        f.rule_id: f"{f.rule_id}: {f.message}"
        for f in plan.rules
        if f.status == "fired" and f.strength == "block" and f.protocol and item in parse_key(f.protocol).items
    }
    return [f"Rules that blocked protocols with it: {' '.join(fired.values())}"] if fired else []
