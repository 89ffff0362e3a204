"""The client of the language models: one question, a typed answer, or one clear failure.

Who retries what. The OpenAI client retries network faults, 429 and 5xx (three requests in all); nobody retries those
again. tenacity re-asks for an answer that does not fit: not JSON, not of the schema, against the caller's check, empty,
cut off, a refusal, a proxy's page. The model is shown its answer with the exact fault. After `attempts` unfit answers,
or an error of the endpoint, the next backend of the chain is asked. An answer is parsed strictly: nothing is repaired,
completed, stripped of a fence or converted from another type.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_none

from agent.backends import Backend, chat_model, watch_requests
from models.errors import BackendError, InvalidAnswerError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

T = TypeVar("T", bound=BaseModel)

_LONGEST_SHOWN = 4000
"""Characters of an unfit answer that the model is shown again; an endless one must not fill the context."""
_MOST_FAULTS = 8
_IMAGE_BLOCKS = ("image", "image_url", "input_image")


class BudgetSpent(BackendError):
    """A decision or a plan has used up its requests."""


class Meter:
    """Requests of one decision."""

    def __init__(self, budget: RequestBudget) -> None:
        self._budget = budget
        self.requests = 0

    def take(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpent: the decision or the plan has no request left.
        """
        self._budget._take(self)


class RequestBudget:
    """Counts HTTP requests, the OpenAI client's own retries included, over one plan and each of its decisions."""

    def __init__(self, per_decision: int = 12, per_plan: int = 120, used: int = 0) -> None:
        """Make a budget.

        Args:
            per_decision: Most requests of one question, at least 1.
            per_plan: Most requests of all questions together, at least 1.
            used: Requests that the plan has sent before, in this process or an earlier one.
        """
        if min(per_decision, per_plan) < 1:
            raise ValueError("a budget allows at least one request")
        self.per_decision = per_decision
        self.per_plan = per_plan
        self._used = used
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Requests of the plan so far."""
        with self._lock:
            return self._used

    @contextmanager
    def decision(self) -> Iterator[Meter]:
        """Count the requests that this thread sends inside the block as one decision."""
        meter = Meter(self)
        with watch_requests(meter.take):
            yield meter

    def _take(self, meter: Meter) -> None:
        with self._lock:
            if meter.requests >= self.per_decision:
                raise BudgetSpent(f"The decision has used up its {self.per_decision} requests to language models.")
            if self._used >= self.per_plan:
                raise BudgetSpent(f"The plan has used up its {self.per_plan} requests to language models.")
            meter.requests += 1
            self._used += 1


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A fitting answer and what it took.

    Attributes:
        value: The answer.
        backend: Name of the backend that gave it.
        model: The model as the endpoint names it.
        requests: HTTP requests of the whole decision, failed ones included.
        input_tokens: Tokens read in the whole decision, as far as the endpoints said.
        output_tokens: Tokens written, likewise.
        cost_usd: List price of those tokens; None where a price or a token count is not known.
        reasoning: Reasoning content of the answer; kept, never parsed.
        failures: What went wrong before, one sentence each: unfit answers, backends that failed or were skipped.
    """

    value: T
    backend: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    reasoning: str | None
    failures: tuple[str, ...]


