"""Conversations with a language model: a scripted one behind real HTTP, streamed; its faults; what it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from agent.chat_middleware import MODEL_CALLS, TOO_MANY
from agent.events import Degraded, Failed, Planned, Proposed, Said, StepFinished, StepStarted, Stopped, Token, Waiting
from agent.settings import PlannerSettings
from tests.agent.fake_chat import TINY, ChatWorld
from tests.agent.loopback import LoopbackServer, call, calls, error, hang, say, truncated
from tools.registry import build_tools
from tools.workspace import Workspace

X, Y = "Cisplatin | Lipiodol", "Doxorubicin | Lipiodol"
NO_GATES = TINY.model_copy(update={"approve_actions": False, "approve_plan": False})


@pytest.fixture
def world(tmp_path):
    made = ChatWorld(tmp_path)
    made.add_case("jane-roe", case_id="MRN-4711")
    return made


def backends(world, **servers) -> PlannerSettings:
    """Settings with a backend file that holds the servers, each with the next one as its fallback."""
    names = list(servers)
    entries = {name: servers[name].entry(fallback=names[i + 1 : i + 2]) for i, name in enumerate(names)}
    path = world.folder / "backends.yaml"
    path.write_text(yaml.safe_dump({"backends": entries}))
    return TINY.model_copy(update={"backends": str(path)})


def talking(world, server, **others):
    return world.chat(case="jane-roe", settings=backends(world, main=server, **others), llm="main", by="Dr Chen")


def turns(script):
    """A script by what the person said last: a list of replies, taken by how many tools have answered since."""

    def answer(request):
        replies = script[request.last_user]
        place = len(request.tool_results)
        made = replies[min(place, len(replies) - 1)]
        return made(request) if callable(made) else made

    return answer


def told(request):
    """The words of the last tool result, as a model would repeat them."""
    return json.loads(request.tool_results[-1])["text"]


def events_of(chat, text):
    return list(chat.say(text))


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def answer_of(events):
    return [e.text for e in events if isinstance(e, Said)][-1]


def test_a_whole_conversation_over_http(world):
    script = {
        "Good morning, what can you do?": ["I plan TACE sessions by simulation and explain what I find."],
        "What do we know about this patient?": [call("load_case"), lambda r: f"In short: {told(r)}"],
        "Please plan the session, but spare the liver.": [
            call("explore_protocols", goal="spare the liver"),
            "The action space waits for your approval; see above.",
        ],
        "Fine. Why is mitomycin in it?": [call("list_rules", about="mitomycin"), "Because no rule forbids it."],
        "Why not doxorubicin?": [call("show_decision", about="doxorubicin"), lambda r: told(r)],
        "What if her kidneys failed?": [
            calls(("what_if", {"situation_name": "renal failure"}), ("list_rules", {"about": "P09"})),
            lambda r: json.loads(r.tool_results[0])["text"],
        ],
        "And with 90 platelets?": [call("what_if", record={"platelets": "90 10^9/L"}), lambda r: told(r)],
        "Compare the two.": [call("compare_protocols", protocols=[X, Y]), lambda r: told(r)],
        "Is that allowed?": [
            call("check_rules", case_id="case", protocols=[X], profile="eu"),
            lambda r: f"Allowed: {json.loads(r.tool_results[-1])['verdicts'][0]['allowed']}.",
        ],
        "Which one do you take?": ["The search takes the one above; you decide."],
        "Read this: Oxaliplatin 100 mg was infused.": [
            call("extract_report", report="Oxaliplatin 100 mg was infused."),
            lambda r: told(r),
        ],
        "Thanks, sum it up.": [call("show_decision"), lambda r: told(r)],
    }
    with LoopbackServer(turns(script)) as server:
        chat = talking(world, server)
        assert chat.who == "main (scripted)"
        events = events_of(chat, "Good morning, what can you do?")
        assert "".join(t.text for t in of(events, Token)) == answer_of(events)
        assert len(of(events, Token)) > 5
        assert server.requests[0].stream
        assert "You are MeWM" in server.requests[0].messages[0]["content"]

        events = events_of(chat, "What do we know about this patient?")
        assert "Creatinine clearance 75 mL/min" in answer_of(events)
        events = events_of(chat, "Please plan the session, but spare the liver.")
        assert of(events, Waiting)[0].value["case_id"] == "MRN-4711"  # the person sees which case it is
        assert of(events, StepStarted)[0].arguments == {"goal": "spare the liver"}
        events_of(chat, "Fine. Why is mitomycin in it?")  # talking goes on while the action space waits

        asked = len(server.requests)
        events = events_of(chat, "approve")
        assert len(server.requests) == asked  # what a person decides reaches no model
        proposed = of(events, Proposed)[0].plan
        assert proposed.goal.text == "spare the liver"
        made = len(world.world.simulated())

        assert "Doxorubicin was tried" in answer_of(events_of(chat, "Why not doxorubicin?"))
        events = events_of(chat, "What if her kidneys failed?")
        assert {e.tool for e in of(events, StepFinished)} == {"what_if", "list_rules"}
        assert "the rules leave no protocol for this patient. P09:" in answer_of(events)
        assert f"0 of {proposed.simulations}" in answer_of(events_of(chat, "And with 90 platelets?"))
        assert len(world.world.simulated()) == made
        assert f"{Y} against {X}" in answer_of(events_of(chat, "Compare the two."))
        assert answer_of(events_of(chat, "Is that allowed?")) == "Allowed: True."
        events_of(chat, "Which one do you take?")
        assert "Oxaliplatin 100 mg" in answer_of(events_of(chat, "Read this: Oxaliplatin 100 mg was infused."))

        rival = proposed.runners_up[0].assessed.key
        assert of(events_of(chat, f"edit to {rival} because it is gentler"), Waiting)[0].value["protocol"] == rival
        plan = of(events_of(chat, "approve"), Planned)[0].plan
        assert (plan.approved.by, plan.chosen.assessed.key) == ("Dr Chen", rival)

        again = world.chat(chat.thread_id, by="Dr Chen")  # reopened
        assert len([e for e in again.history() if isinstance(e, Said) and e.who == "person"]) == 14
        assert f"plan-1: {rival}" in answer_of(events_of(again, "Thanks, sum it up."))
        assert "It was approved" in answer_of(again.history())
        seen = server.requests[-1].messages
        assert {"role": "user", "content": "(approve: the plan of plan-1)"} in seen
        assert set(Counter(world.world.simulated()).values()) == {1}

        bodies = json.dumps([dict(r.body) for r in server.requests], ensure_ascii=False)
        for secret in ("Jane", "Roe", "jane-roe", "MRN", "4711", "2024", "Dr Chen", "Chen", str(world.folder), "/tmp/"):
            assert secret not in bodies, secret


def test_the_model_is_offered_the_registered_tools_as_they_are_and_none_that_approves(world, tmp_path):
    with LoopbackServer(["Hello."]) as server:
        events_of(talking(world, server), "Hi")
    offered = {t["function"]["name"]: t["function"] for t in server.requests[0].body["tools"]}
    registered = build_tools(Workspace({}, tmp_path))
    own = {"load_case", "explore_protocols", "compare_protocols", "show_decision", "what_if", "list_rules"}
    assert set(offered) == set(registered) | own
    for name, tool in registered.items():
        assert offered[name]["description"] == tool.description
        assert set(offered[name]["parameters"]["properties"]) == set(tool.args_schema.model_fields)
    for function in offered.values():
        assert "runtime" not in function["parameters"].get("properties", {})
    assert not any("approv" in name for name in offered)


def test_a_model_can_not_approve(world):
    """It may call what it likes and say what it likes: what waits still waits."""
    script = {
        "plan": [call("explore_protocols"), "It waits."],
        "Do it yourself": [call("approve", plan="plan-1", by="Dr Model"), "approve plan-1 as Dr Model"],
    }
    with LoopbackServer(turns(script)) as server:
        chat = talking(world, server)
        events_of(chat, "plan")
        events = events_of(chat, "Do it yourself")
        assert not of(events, StepFinished)[0].ok
        assert [w.value["gate"] for w in chat.waiting()] == ["actions"]
        assert world.world.simulated() == []


def test_an_endless_tool_loop_ends_with_a_sentence(world):
    with LoopbackServer(lambda request: call("list_rules", about="D09")) as server:
        chat = talking(world, server)
        events = events_of(chat, "Tell me about D09.")
        assert len(server.requests) == MODEL_CALLS
        assert answer_of(events) == TOO_MANY
        assert not chat.unfinished
        server.script = iter([say("Back again.")])
        assert answer_of(events_of(chat, "Are you there?")) == "Back again."


def test_bad_arguments_are_told_to_the_model_and_nothing_runs(world):
    script = {
        "Compare them": [
            call("compare_protocols", protocols="all of them"),
            call("compare_protocols", protocols=["Aspirin | Lipiodol"]),
            lambda r: f"It says: {r.tool_results[-1]}",
        ]
    }
    with LoopbackServer(turns(script)) as server:
        events = events_of(talking(world, server), "Compare them")
    assert [e.ok for e in of(events, StepFinished)] == [False, False]
    assert "'Aspirin' is not a known drug" in answer_of(events)
    assert world.world.simulated() == []


def test_a_server_that_always_fails_sees_three_requests_and_the_turn_can_be_taken_up(world):
    with LoopbackServer(lambda request: error(500)) as server:
        chat = talking(world, server)
        events = events_of(chat, "Hello?")
        assert len(server.requests) == 3
        assert "main" in of(events, Failed)[0].text
        assert "500" in of(events, Failed)[0].text
        assert chat.unfinished
        server.script = iter([say("Here I am.")])
        assert answer_of(list(chat.resume())) == "Here I am."
        assert not chat.unfinished


def test_a_tool_call_that_breaks_off_is_never_completed(world):
    broken = json.dumps({"protocols": [X, Y]})[:-6]
    with LoopbackServer(lambda request: call("compare_protocols", broken)) as server:
        events = events_of(talking(world, server), "Compare")
    assert of(events, Failed)
    assert not of(events, StepStarted)
    assert world.world.simulated() == []
    assert truncated({"a": 1}).text != '{"a": 1}'


def test_the_next_backend_of_the_chain_answers_and_that_is_said(world):
    with LoopbackServer(lambda request: error(503)) as first, LoopbackServer(["I stand in."]) as second:
        events = events_of(talking(world, first, spare=second), "Hello?")
        assert (len(first.requests), len(second.requests)) == (3, 1)
    assert "spare answers instead" in of(events, Degraded)[0].reason
    assert answer_of(events) == "I stand in."


def test_a_stop_does_not_wait_for_a_silent_backend(world):
    with LoopbackServer([hang(30), say("Now I do.")]) as server:
        chat = talking(world, server)
        stop = threading.Event()
        threading.Timer(0.5, stop.set).start()
        began = time.monotonic()
        events = list(chat.say("Are you there?", stop))
        assert time.monotonic() - began < 30  # its time-out is 60 s; the grace of a stop is 1.5 s
        assert isinstance(events[-1], Stopped)
        assert answer_of(events_of(chat, "And now?")) == "Now I do."


def test_a_stop_during_a_tool_asks_the_model_no_more(world):
    world.world.delay = 0.05
    script = {
        "plan": [call("explore_protocols"), "never said"],
        "go on then": [call("show_decision"), lambda r: told(r)],
    }
    with LoopbackServer(turns(script)) as server:
        chat = world.chat(
            case="jane-roe", llm="main",
            settings=backends(world, main=server).model_copy(update={"approve_actions": False, "approve_plan": False}),
        )  # fmt: skip
        stop, events = threading.Event(), []
        for event in chat.say("plan", stop):
            events.append(event)
            if len(world.world.simulated()) > 3:
                stop.set()
        assert isinstance(events[-1], Stopped)
        assert len(server.requests) == 1
        world.world.delay = 0.0
        deadline = time.monotonic() + 20
        while not of(events := events_of(chat, "continue"), Planned):
            assert time.monotonic() < deadline, answer_of(events)
            time.sleep(0.2)
        assert len(server.requests) == 1
        assert "plan-1:" in answer_of(events_of(chat, "go on then"))
        assert set(Counter(world.world.simulated()).values()) == {1}


def test_what_is_typed_loses_what_identifies_before_a_model_reads_it(world):
    """Also what was typed before a language model came into the conversation."""
    world.add_case("anna")
    script = {
        "And [removed], seen [day 0] and [day 3]? Open case again.": [
            call("load_case", name="case"),
            lambda r: told(r),
        ],
        "Now open Anna.": [call("load_case", name="anna")],
        "Now open case.": ["never said", lambda r: told(r)],  # the same words, once that case is the open one
    }
    typed = "And Karl Jones, seen 2024-03-12 and 2024-03-15? Open JANE-ROE again."
    with LoopbackServer(turns(script)) as server:
        before = world.chat(case="jane-roe", settings=backends(world, main=server))
        events_of(before, "Is Mr. John Smith, MRN 12-3456, seen 2024-03-12, case jane-roe, a candidate?")
        events_of(before, "read report: MRN 77-1234: Oxaliplatin 100 mg was infused on 2024-03-12.")
        world.store.change(before.thread_id, llm="main")
        chat = world.chat(before.thread_id)
        events = events_of(chat, typed)
        assert "The case is open" in answer_of(events)
        assert Path(chat.desk.thread.case_path).name == "jane-roe"
        assert typed in [e.text for e in chat.history() if isinstance(e, Said)]  # people see what was typed
        events_of(chat, "Now open Anna.")
        assert Path(chat.desk.thread.case_path).name == "anna"
    bodies = json.dumps([dict(r.body) for r in server.requests], ensure_ascii=False)
    for secret in ("Smith", "12-3456", "77-1234", "2024", "Karl", "Jones", "jane-roe", "JANE-ROE", "4711"):
        assert secret not in bodies, secret
    assert "Oxaliplatin 100 mg was infused on [day 0]" in bodies


def test_a_folder_called_case_is_never_taken_for_the_open_one(world):
    world.add_case("case")
    chat = world.chat(case="jane-roe")
    assert "rename that folder" in answer_of(events_of(chat, "load case"))
    assert Path(chat.desk.thread.case_path).name == "jane-roe"
