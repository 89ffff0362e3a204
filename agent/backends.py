"""Backends: the registry of language-model endpoints, and a chat model for an entry of it.

Every backend speaks the OpenAI chat-completions protocol. The built-in entries stand in `backends.yaml`; the user's own
file (`~/.config/mewm/backends.yaml`, or the file that `MEWM_BACKENDS` names) adds entries or replaces them by name. A
file holds the *name* of the environment variable with the API key, never the key.

Not covered: endpoints of other protocols (put a gateway such as LiteLLM or OpenRouter in front), and OpenAI's Responses
API.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import BackendError, InputError
from models.strict_yaml import StrictLoader, yaml_place

if TYPE_CHECKING:
    import httpx2
    import openai
    from langchain_core.language_models import BaseChatModel

Structured = Literal["json_schema", "json_object", "tools"]

FILE_VARIABLE = "MEWM_BACKENDS"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LONGEST_REASON = 240
"""Characters of an endpoint's own error text that a sentence may quote."""

_CONNECT_S = 10.0
"""Seconds to wait for a connection: a model may think for minutes, an address that is wrong should be told soon."""

_making_client = threading.Lock()
_on_request: ContextVar[Callable[[], None] | None] = ContextVar("on_request", default=None)


class UnreachableError(BackendError):
    """No connection, or no answer in time."""


class Backend(BaseModel):
    """One endpoint and what it can do.

    `base_url`, `model`, `api_version` and `deployment` may hold ``${NAME}``, which is read from the environment when
    the backend is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base_url: str = Field(description="Root of the API, such as https://api.openai.com/v1; for Azure the resource")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Variable with the key; None where none is needed",
    )
    vision: bool = Field(description="Whether the model takes images")
    structured: Structured = Field(description="How an answer is bound to a schema")
    context_tokens: int = Field(gt=0, description="Longest prompt and answer together")
    output_tokens: int = Field(gt=0, description="Longest answer; sent as the limit of every request")
    output_limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="Name of the request's field for that limit"
    )
    input_price: float | None = Field(default=None, ge=0, description="USD per million tokens read")
    output_price: float | None = Field(default=None, ge=0, description="USD per million tokens written")
    price_source: str | None = Field(default=None, description="Where the prices are from, with the date")
    timeout_s: float = Field(default=120.0, gt=0, description="Seconds to wait for one request")
    temperature: float | None = Field(default=None, ge=0, le=2, description="None: not sent, the model's own")
    api_version: str | None = Field(default=None, description="Azure OpenAI only")
    deployment: str | None = Field(default=None, description="Azure OpenAI only")
    reasoning_field: str | None = Field(default=None, description="Field of the message that holds the reasoning")
    return_reasoning: bool = Field(
        default=False, description="Whether messages with tool calls go back with their reasoning"
    )
    stream_usage: bool = Field(default=True, description="Whether token counts can be asked for in a stream")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Further fields of every request")
    fallback: tuple[str, ...] = Field(default=(), description="Backends to try next, by name")
    note: str | None = None

    @field_validator("base_url")
    @classmethod
    def _web_address_without_secrets(cls, url: str) -> str:
        if _VARIABLE.search(url):
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a web address that starts with http:// or https://")
        try:
            port = parts.port
        except ValueError:  # its own words would tell the value, which could be a key
            port = 0
        if port == 0:
            raise ValueError("must have a port from 1 to 65535, or none")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no user, password or query; the key belongs into an environment variable")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.api_version is None) != (self.deployment is None):
            raise ValueError("api_version and deployment belong together (Azure OpenAI): give both or neither")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price belong together: give both or neither")
        if self.input_price is not None and self.price_source is None:
            raise ValueError("a price needs price_source: where it is from, with the date")
        if self.return_reasoning and self.reasoning_field is None:
            raise ValueError("return_reasoning needs reasoning_field")
        return self

    @property
    def azure(self) -> bool:
        """Whether this is an Azure OpenAI deployment with its own paths and API versions."""
        return self.deployment is not None

    @property
    def local(self) -> bool:
        """Whether the endpoint is on this machine, so that nothing leaves it."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def request_fields(self) -> dict[str, Any]:
        """Fields of every request to this backend."""
        return {self.output_limit_name: self.output_tokens, **self.extra_body}

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float | None:
        """List price of a request in USD, without any discount for cached input; None where no price is known."""
        if self.input_price is None or self.output_price is None:
            return None
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6

    def resolved(self) -> Backend:
        """The same backend with every ``${NAME}`` read from the environment.

        Raises:
            BackendError: a variable is not set, or its value makes no usable backend.
        """

        def read(match: re.Match[str]) -> str:
            value = os.environ.get(match[1])
            if not value:
                raise BackendError(f"The backend '{self.name}' needs the environment variable {match[1]}: set it.")
            return value

        texts = {name: getattr(self, name) for name in ("base_url", "model", "api_version", "deployment")}
        filled = {name: _VARIABLE.sub(read, text) for name, text in texts.items() if text is not None}
        try:
            return Backend.model_validate({**self.model_dump(), **filled})
        except ValidationError as exc:
            raise BackendError(f"The backend '{self.name}' can't be used: {_faults(exc)}.") from None

    @property
    def key_is_set(self) -> bool:
        """Whether the API key is there, or none is needed."""
        return self.api_key_env is None or bool(os.environ.get(self.api_key_env, "").strip())

    def api_key(self) -> str:
        """The API key from the environment, or a placeholder for a server that needs none.

        Raises:
            BackendError: the variable is not set.
        """
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise BackendError(
                f"The backend '{self.name}' needs an API key in the environment variable {self.api_key_env}, "
                "which is not set: set it, or choose another backend (`mewm backends list`)."
            )
        return key