@dataclass
class _Tally:
    """What a decision has used so far."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, message: AIMessage, backend: Backend) -> None:
        usage = message.usage_metadata
        cost = None if usage is None else backend.cost_usd(usage["input_tokens"], usage["output_tokens"])
        self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost
        if usage is not None:
            self.input_tokens += usage["input_tokens"]
            self.output_tokens += usage["output_tokens"]


class _UnfitAnswer(Exception):
    """An answer that can't be used: the fault, and the model's words where there are any."""

    def __init__(self, fault: str, words: str | None) -> None:
        super().__init__(fault)
        self.fault = fault
        self.words = words


class _Texts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_in_prompt: str
    no_text: str
    ask_again: str


@lru_cache(maxsize=1)
def _texts() -> _Texts:
    return _Texts.model_validate(yaml.safe_load(files("agent").joinpath("llm_client.yaml").read_text(encoding="utf-8")))


class LlmClient:
    """Asks the backends of a chain in turn. Safe to use from several threads."""

    def __init__(self, chain: Sequence[Backend], budget: RequestBudget, *, attempts: int = 3) -> None:
        """Make a client.

        Args:
            chain: The backend to ask and those to try after it (`agent.backends.resolve_chain`).
            budget: What the decisions of this plan may use; shared by all clients of a plan.
            attempts: How often one backend is asked for a fitting answer, at least 1.
        """
        if not chain or attempts < 1:
            raise ValueError("a client needs a backend and at least one attempt")
        self.chain = tuple(chain)
        self.budget = budget
        self.attempts = attempts
        self._models: dict[str, BaseChatModel] = {}
        self._lock = threading.Lock()

    def ask(
        self,
        messages: Sequence[BaseMessage],
        schema: type[T],
        check: Callable[[T], list[str]] | None = None,
    ) -> Reply[T]:
        """Ask for an answer of the type `schema`.

        Args:
            messages: The question; images as standard image blocks.
            schema: Type of the answer; `agent.strict_schema` says what it may hold.
            check: Further faults of a parsed answer, one sentence each; empty where it is fit.

        Raises:
            BudgetSpent: the decision or the plan has no request left.
            InvalidAnswerError: the last backend of the chain never gave a fitting answer.
            BackendError: the last backend of the chain can't be used (one sentence says why).
        """
        tally = _Tally()
        with self.budget.decision() as meter:
            for place, backend in enumerate(self.chain):
                try:
                    value, message = self._ask_backend(backend, messages, schema, check, tally)
                except BackendError as error:
                    last = place == len(self.chain) - 1
                    if last or isinstance(error, BudgetSpent):
                        error.failures = tuple(tally.failures)
                        error.requests = meter.requests
                        error.input_tokens, error.output_tokens = tally.input_tokens, tally.output_tokens
                        error.cost_usd = tally.cost_usd
                        raise
                    if not isinstance(error, InvalidAnswerError):
                        tally.failures.append(str(error))
                    continue
                return Reply(
                    value=value,
                    backend=backend.name,
                    model=str(message.response_metadata.get("model_name") or backend.model),
                    requests=meter.requests,
                    input_tokens=tally.input_tokens,
                    output_tokens=tally.output_tokens,
                    cost_usd=tally.cost_usd,
                    reasoning=message.additional_kwargs.get("reasoning_content"),
                    failures=tuple(tally.failures),
                )
        raise AssertionError("a chain has at least one backend")

    def _ask_backend(
        self,
        backend: Backend,
        messages: Sequence[BaseMessage],
        schema: type[T],
        check: Callable[[T], list[str]] | None,
        tally: _Tally,
    ) -> tuple[T, AIMessage]:
        from agent.chat_models import MalformedResponseError

        if not backend.vision and (images := count_images(messages)):
            raise BackendError(
                f"The backend '{backend.name}' takes no images, but the question has {images}: "
                "choose a backend with vision."
            )
        model = self._model(backend)
        conversation, options = as_request(backend, messages, schema)

        def once() -> tuple[T, AIMessage]:
            try:
                try:
                    message = model.invoke(conversation, **options)
                except MalformedResponseError as error:
                    raise _UnfitAnswer(str(error), None) from error
                tally.add(message, backend)
                return parse(message, schema, backend, check), message
            except _UnfitAnswer as unfit:
                tally.failures.append(f"{backend.name}: {unfit.fault}")
                conversation.extend(_correction(unfit))
                raise

        retrying = Retrying(
            retry=retry_if_exception_type(_UnfitAnswer),
            stop=stop_after_attempt(self.attempts),
            wait=wait_none(),
            reraise=True,
        )
        try:
            return retrying(once)
        except _UnfitAnswer as unfit:
            raise InvalidAnswerError(
                f"The backend '{backend.name}' gave no answer that can be used in {self.attempts} attempts; "
                f"the last fault: {unfit.fault}"
            ) from unfit

    def _model(self, backend: Backend) -> BaseChatModel:
        with self._lock:
            if backend.name not in self._models:
                self._models[backend.name] = chat_model(backend)
            return self._models[backend.name]


def count_images(messages: Sequence[BaseMessage]) -> int:
    """Number of images in the messages."""
    blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
    return sum(isinstance(block, dict) and block.get("type") in _IMAGE_BLOCKS for block in blocks)


def tool_name(schema: type[BaseModel]) -> str:
    """Name of a schema as the API allows it: letters, digits, `_` and `-`, at most 64."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", schema.__name__)[:64]


def as_request(
    backend: Backend, messages: Sequence[BaseMessage], schema: type[BaseModel]
) -> tuple[list[BaseMessage], dict[str, Any]]:
    """What is sent to a backend: the messages, and the options that bind the answer to `schema`.

    Raises:
        TypeError: strict mode can't express the schema.
    """
    from agent.strict_schema import strict_schema

    name = tool_name(schema)
    described = strict_schema(schema)
    body = backend.request_fields
    if backend.structured == "json_schema":
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": described}}
        # In `extra_body`, langchain-openai passes it on as it is; given as `response_format` it would also parse.
        return list(messages), {"extra_body": {**body, "response_format": form}}
    if backend.structured == "json_object":
        text = _texts().schema_in_prompt.format(schema=json.dumps(described, ensure_ascii=False))
        return _with_system_text(messages, text), {"extra_body": {**body, "response_format": {"type": "json_object"}}}
    function = {"name": name, "description": "Give the answer.", "parameters": described}
    return list(messages), {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": name}},
    }


