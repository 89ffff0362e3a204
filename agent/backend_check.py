"""Check of a backend: is the endpoint reached, and do text, streaming, images, structured output and tool calls work?

Every check is one real request (three at most, by the client's own retries). An answer counts only where it is right:
the colours of the picture, the values of the sentence, the arguments of the tool.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from agent.backends import Backend, UnreachableError, chat_model
from models.errors import BackendError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

CheckName = Literal["endpoint", "text", "stream", "image", "structured", "tools"]
CHECKS: tuple[CheckName, ...] = ("endpoint", "text", "stream", "image", "structured", "tools")
_SIDE = 224
"""Pixels; small, and above the least side of common image encoders."""
_LONGEST_QUOTE = 80


class Check(BaseModel):
    """One thing that was tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: CheckName
    status: Literal["works", "fails", "not tried"]
    detail: str = Field(description="What came back, what went wrong, or why it was not tried")
    seconds: float = Field(default=0.0, ge=0)


class CheckReport(BaseModel):
    """All checks of one backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    base_url: str
    model: str
    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether the planner can use the entry as it stands: text, structured output and the images it promises."""
        needed = all(self.status(name) == "works" for name in ("endpoint", "text", "structured"))
        return needed and self.status("image") != "fails"

    def status(self, name: str) -> str:
        """Status of the check of that name."""
        return next(check.status for check in self.checks if check.name == name)


class _Picture(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    left: tuple[int, int, int]
    right: tuple[int, int, int]
    expected: tuple[str, ...]


class _Questions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    image: _Picture
    structured: str
    tool: str


class Infusion(BaseModel):
    """What the structured check asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drug: Literal["Doxorubicin", "Cisplatin", "Epirubicin"]
    dose_mg: int = Field(description="Dose in mg")


class Add(BaseModel):
    """Add two whole numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: int
    b: int


class _WrongAnswer(Exception):
    """An answer came, but not the right one."""


@lru_cache(maxsize=1)
def _questions() -> _Questions:
    text = files("agent").joinpath("backend_check.yaml").read_text(encoding="utf-8")
    return _Questions.model_validate(yaml.safe_load(text))


def check_backend(backend: Backend, tell: Callable[[Check], None] = lambda _: None) -> CheckReport:
    """Try a backend.

    Args:
        backend: The backend.
        tell: Called with every check as it is finished.

    Returns:
        One check per name of `CHECKS`, in that order. What can't work any more is not tried.
    """
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        tell(check)

    def skip(reason: str) -> CheckReport:
        for name in CHECKS[len(checks) :]:
            add(Check(name=name, status="not tried", detail=reason))
        return report()

    def report() -> CheckReport:
        return CheckReport(backend=backend.name, base_url=backend.base_url, model=backend.model, checks=tuple(checks))

    try:
        ready = backend.resolved()
        model = chat_model(backend)
    except BackendError as error:
        add(Check(name="endpoint", status="fails", detail=str(error)))
        return skip("the backend is not set up")
    text, fault = _tried("text", lambda: _text(model))
    if isinstance(fault, UnreachableError):
        add(text.model_copy(update={"name": "endpoint"}))
        return skip("the endpoint is not reached")
    add(Check(name="endpoint", status="works", detail=f"{ready.base_url} answers"))
    add(text)
    if text.status != "works":
        return skip("plain text does not work")
    add(_tried("stream", lambda: _stream(model))[0])
    if ready.vision:
        add(_tried("image", lambda: _image(model))[0])
    else:
        add(Check(name="image", status="not tried", detail="the registry says that the model takes no images"))
    add(_tried("structured", lambda: _structured(ready))[0])
    add(_tried("tools", lambda: _tools(model))[0])
    return report()


def _tried(name: CheckName, attempt: Callable[[], str]) -> tuple[Check, BackendError | None]:
    started = time.perf_counter()
    fault: BackendError | None = None
    status: Literal["works", "fails"] = "works"
    try:
        detail = attempt()
    except _WrongAnswer as wrong:
        status, detail = "fails", str(wrong)
    except BackendError as error:
        status, detail, fault = "fails", str(error), error
    return Check(name=name, status=status, detail=detail, seconds=time.perf_counter() - started), fault


def _text(model: BaseChatModel) -> str:
    return _said(str(model.invoke(_questions().text).text))


def _stream(model: BaseChatModel) -> str:
    pieces = [str(chunk.text) for chunk in model.stream(_questions().text)]
    said = _said("".join(pieces))
    return f"{said}, in {sum(bool(piece) for piece in pieces)} pieces"


def _image(model: BaseChatModel) -> str:
    from langchain_core.messages import HumanMessage

    picture = _questions().image
    block = {"type": "image", "base64": base64.b64encode(_png(picture)).decode(), "mime_type": "image/png"}
    said = str(model.invoke([HumanMessage([{"type": "text", "text": picture.question}, block])]).text)
    if not all(colour in said.lower() for colour in picture.expected):
        raise _WrongAnswer(f"the picture is {' and '.join(picture.expected)}, but the model {_said(said)}")
    return _said(said)


def _png(picture: _Picture) -> bytes:
    from PIL import Image

    image = Image.new("RGB", (_SIDE, _SIDE), picture.left)
    image.paste(picture.right, (_SIDE // 2, 0, _SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _structured(backend: Backend) -> str:
    from langchain_core.messages import HumanMessage

    from agent.llm_client import LlmClient, RequestBudget

    client = LlmClient([backend], RequestBudget(), attempts=1)
    value = client.ask([HumanMessage(_questions().structured)], Infusion).value
    if value != Infusion(drug="Doxorubicin", dose_mg=50):
        raise _WrongAnswer(f"the form is right but not the content: {value.model_dump_json()}")
    return f"{backend.structured}: {value.model_dump_json()}"


def _tools(model: BaseChatModel) -> str:
    from langchain_core.messages import AIMessage

    answer = model.bind_tools([Add]).invoke(_questions().tool)
    assert isinstance(answer, AIMessage)
    calls = answer.tool_calls
    if answer.invalid_tool_calls:
        broken = answer.invalid_tool_calls[0]["args"]
        raise _WrongAnswer(f"the tool was called with arguments that are no JSON object: {broken}")
    if not calls:
        raise _WrongAnswer(f"no tool was called; the model {_said(str(answer.text))}")
    if [(call["name"], call["args"]) for call in calls] != [("Add", {"a": 19, "b": 23})]:
        made = ", ".join(f"{call['name']}{call['args']}" for call in calls)
        raise _WrongAnswer(f"the wrong call: {made}")
    return "Add(a=19, b=23)"


def _said(text: str) -> str:
    """What a model said, short and on one line."""
    words = " ".join(text.split())
    if not words:
        raise _WrongAnswer("the answer is empty")
    return f"said '{words}'" if len(words) <= _LONGEST_QUOTE else f"said '{words[:_LONGEST_QUOTE]}...'"
