from __future__ import annotations

import itertools
import json

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from pydantic import BaseModel

from agent.backends import chat_model
from agent.chat_models import BrokenToolCallError, MalformedResponseError
from models.errors import BackendError
from tests.agent.loopback import Answer, LoopbackServer, Reply, Request, call, calls, drop, error, hang, html, say


class Plan(BaseModel):
    """Plan a case."""

    case_id: str


def streamed(
    server: LoopbackServer, text: str = "Hello", **fields: object
) -> tuple[AIMessageChunk, list[AIMessageChunk]]:
    """The whole message and its pieces."""
    pieces = [chunk for chunk in chat_model(server.backend(**fields)).stream(text) if isinstance(chunk, AIMessageChunk)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    return whole, pieces


def test_a_stream_brings_words_reasoning_tool_calls_and_tokens() -> None:
    script = [
        say("Three little words", reasoning="Let me think", reasoning_field="reasoning", usage=(7, 5)),
        calls(("Plan", {"case_id": "a b"}), ("Plan", {"case_id": "c"}), text="Two plans."),
    ]
    with LoopbackServer(script) as server:
        words, pieces = streamed(server, reasoning_field="reasoning")
        plans, _ = streamed(server)
    assert words.text == "Three little words"
    assert [piece.text for piece in pieces if piece.text] == ["Three ", "little ", "words"]
    assert words.additional_kwargs["reasoning_content"] == "Let me think"
    assert words.usage_metadata is not None
    assert (words.usage_metadata["input_tokens"], words.usage_metadata["output_tokens"]) == (7, 5)
    assert plans.text == "Two plans."
    assert [(made["name"], made["args"]) for made in plans.tool_calls] == [
        ("Plan", {"case_id": "a b"}),
        ("Plan", {"case_id": "c"}),
    ]
    assert [request.body["stream_options"] for request in server.requests] == [{"include_usage": True}] * 2


@pytest.mark.parametrize("arguments", ['{"case_id": "liver-1', '["liver-1"]', '"liver-1"', "liver-1"])
def test_a_broken_tool_call_is_never_completed(arguments: str) -> None:
    """langchain would make {'case_id': 'liver-1'} of the first, and {} of others."""
    with LoopbackServer(itertools.repeat(call("Plan", arguments))) as server:
        with pytest.raises(BrokenToolCallError, match="no JSON object"):
            streamed(server)
        whole = chat_model(server.backend()).invoke("Hello")
    assert isinstance(whole, AIMessage)
    assert not whole.tool_calls
    (broken,) = whole.invalid_tool_calls
    assert (broken["name"], broken["args"]) == ("Plan", arguments)
    assert len(server.requests) == 2


def test_a_tool_without_parameters_needs_no_arguments() -> None:
    with LoopbackServer([call("list_rules", ""), call("list_rules", "")]) as server:
        whole, _ = streamed(server)
        assert whole.tool_calls[0]["args"] == {}
        answer = chat_model(server.backend()).invoke("Hello")
    assert isinstance(answer, AIMessage)
    assert (answer.tool_calls[0]["args"], answer.invalid_tool_calls) == ({}, [])


def test_calls_without_an_index_are_whole_calls() -> None:
    """As some servers stream them."""

    def event(delta: dict[str, object], finish: str | None = None) -> str:
        return (
            f"data: {json.dumps({'id': 'x', 'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"
        )

    made = [
        {"id": key, "type": "function", "function": {"name": "Plan", "arguments": '{"case_id": "a"}'}} for key in "pq"
    ]
    events = event({"role": "assistant", "tool_calls": made[:1]}) + event({"tool_calls": made[1:]}, "tool_calls")
    with LoopbackServer([Reply(body=f"{events}data: [DONE]\n\n", content_type="text/event-stream")]) as server:
        whole, _ = streamed(server)
    assert [call["args"] for call in whole.tool_calls] == [{"case_id": "a"}] * 2


STREAM_FAULTS = [
    (error(500), BackendError, 3, "fault of its own"),
    (error(401), BackendError, 1, "refused access"),
    (drop(), BackendError, 3, "connection"),
    (drop("one two three four"), BackendError, 1, "connection"),
    (hang(), BackendError, 3, "did not answer within"),
    (html(), MalformedResponseError, 1, "no chat completion"),
    (Reply(body="data: {oops\n\n", content_type="text/event-stream"), MalformedResponseError, 1, "not JSON"),
    (Reply(body='data: {"error": {"message": "gone"}}\n\n', content_type="text/event-stream"), BackendError, 1, "gone"),
]


@pytest.mark.parametrize(("fault", "kind", "requests", "text"), STREAM_FAULTS)
def test_faults_of_a_stream_are_one_sentence(fault: Reply, kind: type[BackendError], requests: int, text: str) -> None:
    with LoopbackServer(itertools.repeat(fault)) as server, pytest.raises(BackendError, match=text) as raised:
        streamed(server, timeout_s=0.1)
    assert isinstance(raised.value, kind)
    assert "'loopback'" in str(raised.value)
    assert len(server.requests) == requests


MALFORMED = [
    {"tool_calls": [{"id": "1", "type": "function"}]},
    {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "Plan", "arguments": None}}]},
    {"tool_calls": ["Plan"]},
]


