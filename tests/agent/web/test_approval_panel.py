"""Answers from forms: each carries its own question and case, and what is missing is a sentence."""

from __future__ import annotations

import pytest

from agent.events import Said
from agent.run import open_run
from agent.web.approval_panel import Answer, agents, card_html, protocols
from agent.web.approval_panel import made_answer as from_form
from models.errors import ApprovalError
from tests.agent.fake_chat import ChatWorld


@pytest.fixture
def world(tmp_path):
    made = ChatWorld(tmp_path)
    made.add_case("anna")
    made.add_case("bert")
    return made


def made_answer(waiting, decision, by, reason="", **fields):
    form = Answer(interrupt=waiting.interrupt_id, decision=decision, reason=reason, **fields)
    return from_form(waiting, form, by)


def last(events):
    return [event.text for event in events if isinstance(event, Said)][-1]


def test_two_plans_that_wait_get_their_own_answers(world):
    chat = world.chat()
    for words in ("load anna", "plan", "load bert", "plan"):
        list(chat.say(words))
    one, two = chat.waiting()
    assert (one.value["case_id"], two.value["case_id"]) == ("anna", "bert")
    assert one.interrupt_id[:8] in card_html(one, chat)
    assert "plan-2" in card_html(two, chat)
    assert "plan-1" not in card_html(two, chat)
    list(chat.answer(made_answer(two, "reject", "Dr Chen", "not today")))
    (left,) = chat.waiting()
    assert left.interrupt_id == one.interrupt_id
    standings = chat.standings()
    assert standings["plan-2"].plan.rejected.reason == "not today"
    with pytest.raises(ApprovalError, match="does not wait"):
        chat.answer(made_answer(two, "approve", "Dr Chen"))


def test_edits_of_the_action_space_and_of_the_plan(world):
    chat = world.chat(case="anna")
    list(chat.say("plan"))
    (waiting,) = chat.waiting()
    every, now = agents(waiting, open_run(chat.desk.store.plan_folder(chat.desk.row())).formulary)
    assert now == [*waiting.value["drugs"], *waiting.value["embolics"]]
    assert set(now) <= set(every)
    with pytest.raises(ApprovalError, match="Nothing was changed"):
        made_answer(waiting, "edit", "Dr Chen", items=now)
    fewer = [name for name in now if name != "Mitomycin"]
    list(chat.answer(made_answer(waiting, "edit", "Dr Chen", "out of stock", items=fewer)))
    (waiting,) = chat.waiting()
    assert waiting.value["gate"] == "plan"
    plan = chat.desk.plan()[1]
    others = protocols(plan)
    assert plan.chosen.assessed.key not in others
    assert all("Mitomycin" not in key for key in others)
    with pytest.raises(ApprovalError, match="Choose or type the protocol"):
        made_answer(waiting, "edit", "Dr Chen")
    list(chat.answer(made_answer(waiting, "edit", "Dr Chen", protocol=others[0])))
    assert chat.desk.plan()[1].chosen.assessed.key == others[0]
    (waiting,) = chat.waiting()
    assert "approved" in last(chat.answer(made_answer(waiting, "approve", "Dr Chen")))
    assert chat.desk.plan()[1].approved.by == "Dr Chen"
    assert protocols(None) == []


def test_what_is_missing_is_said(world):
    chat = world.chat(case="anna")
    list(chat.say("plan"))
    (waiting,) = chat.waiting()
    for given, sentence in (
        (("approve", "  "), "Who decides"),
        (("reject", "Dr Chen"), "needs a reason"),
        (("approve", "X"), "by: String should have at least 2"),
    ):
        with pytest.raises(ApprovalError, match=sentence):
            made_answer(waiting, *given)
    blocked = waiting.model_copy(
        update={"value": {**waiting.value, "gate": "plan", "blocks": ["D09: no."], "warnings": ["D08: much."],
                          "protocol": "Cisplatin | Lipiodol"}}
    )  # fmt: skip
    with pytest.raises(ApprovalError, match="overriding"):
        made_answer(blocked, "approve", "Dr Chen")
    assert made_answer(blocked, "approve", "Dr Chen", override="asked for").override_reason == "asked for"
    assert "Blocked by D09: no." in card_html(blocked, chat)
    assert "Warning D08: much." in card_html(blocked, chat)
