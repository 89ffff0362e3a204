"""Intents: a conversation without a language model: a documented set of requests in plain English (`intents.yaml`).

`IntentModel` stands where a language model would in the chat graph, so that tools, events, threads and approval are the
same: it reads the last message by patterns, asks for one tool, and says what that returned. What it does not
understand it says plainly. It knows nothing and makes nothing up.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict

from agent.events import NOT_UNDERSTOOD

NO_LLM = "no LLM: embedded policy"
_FLAGS = re.IGNORECASE | re.DOTALL


class _Phrase(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    says: str
    does: str
    patterns: tuple[re.Pattern[str], ...]

    def match(self, text: str) -> dict[str, str] | None:
        """The named groups of the first pattern that is the whole text, None where none is."""
        for pattern in self.patterns:
            if found := re.fullmatch(pattern.pattern, text, _FLAGS):
                return {name: value.strip() for name, value in found.groupdict().items() if value and value.strip()}
        return None


class Intent(_Phrase):
    """A request: the tool that it asks for and what goes into its arguments; without a tool it is answered by help."""

    id: str
    tool: str | None = None
    arguments: dict[str, Any] = {}


class Reply(_Phrase):
    """What a person says to a gate that waits."""

    decision: Literal["approve", "edit", "reject"]


class _Replies(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    head: str
    not_understood: str


class IntentTable(BaseModel):
    """The content of `intents.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    intents: tuple[Intent, ...]
    answers: tuple[Reply, ...]
    go_on: _Phrase
    replies: _Replies


@lru_cache(maxsize=1)
def load_intents() -> IntentTable:
    """The shipped intents, checked against their schema."""
    return IntentTable.model_validate(yaml.safe_load(files("agent").joinpath("intents.yaml").read_text("utf-8")))


def plain(text: str) -> str:
    """A message without white space at its ends, doubled spaces and a closing mark."""
    return re.sub(r"\s+", " ", text).strip().rstrip("?.! ")


def request_of(text: str) -> tuple[Intent, dict[str, Any]] | None:
    """The request that a message makes, with the tool's arguments; None where it is not understood."""
    for intent in load_intents().intents:
        if (groups := intent.match(plain(text))) is not None:
            return intent, _filled(intent.arguments, groups)
    return None


def help_text(head: str | None = None) -> str:
    """What can be asked, one request on a line."""
    table = load_intents()
    phrases: list[_Phrase] = [*table.intents, *table.answers, table.go_on]
    return "\n".join([head or table.replies.head, *(f"- {phrase.says}: {phrase.does}" for phrase in phrases)])


def _filled(template: Any, groups: dict[str, str]) -> Any:
    """A template of arguments with the groups in their places; what stays empty is left out."""
    if isinstance(template, dict):
        pairs = ((_filled(name, groups), _filled(value, groups)) for name, value in template.items())
        return {name: value for name, value in pairs if name and value not in ("", [], {})}
    if isinstance(template, list):
        return [value for value in (_filled(inner, groups) for inner in template) if value not in ("", [], {})]
    if not isinstance(template, str):
        return template
    return re.sub(r"\{(\w+)\}", lambda found: groups.get(found[1], ""), template)


class IntentModel(BaseChatModel):
    """The embedded policy as the model of a chat graph. No language model."""

    @property
    def _llm_type(self) -> str:
        return "embedded-policy"

    def bind_tools(  # the arguments here and below are a chat model's
        self,
        tools: Sequence[Any],  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The tools are known by name; nothing is bound."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=answer_to(messages))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> Iterator[ChatGenerationChunk]:
        answer = answer_to(messages)
        for piece in re.findall(r"\S+\s*", str(answer.text)):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        calls = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(answer.tool_calls)
        ]
        last = AIMessageChunk(content="", tool_call_chunks=calls, additional_kwargs=answer.additional_kwargs)
        yield ChatGenerationChunk(message=last)


def answer_to(messages: Sequence[BaseMessage]) -> AIMessage:
    """What the embedded policy says next: what a tool returned, a tool call, or that it did not understand."""
    last = messages[-1]
    if isinstance(last, ToolMessage):
        return AIMessage(content=_told(last))
    text = str(last.text) if isinstance(last, HumanMessage) else ""
    found = request_of(text)
    if found is None:
        head = load_intents().replies.not_understood.format(text=plain(text)[:200])
        return AIMessage(content=help_text(head), additional_kwargs={NOT_UNDERSTOOD: text})
    intent, arguments = found
    if intent.tool is None:
        return AIMessage(content=help_text())
    call = ToolCall(name=intent.tool, args=arguments, id=f"call-{uuid.uuid4().hex[:12]}", type="tool_call")
    return AIMessage(content="", tool_calls=[call])


def _told(message: ToolMessage) -> str:
    """The words of a tool's result; an error is a sentence already."""
    try:
        result = json.loads(str(message.text))
    except ValueError:
        return str(message.text)
    return str(result.get("text") or message.text) if isinstance(result, dict) else str(message.text)
