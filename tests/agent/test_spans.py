"""Spans in a file and over OTLP: structure, decision ids, and that no content of a case is in them."""

from __future__ import annotations

import builtins
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import BaseModel

from agent.llm_client import LlmClient, RequestBudget
from agent.run import start_run
from agent.settings import PlannerSettings
from agent.span_export import main, read_spans, send
from agent.spans import ENDPOINTS, SPAN_FILE, start_spans
from agent.trace import Recorder, read_trace
from models.errors import InputError, RunError
from tests.agent.fake_tools import FakeWorld, fake_services, make_case
from tests.agent.loopback import LoopbackServer, as_json

SECRET = "Jane Roe, MRN X4711Z"


class Step(BaseModel):
    drug: str


class State(TypedDict, total=False):
    record: str
    answer: str
    fail: bool


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENDPOINTS, "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def graph(server: LoopbackServer) -> Any:
    """Two nodes that decide; the first asks a language model, the second may fail with a secret in its message."""

    def observe(state: State) -> State:
        client = LlmClient([server.backend()], RequestBudget())
        reply = client.ask([HumanMessage(f"About {state['record']}")], Step)
        recorder = Recorder("observe", 0, 7, None)
        recorder.add("policy", {"record": state["record"]}, f"because {SECRET}", seconds=0.5, backend="loopback")
        recorder.close({}, {"drug": reply.value.drug}, "done")
        return {"answer": f"{reply.value.drug} for {state['record']}"}

    def prune(state: State) -> State:
        Recorder("prune", 2, 7, None).close({}, {}, "done")
        if state.get("fail"):
            raise ValueError(f"bad record: {SECRET}")
        return {}

    builder = StateGraph(State)
    builder.add_node("observe", observe)
    builder.add_node("prune", prune)
    builder.add_edge(START, "observe")
    builder.add_edge("observe", "prune")
    builder.add_edge("prune", END)
    return builder.compile()


def run(path: Path, **state: Any) -> None:
    with LoopbackServer([as_json({"drug": f"Cisplatin for {SECRET}"}, reasoning=SECRET)]) as server:
        planner = graph(server)
        with start_spans(path):
            planner.invoke(
                {"record": SECRET, **state}, {"configurable": {"thread_id": SECRET}, "metadata": {"id": SECRET}}
            )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_nodes_and_model_calls_are_nested_spans_with_their_decisions(tmp_path: Path) -> None:
    path = tmp_path / SPAN_FILE
    run(path)
    spans = {span["name"]: span for span in lines(path)}
    assert {"LangGraph", "observe", "prune"} <= set(spans)
    model = next(span for span in spans.values() if span["attributes"]["openinference.span.kind"] == "LLM")
    ids = {span["context"]["span_id"]: span for span in spans.values()}
    assert ids[model["parent_id"]]["name"] == "observe"
    assert ids[spans["observe"]["parent_id"]]["name"] == "LangGraph"
    assert spans["LangGraph"]["parent_id"] is None
    assert model["attributes"]["llm.token_count.prompt"] == 100
    assert model["attributes"]["llm.model_name"] == "scripted"
    first, second = spans["observe"]["attributes"]["decision.ids"]
    assert first.startswith("0000-observe-")
    assert second.startswith("0001-observe-")
    told = [event["attributes"] for event in spans["observe"]["events"] if event["name"] == "decision"]
    assert [event["decision.id"] for event in told] == [first, second]
    assert told[0]["decision.backend"] == "loopback"
    assert len(spans["prune"]["attributes"]["decision.ids"]) == 1


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_that_was_said_is_in_a_span(tmp_path: Path, fail: bool) -> None:
    path = tmp_path / SPAN_FILE
    if fail:
        with pytest.raises(ValueError, match="bad record"):
            run(path, fail=True)
        failed = next(span for span in lines(path) if span["name"] == "prune")
        assert failed["status"] == {"status_code": "ERROR"}
        assert [event["attributes"] for event in failed["events"] if event["name"] == "exception"] == [
            {"exception.type": "ValueError"}
        ]
    else:
        run(path)
    text = path.read_text(encoding="utf-8")
    for word in ("Jane", "Roe", "X4711Z", "Cisplatin", "About", str(tmp_path)):
        assert word not in text
    assert len(lines(path)) >= 4


