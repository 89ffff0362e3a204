from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Literal

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, ConfigDict

from agent.llm_client import BudgetSpent, LlmClient, RequestBudget
from agent.policy import Explanation
from models.errors import BackendError, InvalidAnswerError
from tests.agent import loopback
from tests.agent.loopback import (
    LoopbackServer,
    Reply,
    Request,
    as_json,
    call,
    calls,
    cut_off,
    drop,
    empty,
    error,
    fenced,
    hang,
    html,
    html_error,
    refuse,
    say,
    truncated,
)


class Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    drug: Literal["Doxorubicin", "Cisplatin"]
    cycles: int


GOOD = {"drug": "Doxorubicin", "cycles": 2}
QUESTION: list[BaseMessage] = [SystemMessage("You plan."), HumanMessage("Which drug?")]


def client(
    *servers: LoopbackServer, budget: RequestBudget | None = None, attempts: int = 3, **fields: object
) -> LlmClient:
    chain = [server.backend(f"backend-{number}", **fields) for number, server in enumerate(servers)]
    return LlmClient(chain, budget or RequestBudget(), attempts=attempts)


def test_a_fitting_answer_takes_one_request() -> None:
    with LoopbackServer([as_json(GOOD, usage=(1000, 200), model="served-name")]) as server:
        reply = client(server, input_price=2.0, output_price=10.0, temperature=0).ask(QUESTION, Step)
    assert reply.value == Step(drug="Doxorubicin", cycles=2)
    assert (reply.backend, reply.model, reply.requests, reply.failures) == ("backend-0", "served-name", 1, ())
    assert (reply.input_tokens, reply.output_tokens) == (1000, 200)
    assert reply.cost_usd == pytest.approx(0.002 + 0.002)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.schema_name == "Step"
    assert request.body["response_format"]["json_schema"]["strict"] is True
    assert request.schema == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "drug": {"enum": ["Doxorubicin", "Cisplatin"], "type": "string"},
            "cycles": {"type": "integer"},
        },
        "required": ["drug", "cycles"],
    }
    assert [m["role"] for m in request.messages] == ["system", "user"]
    assert (request.body["max_tokens"], request.body["temperature"], request.stream) == (2048, 0, False)


SHOWN = [
    pytest.param(truncated(GOOD), "Invalid JSON: EOF while parsing", id="truncated"),
    pytest.param(fenced(GOOD), "Invalid JSON: expected value at line 1 column 1", id="fenced"),
    pytest.param(say(f"Here it is: {json.dumps(GOOD)}"), "Invalid JSON", id="text before"),
    pytest.param(say(f"{json.dumps(GOOD)} Good luck!"), "trailing characters", id="text after"),
    pytest.param(as_json([GOOD]), "Input should be an object", id="list"),
    pytest.param(
        as_json({**GOOD, "drug": "Aspirin"}),
        "drug: Input should be 'Doxorubicin' or 'Cisplatin' (found 'Aspirin')",
        id="wrong enum",
    ),
    pytest.param(as_json({"drug": "Cisplatin"}), "cycles: Field required", id="missing field"),
    pytest.param(as_json({**GOOD, "dose": 3}), "dose: Extra inputs are not permitted (found 3)", id="stray field"),
    pytest.param(as_json({**GOOD, "cycles": "2"}), "cycles: Input should be a valid integer", id="text for number"),
    pytest.param(as_json({**GOOD, "cycles": 2.0}), "cycles: Input should be a valid integer", id="decimal for integer"),
    pytest.param(say('{"drug": "Cisplatin", "cycles": 1, "cycles": 2}'), "'cycles' is there twice", id="key twice"),
    pytest.param(cut_off(GOOD), "cut off at the output limit of 2048 tokens", id="cut off"),
    pytest.param(as_json(GOOD, finish_reason="length"), "cut off at the output limit", id="marked as cut off"),
    pytest.param(as_json(GOOD, finish_reason="content_filter"), "content filter", id="content filter"),
    pytest.param(empty(), "the answer is empty", id="empty"),
    pytest.param(Reply(text=None), "the answer is empty", id="null"),
    pytest.param(refuse("I must not."), "the model refused: I must not.", id="refusal"),
    pytest.param(as_json(GOOD, refusal="I must not."), "the model refused", id="refusal beside an answer"),
]


