"""Turns on the server: they go on without a browser, can be followed twice, stopped, and take turns at the engine."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.chat import Chat
from agent.events import DepthFinished, Said, Stopped
from agent.web.turns import Conversations, in_turn
from models.errors import InputError, RunError
from tests.agent.fake_chat import ChatWorld


@dataclass(frozen=True)
class Person:
    chats: Path


@pytest.fixture
def world(tmp_path):
    made = ChatWorld(tmp_path, delay=0.01)
    made.add_case("anna")
    return made


@pytest.fixture
def conversations(world):
    def opened(owner: Person, thread_id: str) -> Chat:
        return world.chat(thread_id)

    return Conversations(opened)


def begun(world, conversations):
    thread = world.chat(case="anna").thread_id
    return conversations.get(Person(world.store.folder), thread)


def say(conversation, text):
    conversation.start(lambda chat, stop: chat.say(text, stop), text)


def ended(conversation):
    for _ in conversation.follow():
        pass
    return conversation.heard


def test_a_turn_goes_on_when_nobody_looks_and_two_pages_see_the_same(world, conversations):
    conversation = begun(world, conversations)
    say(conversation, "plan")
    next(conversation.follow())  # a page that is closed at once
    counts: list[int] = []

    def other_page() -> None:
        counts.extend(conversation.follow())

    page = threading.Thread(target=other_page)
    page.start()
    heard = ended(conversation)
    page.join(timeout=20)
    assert counts[-1] == len(heard)
    assert isinstance(heard[0], Said)
    assert (heard[0].who, heard[0].text) == ("person", "plan")
    assert world.chat(conversation.chat.thread_id).waiting()  # it is in the store


def test_a_conversation_is_opened_once_and_anew_after_another_process_changed_it(world, conversations):
    conversation = begun(world, conversations)
    owner = Person(world.store.folder)
    say(conversation, "show the case")
    ended(conversation)
    assert conversations.get(owner, conversation.chat.thread_id) is conversation
    time.sleep(0.002)
    list(world.chat(conversation.chat.thread_id).say("help"))  # by the terminal
    again = conversations.get(owner, conversation.chat.thread_id)
    assert again is not conversation
    assert [e.text for e in again.heard if isinstance(e, Said) and e.who == "person"] == ["show the case", "help"]
    with pytest.raises(InputError, match="There is no conversation"):
        conversations.get(owner, "somebody-elses")


def test_one_turn_at_a_time_and_a_stop_between_two_simulations(world, conversations):
    conversation = begun(world, conversations)
    say(conversation, "plan")
    ended(conversation)
    world.world.delay = 1.0
    say(conversation, "approve as Dr Chen")
    with pytest.raises(RunError, match="at work"):
        say(conversation, "help")
    deadline = time.monotonic() + 120
    while not world.world.simulated():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    begun_before = len(world.world.simulated())
    conversation.stop.set()
    heard = ended(conversation)
    assert len(world.world.simulated()) <= begun_before + 2
    assert any(isinstance(event, Stopped) for event in heard)

    world.world.delay = 0.0
    assert conversation.chat.desk.stopped()
    say(conversation, "continue")
    heard = ended(conversation)
    assert any(isinstance(event, DepthFinished) for event in heard)
    assert conversation.chat.waiting()[0].value["gate"] == "plan"


def test_a_bug_is_raised_to_who_follows_and_told_without_details(world, conversations):
    conversation = begun(world, conversations)

    def broken(chat, stop):
        raise KeyError("secret path")
        yield

    conversation.start(broken, "plan")
    with pytest.raises(KeyError):
        ended(conversation)
    assert "secret" not in conversation.heard[-1].text
    say(conversation, "help")  # the conversation can go on
    ended(conversation)


def test_network_tools_of_two_conversations_never_run_at_once(world):
    busy, most = [0], [0]

    def slow(**arguments: object) -> object:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        time.sleep(0.05)
        busy[0] -= 1
        return real(**arguments)

    real = world.world.tools["simulate_tumor"].function
    world.world.tools["simulate_tumor"].function = slow
    settings = world.chat(case="anna").desk.settings
    path = world.cases / "anna"
    given = {
        "case_id": "case",
        "protocols": ["Cisplatin | Lipiodol"],
        "seeds": [0],
        "steps": None,
        "last_comparison": False,
    }
    both = [in_turn(world.tools(path, {}, world.folder / name, settings)) for name in ("a", "b")]
    workers = [threading.Thread(target=tools["simulate_tumor"].call, kwargs=given) for tools in both * 3]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most[0] == 1
