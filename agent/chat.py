"""Chat: the agent that people talk with about a case, as a graph, and a conversation as a stream of typed events.

The model (a language model, or the embedded policy's `IntentModel`) may call the registered tools and the tools of
`agent.chat_tools`. What a person decides at a gate goes past it (`agent.chat_commands`). Command line, web page and
tests read the events of `Chat.say`, `Chat.answer` and `Chat.resume`.
"""

from __future__ import annotations

import fcntl
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ToolErrorMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.constants import END
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from agent.approval import GateAnswer
from agent.chat_commands import PersonCommands, answering, command_of
from agent.chat_middleware import CallLimit, Fallbacks, Privacy, StopMiddleware, thread_of
from agent.chat_store import ChatStore
from agent.chat_tools import Desks, chat_tools, clean, registered
from agent.desk import Desk, MakeTools, make_tools
from agent.events import Event, Failed, Stopped, Waiting, events, said
from agent.intents import NO_LLM, IntentModel
from agent.plan import Plan
from agent.run import MakeServices, Standing
from agent.settings import PlannerSettings
from models.errors import ApprovalError, InputError, MewmError, RunError, RunStopped
from tools.registry import RegisteredTool, build_tools
from tools.workspace import Workspace

STOP_GRACE_S = 1.5
"""How long a stopped turn may take to end by itself; after that it is left behind."""
CUT_OFF = "This was cut off before it was done."


@dataclass(frozen=True)
class Asked:
    """What answers in a chat.

    Attributes:
        model: A language model, or `IntentModel`.
        name: In words: ``no LLM: embedded policy``, or the backend and its model.
        system_prompt: What the language model is told first.
        fallbacks: What to ask where `model` can't answer.
    """

    model: BaseChatModel
    name: str
    system_prompt: str | None = None
    fallbacks: Fallbacks | None = None


