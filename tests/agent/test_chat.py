"""Conversations with the embedded policy: a whole one, reopened, stopped, killed, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from langchain_core.messages import ToolMessage

import agent.intents
from agent.approval import GateAnswer
from agent.chat_store import ChatStore
from agent.events import (
    DepthFinished,
    NotUnderstood,
    Planned,
    Proposed,
    Said,
    StepFinished,
    StepStarted,
    Stopped,
    Token,
    Waiting,
)
from agent.plan import read_plan
from agent.run import Run
from models.errors import ApprovalError, InputError, RunError, RunStopped, WeightsError
from tests.agent.cut_off import copied_after_every_write
from tests.agent.fake_chat import TINY, ChatWorld

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path):
    made = ChatWorld(tmp_path)
    made.add_case("anna")
    return made


def say(chat, text):
    return list(chat.say(text))


def last_said(events):
    return [e.text for e in events if isinstance(e, Said) and e.who == "assistant"][-1]


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_a_whole_conversation(world):
    chat = world.chat()
    assert chat.who == "no LLM: embedded policy"

    # 1: a case, with what its record states
    events = say(chat, "load anna")
    assert [e.tool for e in of(events, StepStarted)] == ["load_case"]
    assert "Creatinine clearance 75 mL/min" in last_said(events)
    assert "".join(t.text for t in of(events, Token)) == last_said(events)

    # 2: a plan; the action space waits first, and nothing is simulated
    events = say(chat, "plan")
    (waiting,) = of(events, Waiting)
    assert (waiting.plan_id, waiting.value["gate"], waiting.value["case_id"]) == ("plan-1", "actions", "anna")
    assert waiting.step == of(events, StepStarted)[0].step
    assert world.world.simulated() == []

    # 3: edited; the search runs, nested in the step that a person's answer is
    events = say(chat, "edit: remove Mitomycin because it is not in stock as Dr Chen")
    step = of(events, StepStarted)[0]
    assert step.tool == "edit"
    assert {e.step for e in of(events, DepthFinished)} == {step.step}
    assert of(events, Waiting)[0].value["gate"] == "plan"
    proposed = of(events, Proposed)[0].plan
    chosen = proposed.chosen.assessed
    assert f"plan-1: {chosen.key}" in last_said(events)
    made = len(world.world.simulated())
    assert made > 0

    # 4, 5: why, from the plan alone
    other = "Cisplatin" if "Cisplatin" not in chosen.protocol.items else "Doxorubicin"
    assert f"{other} was tried" in last_said(say(chat, f"why not {other}?"))
    told = last_said(say(chat, "why not mitomycin?"))
    assert told == "Mitomycin was not tried: taken out by a person: it is not in stock."

    # 6: what if; the rules block the patient, nothing is simulated
    events = say(chat, "What if the patient had renal failure?")
    assert "creatinine clearance 20 mL/min" in last_said(events)
    assert "Creatinine clearance: 20 mL/min (in the record: 75 mL/min)" in last_said(events)
    assert "the rules leave no protocol for this patient. P09:" in last_said(events)
    assert f"plan-1 had chosen {chosen.key}" in last_said(events)
    assert not of(events, Waiting)  # a what-if has no gates
    assert len(world.world.simulated()) == made

    # 7: what if, allowed: the same protocols, so nothing new
    events = say(chat, "what if the platelets were 90 10^9/L")
    assert "The choice stays." in last_said(events)
    assert f"0 of {of(events, Planned)[0].plan.simulations} simulations were new" in last_said(events)
    assert len(world.world.simulated()) == made
    assert of(events, Planned)[0].plan.what_if == ("Platelets: 90 10^9/L (in the record: 150 10^9/L)",)

    # 8: two protocols on the seeds of the last comparison
    key, rival = chosen.key, proposed.runners_up[0].assessed.key
    events = say(chat, f"compare {rival} with {key}")
    assert f"{key} against {rival}: objective {-proposed.runners_up[0].margin.mean:+.3f}" in last_said(events)
    assert "0 of them new" in last_said(events)

    # 9: one that was never simulated
    events = say(chat, "response to Cisplatin + Mitomycin | Drug-eluting beads")
    assert "4 of them new" in last_said(events)
    assert set(Counter(world.world.simulated()).values()) == {1}

    # 10: rules
    assert "D09 cisplatin and the kidney: block:" in last_said(say(chat, "rules about cisplatin"))

    # 11: not understood
    events = say(chat, "what is the weather like")
    assert of(events, NotUnderstood)[0].text == "what is the weather like"
    assert "I did not understand" in last_said(events)

    # 12: edit the plan; it is simulated, and waits again
    events = say(chat, f"edit to {rival} because it is gentler as Dr Chen")
    assert of(events, Waiting)[0].value["protocol"] == rival
    assert "put in by" not in last_said(events)
    assert f"plan-1: {rival}" in last_said(events)

    # 13: approve
    events = say(chat, "approve as Dr Chen")
    assert of(events, Planned)[0].plan.approved.by == "Dr Chen"
    assert last_said(events).endswith("It was approved.")
    assert chat.waiting() == ()

    # 14, 15: the conversation is there again in another process' place, and goes on
    again = world.chat(chat.thread_id)
    texts = [e.text for e in again.history() if isinstance(e, Said) and e.who == "person"]
    assert texts[0] == "load anna"
    assert texts[-1] == "approve as Dr Chen"
    assert len(texts) == 13
    assert last_said(again.history()).endswith("It was approved.")
    assert f"plan-1: {rival}" in last_said(say(again, "show the plan"))
    assert "Nothing waits" in last_said(say(again, "approve as Dr Chen"))
    plan = read_plan(world.store.plan_folder(again.desk.row()) / "plan.json")
    assert [a.decision for a in plan.approvals] == ["edit", "edit", "approve"]
    assert [row.plan_id for row in again.desk.plans()] == ["plan-1", "what-if-2", "what-if-3"]
    assert [t.title for t in world.store.threads()] == ["load anna"]


def test_what_a_tool_refuses_is_said_and_the_conversation_goes_on(world):
    chat = world.chat()
    assert last_said(say(chat, "plan")) == "No case is open: load one by its name first."
    events = say(chat, "load berta")
    assert "There is no case 'berta'" in last_said(events)
    assert not of(events, StepFinished)[0].ok
    say(chat, "load anna")
    assert "There is no plan of this case" in last_said(say(chat, "why not cisplatin"))
    assert "is not a known drug" in last_said(say(chat, "simulate aspirin | lipiodol"))
    assert "nearest known ones are Cisplatin" in last_said(say(chat, "rules about cisplatine"))
    assert "nearest known ones are Cisplatin" in last_said(say(chat, "check Cisplatn | Lipiodol"))
    assert "no situation that stands for" in last_said(say(plan_ready(chat), "what if he were taller"))
    assert "A what-if needs a change" in last_said(say(chat, "what if the profile were eu"))
    assert "Clinical record" not in last_said(say(chat, "what if bilirubin were 3.5 mg"))


def plan_ready(chat):
    if not any(s.plan for s in chat.standings().values()):
        say(chat, "plan")
        say(chat, "approve as Dr Chen")
    return chat


@pytest.mark.parametrize("name", ["../anna", "..", "/etc", "anna/..", "."])
def test_a_case_is_opened_by_name_only(world, name):
    desk = world.chat().desk
    with pytest.raises(InputError, match="There is no case"):
        desk.open_case(name)


def test_two_plans_that_wait_are_answered_apart(world):
    world.add_case("bert")
    chat = world.chat(case="anna")
    say(chat, "plan")
    say(chat, "load bert")
    say(chat, "plan")
    first, second = chat.waiting()
    assert [(w.plan_id, w.value["case_id"]) for w in (first, second)] == [("plan-1", "anna"), ("plan-2", "bert")]
    assert "More than one plan waits (plan-1, plan-2)" in last_said(say(chat, "approve as Dr Chen"))
    fields = {"decision": "reject", "by": "Dr Chen", "reason": "wrong one"}
    crossed = GateAnswer(interrupt_id=second.interrupt_id, case_id="anna", **fields)
    with pytest.raises(ApprovalError, match="for case 'anna', but the plan that waits is of case 'bert'"):
        list(chat.answer(crossed))
    with pytest.raises(ApprovalError, match="does not wait in this conversation"):
        list(chat.answer(crossed.model_copy(update={"interrupt_id": "0" * 32})))
    assert len(chat.waiting()) == 2
    events = list(chat.answer(crossed.model_copy(update={"case_id": "bert"})))
    assert of(events, Planned)[0].plan.rejected.reason == "wrong one"
    assert [w.plan_id for w in chat.waiting()] == ["plan-1"]
    other = world.chat(case="anna")  # another conversation knows nothing of what waits in this one
    with pytest.raises(ApprovalError, match="does not wait in this conversation"):
        list(other.answer(GateAnswer(interrupt_id=first.interrupt_id, case_id="anna", decision="approve", by="Dr X")))


def test_a_stop_ends_the_turn_soon_and_the_plan_goes_on(world):
    world.world.delay = 0.05
    chat = world.chat(case="anna")
    say(chat, "plan")
    stop, seen, began = threading.Event(), [], None
    for event in chat.say("approve as Dr Chen", stop):
        seen.append(event)
        if len(world.world.simulated()) > 4 and began is None:
            began = time.monotonic()
            stop.set()
    assert began is not None
    assert time.monotonic() - began < 30  # on a busy machine; the grace is 1.5 s
    assert isinstance(seen[-1], Stopped)
    assert not of(seen, Proposed)
    assert chat.standings()["plan-1"].status == "unfinished"
    world.world.delay = 0.0
    for _ in range(50):  # the stopped plan lets go of its run within a simulation
        events = say(chat, "continue")
        if of(events, Waiting):
            break
        time.sleep(0.1)
    assert of(events, Waiting)[0].value["gate"] == "plan"
    assert set(Counter(world.world.simulated()).values()) == {1}


def test_one_turn_at_a_time(world):
    chat = world.chat(case="anna")
    turn = chat.say("plan")
    next(turn)
    with pytest.raises(RunError, match="is at work already"):
        say(world.chat(chat.thread_id), "help")
    list(turn)
    assert "waits for a person's approval" in last_said(world.chat(chat.thread_id).history())


def test_a_tool_call_that_never_got_a_result_does_not_stay_open(world):
    """As after a kill that nobody resumed: the next turn closes the open call."""
    chat = world.chat(case="anna")
    with chat.desk.store.saver() as saver:
        graph = chat._graph(saver)
        from langchain_core.messages import AIMessage, HumanMessage

        call = {"name": "show_decision", "args": {}, "id": "call-lost", "type": "tool_call"}
        messages = [HumanMessage("show the plan"), AIMessage("", tool_calls=[call])]
        graph.update_state(chat._config, {"messages": messages}, as_node="model")
    assert chat.unfinished
    say(chat, "help")
    results = [m for m in chat._messages() if isinstance(m, ToolMessage)]
    assert [(m.tool_call_id, m.status) for m in results] == [("call-lost", "error")]
    assert not chat.unfinished


def test_a_turn_that_was_left_behind_writes_nothing_into_the_next(world, monkeypatch):
    """A model that answers long after its turn was stopped and another one was held."""
    monkeypatch.setattr("agent.chat.STOP_GRACE_S", 0.2)
    chat = world.chat(case="anna")
    answer_to, asked, answers = agent.intents.answer_to, threading.Event(), threading.Event()

    def slow(messages):
        if str(messages[-1].text) == "help":
            asked.set()
            assert answers.wait(120)
        return answer_to(messages)

    monkeypatch.setattr("agent.intents.answer_to", slow)
    stop, events = threading.Event(), []
    turn = threading.Thread(target=lambda: events.extend(chat.say("help", stop)))
    turn.start()
    assert asked.wait(120)
    stop.set()
    turn.join()
    assert isinstance(events[-1], Stopped)
    say(chat, "show the case")
    held = [(m.type, m.text) for m in chat._messages()]
    answers.set()
    _wait_for_left_turns(chat)
    assert [(m.type, m.text) for m in chat._messages()] == held
    assert not chat.unfinished


def test_a_tool_of_a_turn_that_was_left_behind_stops_though_the_next_turn_has_begun(world, monkeypatch):
    monkeypatch.setattr("agent.chat.STOP_GRACE_S", 0.2)
    chat = world.chat(case="anna")
    world.world.goes_on.clear()
    stop = threading.Event()
    turn = threading.Thread(target=lambda: list(chat.say("simulate Cisplatin | Lipiodol", stop)))
    turn.start()
    deadline = time.monotonic() + 120
    while not world.world.simulated():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    turn.join()
    say(chat, "help")
    world.world.goes_on.set()
    _wait_for_left_turns(chat)
    assert len(world.world.simulated()) == 1


def test_a_tool_that_waited_while_its_turn_was_stopped_does_not_begin(world):
    desk = world.chat(case="anna").desk
    desk.stop, seen, waits = threading.Event(), [], threading.Event()
    busy = desk._busy

    class Door:
        def __enter__(self) -> None:
            waits.set()
            busy.acquire()

        def __exit__(self, *_: object) -> None:
            busy.release()

    def second_tool() -> None:
        try:
            with desk.at_work():
                seen.append("began")
        except RunStopped:
            seen.append("stopped")

    with desk.at_work():
        desk._busy = Door()
        waiting = threading.Thread(target=second_tool)
        waiting.start()
        assert waits.wait(120)
        desk.stop.set()
        desk.stop = threading.Event()  # as the next turn does
    waiting.join()
    assert seen == ["stopped"]


def _wait_for_left_turns(chat) -> None:
    deadline = time.monotonic() + 120
    while any(thread.name == f"chat-{chat.thread_id}" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_cut_off_after_any_write_the_next_turn_finds_every_call_with_its_result(tmp_path):
    folder = tmp_path / "world"
    folder.mkdir()
    world = ChatWorld(folder)
    world.add_case("anna")
    chat = world.chat(case="anna")
    with copied_after_every_write(folder, tmp_path) as copies:
        say(chat, "show the case")
    assert any(isinstance(message, ToolMessage) for message in chat._messages())
    assert len(copies) > 10
    for copy in copies:
        again = ChatWorld(copy).chat(chat.thread_id)
        say(again, "help")
        waiting = set()
        for message in again._messages():
            if isinstance(message, ToolMessage):
                assert message.tool_call_id in waiting, copy.name
                waiting.remove(message.tool_call_id)
            else:
                assert not waiting, copy.name
                waiting = {call["id"] for call in getattr(message, "tool_calls", ())}
        assert not waiting
        assert not again.unfinished


def test_an_error_that_is_not_a_tools_ends_the_turn_with_a_sentence(world, monkeypatch):
    chat = world.chat(case="anna")

    def broken():
        raise WeightsError("The weights are damaged; restore them.")

    monkeypatch.setattr(world.world, "conditions", broken)
    events = say(chat, "plan")
    assert last_said(events) == "The weights are damaged; restore them."
    assert chat.standings() == {}  # a plan that never began leaves nothing
    monkeypatch.undo()
    assert of(say(chat, "plan"), Waiting)[0].plan_id == "plan-1"


def test_a_bug_is_no_sentence(world, monkeypatch):
    chat = world.chat(case="anna")
    monkeypatch.setattr(world.world, "conditions", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        say(chat, "plan")


KILLED = """
import sys
from pathlib import Path
from tests.agent.fake_chat import ChatWorld
world = ChatWorld(Path(sys.argv[1]), kill_after=int(sys.argv[3]) or None)
chat = world.chat(sys.argv[2])
for event in (chat.resume() if sys.argv[4] == "-" else chat.say(sys.argv[4])):
    print(event.type, flush=True)