@pytest.mark.parametrize(("bad", "fault"), SHOWN)
def test_an_unfit_answer_is_shown_to_the_model_and_asked_again(bad: Reply, fault: str) -> None:
    with LoopbackServer([bad, as_json(GOOD)]) as server:
        reply = client(server).ask(QUESTION, Step)
    assert reply.value == Step(drug="Doxorubicin", cycles=2)
    assert (len(server.requests), reply.requests) == (2, 2)
    (failure,) = reply.failures
    assert fault in failure
    assert failure.startswith("backend-0: ")
    first, second = server.requests
    assert second.messages[:2] == first.messages
    answer, again = second.messages[2:]
    assert answer["role"] == "assistant"
    assert answer["content"] == (bad.text or bad.refusal or "(no text)")
    assert again["role"] == "user"
    assert failure.removeprefix("backend-0: ") in again["content"]


NO_ANSWER = [
    pytest.param(html(), id="page"),
    pytest.param(html("application/json"), id="page called JSON"),
    pytest.param(Reply(body='{"id": "x", "choices": null}'), id="null choices"),
    pytest.param(Reply(body='{"id": "x", "choices": []}'), id="no choices"),
    pytest.param(Reply(body='{"id": "x", "choices": [{"index": 0}]}'), id="no message"),
    pytest.param(Reply(body='"text"'), id="JSON text"),
    pytest.param(Reply(body=""), id="no body"),
]


@pytest.mark.parametrize("bad", NO_ANSWER)
def test_what_is_no_completion_is_asked_again_unchanged(bad: Reply) -> None:
    with LoopbackServer([bad, as_json(GOOD)]) as server:
        reply = client(server).ask(QUESTION, Step)
    assert (len(server.requests), reply.requests) == (2, 2)
    assert server.requests[0].messages == server.requests[1].messages
    assert "is no chat completion" in reply.failures[0]


@pytest.mark.parametrize("bad", [*(case.values[0] for case in SHOWN), *(case.values[0] for case in NO_ANSWER)])
def test_an_answer_that_never_fits_ends_after_the_attempts(bad: Reply) -> None:
    with LoopbackServer(itertools.repeat(bad)) as server, pytest.raises(InvalidAnswerError) as raised:
        client(server, attempts=2).ask(QUESTION, Step)
    assert len(server.requests) == 2
    assert raised.value.requests == 2
    assert len(raised.value.failures) == 2
    assert "'backend-0' gave no answer that can be used in 2 attempts" in str(raised.value)


def test_the_check_of_the_caller_counts_like_the_schema() -> None:
    def check(step: Step) -> list[str]:
        return [] if step.drug == "Cisplatin" else ["Rule 7 forbids Doxorubicin.", "Choose another drug."]

    with LoopbackServer([as_json(GOOD), as_json({"drug": "Cisplatin", "cycles": 1})]) as server:
        reply = client(server).ask(QUESTION, Step, check)
    assert reply.value.drug == "Cisplatin"
    assert reply.failures == ("backend-0: Rule 7 forbids Doxorubicin. Choose another drug.",)
    assert "Rule 7 forbids Doxorubicin. Choose another drug." in server.requests[1].last_user


def test_a_field_that_the_model_may_not_fill_is_refused() -> None:
    sly = {"text": "Because.", "provenance": {"backend": "another", "requests": 0}}
    with LoopbackServer([as_json(sly), as_json({"text": "Because."})]) as server:
        reply = client(server).ask(QUESTION, Explanation)
    assert reply.value.provenance is None
    assert reply.failures == ("backend-0: unknown field provenance.",)
    assert "provenance" not in server.requests[0].text + json.dumps(server.requests[0].schema)


def test_an_endless_answer_is_shown_only_in_part() -> None:
    with LoopbackServer([say("x" * 100_000), as_json(GOOD)]) as server:
        client(server).ask(QUESTION, Step)
    shown = server.requests[1].messages[2]["content"]
    assert len(shown) < 5000
    assert "100000 characters in all" in shown


ONCE = {400: "refused the request", 401: "refused access", 403: "refused access", 404: "knows no model 'scripted'"}
THRICE = {429: "rate limit", 500: "fault of its own", 503: "fault of its own"}


