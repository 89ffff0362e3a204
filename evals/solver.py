"""Solver: how one case is put to the agent, and what is kept of its answer.

The agent is our planner graph, run as `mewm plan` runs it, on one engine that all cases of the process share: its tools
are called one at a time, while the language models of other cases may be waited for. Stage ``propose`` ends the same
graph after `refine`, before anything is simulated.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from agent.compare import compare
from agent.events import Decided, Event, Planned, ToolStarted, events
from agent.llm_policy import LlmPolicy
from agent.nodes import Services, Tool
from agent.plan import Plan
from agent.planner import build_planner
from agent.policy import CaseSummary
from agent.run import MakeServices, Run, RunRecord, case_facts, open_run, start_run
from agent.settings import PlannerSettings
from agent.state import CaseFacts, PlannerInput, PlannerState
from agent.trace import Decision, content_hash, read_trace, write_trace
from evals.alone import ModelAlone
from evals.answer_cache import in_epoch
from evals.datasets import EvalCase
from evals.results import Answer, Limits, NodeUse, RiskCurve, SimulatedRisk, Stage, Status, Usage
from models.errors import MewmError, RunStopped
from models.protocol import Protocol as TaceProtocol
from tools.check_rules import judge_protocols
from tools.rule_facts import SessionFacts, known_agents
from tools.rulebook import CheckRulesResult

GENERATED, SIMULATIONS = "case", "simulations"
"""Folders of a case beside its epochs: scans that a dataset generates, what several evaluations simulate together."""


@dataclass(frozen=True)
class CaseJob:
    """One case in one epoch.

    Attributes:
        case: The case, gold and truth included: an agent gets `case.write` and nothing else of it.
        epoch: From 1.
        folder: What the answer leaves behind; made here.
        root: Folder of the evaluation.
        stop: Set to stop the agent.
        shared: Folder in which several evaluations keep the scans and the simulations of this case; None keeps them
            with the answer.
    """

    case: EvalCase
    epoch: int
    folder: Path
    root: Path
    stop: threading.Event = field(default_factory=threading.Event)
    shared: Path | None = None

    @property
    def scans(self) -> Path:
        """Where a case that is generated is written."""
        return (self.shared or self.folder.parent) / GENERATED

    @property
    def simulations(self) -> Path | None:
        """Where simulated outcomes are kept; None is the run's own folder."""
        return None if self.shared is None else self.shared / SIMULATIONS


COUNTED = tuple(name for name in NodeUse.model_fields if name != "cost_usd")
"""What adds up over nodes; a cost may be unknown."""

Agent = Callable[[CaseJob], Answer]
"""What is evaluated: a case in, an answer out. A `MewmError`, or an answer that says ``failed``, is a failed case; any
other exception is a bug."""


class _OneAtATime:
    """A tool behind the lock that all cases share: the engine serves one batch at a time."""

    def __init__(self, tool: Tool, lock: threading.Lock) -> None:
        self.tool, self.lock = tool, lock

    @property
    def name(self) -> str:
        """Its name."""
        return self.tool.name

    def call(self, **arguments: Any) -> Any:
        """Call the tool when it is free."""
        with _in_turn(self.lock):
            return self.tool.call(**arguments)