"""


def child(folder, thread_id, kill_after, words):
    command = [sys.executable, "-c", KILLED, str(folder), thread_id, str(kill_after), words]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


def test_killed_in_a_plan_the_conversation_goes_on_and_nothing_is_simulated_twice(tmp_path, world):
    """Killed in the search that a person's approval began, reopened, killed again, reopened."""
    chat = world.chat(case="anna")
    say(chat, "plan")
    done = child(tmp_path, chat.thread_id, 7, "approve as Dr Chen")
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = world.chat(chat.thread_id)
    assert again.unfinished
    assert again.standings()["plan-1"].status == "unfinished"
    done = child(tmp_path, chat.thread_id, 5, "-")
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = world.chat(chat.thread_id)
    events = list(again.resume())
    assert of(events, Waiting)[0].value["gate"] == "plan"
    assert "It waits for a person's approval" in last_said(events)
    assert not again.unfinished
    assert set(Counter(world.world.simulated()).values()) == {1}
    # The approval was taken once, and only for the gate that it was given to.
    plan = of(say(again, "approve as Dr Wang"), Planned)[0].plan
    assert [(a.gate, a.by) for a in plan.approvals] == [("actions", "Dr Chen"), ("plan", "Dr Wang")]


def test_killed_before_an_approved_plan_is_written_the_turn_writes_it_when_it_goes_on(world, monkeypatch):
    class KilledHereError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledHereError

    chat = world.chat(case="anna", settings=TINY.model_copy(update={"approve_actions": False}))
    say(chat, "plan")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_leave", killed)
        with pytest.raises(KilledHereError):
            say(chat, "approve as Dr Chen")
    again = world.chat(chat.thread_id)
    (row,) = again.desk.plans()
    written = world.store.plan_folder(row) / "plan.json"
    assert again.unfinished
    assert again.standings()["plan-1"].status == "done"
    assert not written.exists()
    list(again.resume())
    assert [(a.decision, a.by) for a in read_plan(written).approvals] == [("approve", "Dr Chen")]