@pytest.mark.parametrize("status", [*ONCE, *THRICE])
def test_an_error_of_the_endpoint_is_never_asked_again_by_us(status: int) -> None:
    with LoopbackServer(itertools.repeat(error(status, "because"))) as server, pytest.raises(BackendError) as raised:
        client(server).ask(QUESTION, Step)
    requests = 1 if status in ONCE else 3
    assert (len(server.requests), raised.value.requests) == (requests, requests)
    assert type(raised.value) is BackendError
    assert str(raised.value).startswith("The backend 'backend-0' ")
    assert (ONCE | THRICE)[status] in str(raised.value)
    assert f"({status}: because)" in str(raised.value)


def test_an_error_page_of_a_proxy_is_an_error_of_the_endpoint() -> None:
    with (
        LoopbackServer(itertools.repeat(html_error(502))) as server,
        pytest.raises(BackendError, match="502") as raised,
    ):
        client(server).ask(QUESTION, Step)
    assert len(server.requests) == 3
    assert "<html>" not in str(raised.value)


def test_an_error_with_status_200_is_an_error_of_the_endpoint() -> None:
    gone = Reply(body='{"error": {"message": "upstream is gone", "code": 502}}')
    with (
        LoopbackServer(itertools.repeat(gone)) as server,
        pytest.raises(BackendError, match="upstream is gone") as raised,
    ):
        client(server).ask(QUESTION, Step)
    assert type(raised.value) is BackendError
    assert len(server.requests) == 1


def test_time_out_and_dropped_connections_take_three_requests() -> None:
    with LoopbackServer(itertools.repeat(hang())) as server, pytest.raises(BackendError, match=r"within 0\.05 s"):
        client(server, timeout_s=0.05).ask(QUESTION, Step)
    assert len(server.requests) == 3
    with LoopbackServer(itertools.repeat(drop())) as server, pytest.raises(BackendError, match="connection") as raised:
        client(server).ask(QUESTION, Step)
    assert len(server.requests) == 3
    assert server.base_url in str(raised.value)


def test_the_client_recovers_from_passing_faults() -> None:
    with LoopbackServer([drop(json.dumps(GOOD)), error(503), as_json(GOOD)]) as server:
        reply = client(server).ask(QUESTION, Step)
    assert (reply.requests, len(server.requests), reply.failures) == (3, 3, ())


def test_retry_after_is_honoured() -> None:
    with LoopbackServer([error(429, retry_after_s=0.4), as_json(GOOD)]) as server:
        started = time.perf_counter()
        reply = client(server).ask(QUESTION, Step)
    assert time.perf_counter() - started >= 0.4
    assert (reply.requests, len(server.requests)) == (2, 2)


def test_the_chain_goes_on_after_an_error_and_after_unfit_answers() -> None:
    with (
        LoopbackServer(itertools.repeat(error(500))) as broken,
        LoopbackServer(itertools.repeat(empty())) as silent,
        LoopbackServer([as_json(GOOD)]) as good,
    ):
        reply = client(broken, silent, good).ask(QUESTION, Step)
    assert [len(server.requests) for server in (broken, silent, good)] == [3, 3, 1]
    assert (reply.backend, reply.requests) == ("backend-2", 7)
    assert "fault of its own (500" in reply.failures[0]
    assert reply.failures[1:] == ("backend-1: the answer is empty: it holds no text.",) * 3
    assert (reply.input_tokens, reply.output_tokens) == (400, 80)
    # The next backend gets the question, not the quarrel with the one before.
    assert good.requests[0].messages == silent.requests[0].messages


def test_the_last_error_of_a_chain_knows_the_others() -> None:
    with LoopbackServer(itertools.repeat(empty())) as silent, LoopbackServer(itertools.repeat(error(401))) as locked:
        with pytest.raises(BackendError, match="'backend-1' refused access") as raised:
            client(silent, locked).ask(QUESTION, Step)
        assert type(raised.value) is BackendError
        assert raised.value.requests == 4
        assert len(raised.value.failures) == 3
        assert (raised.value.input_tokens, raised.value.output_tokens) == (300, 60)
        assert raised.value.cost_usd == pytest.approx((300 * 1 + 60 * 4) / 1e6)


def test_a_missing_key_is_a_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with LoopbackServer([]) as unused, LoopbackServer([as_json(GOOD)]) as good:
        chain = [unused.backend("keyed", api_key_env="NO_SUCH_KEY"), good.backend("open")]
        reply = LlmClient(chain, RequestBudget()).ask(QUESTION, Step)
    assert not unused.requests
    assert "NO_SUCH_KEY" in reply.failures[0]
    assert reply.requests == 1


