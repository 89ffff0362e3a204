"""The conversation as messages: steps nest what the planner did, whatever the order in which it is told."""

from __future__ import annotations

import pytest

from agent.events import (
    BeamLine,
    Decided,
    DepthFinished,
    Failed,
    NodeStarted,
    Said,
    StepFinished,
    StepStarted,
    Stopped,
    Token,
    ToolProgress,
    ToolStarted,
)
from agent.trace import Decision
from agent.web.chat_panel import Transcript
from tests.agent.fake_chat import ChatWorld


def heard(*events):
    transcript = Transcript()
    transcript.hear(events)
    return transcript


def decided(node, reason, tool=None):
    decision = Decision(
        decision_id="0", step=0, node=node, kind="tool" if tool else "node", inputs_hash="0", tool=tool, reason=reason,
        seconds=0, time="",
    )  # fmt: skip
    return Decided(decision=decision, step="s")


def test_an_answer_is_written_word_by_word_and_stands_once():
    messages = heard(
        Said(who="person", text="why?"), Token(text="Be"), Token(text="cause"), Said(who="assistant", text="Because.")
    ).messages
    assert [(m["role"], m["content"]) for m in messages] == [("user", "why?"), ("assistant", "Because.")]


def test_a_search_is_nested_in_its_step_depth_by_depth():
    beam = BeamLine(protocol="Cisplatin | -", objective=0.25, se=0.05, n=2)
    transcript = heard(
        StepStarted(step="s", tool="explore_protocols", arguments={"goal": "spare the liver", "strict": None}),
        NodeStarted(step="s", node="load", text="Loading the case"),
        decided("load", "the goal is read"),
        NodeStarted(step="s", node="expand", text="Expanding"),
        NodeStarted(step="s", node="simulate", text="Simulating"),
        ToolStarted(step="s", node="simulate", tool="simulate_tumor", items=12),
        ToolProgress(step="s", node="simulate", tool="simulate_tumor", done=5, total=12),
    )
    assert transcript.progress == ("Simulating: simulating", 5, 12)
    transcript.hear(
        [
            DepthFinished(step="s", phase="drug", depth=1, candidates=6, beams=(beam,), simulations=12, budget=40),
            decided("prune", "1 beam kept"),
            NodeStarted(step="s", node="expand", text="Expanding"),
            NodeStarted(step="s", node="finalise", text="Comparing"),
            decided("finalise", "the comparison is settled"),
            Said(who="assistant", text="plan-1: done."),
            StepFinished(step="s", tool="explore_protocols", ok=True, text="the plan"),
        ]
    )
    step, case, depth, begun, end, said = transcript.messages
    assert step["metadata"]["title"] == "Search protocols: goal spare the liver"
    assert (step["metadata"]["status"], step["content"]) == ("done", "the plan")
    assert [m["metadata"]["parent_id"] for m in (case, depth, begun, end)] == ["s"] * 4
    assert "the goal is read" in case["content"]
    assert depth["metadata"]["title"] == "Drug, depth 1: 6 tried, 1 kept; best Cisplatin | -"
    assert "| Cisplatin with - | +0.250 | 0.050 | 2 |" in depth["content"]
    assert "1 beam kept" in depth["content"]  # the decision comes after the depth has ended
    assert "the comparison is settled" in end["content"]
    assert said["content"] == "plan-1: done."
    assert transcript.simulations == (12, 40)
    assert transcript.progress == ("", 0, 0)


@pytest.mark.parametrize("ending", [Failed(text="The device is gone."), Stopped()])
def test_a_turn_that_ends_leaves_nothing_spinning(ending):
    transcript = heard(
        StepStarted(step="s", tool="what_if"), NodeStarted(step="s", node="expand", text="Expanding"), ending
    )
    assert all(m["metadata"].get("status") != "pending" for m in transcript.messages)
    assert transcript.messages[0]["metadata"]["log"] == "cut off"
    assert transcript.progress == ("", 0, 0)


def test_a_failed_step_says_so_and_keeps_its_sentence():
    (step,) = heard(
        StepStarted(step="s", tool="load_case", arguments={"name": "nobody"}),
        StepFinished(step="s", tool="load_case", ok=False, text="There is no case 'nobody'."),
    ).messages
    assert step["metadata"]["log"] == "failed"
    assert step["content"] == "There is no case 'nobody'."


def test_a_whole_conversation_and_the_same_from_the_store(tmp_path):
    world = ChatWorld(tmp_path)
    world.add_case("anna")
    chat = world.chat()
    live = Transcript()
    for words in ("load anna", "plan", "approve as Dr Chen", "why this plan"):
        live.hear([Said(who="person", text=words), *chat.say(words)])
    nested = [m for m in live.messages if "parent_id" in m["metadata"]]
    steps = {m["metadata"]["id"] for m in live.messages if "id" in m["metadata"]}
    assert {m["metadata"]["parent_id"] for m in nested} <= steps
    assert sum("kept; best" in m["metadata"]["title"] for m in nested) >= 3
    assert all(m["metadata"].get("status") != "pending" for m in live.messages)

    stored = Transcript()
    stored.hear(world.chat(chat.thread_id).history())

    def said(transcript):
        return [
            (m["role"], m["content"]) for m in transcript.messages if not m["metadata"] and "Waits" not in m["content"]
        ]

    assert said(stored) == said(live)
