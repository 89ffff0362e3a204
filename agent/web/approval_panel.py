"""Approval panel: what waits for a person, a card for each, bound to its interrupt and case; answers from forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError

from agent.approval import GATE_NAMES, GateAnswer
from agent.events import Waiting
from agent.plan import Plan
from agent.web.plan_panel import part
from models.errors import ApprovalError
from models.formulary import Formulary

Choice = Literal["approve", "edit", "reject"]


def card_html(waiting: Waiting) -> str:
    """Head of a card: which plan of which case waits, for what, and what stands against it."""
    gate = GATE_NAMES[waiting.value["gate"]]
    return part("waiting", value=waiting.value, plan_id=waiting.plan_id, interrupt=waiting.interrupt_id, gate=gate)


def agents(waiting: Waiting, formulary: Formulary) -> tuple[list[str], list[str]]:
    """All agents that an action space may have, and those that it has now."""
    now = [*waiting.value["drugs"], *waiting.value["embolics"]]
    known = [item.name for item in (*formulary.drugs, *formulary.embolics)]
    return [*now, *(name for name in known if name not in now)], now


def protocols(plan: Plan | None) -> list[str]:
    """The finished protocols that were assessed, best first: what a person may put in the chosen one's place."""
    if plan is None:
        return []
    found = [a for a in plan.assessed if a.complete and (plan.chosen is None or a.key != plan.chosen.assessed.key)]
    return [a.key for a in sorted(found, key=lambda a: (a.rank is None, a.rank or 0, a.objective.mean))]


def made_answer(
    waiting: Waiting,
    decision: Choice,
    by: str,
    reason: str = "",
    items: Sequence[str] = (),
    protocol: str = "",
    override: str = "",
) -> GateAnswer:
    """The answer that a card's form gives to its own question.

    Args:
        waiting: What the card is for.
        decision: Approve, edit or reject.
        by: Who decides.
        reason: Why; needed to reject.
        items: The agents of an edited action space.
        protocol: The protocol of an edited plan.
        override: Why it is approved although rules block it.

    Raises:
        ApprovalError: a part of the form is missing; the sentence names it.
    """
    if not by.strip():
        raise ApprovalError("Who decides? Type your name: it stands under the decision.")
    if decision == "reject" and not reason.strip():
        raise ApprovalError("A rejection needs a reason: type it, then reject.")
    fields: dict[str, Any] = {"reason": reason}
    if decision == "edit":
        value = waiting.value
        if value["gate"] == "actions":
            if set(items) == {*value["drugs"], *value["embolics"]}:
                raise ApprovalError("Nothing was changed: tick or untick agents first, or approve.")
            fields["items"] = tuple(items)
        elif not protocol.strip():
            raise ApprovalError("Choose or type the protocol that is to stand in the plan, then save the edit.")
        else:
            fields["protocol"] = protocol
    if decision == "approve":
        if waiting.value["blocks"] and waiting.value["protocol"] and not override.strip():
            raise ApprovalError("Rules block this protocol: approving it needs a typed reason for overriding them.")
        fields["override_reason"] = override
    try:
        return GateAnswer.model_validate(
            {
                "interrupt_id": waiting.interrupt_id,
                "case_id": waiting.value["case_id"],
                "decision": decision,
                "by": by,
                **fields,
            }
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        raise ApprovalError(f"The answer can't be used ({where + ': ' if where else ''}{why}).") from exc