def test_killed_inside_a_tool_the_tool_goes_on_where_it_was(tmp_path, world):
    settings = TINY.model_copy(update={"approve_actions": False})
    chat = world.chat(case="anna", settings=settings)
    done = child(tmp_path, chat.thread_id, 6, "plan")
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = world.chat(chat.thread_id)
    assert again.unfinished
    events = list(again.resume())
    assert [row.plan_id for row in again.desk.plans()] == ["plan-1"]
    assert of(events, Waiting)[0].value["gate"] == "plan"
    assert "plan-1:" in last_said(events)
    assert set(Counter(world.world.simulated()).values()) == {1}
    unbroken = world.chat(case="anna", settings=settings)
    world.world.log = tmp_path / "other.log"
    plain = of(say(unbroken, "plan"), Proposed)[0].plan
    plan = again.plan()
    assert plan.chosen == plain.chosen
    assert plan.tree == plain.tree


def test_results_hold_no_path_identifier_name_or_date(world):
    """The case's note has a name and a date, its folder another name; nothing of it is in what tools return."""
    world.add_case("jane-roe", case_id="MRN-4711")
    chat = world.chat(by="Dr Chen")
    for words in (
        "load jane-roe",
        "plan",
        "approve",
        "why",
        "what if renal failure",
        "response",
        "check THP | Lipiodol",
    ):
        say(chat, words)
    rows = [m.text for m in chat._messages() if isinstance(m, ToolMessage)]
    assert len(rows) == 6
    told = "\n".join([*rows, *(str(m.text) for m in chat._messages()[1:])])
    for secret in ("Jane", "Roe", "jane-roe", "MRN", "4711", "2024", "Dr Chen", str(world.folder), "/tmp", "chats/"):
        assert secret not in told.replace("load jane-roe", ""), secret
    for text in rows:
        json.loads(text)