def build_chat(
    model: BaseChatModel,
    desks: Desks,
    tools: Sequence[RegisteredTool],
    system_prompt: str | None = None,
    checkpointer: Checkpointer = None,
    fallbacks: Fallbacks | None = None,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The compiled chat agent.

    Args:
        model: A language model, or `IntentModel`.
        desks: Thread id -> the desk that its tools work on.
        tools: The registered tools: names, descriptions and schemas.
        system_prompt: What the language model is told first.
        checkpointer: Where conversations are kept.
        fallbacks: What to ask where `model` can't answer.
    """

    def ours(error: Exception, _request: object) -> str | None:
        """A sentence for errors of ours; anything else is a bug and ends the run."""
        return clean(str(error), desks(thread_of()).private()) if isinstance(error, MewmError) else None

    middleware: list[Any] = [PersonCommands(desks), CallLimit(), StopMiddleware(desks), ToolErrorMiddleware(ours)]
    if not isinstance(model, IntentModel):
        middleware.append(Privacy(desks))
    if fallbacks is not None:
        middleware.append(fallbacks)
    return create_agent(
        model,
        [*registered(desks, tools), *chat_tools(desks)],
        system_prompt=system_prompt,
        middleware=middleware,
        checkpointer=checkpointer,
        name="chat",
    )


class Chat:
    """One conversation: what is said to it, and what comes back as events."""

    def __init__(
        self,
        desk: Desk,
        asked: Asked,
        tools: Sequence[RegisteredTool],
        by: str = "",
    ) -> None:
        """Nothing is asked before something is said.

        Args:
            desk: The conversation's desk.
            asked: What answers.
            tools: The registered tools: names, descriptions and schemas.
            by: Who talks, where that is known: the name under approvals.
        """
        self.desk = desk
        self.by = by
        self._asked, self._tools = asked, tools

    @property
    def who(self) -> str:
        """What answers, in words: ``no LLM: embedded policy``, or the backend and its model."""
        return self._asked.name

    @property
    def thread_id(self) -> str:
        """Id of the conversation."""
        return self.desk.thread_id

    def say(self, text: str, stop: threading.Event | None = None) -> Iterator[Event]:
        """Say something. Words that decide about what waits are carried out and reach no language model.

        Args:
            text: What the person typed.
            stop: Set from another thread to stop the turn within a second or two; the conversation can go on.

        Yields:
            Events in order. `Failed` ends a turn that could not be finished, `Stopped` one that was stopped.

        Raises:
            InputError: nothing was said.
            RunError: another turn of this conversation is at work, or it can't be read.
        """
        if not text.strip():
            raise InputError("Nothing was said: type a request, or 'help'.")
        stopped = [row.plan_id for row in self.desk.stopped()]
        command = command_of(text, self.desk.waiting(), stopped, self.by)
        message = command.message(text.strip()) if command else HumanMessage(content=text.strip())
        return self._turn(message, stop, title=text.strip())

    def answer(self, answer: GateAnswer, stop: threading.Event | None = None) -> Iterator[Event]:
        """Answer a gate by a form: approve, edit or reject.

        Raises:
            ApprovalError: the answer is to a question that does not wait in this conversation, or to another case.
        """
        for waiting in self.desk.waiting():
            if waiting.interrupt_id == answer.interrupt_id:
                break
        else:
            raise ApprovalError(
                "The answer is to a question that does not wait in this conversation: look at what waits."
            )
        if answer.case_id != waiting.value["case_id"]:
            raise ApprovalError(
                f"The answer is for case '{answer.case_id}', but the plan that waits is of case "
                f"'{waiting.value['case_id']}'."
            )
        words = " ".join(filter(None, [answer.decision, waiting.plan_id, f"as {answer.by}", answer.reason]))
        return self._turn(answering(waiting, answer).message(words), stop, title=words)

    def resume(self, stop: threading.Event | None = None) -> Iterator[Event]:
        """Go on with a turn that was cut off by a kill or an error; nothing is simulated twice."""
        return self._turn(None, stop)

    @property
    def unfinished(self) -> bool:
        """Whether the last turn was cut off."""
        return bool(self._snapshot().tasks)

    def history(self) -> list[Event]:
        """What was said before, as events."""
        return list(said(self._messages()))

    def waiting(self) -> tuple[Waiting, ...]:
        """Every gate of this conversation that waits for an answer."""
        return self.desk.waiting()

    def standings(self) -> dict[str, Standing]:
        """Where each plan of this conversation stands, oldest first."""
        return {row.plan_id: self.desk.look(row) for row in self.desk.plans()}

    def plan(self, plan_id: str = "") -> Plan:
        """A plan that is ready: the latest real one, or the one of that name.

        Raises:
            InputError: there is none, or it is not ready.
        """
        return self.desk.plan(plan_id)[1]

    @property
    def _config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread_id}}

    def _graph(self, saver: Checkpointer) -> CompiledStateGraph[Any, Any, Any, Any]:
        asked = self._asked
        return build_chat(asked.model, lambda _: self.desk, self._tools, asked.system_prompt, saver, asked.fallbacks)

    def _snapshot(self) -> Any:
        with self.desk.store.saver() as saver:
            return self._graph(saver).get_state(self._config)

    def _messages(self) -> list[AnyMessage]:
        return list(self._snapshot().values.get("messages", ()))

    def _turn(self, message: HumanMessage | None, stop: threading.Event | None, title: str = "") -> Iterator[Event]:
        with self._alone():
            given: dict[str, Any] | None = None
            if message is not None:
                if self.unfinished:
                    self._close_turn()
                before = self._messages()
                given = {"messages": [*_cut_off(before), message]}
                self.desk.store.change(self.thread_id, **({} if before else {"title": title[:80]}))
            self.desk.stop = stop or threading.Event()
            yield from self._watched(given, self.desk.stop)

    def _close_turn(self) -> None:
        """Keep what the finished steps of a turn that was cut off have said, and drop the rest of it."""
        with self.desk.store.saver() as saver:
            self._graph(saver).update_state(self._config, None, as_node=END)

    def _watched(self, given: dict[str, Any] | None, stop: threading.Event) -> Iterator[Event]:
        """Run the graph in a thread of its own, so that a stop need not wait for a backend that does not answer."""
        told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        left = threading.Event()

        def work() -> None:
            try:
                with self.desk.store.saver() as saver:
                    _write_until(left, saver)
                    graph = self._graph(saver)
                    for event in events(graph, given, self._config, tokens=True, durability="sync"):
                        told.put(event)
                told.put(None)
            except BaseException as exc:  # noqa: BLE001 (raised again in the thread that reads)
                told.put(exc)

        threading.Thread(target=work, name=f"chat-{self.thread_id}", daemon=True).start()
        event: Event | None = None
        try:
            for event in _heard(told, stop):
                yield event
        finally:
            left.set()
        if stop.is_set() and not isinstance(event, Failed):
            yield Stopped()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One turn of a conversation at a time, over all processes; a kill lets go of it."""
        folder = self.desk.store.folder / self.thread_id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "turn.lock").open("wb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"The conversation {self.thread_id} is at work already, here or elsewhere: try again when it stops."
                ) from None
            yield