PICTURE = HumanMessage(
    [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"},
    ]
)


def test_images_go_only_where_they_are_understood() -> None:
    with LoopbackServer([]) as blind, LoopbackServer([as_json(GOOD)]) as seeing:
        chain = [blind.backend("blind", vision=False), seeing.backend("seeing")]
        reply = LlmClient(chain, RequestBudget()).ask([PICTURE], Step)
        with pytest.raises(BackendError, match="'blind' takes no images, but the question has 1"):
            LlmClient(chain[:1], RequestBudget()).ask([PICTURE], Step)
    assert reply.backend == "seeing"
    assert not blind.requests
    assert seeing.requests[0].images == ["data:image/png;base64,iVBORw0KGgo="]


def test_the_budget_of_a_decision_counts_every_request() -> None:
    with LoopbackServer(itertools.repeat(error(500))) as server:
        with pytest.raises(BudgetSpent, match="decision has used up its 2") as raised:
            client(server, server, budget=RequestBudget(per_decision=2)).ask(QUESTION, Step)
        assert len(server.requests) == 2
        assert raised.value.requests == 2


def test_the_budget_of_a_plan_spans_decisions() -> None:
    budget = RequestBudget(per_decision=3, per_plan=4)
    with LoopbackServer([empty(), as_json(GOOD), as_json(GOOD), as_json(GOOD), as_json(GOOD)]) as server:
        asked = client(server, budget=budget)
        assert [asked.ask(QUESTION, Step).requests for _ in range(3)] == [2, 1, 1]
        with pytest.raises(BudgetSpent, match="plan has used up its 4"):
            asked.ask(QUESTION, Step)
    assert (len(server.requests), budget.used) == (4, 4)


def test_a_budget_knows_what_was_used_before() -> None:
    with LoopbackServer([empty(), as_json(GOOD)]) as server:
        with pytest.raises(BudgetSpent, match="plan has used up its 4") as raised:
            client(server, budget=RequestBudget(per_plan=4, used=3)).ask(QUESTION, Step)
        assert raised.value.requests == 1
        assert len(raised.value.failures) == 1
        with pytest.raises(BudgetSpent):
            client(server, budget=RequestBudget(12, 4, 9)).ask(QUESTION, Step)
    assert len(server.requests) == 1


