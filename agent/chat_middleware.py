"""Middleware of the chat graph: a limit of model calls, a person's stop, privacy, fallbacks of the language model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware, hook_config
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.config import get_config

from agent.chat_tools import Desks, clean, outgoing
from agent.deidentify import NEUTRAL_ID, public_words, removed_mark
from agent.events import Degraded
from models.errors import BackendError

MODEL_CALLS = 12
"""Most calls of the model in one turn: a model that asks for tools without end is stopped."""
STOPPED = "Stopped by the person."
TOO_MANY = (
    f"I stopped after asking the model {MODEL_CALLS} times in one turn without an answer: it keeps calling tools. "
    "Ask again in other words, or choose another backend."
)


def thread_of() -> str:
    """Id of the conversation whose graph runs here."""
    return str(get_config()["configurable"]["thread_id"])


class CallLimit(ModelCallLimitMiddleware[Any, Any]):
    """Ends a turn in which the model asks for tools without end, with a sentence."""

    def __init__(self) -> None:
        super().__init__(run_limit=MODEL_CALLS, exit_behavior="end")

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """As the base class, in our words."""
        ended = super().before_model(state, runtime)
        return None if ended is None else {**ended, "messages": [AIMessage(content=TOO_MANY)]}


class StopMiddleware(AgentMiddleware[Any, Any, Any]):
    """Asks no model after the person stopped the turn, and keeps no answer that comes after it."""

    def __init__(self, desks: Desks) -> None:
        """Args: desks: Thread id -> its desk."""
        super().__init__()
        self._desks = desks

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """The model's answer, or that the turn was stopped."""
        stop = self._desks(thread_of()).stop
        if stop.is_set():
            return AIMessage(content=STOPPED)
        answer = handler(request)
        return AIMessage(content=STOPPED) if stop.is_set() else answer


class Privacy(AgentMiddleware[Any, Any, Any]):
    """Shows a language model the conversation without identifiers and dates; what is kept and shown to people stays.

    Results of tools are made without them (`agent.chat_tools`). Here it is what people typed, and what was answered to
    it, also before a language model came into the conversation.
    """

    def __init__(self, desks: Desks) -> None:
        """Args: desks: Thread id -> its desk."""
        super().__init__()
        self._desks = desks

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """The model's answer to the conversation as it may leave."""
        desk = self._desks(thread_of())
        return handler(request.override(messages=public_messages(request.messages, desk.private(), *desk.case_names())))


def public_messages(
    messages: Sequence[AnyMessage], private: Mapping[str, str], mine: set[str], others: set[str]
) -> list[AnyMessage]:
    """A conversation as a language model may read it.

    Args:
        messages: The conversation.
        private: As `agent.chat_tools.outgoing` takes it.
        mine: Names of the open case, which becomes "case".
        others: Names of other cases: taken out, but for the last thing that was said, which may ask to open one.
    """
    own = dict.fromkeys(mine, NEUTRAL_ID)
    every = own | dict.fromkeys(others, removed_mark())
    last = max((place for place, message in enumerate(messages) if isinstance(message, HumanMessage)), default=0)
    now, before = (_Renaming(own), tuple(others)), (_Renaming(every), ())
    return [_public(m, private, *(now if place >= last else before)) for place, m in enumerate(messages)]


class _Renaming:
    """Puts other words in the place of names, in texts and in what JSON holds."""

    def __init__(self, instead: Mapping[str, str]) -> None:
        self._instead = {name.casefold(): word for name, word in instead.items()}
        listed = "|".join(re.escape(name) for name in sorted(instead, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w-])(?:{listed})(?![\w-])", re.IGNORECASE) if instead else None

    def __call__(self, value: object) -> Any:
        if isinstance(value, Mapping):
            return {key: self(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self(inner) for inner in value]
        if self._pattern is None or not isinstance(value, str):
            return value
        return self._pattern.sub(lambda found: self._instead[found[0].casefold()], value)


def _public(message: AnyMessage, private: Mapping[str, str], renamed: _Renaming, spare: Sequence[str]) -> AnyMessage:
    """What a person or a model said; results of tools are clean already."""
    if not isinstance(message, HumanMessage | AIMessage) or not isinstance(message.content, str):
        return message
    text = renamed(clean(message.content, private))
    if isinstance(message, HumanMessage):
        return message.model_copy(update={"content": public_words(text, spare=spare)})
    calls = [{**call, "args": renamed(outgoing(call["args"], private))} for call in message.tool_calls]
    return message.model_copy(update={"content": text, "tool_calls": calls})


class Fallbacks(AgentMiddleware[Any, Any, Any]):
    """Asks the next backend of the chain where one can't answer, and says so."""

    def __init__(self, names: Sequence[str], models: Sequence[BaseChatModel]) -> None:
        """Args: names, models: The whole chain; the first model is the agent's own."""
        super().__init__()
        self._names, self._models = names, models

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """The first answer of the chain; where none answers, the last one's error."""
        for place, model in enumerate(self._models):
            try:
                return handler(request if place == 0 else request.override(model=model))
            except BackendError as exc:
                if place + 1 == len(self._models):
                    raise
                reason = f"{exc} {self._names[place + 1]} answers instead."
                request.runtime.stream_writer(Degraded(reason=reason).model_dump(mode="json"))
        raise AssertionError  # a chain is never empty