def test_settings_come_from_the_conversation(world):
    chat = world.chat(case="anna", settings=TINY.model_copy(update={"seed": 4, "approve_actions": False}))
    plan = of(say(chat, "plan with the goal least toxicity"), Proposed)[0].plan
    assert plan.settings["seed"] == 4
    assert plan.goal.text == "least toxicity"
    (row,) = chat.desk.plans()
    run = chat.desk.run_of(row)
    assert run.artifacts == world.store.artifacts.resolve()


def test_a_store_of_another_version_or_a_damaged_one_is_a_sentence(tmp_path):
    store = ChatStore(tmp_path / "chats")
    assert store.threads() == []
    thread = store.begin(TINY, None, "mewm")
    with pytest.raises(InputError, match="There is no conversation 'nope'"):
        store.thread("nope")
    assert store.thread(thread.thread_id) == thread
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "chats" / "chats.sqlite")) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(RunError, match="format version 9, this program reads 1"):
        store.threads()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "chats.sqlite").write_bytes(b"no database at all" * 99)
    with pytest.raises(RunError, match="can't be used"):
        ChatStore(tmp_path / "bad").threads()


def test_nothing_said_is_refused(world):
    with pytest.raises(InputError, match="Nothing was said"):
        world.chat().say("   ")


def test_a_case_may_have_a_name_that_is_a_word_of_the_answer(world):
    """Names are taken out where they name the case, and nowhere else."""
    world.add_case("A")
    chat = world.chat()
    text = last_said(say(chat, "load A"))
    assert "Child-Pugh class A;" in text
    image = next((world.cases / "A").glob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:-9])
    chat = world.chat(case="A")
    broken = last_said(say(chat, "show the case"))
    assert "changed since the case was made" in broken
    assert str(world.folder) not in broken


