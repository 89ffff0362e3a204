"""What all nodes of the planner share: the services behind them, and tool calls that leave a decision.

Nodes reach the models only through the registered tools of `Services.tools`. A run can be stopped between two
outcomes: what was simulated is stored, and the run goes on from the last finished node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from langgraph.runtime import Runtime

from agent.events import NodeStarted, ToolFinished, ToolProgress, ToolStarted, send
from agent.plan import Plan, RuleFinding
from agent.policy import Policy
from agent.state import CaseFacts, Conditions, PlannerState, Verdict
from agent.trace import Recorder, short
from models.errors import RunStopped
from models.formulary import Formulary
from tools.rulebook import CheckRulesResult, Finding


class Tool(Protocol):
    """A registered tool (`tools.registry.RegisteredTool`)."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def call(self, **arguments: Any) -> Any:
        """Validate the arguments, run the tool, return its result model."""
        ...


def _nobody(listener: Callable[[str, int, int], None] | None) -> None:
    """No tool progress is told."""


@dataclass(frozen=True)
class Services:
    """What the nodes work with; built anew in every process, never checkpointed.

    Attributes:
        tools: Registered tools by name.
        policy: The controlling policy.
        fallback: The embedded policy, asked where `policy` answers invalidly; the plan is then marked degraded.
        formulary: The action set.
        case: Case id -> facts; raises CaseError for an unknown or changed case.
        conditions: Weights, precision, device and rules of this process; raises WeightsError for damaged weights,
            InputError for a device that is not there and BackendError for a language model without its key.
        publish: Plan -> files of the run folder (report, finalists' volumes), by what they are.
        command: The command that repeats the run.
        listen: Sets (or with None removes) who is told of a tool's progress: (tool, done, total).
        stop: Set from any thread to stop the run.
    """

    tools: Mapping[str, Tool]
    policy: Policy
    fallback: Policy
    formulary: Formulary
    case: Callable[[str], CaseFacts]
    conditions: Callable[[], Conditions]
    publish: Callable[[Plan], dict[str, str]]
    command: str
    listen: Callable[[Callable[[str, int, int], None] | None], None] = _nobody
    stop: threading.Event = field(default_factory=threading.Event)


ServicesOf = Callable[[PlannerState], Services]
"""Services for a state: one and the same in a command, looked up by case id and options in a server."""

Update = dict[str, Any]


class Nodes:
    """Base of the node groups."""

    def __init__(self, services: ServicesOf) -> None:
        self.services = services

    def begin(self, node: str, text: str, state: PlannerState, runtime: Runtime[Any]) -> Recorder:
        """Announce a node and start recording its decisions.

        Raises:
            RunStopped: the run is to stop.
        """
        self.halt(self.services(state))
        send(runtime, NodeStarted(node=node, text=text))
        weights = state.models.weights_hash if state.models else None
        return Recorder(node, len(state.decisions), state.settings.seed, weights)

    def use(
        self,
        tool: str,
        reason: str,
        state: PlannerState,
        runtime: Runtime[Any],
        recorder: Recorder,
        summarise: Callable[[Any], Mapping[str, object]],
        items: int,
        **arguments: Any,
    ) -> Any:
        """Call a registered tool and record the call as a decision.

        Args:
            tool: Name of the tool.
            reason: Why it is called.
            state: The state.
            runtime: LangGraph's runtime.
            recorder: Where the decision goes.
            summarise: Result -> what the trace keeps of it; nothing that depends on caches.
            items: Size of the batch, for the progress display.
            arguments: Arguments of the tool.
        """
        services = self.services(state)
        self.halt(services)
        send(runtime, ToolStarted(node=recorder.node, tool=tool, items=items))

        def progress(name: str, done: int, total: int) -> None:
            send(runtime, ToolProgress(node=recorder.node, tool=name, done=done, total=total))
            self.halt(services)

        started = time.perf_counter()
        services.listen(progress)
        try:
            result = services.tools[tool].call(**arguments)
        finally:
            services.listen(None)
        seconds = time.perf_counter() - started
        recorder.add(
            "tool",
            {"tool": tool, "arguments": arguments},
            reason,
            tool=tool,
            arguments=short(arguments),
            result=short(summarise(result)),
            seconds=seconds,
            from_cache=getattr(result, "from_cache", None),
            **({"weights_hash": result.weights_hash} if hasattr(result, "weights_hash") else {}),
        )
        send(runtime, ToolFinished(node=recorder.node, tool=tool, items=items, seconds=seconds))
        return result

    @staticmethod
    def halt(services: Services) -> None:
        """Leave the node where the run is to stop.

        Raises:
            RunStopped: the run is to stop.
        """
        if services.stop.is_set():
            msg = "The run was stopped."
            raise RunStopped(msg)

    def check(
        self,
        protocols: list[str],
        stage: str,
        reason: str,
        state: PlannerState,
        runtime: Runtime[Any],
        recorder: Recorder,
    ) -> CheckRulesResult:
        """Ask the rules about protocols, in one call."""
        session = state.settings.session
        result: CheckRulesResult = self.use(
            "check_rules",
            reason,
            state,
            runtime,
            recorder,
            lambda r: {
                "patient_allowed": r.patient_allowed,
                "blocked": [v.protocol for v in r.verdicts if not v.allowed],
                "rules": f"{r.rules_version} {r.rules_hash[:8]}",
            },
            len(protocols),
            case_id=state.case_id,
            protocols=protocols,
            profile=state.settings.profile,
            strict=state.settings.strict,
            stage=stage,
            session=None if session is None else session.model_dump(exclude_none=True),
        )
        return result


def findings_of(findings: tuple[Finding, ...], protocol: str | None) -> tuple[RuleFinding, ...]:
    """Rule findings as the plan keeps them."""
    return tuple(
        RuleFinding(
            rule_id=f.rule_id,
            strength=f.strength,
            status=f.status,
            stage=f.stage,
            message=f.message,
            source=f.source,
            confidence=f.confidence,
            protocol=protocol,
            found=f.found,
            missing=f.missing,
        )
        for f in findings
    )


def verdicts_of(result: CheckRulesResult) -> dict[str, Verdict]:
    """Verdicts by protocol key."""
    return {
        verdict.protocol: Verdict(allowed=verdict.allowed, findings=findings_of(verdict.findings, verdict.protocol))
        for verdict in result.verdicts
    }