def _with_system_text(messages: Sequence[BaseMessage], text: str) -> list[BaseMessage]:
    """The messages with `text` at the end of the first system message: many chat templates allow only one."""
    if not messages or not isinstance(messages[0], SystemMessage):
        return [SystemMessage(text), *messages]
    first = messages[0]
    if isinstance(first.content, str):
        return [SystemMessage(f"{first.content}\n\n{text}"), *messages[1:]]
    return [SystemMessage([*first.content, {"type": "text", "text": text}]), *messages[1:]]


def _correction(unfit: _UnfitAnswer) -> list[BaseMessage]:
    """The messages that follow an unfit answer; none where the model did not say anything (a proxy's page)."""
    if unfit.words is None:
        return []
    words = unfit.words
    if len(words) > _LONGEST_SHOWN:
        words = f"{words[:_LONGEST_SHOWN]} [... {len(words)} characters in all]"
    return [AIMessage(words.strip() or _texts().no_text), HumanMessage(_texts().ask_again.format(fault=unfit.fault))]


def parse(message: AIMessage, schema: type[T], backend: Backend, check: Callable[[T], list[str]] | None = None) -> T:
    """The message as a value of `schema`, strictly.

    Raises:
        _UnfitAnswer: it is not one.
    """
    words = _words(message, schema, backend)
    reason = message.response_metadata.get("finish_reason")
    if refusal := message.additional_kwargs.get("refusal"):
        raise _UnfitAnswer(f"the model refused: {refusal}", words or str(refusal))
    if reason == "length":
        limit = backend.output_tokens
        raise _UnfitAnswer(f"the answer was cut off at the output limit of {limit} tokens; answer more briefly.", words)
    if reason == "content_filter":
        raise _UnfitAnswer("the endpoint's content filter stopped the answer.", words)
    if not words.strip():
        missing = f"no call of the tool {tool_name(schema)}" if backend.structured == "tools" else "no text"
        raise _UnfitAnswer(f"the answer is empty: it holds {missing}.", str(message.text))
    try:
        value = schema.model_validate_json(words, strict=True)
        json.loads(words, object_pairs_hook=_each_key_once)
    except ValidationError as error:
        raise _UnfitAnswer(_faults(error), words) from error
    except ValueError as error:
        raise _UnfitAnswer(f"the answer: {error}.", words) from error
    if stray := sorted(value.model_fields_set & hidden_fields(schema)):
        raise _UnfitAnswer(f"unknown field {', '.join(stray)}.", words)
    if check is not None and (faults := check(value)):
        raise _UnfitAnswer(" ".join(faults), words)
    return value


def hidden_fields(schema: type[BaseModel]) -> set[str]:
    """Fields that a schema hides from the model (`SkipJsonSchema`), so that it must not fill them."""
    shown = schema.model_json_schema(by_alias=False)["properties"]
    return set(schema.model_fields) - set(shown)


def _words(message: AIMessage, schema: type[BaseModel], backend: Backend) -> str:
    """The answer as the model wrote it: the text, or the arguments of the one tool call."""
    if backend.structured != "tools":
        return str(message.text)
    calls: list[list[str]] = message.response_metadata.get("raw_tool_calls", [])
    if len(calls) > 1:
        shown = "\n".join(arguments for _, arguments in calls)
        raise _UnfitAnswer(f"the answer calls tools {len(calls)} times; call {tool_name(schema)} once.", shown)
    if calls and calls[0][0] != tool_name(schema):
        raise _UnfitAnswer(f"the answer calls {calls[0][0]}; call {tool_name(schema)}.", calls[0][1])
    return calls[0][1] if calls else ""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: of two values for one key, neither is the answer."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return made


def _faults(error: ValidationError) -> str:
    """A validation error as sentences: place, fault, and what was found there."""
    found = error.errors(include_url=False)
    texts = []
    for fault in found[:_MOST_FAULTS]:
        place = ".".join(str(part) for part in fault["loc"]) or "the answer"
        value = repr(fault["input"])
        shown = value if len(value) <= 80 else f"{value[:80]}..."
        texts.append(f"{place}: {fault['msg'].removeprefix('Value error, ')} (found {shown}).")
    if len(found) > _MOST_FAULTS:
        texts.append(f"{len(found) - _MOST_FAULTS} further faults.")
    return " ".join(texts)
