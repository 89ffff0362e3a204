"""Events: what a running planner says, typed. The command line, the chat and the web page all read `events()`.

Nodes send their own events through the graph's stream (`send`); decisions, interrupts and the plan are taken from the
graph's updates, so that an event never says anything that the checkpointed state does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent.plan import Plan
from agent.trace import Decision


class EventBase(BaseModel):
    """Base of the events."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Waiting(EventBase):
    """The graph waits for an answer; resume by this id."""

    type: Literal["waiting"] = "waiting"
    interrupt_id: str
    value: Any
    response_schema: dict[str, Any] | None = None


class Planned(EventBase):
    """The plan is there."""

    type: Literal["planned"] = "planned"
    plan: Plan


Event = NodeStarted | ToolStarted | ToolProgress | ToolFinished | DepthFinished | Decided | Waiting | Planned
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
_OWN = ("node_started", "tool_started", "tool_progress", "tool_finished", "depth_finished")


def send(runtime: Runtime[Any], event: Event) -> None:
    """Put a node's event into the graph's stream."""
    runtime.stream_writer(event.model_dump(mode="json"))


def events(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    given: Mapping[str, Any] | Command[Any] | None,
    config: RunnableConfig,
    **options: Any,
) -> Iterator[Event]:
    """Run a compiled graph and yield what happens, as typed events.

    Args:
        graph: The planner, or a graph that runs it inside (its events pass through).
        given: The input, a `Command(resume=...)`, or None to go on from the last checkpoint.
        config: LangGraph's config with the thread.
        options: Passed to `stream`, for example ``durability="sync"`` where a checkpointer is set.

    Yields:
        Events in order. `Planned` comes once, when the plan is complete (after the report, where one is written).
    """
    plan: Plan | None = None
    parts = graph.stream(given, config, stream_mode=["custom", "updates"], subgraphs=True, version="v2", **options)
    for part in parts:
        data: Any = part["data"]
        if part["type"] == "custom":
            if isinstance(data, dict) and data.get("type") in _OWN:
                yield _EVENT.validate_python(data)
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
            if isinstance((update or {}).get("plan"), Plan):
                plan = update["plan"]
    if plan is not None:
        yield Planned(plan=plan)
