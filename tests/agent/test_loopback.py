from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from agent.llm_client import LlmClient, RequestBudget
from models.errors import BackendError
from tests.agent.loopback import LoopbackServer, by_schema, empty, truncated


class First(BaseModel):
    a: int


class Second(BaseModel):
    b: str


def ask(server: LoopbackServer, schema: type[BaseModel]) -> BaseModel:
    return LlmClient([server.backend()], RequestBudget()).ask([HumanMessage("Well?")], schema).value


def test_by_schema_answers_every_question_by_its_form() -> None:
    replies = {
        "First": [empty(), {"a": 1}, truncated({"a": 2}), {"a": 3}],
        "Second": lambda request: {"b": f"request {request.number}"},
    }
    with LoopbackServer(by_schema(replies)) as server:
        assert ask(server, First) == First(a=1)
        assert ask(server, Second) == Second(b="request 2")
        assert [ask(server, First) for _ in range(2)] == [First(a=3), First(a=3)]
    assert [request.schema_name for request in server.requests] == ["First", "First", "Second", *["First"] * 3]


def test_what_goes_wrong_in_a_script_reaches_the_test() -> None:
    with (
        pytest.raises(AssertionError, match="no reply is scripted for the schema First"),
        LoopbackServer(by_schema({})) as server,
        pytest.raises(BackendError, match="the script of the loopback server failed"),
    ):
        ask(server, First)
    with LoopbackServer([]) as server, pytest.raises(BackendError, match="has no reply left"):
        ask(server, First)