@contextmanager
def _in_turn(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock that other cases share; a case's time limit does not run while it waits for them."""
    watch = _watch.get()
    if not lock.acquire(blocking=False):
        if watch is not None:
            watch.pause()
        try:
            lock.acquire()
        finally:
            if watch is not None:
                watch.go_on()
    try:
        yield
    finally:
        lock.release()


def shared(make: MakeServices) -> MakeServices:
    """Services for many cases at once: one tool is called at a time, one report drawn."""
    lock = threading.Lock()

    def services(run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
        made = make(run, facts, stop)

        def publish(plan: Plan) -> dict[str, str]:
            with _in_turn(lock):
                return made.publish(plan)

        tools = {name: _OneAtATime(tool, lock) for name, tool in made.tools.items()}
        return replace(made, tools=tools, publish=publish)

    return services


class _Watch:
    """Counts what a running case uses and stops it at a limit."""

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits, self.stop = limits, stop
        self.exceeded: str | None = None
        self.decisions: list[Decision] = []
        self.tool_calls = 0
        self.timer: threading.Timer | None = None
        self.left, self.since = float(limits.seconds or 0), 0.0

    def __enter__(self) -> _Watch:
        self._token = _watch.set(self)
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        _watch.reset(self._token)

    def go_on(self) -> None:
        """Let the time run."""
        if self.limits.seconds is not None:
            self.since = time.monotonic()
            self.timer = threading.Timer(max(self.left, 0.0), self._end, [f"{self.limits.seconds} s"])
            self.timer.daemon = True
            self.timer.start()

    def pause(self) -> None:
        """Stop the time: the case waits for others."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.left -= time.monotonic() - self.since

    def _end(self, limit: str) -> None:
        self.exceeded = f"stopped at the limit of {limit}"
        self.stop.set()

    def see(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Decided):
            self.decisions.append(event.decision)
            used = sum(d.input_tokens + d.output_tokens for d in self.decisions)
            if self.limits.tokens is not None and used > self.limits.tokens:
                self._end(f"{self.limits.tokens} tokens")
        elif isinstance(event, ToolStarted):
            self.tool_calls += 1
            if self.limits.tool_calls is not None and self.tool_calls > self.limits.tool_calls:
                self._end(f"{self.limits.tool_calls} tool calls")


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)
"""Watch of the case that this thread works on."""


def usage_of(decisions: Sequence[Decision]) -> Usage:
    """What the decisions of a trace used, by node.

    Seconds are those of the nodes. Outcomes that were found computed count as simulations, because the search asked for
    them; a model answer that came from the cache counts its tokens and its price, but no request.
    """
    nodes: dict[str, dict[str, float]] = {}
    costs: dict[str, float | None] = {}
    for decision in decisions:
        use = nodes.setdefault(decision.node, dict.fromkeys(COUNTED, 0))
        cost = costs.setdefault(decision.node, 0.0)
        if decision.kind == "node":
            use["seconds"] += decision.seconds
        elif decision.kind == "tool":
            use["tool_calls"] += 1
            if decision.tool == "simulate_tumor":
                use["simulations"] += int(decision.result.get("outcomes", 0))
        else:
            use["input_tokens"] += decision.input_tokens
            use["output_tokens"] += decision.output_tokens
            use["requests"] += decision.requests
            # the embedded policy reads no tokens and costs nothing; tokens without a price make the cost unknown
            free = decision.requests == decision.input_tokens == decision.output_tokens == 0
            paid = 0.0 if free else decision.cost_usd
            costs[decision.node] = None if cost is None or paid is None else cost + paid
    by_node = {name: NodeUse(**use, cost_usd=costs[name]) for name, use in nodes.items()}
    total = {name: sum(getattr(use, name) for use in by_node.values()) for name in COUNTED}
    known = [cost for cost in costs.values() if cost is not None]
    return Usage(**total, cost_usd=sum(known) if len(known) == len(costs) else None, by_node=by_node)


class PlannerAgent:
    """Our planner graph as the agent that is evaluated."""

    def __init__(
        self,
        settings: PlannerSettings,
        make_services: MakeServices,
        *,
        stage: Stage = "plan",
        limits: Limits | None = None,
        alone: PlannerSettings | None = None,
    ) -> None:
        """Nothing is loaded before the first case.

        Args:
            settings: Of the search; the epoch is added to the seed.
            make_services: Tools and policy of a run, see `shared`.
            stage: ``plan``, or ``propose`` to end before anything is simulated.
            limits: Of one case.
            alone: Settings with which the language model is asked for a whole protocol by itself, beside the plan;
                None where there is no language model.
        """
        self.settings, self.make_services, self.stage = settings, make_services, stage
        self.limits, self.alone = limits or Limits(), alone
        self._writing = threading.Lock()

    def __call__(self, job: CaseJob) -> Answer:
        """Answer one case.

        Returns:
            The answer; one that says ``failed`` can be tried again, and holds what was used until it failed.

        Raises:
            MewmError: the case could not be begun; it can be tried again.
            RunStopped: `job.stop` was set from outside.
        """
        with self._writing:
            path = job.case.write(job.scans)
        with in_epoch(job.epoch):
            return self._answer(job, path)

    def _answer(self, job: CaseJob, path: Path | None) -> Answer:
        settings = self.settings.model_copy(update={"seed": self.settings.seed + job.epoch - 1})
        if self.stage == "propose":
            answer = self._propose(job, path, settings)
        elif path is not None:
            answer = self._plan(job, path, settings)
        else:
            answer = Answer(case_id=job.case.case_id, epoch=job.epoch, status="no_image", why="the case has no image")
        if self.alone is not None:
            # a case that was stopped at its limit leaves its event set
            again = replace(job, stop=threading.Event()) if answer.status == "limit" else job
            answer = answer.model_copy(update=self._alone(again, path))
        return answer

    def _plan(self, job: CaseJob, path: Path, settings: PlannerSettings) -> Answer:
        folder = job.folder / "run"
        run = self._run(folder, path, settings, job.simulations)
        plan: Plan | None = None
        with _Watch(self.limits, job.stop) as watch:
            try:
                for event in run.execute(self.make_services, job.stop):
                    watch.see(event)
                    if isinstance(event, Planned):
                        plan = event.plan
            except RunStopped:
                if watch.exceeded is None:
                    raise
            except MewmError as error:
                return _ended(job, watch, folder, "failed", str(error))
        if watch.exceeded is not None:  # also by its last step
            return _ended(job, watch, folder, "limit", watch.exceeded)
        assert plan is not None  # a run ends with its plan or with an error
        try:
            given_risk = self._given_risk(job, run, plan)
        except MewmError as error:
            return _ended(job, watch, folder, "failed", str(error))
        status: Status = "degraded" if plan.degraded else "blocked" if plan.blocked else "answered"
        truth = job.case.truth
        return Answer(
            case_id=job.case.case_id,
            epoch=job.epoch,
            status=status,
            why=plan.degraded_reason or (_blocked_why(plan) if plan.blocked else None),
            protocol=None if plan.chosen is None else plan.chosen.assessed.protocol,
            space=tuple(note.item for note in plan.proposals if note.kept),
            risks=tuple(
                SimulatedRisk(
                    protocol=a.key,
                    simulated=a.log_risk.mean,
                    se=a.log_risk.se,
                    true=_true_risk(truth, a.protocol),
                )
                for a in plan.assessed
                if a.complete and a.allowed
            ),
            curve=_curve(plan),
            given_risk=given_risk,
            usage=usage_of(read_trace(folder / "trace.jsonl")),
            trace=(folder / "trace.jsonl").relative_to(job.root).as_posix(),
        )

    def _given_risk(self, job: CaseJob, run: Run, plan: Plan) -> float | None:
        """Simulated log-risk of the protocol that was really given, with the plan's seeds, where survival is known.

        The planner is through, and knows nothing of it; what this takes is none of its effort. The search itself hardly
        meets that protocol: it may hold agents that are not in the action set.
        """
        given = job.case.given
        if given is None or job.case.survival is None:
            return None
        facts = case_facts(Path(run.record.case_path), labelled=True)
        tools = self.make_services(run, facts, job.stop).tools
        (found,) = compare([given], facts.case_id, tools, run.record.settings, plan).rows
        return found.tumour_log_risk.mean + found.toxicity_log_risk

    def _run(self, folder: Path, path: Path, settings: PlannerSettings, simulations: Path | None) -> Run:
        """The run of this case: continued where it was stopped, unless limits count what was used before."""
        limited = self.limits != Limits()
        if (folder / "run.json").is_file() and not limited:
            return open_run(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return start_run(path, folder, settings, artifacts=simulations)

    def _propose(self, job: CaseJob, path: Path | None, settings: PlannerSettings) -> Answer:
        folder = job.folder / "propose"
        with _Watch(self.limits, job.stop) as watch:
            try:
                state, services = self._until("refine", job, path, settings, folder, watch)
            except RunStopped:
                if watch.exceeded is None:
                    raise
            except MewmError as error:
                return _ended(job, watch, folder, "failed", str(error))
        if watch.exceeded is not None:
            return _ended(job, watch, folder, "limit", watch.exceeded)
        actions = state.actions if state.patient_allowed else None
        status: Status = "degraded" if state.degraded else "answered" if actions is not None else "blocked"
        protocol = None if actions is None else first_allowed(actions.drugs, actions.embolics, state, services)
        if protocol is None and status == "answered":
            status = "blocked"
        return Answer(
            case_id=job.case.case_id,
            epoch=job.epoch,
            status=status,
            why=" ".join(dict.fromkeys(state.degraded)) or ("the rules allow nothing" if status == "blocked" else None),
            protocol=protocol,
            space=() if actions is None else (*actions.drugs, *actions.embolics),
            usage=usage_of(state.decisions),
            trace=(folder / "trace.jsonl").relative_to(job.root).as_posix(),
        )

    def _until(
        self,
        node: str,
        job: CaseJob,
        path: Path | None,
        settings: PlannerSettings,
        folder: Path,
        watch: _Watch,
        asked: Callable[[Services], Services] = lambda services: services,
    ) -> tuple[PlannerState, Services]:
        """Run the planner graph up to and with a node, on the record alone where the case has no image."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = job.case
        if path is None:
            facts = CaseFacts(
                case_id=case.case_id, origin=case.origin, origin_note="clinical record without images",
                content_hash=content_hash(case.record.known()),
            )  # fmt: skip
        else:
            facts = case_facts(path, labelled=True)
        record = RunRecord(
            created="", case_path="" if path is None else str(path.resolve()), case_id=facts.case_id,
            case_hash=facts.content_hash, settings=settings, goal="",
        )  # fmt: skip
        services = asked(self.make_services(Run(folder, record), facts, job.stop))
        if path is None:
            stand_ins: tuple[Tool, ...] = (_DescribeRecord(case), _CheckRecord(case))
            policy = services.policy
            blind = replace(policy, pictures=lambda _: ()) if isinstance(policy, LlmPolicy) else policy
            services = replace(services, policy=blind, tools={tool.name: tool for tool in stand_ins})
        planner = build_planner(lambda _: services, InMemorySaver())
        config: RunnableConfig = {"configurable": {"thread_id": "propose"}}
        given = PlannerInput(case_id=facts.case_id, options=settings.model_dump(mode="json")).model_dump()
        for event in events(planner, given, config, interrupt_after=[node]):
            watch.see(event)
        state = PlannerState.model_construct(**planner.get_state(config).values)
        write_trace(state.decisions, folder / "trace.jsonl")
        return state, services

    def _alone(self, job: CaseJob, path: Path | None) -> dict[str, Any]:
        """The language model's own protocol: everything that it names, asked for no more than a protocol may hold."""
        assert self.alone is not None
        folder, unknown = job.folder / "alone", list[str]()

        def only_the_protocol(services: Services) -> Services:
            policy = services.policy
            if not isinstance(policy, LlmPolicy):
                return services
            return replace(services, policy=replace(ModelAlone.of(policy), unknown=unknown))

        with _Watch(self.limits, job.stop) as watch:
            try:
                state, _ = self._until("propose", job, path, self.alone, folder, watch, only_the_protocol)
            except RunStopped:
                if watch.exceeded is None:
                    raise
        told = {
            # what the planner does around the one question is none of the model's effort
            "alone_usage": usage_of([decision for decision in watch.decisions if decision.node == "propose"]),
            "alone_trace": _leave_trace(job, watch, folder),
        }
        if watch.exceeded is not None or state.degraded or state.proposal is None:
            why = (
                watch.exceeded
                or " ".join(dict.fromkeys(state.degraded))
                or "the rules block the patient: it was not asked"
            )
            return {"alone": None, "alone_status": "invalid", "alone_why": why, **told}
        drugs, embolics = ([c.item for c in side] for side in (state.proposal.drugs, state.proposal.embolics))
        said = TaceProtocol(drugs=tuple(drugs), embolics=tuple(embolics))
        return {"alone": said, "alone_status": "answered", "alone_unknown": tuple(unknown), **told}


def _ended(job: CaseJob, watch: _Watch, folder: Path, status: Status, why: str) -> Answer:
    """The empty answer of a case that came to no plan, with what it used and decided until then."""
    return Answer(
        case_id=job.case.case_id, epoch=job.epoch, status=status, why=why, usage=usage_of(watch.decisions),
        trace=_leave_trace(job, watch, folder),
    )  # fmt: skip


def _leave_trace(job: CaseJob, watch: _Watch, folder: Path) -> str | None:
    """Write what was decided until a case ended; the trace relative to the evaluation, None where nothing was."""
    if not watch.decisions:
        return None
    folder.mkdir(parents=True, exist_ok=True)  # a run that failed before it simulated takes its folder back
    write_trace(watch.decisions, folder / "trace.jsonl")
    return (folder / "trace.jsonl").relative_to(job.root).as_posix()


class _DescribeRecord:
    """Stands in for `describe_case` where there is no image: the summary holds the record and nothing measured."""

    name = "describe_case"

    def __init__(self, case: EvalCase) -> None:
        self.case = case

    def call(self, **_: Any) -> BaseModel:
        """What a policy may know of the case."""
        return _RecordOnly.model_validate(self.case.summary.model_dump())


class _RecordOnly(CaseSummary):
    """A description without an image: no prognostic score is computed, since size is not known."""

    scores: tuple[()] = ()


class _CheckRecord:
    """Stands in for `check_rules` where there is no case folder."""

    name = "check_rules"

    def __init__(self, case: EvalCase) -> None:
        self.case = case

    def call(self, **arguments: Any) -> CheckRulesResult:
        """Judge protocols on the record; arguments as of `check_rules`."""
        parsed = [known_agents().parse(text) for text in arguments["protocols"]]
        facts = self.case.facts
        if arguments["session"] is not None:
            facts = replace(facts, session=SessionFacts.model_validate(arguments["session"]))
        profile, strict, stage = (arguments[name] for name in ("profile", "strict", "stage"))
        return judge_protocols(arguments["case_id"], facts, parsed, profile, strict, stage)


def first_allowed(
    drugs: Sequence[str], embolics: Sequence[str], state: PlannerState, services: Services
) -> TaceProtocol | None:
    """The policy's own protocol before any simulation: its first drug and first embolic that the rules allow together.

    Args:
        drugs: Best first.
        embolics: Best first.
        state: Case and settings.
        services: Holds the rules.
    """
    pairs = [TaceProtocol(drugs=(drug,), embolics=(embolic,)) for drug in drugs for embolic in embolics]
    if not pairs:
        return None
    session = state.settings.session
    result = services.tools["check_rules"].call(
        case_id=state.case_id,
        protocols=[pair.key for pair in pairs],
        profile=state.settings.profile,
        strict=state.settings.strict,
        stage="complete",
        session=None if session is None else session.model_dump(exclude_none=True),
    )
    return next((pair for pair, v in zip(pairs, result.verdicts, strict=True) if v.allowed), None)


def _true_risk(truth: Any, protocol: TaceProtocol) -> float | None:
    index = None if truth is None else truth.place(protocol)
    return None if index is None else float(truth.log_hazard[index])


def _curve(plan: Plan) -> RiskCurve | None:
    if plan.chosen is None or plan.chosen.survival is None:
        return None
    drawn = plan.chosen.survival
    return RiskCurve(
        log_risk=plan.chosen.assessed.log_risk.mean, months=drawn.times_months, survival=drawn.survival
    )  # fmt: skip


def _blocked_why(plan: Plan) -> str:
    return "; ".join(dict.fromkeys(f"{f.rule_id}: {f.message}" for f in plan.blocked_by)) or "every protocol is blocked"