def test_an_age_above_89_is_told_as_90(world):
    world.add_case("old")
    path = world.cases / "old" / "case.json"
    path.write_text(path.read_text().replace('"age_years": 61.0', '"age_years": 97.0'))
    chat = world.chat(case="old")
    assert "Age 90 years" in last_said(say(chat, "show the case"))
    (row,) = [json.loads(m.text) for m in chat._messages() if isinstance(m, ToolMessage)]
    assert row["case"]["record"]["age_years"] == 90.0


def test_a_comparison_stops_between_two_simulations(world, monkeypatch):
    monkeypatch.setattr("agent.chat.STOP_GRACE_S", 60.0)  # the tool's own sentence is waited for, however busy it is
    world.world.delay = 0.2
    chat = world.chat(case="anna")
    stop = threading.Event()

    def stop_after_the_first() -> None:
        while not world.world.simulated():
            time.sleep(0.01)
        stop.set()

    watcher = threading.Thread(target=stop_after_the_first)
    watcher.start()
    seen = list(chat.say("simulate Cisplatin | Lipiodol", stop))
    watcher.join()
    assert isinstance(seen[-1], Stopped)
    assert 0 < len(world.world.simulated()) < 4
    assert "Stopped: simulate_tumor had done" in of(seen, StepFinished)[0].text


def test_a_report_is_read_without_a_case(world):
    text = last_said(say(world.chat(), "read report: Oxaliplatin 100 mg was infused, 10 ml Lipiodol was injected."))
    assert "Oxaliplatin 100 mg" in text
