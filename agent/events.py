"""Events: what a running planner or conversation says, typed. Command line, web page and tests all read `events()`.

Nodes send their own events through the graph's stream (`send`); decisions, interrupts, messages and the plan are taken
from the graph's updates, so that an event never says anything that the checkpointed state does not hold. In a
conversation, what a planner says is nested in the step that runs it: `step` is that step's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent.plan import Plan
from agent.trace import Decision

DOING = {
    "describe_case": "measuring the case",
    "check_rules": "checking rules",
    "simulate_tumor": "simulating",
    "segment": "segmenting",
    "survival_risk": "scoring risk",
    "measure_response": "measuring response",
}
"""What a tool at work is doing, as people are told: by its name."""


class EventBase(BaseModel):
    """Base of the events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str = Field(default="", description="step of a conversation that it belongs to; empty for a run by itself")


class NodeStarted(EventBase):
    """A node of the graph begins."""

    type: Literal["node_started"] = "node_started"
    node: str
    text: str


class ToolStarted(EventBase):
    """A tool is called. `items` is the number of outcomes, protocols or segmentations in the batch."""

    type: Literal["tool_started"] = "tool_started"
    node: str
    tool: str
    items: int


class ToolProgress(EventBase):
    """A tool works through its batch."""

    type: Literal["tool_progress"] = "tool_progress"
    node: str
    tool: str
    done: int
    total: int


class ToolFinished(EventBase):
    """A tool has answered."""

    type: Literal["tool_finished"] = "tool_finished"
    node: str
    tool: str
    items: int
    seconds: float


class BeamLine(EventBase):
    """One beam after a depth. `objective` is the mean over `n` replicas (log-risk; lower is better)."""

    protocol: str
    objective: float
    se: float | None
    n: int


class DepthFinished(EventBase):
    """A depth of the search was pruned to its beams, best first."""

    type: Literal["depth_finished"] = "depth_finished"
    phase: Literal["drug", "embolic", "protocol"]
    depth: int
    candidates: int
    beams: tuple[BeamLine, ...]
    simulations: int
    budget: int


class Decided(EventBase):
    """A decision was checkpointed."""

    type: Literal["decided"] = "decided"
    decision: Decision


class Degraded(EventBase):
    """The embedded policy stands in for a language model that gave no valid answer."""

    type: Literal["degraded"] = "degraded"
    reason: str


class Waiting(EventBase):
    """The graph waits for an answer; resume by this id."""

    type: Literal["waiting"] = "waiting"
    interrupt_id: str
    value: Any
    response_schema: dict[str, Any] | None = None
    plan_id: str = Field(default="", description="the plan of the conversation that waits")


class Proposed(EventBase):
    """The plan is there and waits for approval; `Waiting` follows."""

    type: Literal["proposed"] = "proposed"
    plan: Plan
    plan_id: str = ""


class Planned(EventBase):
    """The plan is there."""

    type: Literal["planned"] = "planned"
    plan: Plan
    plan_id: str = ""


class StepStarted(EventBase):
    """A conversation calls a tool, or carries out what a person decided; `step` is its id."""

    type: Literal["step_started"] = "step_started"
    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class StepFinished(EventBase):
    """The step is done. `result` is what the language model is told too; `text` says it in words."""

    type: Literal["step_finished"] = "step_finished"
    tool: str
    ok: bool
    text: str
    result: dict[str, Any] = Field(default_factory=dict)


class Token(EventBase):
    """A piece of an answer while it is written; `Said` has the whole."""

    type: Literal["token"] = "token"
    text: str


class Said(EventBase):
    """One whole message."""

    type: Literal["said"] = "said"
    who: Literal["person", "assistant"]
    text: str


class NotUnderstood(EventBase):
    """The embedded policy did not understand what a person wrote; `Said` says so in words."""

    type: Literal["not_understood"] = "not_understood"
    text: str


class Stopped(EventBase):
    """The person stopped the turn; the conversation can go on."""

    type: Literal["stopped"] = "stopped"


class Failed(EventBase):
    """The turn ended with an error, said in one sentence; the conversation can go on."""

    type: Literal["failed"] = "failed"
    text: str


