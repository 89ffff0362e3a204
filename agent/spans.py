"""Spans: what ran inside what, and for how long, as OpenInference spans of OpenTelemetry (extra ``trace``).

`start_spans` writes every span of the planner and of its language models as one JSON object per line to a local file,
and sends it over OTLP (HTTP) where `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set. A
node's span bears the ids of the decisions that were made in it, so that spans and `trace.jsonl` can be joined.

Spans hold no content: neither the state nor prompts, answers, thread names or error messages, but names, times, models,
token counts and ids of decisions. What is kept is a list (`KEPT`), so a new attribute of the instrumentation stays out
until it is put there. What was said is in `trace.jsonl`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.files import unwritable
from models.errors import InputError, RunError

if TYPE_CHECKING:
    from agent.trace import Decision

SPAN_FILE = "spans.jsonl"
"""Name of the file in a run folder."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
KEPT = re.compile(
    r"openinference\.span\.kind|llm\.(?:model_name|provider|system|finish_reason|token_count\..+)"
    r"|decision\..+|exception\.type"
)
"""Attributes that a span may hold, of spans and of their events."""
_MISSING = "Spans need the extra 'trace': install it with pip install 'mewm[trace]', or leave --spans out."

_writing: Path | None = None
"""The file of this process: the instrumentation is one per process."""


def need_spans() -> None:
    """Refuse, before anything is written, where spans can't be made.

    Raises:
        InputError: the extra `trace` is not installed.
    """
    try:
        import openinference.instrumentation.langchain  # noqa: F401 (whether it is there is all that is asked)

        import agent.span_export  # noqa: F401
    except ImportError as exc:
        raise InputError(_MISSING) from exc


@contextmanager
def start_spans(path: Path) -> Iterator[None]:
    """Write the spans of everything that runs inside the block.

    Args:
        path: File to append to; its folder has to be there.

    Raises:
        InputError: the extra `trace` is not installed.
        RunError: the file can't be written, or this process writes spans already.
    """
    global _writing
    need_spans()
    from openinference.instrumentation import TraceConfig
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    from agent.span_export import FileExporter, PlainExporter

    if _writing is not None:
        raise RunError(f"This process writes spans to {_writing} already: one run at a time can write them.")
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as exc:
        raise RunError(unwritable(path.parent, exc)) from exc
    with file:
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "mewm"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(PlainExporter(FileExporter(file))))
        if any(os.environ.get(name) for name in ENDPOINTS):
            provider.add_span_processor(BatchSpanProcessor(PlainExporter(OTLPSpanExporter())))
        instrumentor = LangChainInstrumentor()
        # Hidden at the source as well: what is not recorded can't be let through by mistake.
        config = TraceConfig(
            hide_inputs=True, hide_outputs=True, hide_llm_invocation_parameters=True, hide_prompts=True
        )
        instrumentor.instrument(tracer_provider=provider, config=config)
        _writing = path
        try:
            yield
        finally:
            _writing = None
            instrumentor.uninstrument()
            provider.shutdown()


def mark(decision: Decision) -> None:
    """Note a decision on the span of the node that makes it; does nothing where no spans are written."""
    if _writing is None:
        return
    from openinference.instrumentation.langchain import get_current_span

    span: Any = get_current_span()
    if span is None or not span.is_recording():
        return
    told = {
        "decision.id": decision.decision_id,
        "decision.kind": decision.kind,
        "decision.tool": decision.tool,
        "decision.seconds": decision.seconds,
        "decision.backend": decision.backend,
        "decision.prompt_id": decision.prompt_id,
        "decision.prompt_hash": decision.prompt_hash,
    }
    span.add_event("decision", {name: value for name, value in told.items() if value is not None})
    span.set_attribute("decision.ids", (*(span.attributes or {}).get("decision.ids", ()), decision.decision_id))