def _faults(exc: ValidationError) -> str:
    """What is wrong, without the values: one of them could be a key that does not belong there."""
    texts = []
    for fault in exc.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in fault["loc"])
        text = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        texts.append(f"{place}: {text}" if place else text)
    return "; ".join(texts)


def _read(text: str, origin: str) -> dict[str, Backend]:
    try:
        content = yaml.load(text, Loader=StrictLoader)  # a SafeLoader
    except yaml.YAMLError as exc:
        raise InputError(f"The backend file {origin} is not valid YAML{yaml_place(exc)}: correct it.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or set(content) != {"backends"} or not isinstance(content["backends"], dict):
        raise InputError(
            f"The backend file {origin} must hold one mapping named 'backends', from a backend's name to its fields."
        )
    found: dict[str, Backend] = {}
    for name, fields in content["backends"].items():
        if not isinstance(fields, dict):
            raise InputError(f"The backend '{name}' in {origin} must be a mapping of fields.")
        try:
            found[str(name)] = Backend.model_validate({"name": str(name), **fields})
        except ValidationError as exc:
            raise InputError(f"The backend '{name}' in {origin} can't be used: {_faults(exc)}.") from None
    return found


def default_user_file() -> Path:
    """Where the user's own backends are: the file that `MEWM_BACKENDS` names, or the one in the home folder."""
    named = os.environ.get(FILE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".config" / "mewm" / "backends.yaml"


def load_backends(user_file: Path | None = None) -> dict[str, Backend]:
    """All backends by name: the built-in ones, then the user's, which replace built-in ones of the same name.

    Args:
        user_file: The user's file; by default `default_user_file()`, which may be absent unless `MEWM_BACKENDS` names
            it.

    Raises:
        InputError: the file is missing although it was named, is no valid YAML, has an unknown key or a bad value, or
            an entry falls back to a backend that does not exist.
    """
    found = _read(files("agent").joinpath("backends.yaml").read_text(encoding="utf-8"), "backends.yaml")
    path = user_file or default_user_file()
    named = user_file is not None or bool(os.environ.get(FILE_VARIABLE))
    try:
        found |= _read(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        if named:
            raise InputError(f"The backend file {path} does not exist: create it or name another.") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"The backend file {path} can't be read ({exc}).") from exc
    for backend in found.values():
        if strangers := [name for name in backend.fallback if name not in found]:
            raise InputError(
                f"The backend '{backend.name}' falls back to '{strangers[0]}', which is not among the backends: "
                f"{', '.join(sorted(found))}."
            )
    return found


def resolve_chain(name: str, backends: Mapping[str, Backend]) -> tuple[Backend, ...]:
    """The backend `name` and those that are tried after it, each once, in the order of their fallbacks.

    Raises:
        InputError: there is no backend of that name.
    """
    chain: dict[str, Backend] = {}

    def follow(name: str) -> None:
        if name not in chain:
            chain[name] = backends[name]
            for further in chain[name].fallback:
                follow(further)

    if name not in backends:
        raise InputError(f"There is no backend '{name}'; the backends are {', '.join(sorted(backends))}.")
    follow(name)
    return tuple(chain.values())


@contextmanager
def watch_requests(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` right before every HTTP request of this thread, the client's own retries included.

    An exception of the listener reaches the caller, and the request is not sent.
    """
    token = _on_request.set(listener)
    try:
        yield
    finally:
        _on_request.reset(token)


def _before_request(request: httpx2.Request) -> None:
    if request.url.host != "api.openai.com":
        # The client adds the account from OPENAI_ORG_ID and OPENAI_PROJECT_ID; it is no business of other endpoints.
        for name in ("OpenAI-Organization", "OpenAI-Project"):
            request.headers.pop(name, None)
    limits = request.extensions["timeout"]
    limits["connect"] = min(_CONNECT_S, limits["connect"])
    if (listener := _on_request.get()) is not None:
        listener()


def _http_client() -> httpx2.Client:
    """One connection pool per process; the OpenAI client gives every request its own address and time-out."""
    with _making_client:  # `cache` alone lets threads that ask at once make a pool each, of which all but one leak
        return _new_http_client()


@cache
def _new_http_client() -> httpx2.Client:
    import openai

    client = openai.DefaultHttpxClient(event_hooks={"request": [_before_request]})
    atexit.register(client.close)  # connections that are kept for the next request would be left open at the end
    return client


def chat_model(backend: Backend) -> BaseChatModel:
    """A chat model that asks this backend.

    Network faults, 429 and 5xx are the OpenAI client's to retry: twice, so one call is at most three requests. What
    remains of them is raised as a `BackendError` by the synchronous methods (``invoke``, ``stream``). The reasoning of
    a message is kept in ``additional_kwargs["reasoning_content"]``.

    Raises:
        BackendError: a variable with the API key or a part of the address is not set.
    """
    from agent.chat_models import AzureChat, OpenAIChat

    ready = backend.resolved()
    fields: dict[str, Any] = {
        "model": ready.model,
        "api_key": ready.api_key(),
        "timeout": ready.timeout_s,
        "max_retries": 2,
        "stream_usage": ready.stream_usage,
        # Other makers' models may bear names for which langchain-openai would choose OpenAI's Responses API.
        "use_responses_api": False,
        "http_client": _http_client(),
        "openai_proxy": None,
        "temperature": ready.temperature,
        "extra_body": ready.request_fields,
        "backend": ready,
    }
    if ready.azure:
        return AzureChat(
            azure_endpoint=ready.base_url, azure_deployment=ready.deployment, api_version=ready.api_version, **fields
        )
    return OpenAIChat(base_url=ready.base_url, **fields)


def failure(error: openai.OpenAIError, backend: Backend) -> BackendError:
    """The one sentence for an error of the OpenAI client, after its own retries.

    Args:
        error: What the client raised.
        backend: The backend that was asked.
    """
    import openai

    who = f"The backend '{backend.name}'"
    if isinstance(error, openai.APITimeoutError):
        return UnreachableError(
            f"{who} did not answer within {backend.timeout_s:g} s: try again later or raise its timeout_s."
        )
    if isinstance(error, openai.APIConnectionError):
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return UnreachableError(
            f"The connection to the backend '{backend.name}' at {backend.base_url} failed "
            f"({quoted(str(cause), backend)}): check that it runs and that the address is right."
        )
    if isinstance(error, openai.APIStatusError):
        words = quoted(re.sub(r"^Error code: \d+( - )?", "", error.message), backend)
        said = f"{error.status_code}: {words}" if words else f"{error.status_code}"
        return BackendError(f"{who} {_refusal(error.status_code, said, backend)}")
    return BackendError(f"{who} failed ({quoted(str(error), backend)}).")


def _refusal(status: int, said: str, backend: Backend) -> str:
    if status in (401, 403):
        key = f"the API key in {backend.api_key_env}" if backend.api_key_env else "whether it needs an API key"
        return f"refused access ({said}): check {key}."
    if status == 404:
        return f"knows no model '{backend.model}' at {backend.base_url} ({said}): correct the one or the other."
    if status == 429:
        return f"is over its rate limit or quota ({said}): wait, or choose another backend."
    if status >= 500:
        return f"has a fault of its own ({said}): try again later, or choose another backend."
    return f"refused the request ({said})."


def quoted(text: str, backend: Backend) -> str:
    """An endpoint's own words on one line, shortened, with the key taken out should they repeat it."""
    key = os.environ.get(backend.api_key_env, "").strip() if backend.api_key_env else ""
    if key:
        text = text.replace(key, "(the key)")
    text = " ".join(text.split()).rstrip(".:")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
