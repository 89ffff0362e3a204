"""Nodes of the search loop: expand, simulate, segment, score, prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langgraph.runtime import Runtime

from agent.ask import ask
from agent.contest import Difference, gain
from agent.events import BeamLine, DepthFinished, send
from agent.goal import Goal
from agent.nodes import Nodes, Update, verdicts_of
from agent.plan import Before, Replica, ToxicityPart
from agent.policy import BeamView, DepthView, nomination_errors
from agent.search import Candidate, Job, SearchState, Strategy
from agent.state import Baseline, ModelFacts, PendingOutcome, PlannerState, ProtocolNotes, Verdict, objectives
from agent.strategies import make_strategy
from agent.trace import Recorder
from models.errors import ToolError

if TYPE_CHECKING:  # types only: these modules load the networks, and nodes reach those through the registered tools
    from tools.measure_response import Response
    from tools.survival_risk import RiskEstimate


def strategy_of(state: PlannerState) -> Strategy:
    """The strategy of a state whose action space is known.

    Raises:
        PlanningError: the action space is empty or the budget too small for the strategy.
    """
    assert state.actions is not None
    return make_strategy(state.settings, state.actions)


def depth_view(
    state: PlannerState, strategy: Strategy, grown: Sequence[Candidate], verdicts: Mapping[str, Verdict]
) -> DepthView:
    """What the policy sees before a depth is expanded."""
    search, table = state.search, state.table
    beams = []
    for index, beam in enumerate(search.beams):
        row = table.get(beam.protocol.key)
        allowed = [c.added for c in grown if c.beam == index and c.added and verdicts[c.key].allowed]
        node = next(n for n in search.tree if n.node_id == beam.node_id)
        view = BeamView(
            protocol=beam.protocol.key,
            risk=beam.score if row else None,
            spread=node.se if row else None,
            allowed=tuple(allowed),
        )
        beams.append(view)
    improved: Difference | None = None
    if search.previous_best is not None:
        best = min(search.beams, key=lambda beam: beam.score if beam.score is not None else 0.0)
        improved = gain(table, best.protocol.key, search.previous_best, [beam.protocol.key for beam in search.beams])
    return DepthView(
        kind=search.kind,
        depth=search.depth,
        horizon=strategy.horizon(search.kind),
        mandatory=search.mandatory,
        beams=tuple(beams),
        candidates=strategy.actions.of(search.kind),
        gain=None if improved is None else improved.mean,
        gain_spread=None if improved is None else improved.se,
        simulations_left=max(0, strategy.left(search, table)),
    )


class SearchNodes(Nodes):
    """expand, simulate, segment, score, prune."""

    def expand(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Grow the beams by one agent: rules first, then the policy's nomination, then duplicates and budget."""
        strategy, search = strategy_of(state), state.search
        text = f"Expanding {len(search.beams)} beam(s): {search.kind} {search.depth}"
        recorder = self.begin("expand", text, state, runtime)
        grown = strategy.grow(search)
        verdicts, update = self._judge(state, strategy, grown, runtime, recorder)
        blocked = {c.key: verdicts[c.key].reason for c in grown if not verdicts[c.key].allowed}
        nominated: dict[str, list[str]] | None = None
        if strategy.asks_policy and any(c.added and c.key not in blocked for c in grown):
            view = depth_view(state, strategy, grown, verdicts)
            nomination, degraded = ask(
                self.services(state),
                "nominate",
                view,
                lambda policy: policy.nominate(view),
                lambda answer: nomination_errors(view, answer),
                recorder,
                state.decisions,
            )
            if degraded:
                update["degraded"] = (*state.degraded, degraded)
            if nomination.stop:
                after = strategy.stop(search, nomination.reason)
                closed = recorder.close(view, {"stopped": True}, f"stopped: {nomination.reason}")
                return {**update, "search": after, "jobs": (), "decisions": closed}
            nominated = {expansion.protocol: list(expansion.items) for expansion in nomination.expand}
        after = strategy.admit(search, grown, blocked, state.table, nominated)
        jobs = strategy.jobs(after, state.table) if after.candidates else ()
        result = {
            "candidates": [c.key for c in after.candidates],
            "blocked": len(blocked),
            "to_simulate": sum(job.size for job in jobs),
        }
        reason = f"{len(after.candidates)} of {len(grown)} candidates: {len(blocked)} are blocked by rules"
        inputs = {"beams": [beam.protocol.key for beam in search.beams], "kind": search.kind, "depth": search.depth}
        return {**update, "search": after, "jobs": jobs, "decisions": recorder.close(inputs, result, reason)}

    def _judge(
        self,
        state: PlannerState,
        strategy: Strategy,
        grown: Sequence[Candidate],
        runtime: Runtime[Any],
        recorder: Recorder,
    ) -> tuple[dict[str, Verdict], Update]:
        """Verdicts on all candidates, asking the rules about the new ones only; and the update that keeps them."""
        stage = "complete" if strategy.is_last(state.search) else "partial"
        known = dict(state.complete if stage == "complete" else state.partial)
        new = list(dict.fromkeys(c.key for c in grown if c.key not in known))
        if new:
            reason = (
                f"which candidates the rules allow as {'finished' if stage == 'complete' else 'unfinished'} protocols"
            )
            known.update(verdicts_of(self.check(new, stage, reason, state, runtime, recorder)))
        return known, {stage: known}

    def simulate(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Simulate what the search asks for: one batched call for each set of seeds."""
        recorder = self.begin("simulate", "Simulating the tumour after treatment", state, runtime)
        pending: list[PendingOutcome] = []
        models = state.models
        calls = [
            (job.protocols, seeds, late) for job in state.jobs for late, seeds in state.settings.by_phase(job.seeds)
        ]
        for protocols, seeds, late in calls:
            result = self.use(
                "simulate_tumor",
                f"{len(protocols)} protocols under {len(seeds)} common seeds",
                state,
                runtime,
                recorder,
                lambda r: {"outcomes": len(r.outcomes), "how": r.how, "origin": r.origin},
                len(protocols) * len(seeds),
                case_id=state.case_id,
                protocols=list(protocols),
                seeds=list(seeds),
                steps=state.settings.steps,
                last_comparison=late,
            )
            models = ModelFacts(weights_hash=result.weights_hash, origin=result.origin, how=result.how)
            pending.extend(
                PendingOutcome(outcome_id=o.outcome_id, protocol=o.protocol, seed=o.seed) for o in result.outcomes
            )
        wanted = {(key, seed) for job in state.jobs for key in job.protocols for seed in job.seeds}
        if {(p.protocol, p.seed) for p in pending} != wanted:
            raise ToolError("simulate_tumor did not return the outcomes it was asked for: run the plan again.")
        return {
            "pending": tuple(pending),
            "jobs": (),
            "models": models,
            "decisions": recorder.close(state.jobs, {"outcomes": len(pending)}, f"{len(pending)} outcomes are there"),
        }

    def segment(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Find what is left of the tumour in every new outcome, in one call."""
        recorder = self.begin("segment", "Segmenting what is left of the tumour", state, runtime)
        ids = [outcome.outcome_id for outcome in state.pending]
        result = self.use(
            "segment",
            "viable, necrotic and oil-filled tumour in each outcome",
            state,
            runtime,
            recorder,
            lambda r: {"segmentations": len(r.segmentations)},
            len(ids),
            outcome_ids=ids,
        )
        found = {s.outcome_id: s for s in result.segmentations}
        pending = tuple(
            outcome.model_copy(update={"segmentation_id": found[outcome.outcome_id].segmentation_id})
            for outcome in state.pending
        )
        closed = recorder.close(ids, {"segmentations": len(pending)}, f"{len(pending)} outcomes are segmented")
        return {"pending": pending, "decisions": closed}

    def score(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Risk and response of every new outcome; then say whether this depth needs more replicas."""
        recorder = self.begin("score", "Scoring risk and response", state, runtime)
        assert state.reading is not None
        ids = [str(outcome.segmentation_id) for outcome in state.pending]
        risks = self.use(
            "survival_risk",
            "log-risk of each outcome",
            state,
            runtime,
            recorder,
            lambda r: {"estimates": [round(e.log_risk, 4) for e in r.estimates]},
            len(ids),
            case_id=state.case_id,
            segmentation_ids=ids,
        )
        responses = self.use(
            "measure_response",
            "response of each outcome",
            state,
            runtime,
            recorder,
            lambda r: {"mrecist": [e.mrecist_category for e in r.responses]},
            len(ids),
            case_id=state.case_id,
            segmentation_ids=ids,
        )
        estimate = {e.outcome_id: e for e in risks.estimates}
        response = {r.outcome_id: r for r in responses.responses}
        replicas, notes = dict(state.replicas), dict(state.notes)
        for outcome in state.pending:
            risk = estimate[outcome.outcome_id]
            replica = replica_of(outcome, risk, response[outcome.outcome_id], state.reading)
            rows = {row.seed: row for row in (*replicas.get(outcome.protocol, ()), replica)}
            replicas[outcome.protocol] = tuple(rows[seed] for seed in sorted(rows))
            notes[outcome.protocol] = ProtocolNotes(
                toxicity_parts=tuple(
                    ToxicityPart(
                        item=p.item, value=p.log_hazard, reason=": ".join(filter(None, [p.organ, "; ".join(p.reasons)]))
                    )
                    for p in risk.toxicity_parts
                ),
                not_evaluable=tuple(risk.not_evaluable),
            )
        update: Update = {"replicas": replicas, "notes": notes, "pending": ()}
        first = responses.responses[0]
        update["before"] = Before(
            tumour_ml=first.tumour_before_ml,
            viable_ml=first.viable_before_ml,
            longest_diameter_mm=first.longest_diameter_before_mm,
            mrecist_mm=first.mrecist_before_mm,
            easl_mm2=first.easl_before_mm2,
        )
        update["clinical"] = risks.clinical
        if risks.times_months:
            update["baseline"] = Baseline(
                times_months=risks.times_months,
                survival=risks.baseline,
                n=risks.baseline_n,
                origin=risks.baseline_origin,
            )
        jobs: tuple[Job, ...] = ()
        if state.edit is None and state.search.phase != "final":
            jobs = strategy_of(state).jobs(state.search, objectives(replicas))
        more = sum(job.size for job in jobs)
        reason = f"{more} more replicas, where the contest is close" if more else "no more replicas are needed"
        result = {"scored": len(ids), "more_replicas": more}
        return {**update, "jobs": jobs, "decisions": recorder.close(ids, result, reason)}

    def prune(self, state: PlannerState, runtime: Runtime[Any]) -> Update:
        """Keep the best beams and go one depth on."""
        recorder = self.begin("prune", "Keeping the best beams", state, runtime)
        search: SearchState = state.search
        after = strategy_of(state).prune(search, state.table)
        nodes = {node.node_id: node for node in after.tree}
        beams = [nodes[beam.node_id] for beam in after.beams]
        new = after.tree[len(search.tree) :]
        send(
            runtime,
            DepthFinished(
                phase="protocol" if state.settings.strategy == "exhaustive" else search.kind,
                depth=search.depth,
                candidates=len(search.candidates),
                beams=tuple(BeamLine(protocol=n.protocol, objective=n.objective or 0.0, se=n.se, n=n.n) for n in beams),
                simulations=sum(len(rows) for rows in state.replicas.values()),
                budget=state.settings.budget,
            ),
        )
        kept = [beam.protocol.key for beam in after.beams]
        pruned = [node.protocol for node in new if node.status == "pruned"]
        result = {"kept": [[b.protocol.key, None if b.score is None else round(b.score, 4)] for b in after.beams]}
        reason = f"{len(kept)} beams kept, {len(pruned)} pruned; best {kept[0]}"
        inputs = {"candidates": [c.key for c in search.candidates], "kind": search.kind, "depth": search.depth}
        closed = recorder.close(inputs, {**result, "pruned": pruned}, reason)
        return {"search": after, "jobs": (), "decisions": closed}


def replica_of(outcome: PendingOutcome, risk: RiskEstimate, response: Response, goal: Goal) -> Replica:
    """One outcome with its measures and its objective."""
    return Replica(
        seed=outcome.seed,
        outcome_id=outcome.outcome_id,
        segmentation_id=str(outcome.segmentation_id),
        objective=goal.objective(risk.tumour_log_risk, risk.toxicity_log_risk, response.mrecist_change_percent),
        log_risk=risk.log_risk,
        tumour_log_risk=risk.tumour_log_risk,
        toxicity_log_risk=risk.toxicity_log_risk,
        median_survival_months=risk.median_survival_months,
        viable_ml=response.viable_ml,
        necrotic_fraction=response.necrotic_fraction,
        oil_fraction=response.oil_fraction,
        mrecist_mm=response.mrecist_mm,
        mrecist_change_percent=response.mrecist_change_percent,
        mrecist_category=response.mrecist_category,
        easl_mm2=response.easl_mm2,
        easl_change_percent=response.easl_change_percent,
        easl_category=response.easl_category,
        oil_confounded=response.oil_confounded,
    )
