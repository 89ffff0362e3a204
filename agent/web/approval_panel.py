"""Approval panel: what waits for a person, a card for each, bound to its interrupt and case; answers from forms.

The cards are one component, whose script tells an answer together with its question: nothing that a person may press is
made anew on the server while it is on the page.
"""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.approval import GATE_NAMES, GateAnswer
from agent.chat import Chat
from agent.events import Waiting
from agent.plan import Plan
from agent.web.plan_panel import part
from agent.web.viewer import component_script
from models.errors import ApprovalError
from models.formulary import Formulary

LONGEST = 2000
"""Characters of a text that a person types in a card."""


class Answer(BaseModel):
    """What a card's form says.

    Attributes:
        interrupt: The question.
        decision: Approve, edit or reject.
        reason: Why; needed to reject.
        items: The agents of an edited action space.
        protocol: The protocol of an edited plan.
        override: Why it is approved although rules block it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interrupt: str
    decision: Literal["approve", "edit", "reject"]
    reason: str = Field(default="", max_length=LONGEST)
    items: tuple[str, ...] = ()
    protocol: str = Field(default="", max_length=LONGEST)
    override: str = Field(default="", max_length=LONGEST)


def approval_panel(elem_id: str = "approvals") -> gr.HTML:
    """The component. `submit` fires with the fields of an `Answer`, `select` with `protocol`, its key."""
    return gr.HTML(
        value=panel_value(),
        html_template='<div class="mewm-approvals-place"></div>',
        js_on_load=component_script("approvals.js"),
        elem_id=elem_id,
        apply_default_css=False,
        padding=False,
    )


def panel_value(chat: Chat | None = None, interrupt_id: str = "", problem: str = "") -> dict[str, Any]:
    """Value of the component.

    Args:
        chat: Its questions are shown; None shows none, as while a turn is at work.
        interrupt_id: A question that was answered.
        problem: Why that answer can't be used: it stands in the question's card.
    """
    cards = [] if chat is None else [{"interrupt": w.interrupt_id, "html": card_html(w, chat)} for w in chat.waiting()]
    return {"cards": cards, "problem": {"interrupt": interrupt_id, "html": problem}}


def card_html(waiting: Waiting, chat: Chat) -> str:
    """A card: which plan of which case waits, for what, what stands against it, and the form to answer."""
    value, row = waiting.value, chat.desk.row(waiting.plan_id)
    space = value["gate"] == "actions"
    every, now = agents(waiting, chat.desk.run_of(row).formulary) if space else ([], [])
    return part(
        "waiting",
        value=value,
        plan_id=waiting.plan_id,
        interrupt=waiting.interrupt_id,
        gate=GATE_NAMES[value["gate"]],
        agents=every,
        now=now,
        protocols=[] if space else protocols(chat.desk.look(row).plan),
        overridable=bool(value["blocks"] and value["protocol"]),
    )


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


def made_answer(waiting: Waiting, answer: Answer, by: str) -> GateAnswer:
    """The answer that a card's form gives to its own question.

    Args:
        waiting: What the card is for.
        answer: The form.
        by: Who decides.

    Raises:
        ApprovalError: a part of the form is missing; the sentence names it.
    """
    decision, reason = answer.decision, answer.reason
    if not by.strip():
        raise ApprovalError("Who decides? Type your name: it stands under the decision.")
    if decision == "reject" and not reason.strip():
        raise ApprovalError("A rejection needs a reason: type it, then reject.")
    fields: dict[str, Any] = {"reason": reason}
    if decision == "edit":
        value = waiting.value
        if value["gate"] == "actions":
            if set(answer.items) == {*value["drugs"], *value["embolics"]}:
                raise ApprovalError("Nothing was changed: tick or untick agents first, or approve.")
            fields["items"] = answer.items
        elif not answer.protocol.strip():
            raise ApprovalError("Choose or type the protocol that is to stand in the plan, then save the edit.")
        else:
            fields["protocol"] = answer.protocol
    if decision == "approve":
        if waiting.value["blocks"] and waiting.value["protocol"] and not answer.override.strip():
            raise ApprovalError("Rules block this protocol: approving it needs a typed reason for overriding them.")
        fields["override_reason"] = answer.override
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