@pytest.mark.parametrize("message", MALFORMED)
def test_tool_calls_without_name_or_arguments_are_refused(message: dict[str, object]) -> None:
    body = json.dumps(
        {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": None, **message}}]}
    )
    with LoopbackServer([Reply(body=body)]) as server, pytest.raises(MalformedResponseError, match="tool call"):
        chat_model(server.backend()).invoke("Hello")


def test_an_answer_without_a_role_is_the_assistants() -> None:
    with LoopbackServer([Reply(body='{"choices": [{"message": {"content": "Hello"}}]}')]) as server:
        assert chat_model(server.backend()).invoke("Hello").text == "Hello"


def test_reasoning_goes_back_with_tool_calls_only_where_it_must() -> None:
    fields = {"reasoning_field": "reasoning_content"}
    script = [
        Reply(calls=(("Plan", {"case_id": "a"}),), reasoning="Plan a."),
        say("Done.", reasoning="It is done."),
        say("Bye."),
    ]
    for wanted in (True, False):
        with LoopbackServer(script) as server:
            model = chat_model(server.backend(return_reasoning=wanted, **fields)).bind_tools([Plan])
            history = [HumanMessage("Plan a."), model.invoke("Plan a.")]
            history.append(ToolMessage("planned", tool_call_id=history[1].tool_calls[0]["id"]))
            history.append(model.invoke(history))
            model.invoke([*history, HumanMessage("Thanks.")])
        made, done = (server.requests[2].messages[place] for place in (1, 3))
        assert made.get("reasoning_content") == ("Plan a." if wanted else None)
        assert "reasoning_content" not in done
        assert history[3].additional_kwargs["reasoning_content"] == "It is done."


def test_a_chat_over_tools_can_be_scripted_by_the_messages() -> None:
    """The way that chats of several turns are tested: the answer depends on what was said and called so far."""

    def script(request: Request) -> Answer:
        if request.turn == 1 and not request.tool_results:
            return call("Plan", case_id="liver-1")
        return f"Turn {request.turn}: {request.tool_results}"

    with LoopbackServer(script) as server:
        model = chat_model(server.backend()).bind_tools([Plan])
        history = [HumanMessage("Plan liver-1.")]
        history.append(model.invoke(history))
        history.append(ToolMessage("risk 0.4", tool_call_id=history[1].tool_calls[0]["id"]))
        history.append(model.invoke(history))
        history.append(HumanMessage("And now?"))
        last = model.invoke(history)
    assert history[3].text == "Turn 1: ['risk 0.4']"
    assert last.text == "Turn 2: []"
    assert server.requests[0].tool_names == ["Plan"]
