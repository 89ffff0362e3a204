"""The oracle on small action sets: every allowed protocol within the horizons, T replicas each, in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import comb

from typing_extensions import override

from agent.contest import Table, levels, ranking
from agent.plan import NodeStatus, TreeNode
from agent.search import Actions, Beam, Candidate, Job, SearchState, Strategy, merge_jobs
from agent.settings import PlannerSettings
from models.errors import PlanningError
from models.protocol import Protocol


class ExhaustiveStrategy(Strategy):
    """One depth that holds every protocol with 1 to H_d drugs and 1 to H_e embolics."""

    def __init__(self, settings: PlannerSettings, actions: Actions) -> None:
        """Raises PlanningError where all combinations would not fit the budget by far (before any rule is asked)."""
        super().__init__(settings, actions)
        drugs = sum(comb(len(actions.drugs), n) for n in range(1, settings.drug_horizon + 1))
        embolics = sum(comb(len(actions.embolics), n) for n in range(1, settings.embolic_horizon + 1))
        self.size = drugs * embolics
        if self.size > 20 * settings.budget:
            raise PlanningError(self._too_many(self.size))

    def _too_many(self, protocols: int) -> str:
        need = protocols * self.settings.replicas
        t = self.settings.replicas
        left = self.settings.budget - self.final_reserve()
        return (
            f"The exhaustive search has {protocols} protocols, {need} simulations with {t} replicas; "
            f"the budget leaves {left}: raise --budget, lower --drugs, --embolics or horizons, or use --strategy beam."
        )

    @override
    def grow(self, search: SearchState) -> tuple[Candidate, ...]:
        """Every combination, smaller ones first, in the policy's order."""
        protocols = [
            Protocol(drugs=drugs, embolics=embolics)
            for n in range(1, self.settings.drug_horizon + 1)
            for drugs in combinations(self.actions.drugs, n)
            for m in range(1, self.settings.embolic_horizon + 1)
            for embolics in combinations(self.actions.embolics, m)
        ]
        return tuple(
            Candidate(
                node_id=f"x.{number:04d}",
                parent=search.beams[0].node_id,
                protocol=protocol,
                added=protocol.key,
                beam=0,
            )
            for number, protocol in enumerate(protocols)
        )

    @override
    def is_last(self, search: SearchState) -> bool:
        """Every candidate is a finished protocol."""
        return True

    @override
    def cost(self, candidate: Candidate, table: Table) -> int:
        """Nothing here: the whole batch is weighed in `jobs`, since an oracle with holes is none."""
        return 0

    @override
    def jobs(self, search: SearchState, table: Table) -> tuple[Job, ...]:
        """All T replicas of every protocol in one batch.

        Raises:
            PlanningError: the allowed protocols do not fit the budget.
        """
        need = len(search.candidates) * self.settings.replicas
        if need > self.settings.budget - self.final_reserve():
            raise PlanningError(self._too_many(len(search.candidates)))
        seeds = self.settings.seeds(self.settings.replicas)
        return merge_jobs({candidate.key: seeds for candidate in search.candidates}, table)

    @override
    def prune(self, search: SearchState, table: Table) -> SearchState:
        """Keep the best B as beams, for the report; every protocol stays in the table."""
        order = ranking(table, [candidate.key for candidate in search.candidates])
        level = levels(table, order)
        place = {key: number for number, key in enumerate(order, 1)}
        kept = order[: self.settings.beams]
        by_key = {candidate.key: candidate for candidate in search.candidates}
        nodes = tuple(
            self.node(
                search,
                c,
                "kept" if place[c.key] <= len(kept) else "pruned",
                f"place {place[c.key]} of {len(order)}",
                table[c.key],
            )
            for c in search.candidates
        )
        beams = tuple(Beam(protocol=by_key[k].protocol, node_id=by_key[k].node_id, score=level[k]) for k in kept)
        return search.model_copy(
            update={"beams": beams, "tree": (*search.tree, *nodes), "candidates": (), "phase": "final", "depth": 1}
        )

    @override
    def node(
        self,
        search: SearchState,
        candidate: Candidate,
        status: NodeStatus,
        reason: str,
        row: Mapping[int, float] | None = None,
        level: float | None = None,
    ) -> TreeNode:
        """The tree node of a whole protocol."""
        return super().node(search, candidate, status, reason, row, level).model_copy(update={"phase": "protocol"})

    @override
    def tree_depth(self, search: SearchState) -> int:
        """One level below the root."""
        return 1
