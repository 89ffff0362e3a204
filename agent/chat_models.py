"""Chat models of langchain-openai that keep reasoning, and whose every fault is one sentence.

langchain-openai drops the field in which DeepSeek, Qwen, vLLM and others send their reasoning, and meets a proxy's page
or an answer without choices with a `ValueError` or `TypeError`. Here the reasoning is kept in
``additional_kwargs["reasoning_content"]``, whatever the endpoint calls it; it is never parsed, and sent back only to
endpoints that demand it with tool calls. The synchronous methods raise `BackendError` for whatever the endpoint does
wrong; the asynchronous ones keep the errors of the OpenAI client.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers.openai_tools import make_invalid_tool_call
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI

from agent.backends import Backend, failure, quoted
from models.errors import BackendError

REASONING = "reasoning_content"
"""Key of `additional_kwargs`: the reasoning of the message."""
RAW_CALLS = "raw_tool_calls"
"""Key of `response_metadata`: name and arguments of every tool call as the model wrote them."""


class MalformedResponseError(BackendError):
    """An answer with status 200 that is no chat completion: a proxy's page, or no choices."""


class BrokenToolCallError(BackendError):
    """A streamed tool call whose arguments are no JSON object, so that the tool was not called."""


# Advice on langchain's `with_structured_output`, which is not used here; the refusal itself is raised as a sentence.
warnings.filterwarnings("ignore", message="(This model does not support|Invalid schema for) OpenAI's structured output")


def _is_object(arguments: str) -> bool:
    """Whether the arguments of a call are a JSON object; none at all are that of a tool without parameters."""
    if not arguments:
        return True
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


class _KeepingChat(BaseChatOpenAI):
    """What both kinds of chat model add."""

    backend: Backend

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            return super()._generate(messages, stop, run_manager, **kwargs)
        except openai.OpenAIError as error:
            raise failure(error, self.backend) from error
        except json.JSONDecodeError as error:
            raise self._malformed("its body is not JSON") from error

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        chunk = None
        arguments: dict[object, str] = {}
        try:
            for chunk in super()._stream(*args, **kwargs):
                for part in getattr(chunk.message, "tool_call_chunks", ()):
                    # Parts without an index are whole calls.
                    call = len(arguments) if part["index"] is None else (part["index"],)
                    arguments[call] = arguments.get(call, "") + (part["args"] or "")
                yield chunk
        except openai.OpenAIError as error:
            raise failure(error, self.backend) from error
        except httpx2.TransportError as error:
            raise BackendError(
                f"The backend '{self.backend.name}' broke off its answer ({error}): ask again."
            ) from error
        except json.JSONDecodeError as error:
            raise self._malformed("an event is not JSON") from error
        if chunk is None:
            raise self._malformed("the stream holds no event")
        # langchain would complete the arguments of a call that breaks off, and the tool would run with a guess.
        if not all(_is_object(text) for text in arguments.values()):
            raise BrokenToolCallError(
                f"The backend '{self.backend.name}' wrote a tool call whose arguments are no JSON object: ask again."
            )

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        field = self.backend.reasoning_field
        if field and self.backend.return_reasoning:
            for message, sent in zip(self._convert_input(input_).to_messages(), payload["messages"], strict=True):
                if isinstance(message, AIMessage) and message.tool_calls:
                    sent[field] = message.additional_kwargs.get(REASONING, "")
        return payload

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        raw = response.model_dump(warnings=False) if isinstance(response, openai.BaseModel) else response
        messages = [choice["message"] for choice in self._choices(raw)]
        calls = [self._calls(message) for message in messages]
        # langchain takes arguments such as [] for {}, and can't hold a text or a number; here they are invalid calls.
        for message, made in zip(messages, calls, strict=True):
            message["role"] = "assistant"  # some servers leave it out
            message["tool_calls"] = [call for call in made if _is_object(call["function"]["arguments"])]
        result = super()._create_chat_result(raw, generation_info)
        for message, made, generation in zip(messages, calls, result.generations, strict=True):
            answer = generation.message
            assert isinstance(answer, AIMessage)
            self._keep_reasoning(message, answer)
            if message.get("refusal"):
                answer.additional_kwargs["refusal"] = message["refusal"]
            for call in made:
                if call not in message["tool_calls"]:
                    answer.invalid_tool_calls.append(make_invalid_tool_call(call, "The arguments are no JSON object."))
            if made:
                functions = [call["function"] for call in made]
                answer.response_metadata[RAW_CALLS] = [[each["name"], each["arguments"]] for each in functions]
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if made is not None and (choices := chunk.get("choices")):
            self._keep_reasoning(choices[0].get("delta") or {}, made.message)
        return made

    def _keep_reasoning(self, source: dict[str, Any], message: BaseMessage) -> None:
        field = self.backend.reasoning_field
        if field and isinstance(message, AIMessage) and isinstance(text := source.get(field), str):
            message.additional_kwargs[REASONING] = text

    def _choices(self, raw: object) -> list[dict[str, Any]]:
        if not isinstance(raw, dict):
            raise self._malformed("its body is not JSON")
        if raw.get("error"):
            said = quoted(json.dumps(raw["error"]), self.backend)
            raise BackendError(f"The backend '{self.backend.name}' answered with an error ({said}): try again later.")
        choices = raw.get("choices")
        if not isinstance(choices, list) or not choices:
            raise self._malformed("it holds no choices")
        if not all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
            raise self._malformed("it holds a choice without a message")
        return choices

    def _calls(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The tool calls of a message, with the arguments as text."""
        made = message.get("tool_calls") or []
        for call in made:
            function = call.get("function") if isinstance(call, dict) else None
            parts = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None,)
            if not all(isinstance(part, str) for part in parts):
                raise self._malformed("it holds a tool call without name and arguments")
        return list(made)

    def _malformed(self, reason: str) -> MalformedResponseError:
        return MalformedResponseError(
            f"The answer of the backend '{self.backend.name}' is no chat completion ({reason}): check its base_url."
        )


class OpenAIChat(_KeepingChat, ChatOpenAI):
    """Chat model of every endpoint but Azure's."""


class AzureChat(_KeepingChat, AzureChatOpenAI):
    """Chat model of an Azure OpenAI deployment."""