def test_a_budget_shared_by_threads_is_kept_to_the_request() -> None:
    budget = RequestBudget(per_plan=10)
    outcomes: list[object] = []

    def work(asked: LlmClient) -> None:
        for _ in range(4):
            try:
                outcomes.append(asked.ask(QUESTION, Step).requests)
            except BudgetSpent as spent:
                outcomes.append(spent)

    with LoopbackServer(itertools.repeat(as_json(GOOD))) as server:
        asked = client(server, budget=budget)
        threads = [threading.Thread(target=work, args=(asked,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 10
    assert outcomes.count(1) == 10
    assert sum(isinstance(outcome, BudgetSpent) for outcome in outcomes) == 14


def test_a_budget_and_a_client_have_a_least_size() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        RequestBudget(per_decision=0)
    with pytest.raises(ValueError, match="a backend and at least one attempt"):
        LlmClient([], RequestBudget())


def test_reasoning_is_kept_and_never_parsed() -> None:
    thought = json.dumps(GOOD)
    with LoopbackServer([Reply(text="", reasoning=thought), as_json(GOOD, reasoning="First, the liver.")]) as server:
        reply = client(server, reasoning_field="reasoning_content").ask(QUESTION, Step)
    assert reply.reasoning == "First, the liver."
    assert reply.failures == ("backend-0: the answer is empty: it holds no text.",)
    assert thought not in server.requests[1].text


def test_cost_is_unknown_where_a_price_or_a_count_is() -> None:
    with LoopbackServer([as_json(GOOD), as_json(GOOD, usage=None)]) as server:
        unpriced = client(server, input_price=None, output_price=None, price_source=None).ask(QUESTION, Step)
        uncounted = client(server).ask(QUESTION, Step)
    assert (unpriced.cost_usd, unpriced.input_tokens) == (None, 100)
    assert (uncounted.cost_usd, uncounted.input_tokens) == (None, 0)


def test_json_object_puts_the_schema_into_the_one_system_message() -> None:
    without: list[BaseMessage] = [HumanMessage("Which drug?")]
    in_blocks: list[BaseMessage] = [SystemMessage([{"type": "text", "text": "You plan."}]), HumanMessage("Which drug?")]
    with LoopbackServer([fenced(GOOD), *(as_json(GOOD) for _ in range(3))]) as server:
        asked = client(server, structured="json_object")
        assert asked.ask(QUESTION, Step).requests == 2
        asked.ask(without, Step)
        asked.ask(in_blocks, Step)
    for request in server.requests:
        assert request.body["response_format"] == {"type": "json_object"}
        assert [m["role"] for m in request.messages][:2] == ["system", "user"]
        system = loopback.text_of(request.messages[0])
        assert '"enum": ["Doxorubicin", "Cisplatin"]' in system
        assert "JSON" in system
    assert [loopback.text_of(r.messages[0]).startswith("You plan.") for r in server.requests] == [
        True,
        True,
        False,
        True,
    ]
    assert [message.content for message in QUESTION] == ["You plan.", "Which drug?"]


TOOLS = [
    pytest.param(say("Doxorubicin, I think."), "no call of the tool Step", id="text"),
    pytest.param(call("Step", '{"drug": "Cispl'), "Invalid JSON: EOF while parsing", id="truncated"),
    pytest.param(call("Step", '[{"drug": "Cisplatin", "cycles": 1}]'), "should be an object", id="list"),
    pytest.param(call("Step", '"Cisplatin"'), "should be an object", id="text as arguments"),
    pytest.param(call("Step", ""), "no call of the tool Step", id="no arguments"),
    pytest.param(call("Step", {"drug": "Aspirin", "cycles": 1}), "drug: Input should be", id="wrong enum"),
    pytest.param(calls(("Step", GOOD), ("Step", GOOD)), "calls tools 2 times", id="twice"),
    pytest.param(call("Plan", GOOD), "calls Plan; call Step", id="another tool"),
]


@pytest.mark.parametrize(("bad", "fault"), TOOLS)
def test_tools_bind_the_answer_to_a_forced_call(bad: Reply, fault: str) -> None:
    with LoopbackServer([bad, call("Step", GOOD)]) as server:
        reply = client(server, structured="tools").ask(QUESTION, Step)
    assert reply.value == Step(drug="Doxorubicin", cycles=2)
    assert reply.requests == 2
    assert fault in reply.failures[0]
    for request in server.requests:
        assert request.body["tool_choice"] == {"type": "function", "function": {"name": "Step"}}
        assert "response_format" not in request.body
        assert request.schema is not None
        assert request.schema["required"] == ["drug", "cycles"]
    # Shown as plain text: servers refuse a history of calls without results, or with arguments that are not JSON.
    assert [m["role"] for m in server.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert "tool_calls" not in server.requests[1].messages[2]


def test_one_conversation_does_not_see_another() -> None:
    """The messages of the caller stay as they are, whatever was asked again."""
    question: list[BaseMessage] = [HumanMessage("Which drug?")]

    def script(request: Request) -> Reply:
        return as_json(GOOD) if request.number % 2 else say("no")

    with LoopbackServer(script) as server:
        asked = client(server)
        for _ in range(2):
            assert asked.ask(question, Step).requests == 2
    assert [len(request.messages) for request in server.requests] == [1, 3, 1, 3]
    assert question == [HumanMessage("Which drug?")]


def test_a_bug_in_a_check_is_nobodys_to_retry() -> None:
    def check(_: Step) -> list[str]:
        raise ZeroDivisionError

    with LoopbackServer([as_json(GOOD)]) as server, pytest.raises(ZeroDivisionError):
        client(server).ask(QUESTION, Step, check)
    assert len(server.requests) == 1


def test_messages_of_earlier_turns_are_sent_as_they_are() -> None:
    history: list[BaseMessage] = [HumanMessage("Hello."), AIMessage("Yes?"), HumanMessage("Which drug?")]
    with LoopbackServer([as_json(GOOD)]) as server:
        client(server).ask(history, Step)
    assert [(m["role"], m["content"]) for m in server.requests[0].messages] == [
        ("user", "Hello."),
        ("assistant", "Yes?"),
        ("user", "Which drug?"),
    ]