def test_the_spans_of_a_plan_name_every_decision_of_its_trace(tmp_path: Path) -> None:
    planned = start_run(make_case(tmp_path / "case"), tmp_path / "run", PlannerSettings(actions="hcc_tace_seg"))
    path = planned.folder / SPAN_FILE
    with start_spans(path):
        list(planned.execute(fake_services(FakeWorld(tmp_path / "log"))))
    named = [name for span in lines(path) for name in span["attributes"].get("decision.ids", ())]
    traced = [decision.decision_id for decision in read_trace(planned.folder / "trace.jsonl")]
    assert sorted(named) == sorted(traced)
    for span in lines(path):
        for name in span["attributes"].get("decision.ids", ()):
            assert name.split("-")[1] == span["name"]


def test_only_inside_the_block_and_once_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / SPAN_FILE
    with start_spans(path), pytest.raises(RunError, match="already"), start_spans(tmp_path / "other"):
        pass
    with LoopbackServer([as_json({"drug": "x"})]) as server:
        graph(server).invoke({"record": "r"})
    assert path.read_text() == ""
    run(path)
    count = len(lines(path))
    run(path)
    assert len(lines(path)) == 2 * count  # a resumed run goes on in the same file


def test_user_errors_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="can't be written"), start_spans(tmp_path / "none" / SPAN_FILE):
        pass
    imported = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("openinference"):
            raise ImportError(name)
        return imported(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"mewm\[trace\]"), start_spans(tmp_path / SPAN_FILE):
        pass
    assert not (tmp_path / SPAN_FILE).exists()


# ----------------------------------------------------------------------------------------------------------- OTLP
@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[tuple[str, dict[str, str], ExportTraceServiceRequest]]]]:
    """A loopback OTLP endpoint: its address and what was posted there."""
    posted: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            posted.append((self.path, headers, ExportTraceServiceRequest.FromString(body)))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def received(posted: list[tuple[str, dict[str, str], ExportTraceServiceRequest]]) -> list[Any]:
    return [
        span
        for _, _, request in posted
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_spans_go_to_an_endpoint_that_is_set_as_plain_as_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SPAN_FILE
    with collector() as (address, posted):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-mlflow-experiment-id=0")
        run(path)
    assert {where for where, _, _ in posted} == {"/v1/traces"}
    assert all(headers["x-mlflow-experiment-id"] == "0" for _, headers, _ in posted)
    assert all(headers["content-type"] == "application/x-protobuf" for _, headers, _ in posted)
    assert sorted(span.name for span in received(posted)) == sorted(span["name"] for span in lines(path))
    for word in ("Jane", "X4711Z", "Cisplatin"):
        assert word not in str(received(posted))


def test_a_span_file_can_be_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / SPAN_FILE
    with collector() as (address, at_once):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        run(path)
    with collector() as (address, later):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{len(lines(path))} spans sent.\n"
    then, now = ({s.span_id: s for s in received(posted)} for posted in (at_once, later))
    assert set(then) == set(now)
    for span_id, span in then.items():
        again = now[span_id]
        assert (again.trace_id, again.parent_span_id, again.name, again.kind) == (
            span.trace_id, span.parent_span_id, span.name, span.kind,
        )  # fmt: skip
        assert (
            abs(int(again.start_time_unix_nano) - int(span.start_time_unix_nano)) < 1000
        )  # the file holds microseconds
        assert sorted(map(str, again.attributes)) == sorted(map(str, span.attributes))
        assert [event.name for event in again.events] == [event.name for event in span.events]


def test_an_endpoint_that_is_not_there_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (address, _):
        pass  # the port is free again
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    run(tmp_path / SPAN_FILE)
    assert len(lines(tmp_path / SPAN_FILE)) >= 4


def test_what_can_not_be_sent_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / SPAN_FILE
    run(path)
    with pytest.raises(InputError, match="nowhere to send"):
        send(path)
    with collector(status=400) as (address, _):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with pytest.raises(RunError, match="did not take"):
            send(path)
    (tmp_path / "bad.jsonl").write_text('{"name": 1}\n')
    for broken in (tmp_path / "none.jsonl", tmp_path / "bad.jsonl"):
        with pytest.raises(RunError, match="can't be read"):
            read_spans(broken)
    assert main([]) == InputError.exit_code
    assert main([str(tmp_path / "none.jsonl")]) == RunError.exit_code
    assert "mewm: Give one span file" in capsys.readouterr().err
