"""An OpenAI-compatible server on 127.0.0.1 whose answers are scripted: real HTTP through the real client.

    with LoopbackServer([as_json({"drug": "Doxorubicin"})]) as server:
        client = LlmClient([server.backend()], RequestBudget())
        ...
    assert len(server.requests) == 1

A script is a list of replies, any iterator of replies (``itertools.repeat(error(500))``), or a function of the request,
so that an answer may depend on the messages so far. A function may return a text, a mapping (sent as JSON) or a reply.
`by_schema` scripts a planner run, one entry per output schema. Faults are replies too. An exception inside a script is
raised again when the `with` block ends.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from agent.backends import Backend


@dataclass(frozen=True)
class Request:
    """One recorded request.

    Attributes:
        path: Path with the query.
        headers: Header names in lower case.
        body: The JSON body.
        number: How many requests came before this one.
    """

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    number: int

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.body["messages"])

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def schema_name(self) -> str | None:
        """Name of the schema that is asked for, as strict JSON or as a forced tool call."""
        form = self.body.get("response_format") or {}
        choice = self.body.get("tool_choice")
        if form.get("type") == "json_schema":
            return str(form["json_schema"]["name"])
        return str(choice["function"]["name"]) if isinstance(choice, Mapping) else None

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema that is asked for."""
        form = self.body.get("response_format") or {}
        if form.get("type") == "json_schema":
            return dict(form["json_schema"]["schema"])
        name = self.schema_name
        tools = [tool["function"] for tool in self.body.get("tools", ()) if tool["function"]["name"] == name]
        return dict(tools[0]["parameters"]) if tools else None

    @property
    def tool_names(self) -> list[str]:
        """Tools that the model may call."""
        return [tool["function"]["name"] for tool in self.body.get("tools", ())]

    @property
    def images(self) -> list[str]:
        """Data URLs of all images."""
        return [
            block["image_url"]["url"]
            for message in self.messages
            if isinstance(message.get("content"), list)
            for block in message["content"]
            if block["type"] == "image_url"
        ]

    @property
    def text(self) -> str:
        """All text of all messages."""
        return "\n".join(text_of(message) for message in self.messages)

    @property
    def last_user(self) -> str:
        """Text of the last message of the user."""
        return next((text_of(m) for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def turn(self) -> int:
        """Number of messages of the user so far: 1 in the first turn of a chat."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def tool_results(self) -> list[str]:
        """Results of the tools called since the last message of the user, in order."""
        results: list[str] = []
        for message in self.messages:
            if message["role"] == "user":
                results.clear()
            elif message["role"] == "tool":
                results.append(text_of(message))
        return results


def text_of(message: Mapping[str, Any]) -> str:
    """Text of one message of a request body."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content or () if block["type"] == "text")


@dataclass(frozen=True)
class Reply:
    """One scripted reply; made by the functions below.

    Attributes:
        text: Content of the message; None is sent as null.
        calls: Tool calls: name and arguments (an object, or raw text as a model might garble it).
        reasoning: Content of the field `reasoning_field` of the message.
        refusal: Text of the refusal.
        finish_reason: Why the model stopped; by default what fits the message.
        usage: Tokens in and out; None sends no usage.
        status: HTTP status; anything but 200 sends `body` and no message.
        headers: Further headers.
        body: Raw body in place of a message; with its content type.
        delay_s: Seconds of silence before the answer.
        drop: Close the connection: before the first byte, or after the body's first half where there is a message.
    """

    text: str | None = None
    calls: tuple[tuple[str, Mapping[str, Any] | str], ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    usage: tuple[int, int] | None = (100, 20)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    content_type: str = "application/json"
    delay_s: float = 0.0
    drop: bool = False
    reasoning_field: str = "reasoning_content"
    model: str | None = None


def say(text: str, **fields: Any) -> Reply:
    """Plain text. `fields` are further fields of `Reply`, for example ``reasoning=``."""
    return Reply(text=text, **fields)


def as_json(value: object, **fields: Any) -> Reply:
    """The message is `value` as JSON."""
    return Reply(text=json.dumps(value, ensure_ascii=False), **fields)


def fenced(value: object) -> Reply:
    """JSON inside a code fence."""
    return say(f"```json\n{json.dumps(value)}\n```")


def truncated(value: object, keep: float = 0.6) -> Reply:
    """JSON that breaks off, although the server says that it is complete."""
    text = json.dumps(value)
    return say(text[: int(len(text) * keep)])


def cut_off(value: object, keep: float = 0.6) -> Reply:
    """JSON that breaks off because the output limit is reached."""
    return replace(truncated(value, keep), finish_reason="length")


def call(name: str, arguments: Mapping[str, Any] | str | None = None, /, **more: Any) -> Reply:
    """One tool call: ``call("plan", case_id="a")``, or raw text as arguments."""
    return Reply(calls=((name, arguments if isinstance(arguments, str) else {**(arguments or {}), **more}),))


def calls(*each: tuple[str, Mapping[str, Any] | str], text: str | None = None) -> Reply:
    """Several tool calls in one message."""
    return Reply(text=text, calls=each)


def refuse(text: str = "I can't help with that.") -> Reply:
    """The model refuses."""
    return Reply(refusal=text)


def empty() -> Reply:
    """A message without content."""
    return Reply(text="")


def html(content_type: str = "text/html") -> Reply:
    """A proxy's page with status 200 in place of an answer."""
    return Reply(body="<html><body><h1>Gateway</h1></body></html>", content_type=content_type)


def error(status: int, message: str = "scripted fault", *, retry_after_s: float | None = None) -> Reply:
    """An error of the API. The client's retries wait 1 ms, or `retry_after_s` by the Retry-After header."""
    wait = {"retry-after-ms": "1"} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return Reply(status=status, headers=wait, body=json.dumps({"error": {"message": message, "code": status}}))


def html_error(status: int = 502) -> Reply:
    """A proxy's error page."""
    return replace(html(), status=status, headers={"retry-after-ms": "1"})


def hang(seconds: float = 30.0) -> Reply:
    """No answer in time. The client waits for its time-out; leaving the server's `with` block ends the wait."""
    return Reply(delay_s=seconds, drop=True)


def drop(text: str | None = None) -> Reply:
    """The connection closes: at once, or halfway through the message `text`."""
    return Reply(text=text, drop=True)


Answer = Reply | str | Mapping[str, Any]
Script = Iterable[Answer] | Callable[[Request], Answer]


def as_reply(answer: Answer) -> Reply:
    if isinstance(answer, Reply):
        return answer
    return say(answer) if isinstance(answer, str) else as_json(answer)


def by_schema(
    replies: Mapping[str, Answer | Sequence[Answer] | Callable[[Request], Answer]],
) -> Callable[[Request], Answer]:
    """Script by the name of the schema asked for: one reply for ever, a list (its last one repeats), or a function."""
    queues: dict[str, Iterator[Answer]] = {
        name: itertools.chain(value, itertools.repeat(value[-1]))
        for name, value in replies.items()
        if isinstance(value, Sequence) and not isinstance(value, str)
    }

    def script(request: Request) -> Answer:
        name = request.schema_name
        if name is None or name not in replies:
            raise AssertionError(f"no reply is scripted for the schema {name}: {sorted(replies)}")
        value = replies[name]
        if name in queues:
            return next(queues[name])
        return value(request) if callable(value) else value  # type: ignore[return-value]

    return script


class LoopbackServer:
    """The server; use as a context manager. `requests` holds every request in the order of arrival."""

    def __init__(self, script: Script) -> None:
        self.script = script if callable(script) else iter(script)
        self.requests: list[Request] = []
        self.faults: list[BaseException] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def backend(self, name: str = "loopback", **fields: Any) -> Backend:
        """A backend that points here; `fields` replace those of the default."""
        return Backend.model_validate({"name": name, **self.entry(), **fields})

    def entry(self, **fields: Any) -> dict[str, Any]:
        """The same as an entry of a user's backend file."""
        return {
            "base_url": self.base_url,
            "model": "scripted",
            "api_key_env": None,
            "vision": True,
            "structured": "json_schema",
            "context_tokens": 32768,
            "output_tokens": 2048,
            "input_price": 1.0,
            "output_price": 4.0,
            "price_source": "the test, 2026-11-01",
            "timeout_s": 60.0,
            **fields,
        }

    def __enter__(self) -> Self:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        with self._lock:
            for connection in self._connections:
                _shut(connection)
        self._http.server_close()  # joins the handlers' threads
        self._thread.join()
        if self.faults and error is None:
            raise self.faults[0]

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[Request, Reply]:
        """Record a request and take its reply."""
        with self._lock:
            request = Request(path, headers, body, len(self.requests))
            self.requests.append(request)
            try:
                made = self.script(request) if callable(self.script) else next(self.script)
                return request, as_reply(made)
            except StopIteration:
                return request, error(400, "the script of the loopback server has no reply left")
            except BaseException as fault:  # noqa: BLE001 (told to the test when the block ends)
                self.faults.append(fault)
                return request, error(400, f"the script of the loopback server failed: {fault!r}")

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
            if self.closing.is_set():
                _shut(connection)  # accepted just before the end, else nobody would close it

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client closed it first


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    owner: LoopbackServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        fault = sys.exc_info()[1]
        if isinstance(fault, Exception) and not isinstance(fault, ConnectionError | TimeoutError):
            self.owner.faults.append(fault)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes; without this every answer waits for a delayed ACK (40 ms).
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.opened(self.connection)

    def finish(self) -> None:
        self.server.owner.closed(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request, reply = owner.answer(self.path, headers, body)
        if reply.delay_s:
            owner.closing.wait(reply.delay_s)
        try:
            self.send(request, reply)
        except ConnectionError:
            self.close_connection = True  # the client gave up waiting

    def send(self, request: Request, reply: Reply) -> None:
        if reply.drop and reply.text is None:
            self.hang_up()
        elif reply.body is not None:
            self.send_body(reply.status, reply.content_type, reply.body.encode(), reply.headers)
        elif request.stream:
            self.send_events(request, reply)
        else:
            data = json.dumps(completion(request, reply)).encode()
            self.send_body(reply.status, "application/json", data, reply.headers, half=reply.drop)

    def send_body(self, status: int, kind: str, data: bytes, headers: Mapping[str, str], *, half: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.hang_up()

    def send_events(self, request: Request, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        # No length is known, and chunked framing would let a dropped stream look complete.
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        events = list(chunks(request, reply))
        for event in events[: len(events) // 2] if reply.drop else events:
            self.write_chunk(f"data: {json.dumps(event)}\n\n".encode())
        if reply.drop:
            self.hang_up()
        else:
            self.write_chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")

    def write_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        _shut(self.connection)


def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.calls else "stop")


def _calls(request: Request, reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{request.number}_{index}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
            },
        }
        for index, (name, arguments) in enumerate(reply.calls)
    ]


def _usage(reply: Reply) -> dict[str, Any] | None:
    if reply.usage is None:
        return None
    read, written = reply.usage
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(request: Request, reply: Reply) -> dict[str, Any]:
    """Body of an answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    if reply.reasoning is not None:
        message[reply.reasoning_field] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = _calls(request, reply)
    body: dict[str, Any] = {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion",
        "created": 0,
        "model": reply.model or request.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(reply), "logprobs": None}],
    }
    if usage := _usage(reply):
        body["usage"] = usage
    return body


def chunks(request: Request, reply: Reply) -> Iterator[dict[str, Any]]:
    """Events of a streamed answer: reasoning, words, tool calls in pieces, the finish, the usage."""

    def event(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{request.number}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": reply.model or request.body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }

    yield event({"role": "assistant", "content": ""})
    for word in _words(reply.reasoning):
        yield event({reply.reasoning_field: word})
    for word in _words(reply.text):
        yield event({"content": word})
    if reply.refusal is not None:
        yield event({"refusal": reply.refusal})
    for index, made in enumerate(_calls(request, reply)):
        function = made["function"]
        half = len(function["arguments"]) // 2
        head = {**made, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield event({"tool_calls": [head]})
        for part in (function["arguments"][:half], function["arguments"][half:]):
            yield event({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield event({}, _finish_reason(reply))
    usage = _usage(reply)
    if usage and (request.body.get("stream_options") or {}).get("include_usage"):
        yield {**event({}), "choices": [], "usage": usage}


def _words(text: str | None) -> list[str]:
    return [] if not text else [part + " " for part in text.split(" ")[:-1]] + [text.split(" ")[-1]]