Event = (
    NodeStarted
    | ToolStarted
    | ToolProgress
    | ToolFinished
    | DepthFinished
    | Decided
    | Degraded
    | Waiting
    | Proposed
    | Planned
    | StepStarted
    | StepFinished
    | Token
    | Said
    | NotUnderstood
    | Stopped
    | Failed
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])

NOT_UNDERSTOOD = "not_understood"
"""Key of a message's `additional_kwargs`: what the embedded policy did not understand."""
TYPED = "typed"
"""Key of a person's message: what was typed, where a language model is told something shorter."""


def send(runtime: Runtime[Any], event: Event) -> None:
    """Put a node's event into the graph's stream."""
    runtime.stream_writer(event.model_dump(mode="json"))


def events(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    given: Mapping[str, Any] | Command[Any] | None,
    config: RunnableConfig,
    *,
    tokens: bool = False,
    **options: Any,
) -> Iterator[Event]:
    """Run a compiled graph and yield what happens, as typed events.

    Args:
        graph: The planner, or the chat whose tools run it inside (its events pass through).
        given: The input, a `Command(resume=...)`, or None to go on from the last checkpoint.
        config: LangGraph's config with the thread.
        tokens: Also yield the pieces of an answer while it is written: a chat's language model is asked for a stream.
        options: Passed to `stream`, for example ``durability="sync"`` where a checkpointer is set.

    Yields:
        Events in order. `Planned` comes once, when the plan is complete (after the report, where one is written).
    """
    plan: Plan | None = None
    degraded = ""
    modes: list[Any] = ["custom", "updates", *(["messages"] if tokens else [])]
    for part in graph.stream(given, config, stream_mode=modes, subgraphs=True, version="v2", **options):
        data: Any = part["data"]
        if part["type"] == "custom":
            if isinstance(data, dict) and "type" in data:
                yield _EVENT.validate_python(data)
            continue
        if part["type"] == "messages":
            piece, about = data
            if isinstance(piece, AIMessageChunk) and about.get("langgraph_node") == "model" and piece.text:
                yield Token(text=str(piece.text))
            continue
        for node, update in data.items():
            if node == "__interrupt__":
                for interrupt in update:
                    schema = getattr(interrupt, "response_schema", None)
                    yield Waiting(interrupt_id=interrupt.id, value=interrupt.value, response_schema=schema)
                continue
            for decision in (update or {}).get("decisions", ()):
                if isinstance(decision, Decision):
                    yield Decided(decision=decision)
            now = " ".join(dict.fromkeys((update or {}).get("degraded", ()))) or degraded
            if isinstance((update or {}).get("plan"), Plan):
                plan = update["plan"]
                now = plan.degraded_reason or now
            if now != degraded:
                yield Degraded(reason=now.removeprefix(degraded).strip())
                degraded = now
            yield from said((update or {}).get("messages", ()))
    if plan is not None:
        yield Planned(plan=plan)


def said(messages: Sequence[AnyMessage]) -> Iterator[Event]:
    """Messages of a conversation as events: while it goes on, and when it is opened again."""
    for message in messages:
        if isinstance(message, HumanMessage):
            yield Said(who="person", text=str(message.additional_kwargs.get(TYPED) or message.text))
        elif isinstance(message, ToolMessage):
            yield _finished(message)
        elif isinstance(message, AIMessage):
            if message.text:
                yield Said(who="assistant", text=str(message.text))
            if NOT_UNDERSTOOD in message.additional_kwargs:
                yield NotUnderstood(text=message.additional_kwargs[NOT_UNDERSTOOD])
            for call in message.tool_calls:
                yield StepStarted(step=call["id"] or "", tool=call["name"], arguments=call["args"])


def _finished(message: ToolMessage) -> StepFinished:
    try:
        result = json.loads(str(message.text))
    except ValueError:  # an error of the arguments or of the tool is a sentence
        result = None
    told = result if isinstance(result, dict) else {}
    text = str(told.get("text") or ("" if told else message.text))
    ok = message.status != "error"
    return StepFinished(step=message.tool_call_id, tool=message.name or "", ok=ok, text=text, result=told)
