"""Turns: conversations that are at work on the server, whether or not a browser looks.

A turn runs in a thread of its own and keeps what it says. A page that is reloaded, or opened a second time, follows it
from wherever it is; closing the page stops nothing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.chat import Chat
from agent.events import Event, Failed, Said
from agent.run import MakeServices
from models.errors import MewmError, RunError
from tools.registry import RegisteredTool

NETWORK_TOOLS = ("simulate_tumor", "segment", "survival_risk")
"""Tools that run the networks: one at a time over all conversations, since a process has one engine."""
LOOK_EVERY_S = 0.35
"""How often a page is told what is new: every time sends the changed messages."""
_ENGINE = threading.Lock()

Begin = Callable[[Chat, threading.Event], Iterator[Event]]
"""What starts a turn: something said, an answer to a gate, or going on."""


@dataclass
class Conversation:
    """A chat with everything that was said in it, steps included.

    Attributes:
        chat: The chat; its settings are those of the store.
        heard: All events so far, those of the running turn last.
        stop: Set to stop the running turn.
        updated: State of the stored conversation that `heard` belongs to.
    """

    chat: Chat
    heard: list[Event]
    updated: str
    stop: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    _thread: threading.Thread | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def at_work(self) -> bool:
        """Whether a turn runs now."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, begin: Begin, typed: str = "") -> None:
        """Start a turn.

        Args:
            begin: Starts it.
            typed: What the person typed or decided, as it is shown.

        Raises:
            RunError: one is at work already.
        """
        with self._news:
            if self.at_work:
                raise RunError("This conversation is at work: wait until it stops, or press Stop.")
            self.stop, self.error = threading.Event(), None
            if typed:
                self.heard.append(Said(who="person", text=typed))
            name = f"turn-{self.chat.thread_id}"
            self._thread = threading.Thread(target=self._run, args=(begin, self.stop), name=name, daemon=True)
            self._thread.start()

    def follow(self) -> Iterator[int]:
        """Yields how many events there are: now, whenever there are more, and when the turn has ended.

        Raises:
            BaseException: a bug in the turn.
        """
        seen = -1
        while True:
            with self._news:
                ended = not self.at_work
                if not ended and len(self.heard) == seen:
                    self._news.wait(timeout=1.0)
            if len(self.heard) != seen or ended:
                seen = len(self.heard)
                yield seen
            if ended:
                break
            time.sleep(LOOK_EVERY_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _run(self, begin: Begin, stop: threading.Event) -> None:
        try:
            for event in begin(self.chat, stop):
                self._hear(event)
        except MewmError as exc:
            self._hear(Failed(text=str(exc)))
        except BaseException as exc:  # noqa: BLE001 (raised again by whoever follows)
            self.error = exc
            self._hear(Failed(text="The program failed: the server's log says where. The conversation can go on."))
        finally:
            self.updated = self.chat.desk.thread.updated
            with self._news:
                self._news.notify_all()

    def _hear(self, event: Event) -> None:
        with self._news:
            self.heard.append(event)
            self._news.notify_all()


class Conversations:
    """The open conversations of a server, by the folder of their store and their id."""

    def __init__(self, open_chat: Callable[[Any, str], Chat]) -> None:
        """Args: open_chat: what one person may reach, id of a conversation -> the chat."""
        self._open_chat = open_chat
        self._known: dict[tuple[str, str], Conversation] = {}
        self._lock = threading.Lock()

    def get(self, owner: Any, thread_id: str) -> Conversation:
        """A conversation of one person.

        Raises:
            InputError: there is no such conversation among that person's.
            BackendError: its backend's key or address is not set.
        """
        key = (str(owner.chats), thread_id)
        with self._lock:
            known = self._known.get(key)
            if known is not None and (known.at_work or known.updated == known.chat.desk.thread.updated):
                return known
            chat = self._open_chat(owner, thread_id)
            fresh = self._known[key] = Conversation(chat, chat.history(), chat.desk.thread.updated)
            return fresh

    def forget(self, owner: Any, thread_id: str) -> None:
        """Open a conversation anew the next time: its backend or prompt set was changed."""
        with self._lock:
            self._known.pop((str(owner.chats), thread_id), None)


def in_turn(tools: Mapping[str, Any]) -> dict[str, Any]:
    """The same tools; those that run the networks wait until no other conversation does."""
    return {name: _waiting(tool) if name in NETWORK_TOOLS else tool for name, tool in tools.items()}


def services_in_turn(make_services: MakeServices) -> MakeServices:
    """Services whose tools take turns with those of other conversations."""

    def make(run: Any, facts: Any, stop: threading.Event) -> Any:
        services = make_services(run, facts, stop)
        return replace(services, tools=in_turn(services.tools))

    return make


def _waiting(tool: RegisteredTool) -> RegisteredTool:
    @functools.wraps(tool.function)
    def call(**arguments: Any) -> Any:
        while not _ENGINE.acquire(timeout=0.5):
            if tool.workspace.progress is not None:  # leaves here when the person stops
                tool.workspace.progress(tool.name, 0, 0)
        try:
            return tool.function(**arguments)
        finally:
            _ENGINE.release()

    return replace(tool, function=call)
