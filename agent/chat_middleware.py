"""Middleware of the chat graph: a limit of model calls, a person's stop, and fallbacks of the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware, hook_config
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langgraph.config import get_config

from agent.chat_tools import Desks
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