def _heard(told: queue.SimpleQueue[Event | BaseException | None], stop: threading.Event) -> Iterator[Event]:
    """What a turn tells until it ends, or until it does not end soon after a stop."""
    deadline: float | None = None
    while True:
        try:
            item = told.get(timeout=0.1)
        except queue.Empty:
            if stop.is_set():
                deadline = deadline or time.monotonic() + STOP_GRACE_S
                if time.monotonic() > deadline:
                    return
            continue
        if isinstance(item, MewmError):
            yield Failed(text=str(item))
            return
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return
        yield item


def _write_until(left: threading.Event, saver: SqliteSaver) -> None:
    """Let a turn that was left write nothing any more: the next one may have begun where it stood."""

    def guarded(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrote(*arguments: Any, **options: Any) -> Any:
            if left.is_set():
                raise RunStopped("The turn was stopped.")
            return write(*arguments, **options)

        return wrote

    for name in ("put", "put_writes"):
        setattr(saver, name, guarded(getattr(saver, name)))


def open_chat(
    store: ChatStore,
    thread_id: str,
    cases: Path,
    *,
    by: str = "",
    make_services: MakeServices | None = None,
    make_tools: MakeTools = make_tools,
) -> Chat:
    """A conversation of a store, with the language model or the embedded policy that it is held with.

    Args:
        store: The conversations.
        thread_id: Which one.
        cases: Folder of the cases that may be opened by name.
        by: Who talks, where that is known.
        make_services: Builds what a run of the planner works with; None is the real thing.
        make_tools: Builds the registered tools.

    Raises:
        InputError: there is no such conversation, backend or prompt set.
        BackendError: the backend's key or address is not set.
    """
    if make_services is None:
        from agent.services import make_services as make_real_services

        make_services = make_real_services
    thread = store.thread(thread_id)
    desk = Desk(store, thread, make_services, make_tools, cases)
    # Names, descriptions and schemas only: no case and no model is touched.
    tools = list(build_tools(Workspace({}, store.artifacts)).values())
    asked = model_for(thread.llm, desk.settings)
    return Chat(desk, asked, tools, by)


def model_for(llm: str | None, settings: PlannerSettings) -> Asked:
    """What answers in a chat: a backend and its fallbacks with the prompt of a set, or the embedded policy.

    Args:
        llm: Name of the backend; None is the embedded policy.
        settings: Name the prompt set and the user's backend file.

    Raises:
        InputError: there is no such backend or prompt set.
        BackendError: a key or an address is not set.
    """
    if llm is None:
        return Asked(IntentModel(), NO_LLM)
    # The clients are loaded only where a language model is used.
    from agent.backends import chat_model, load_backends, resolve_chain
    from prompts.sets import load_prompt_set

    chain = resolve_chain(llm, load_backends(None if settings.backends is None else Path(settings.backends)))
    models = [chat_model(backend) for backend in chain]
    fallbacks = Fallbacks([backend.name for backend in chain], models) if len(models) > 1 else None
    prompt = load_prompt_set(settings.prompts).prompt("chat").render()
    return Asked(models[0], f"{chain[0].name} ({chain[0].model})", prompt, fallbacks)


def _cut_off(messages: Sequence[AnyMessage]) -> list[ToolMessage]:
    """Results for tool calls that never got one: a model must not see a call without its result."""
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    return [
        ToolMessage(content=CUT_OFF, tool_call_id=call["id"] or "", name=call["name"], status="error")
        for call in calls
        if call["id"] not in answered
    ]
