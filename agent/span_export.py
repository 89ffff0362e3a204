"""Span export: spans without content, as lines of a file and back, and a span file sent over OTLP later.

``python -m agent.span_export runs/x/spans.jsonl`` sends a file to `OTEL_EXPORTER_OTLP_ENDPOINT`, for a viewer that was
not there when the run was made.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes

from agent.spans import ENDPOINTS, KEPT
from models.errors import InputError, MewmError, RunError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PlainExporter(SpanExporter):
    """Passes spans on without what could hold a person's words: only the attributes of `KEPT`, no error texts."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the plain spans."""
        return self._inner.export([plain(span) for span in spans])

    def shutdown(self) -> None:
        """Shut the inner exporter down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the inner exporter."""
        return self._inner.force_flush(timeout_millis)


class FileExporter(SpanExporter):
    """One JSON object per span and line, written when the span ends: a killed run leaves what it did so far."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans."""
        self._file.write("".join(span.to_json(indent=None) + "\n" for span in spans))
        self._file.flush()
        return SpanExportResult.SUCCESS


def plain(span: ReadableSpan) -> ReadableSpan:
    """The span with the attributes of `KEPT` only; of an error its type, not its message."""
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_kept(span.attributes),
        events=tuple(Event(event.name, _kept(event.attributes), event.timestamp) for event in span.events),
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kept(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in (attributes or {}).items() if KEPT.fullmatch(name)}


def read_spans(path: Path) -> list[ReadableSpan]:
    """The spans of a file that `start_spans` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_span(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunError(f"The span file {path} can't be read ({exc}): give one that `mewm plan --spans` wrote.") from exc


def _span(data: Mapping[str, Any]) -> ReadableSpan:
    context = data["context"]
    trace_id = int(context["trace_id"], 16)

    def at(span_id: str) -> SpanContext:
        return SpanContext(trace_id, int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    return ReadableSpan(
        name=data["name"],
        context=at(context["span_id"]),
        parent=at(data["parent_id"]) if data["parent_id"] else None,
        resource=Resource(data["resource"]["attributes"]),
        attributes=data["attributes"],
        events=tuple(Event(e["name"], e["attributes"], _nanoseconds(e["timestamp"])) for e in data["events"]),
        kind=SpanKind[data["kind"].removeprefix("SpanKind.")],
        status=Status(StatusCode[data["status"]["status_code"]]),
        start_time=_nanoseconds(data["start_time"]),
        end_time=_nanoseconds(data["end_time"]),
    )


def _nanoseconds(text: str) -> int:
    passed = datetime.fromisoformat(text.replace("Z", "+00:00")) - _EPOCH
    return (passed // timedelta(microseconds=1)) * 1000


def send(path: Path) -> int:
    """Send a span file to the OTLP endpoint of the environment.

    Returns:
        Number of spans.

    Raises:
        InputError: no endpoint is set.
        RunError: the file can't be read, or the endpoint did not take the spans.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        raise InputError(f"There is nowhere to send the spans to: set {ENDPOINTS[0]}, such as http://127.0.0.1:5000.")
    spans = [plain(span) for span in read_spans(path)]
    exporter = OTLPSpanExporter()
    try:
        if exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise RunError(f"The OTLP endpoint did not take the spans of {path}: check its address and its headers.")
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the package does not say that it returns nothing
    return len(spans)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m agent.span_export FILE``.

    Returns:
        Exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(given) != 1:
            raise InputError("Give one span file: python -m agent.span_export runs/x/spans.jsonl")
        print(f"{send(Path(given[0]))} spans sent.")
    except MewmError as error:
        print(f"mewm: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
