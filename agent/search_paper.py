"""Algorithm 1 of the paper, to the letter, for comparison with the default search.

Where the pseudocode is ambiguous:

- Lines 8 and 15 write ``f_DM(x, drug_i)`` and "from x and plans[b]": every candidate is the beam's combination plus
  one item, simulated from the pre-treatment image (the text: "for each current action combo").
- Lines 9 and 17 append an argmin over single generated tumours, the text says "best average survival score of T
  replicas": the item with the lowest mean over its T replicas is appended.
- Every beam appends at every horizon; a beam never stays as it is. Where the rules leave it no item, it stays
  unchanged.
- The beams start equal, so only sampling noise makes them differ: each beam draws its own T seeds at each horizon.
- Lines 11 and 19 score a plan by the mean with which its last item was appended. The worst plan is overwritten by the
  best one (lowest index where several are equal); with one beam, or all equal, nothing changes.
- Line 22 chooses by those same scores; the last comparison with more replicas measures the margin but does not
  overrule it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from agent.contest import Table, mean_se
from agent.plan import NodeStatus, TreeNode
from agent.search import Beam, Candidate, Job, SearchState, Strategy, merge_jobs, used
from models.errors import PlanningError

FIRST_BLOCK = 1000
"""Replica index of the first beam's seeds; the last comparison uses indices from T."""


class PaperStrategy(Strategy):
    """B greedy beams, T replicas per candidate, the worst beam replaced by the best after each horizon."""

    def beams(self, search: SearchState) -> tuple[Beam, ...]:
        """The B beams; line 4 makes them from the one root."""
        if len(search.beams) == 1:
            return search.beams * self.settings.beams
        return search.beams

    def block_seeds(self, search: SearchState, beam: int) -> tuple[int, ...]:
        """The T seeds of one beam at one horizon, shared by no other."""
        block = (self.tree_depth(search) - 1) * self.settings.beams + beam
        return self.settings.seeds(self.settings.replicas, FIRST_BLOCK + block * self.settings.replicas)

    @override
    def grow(self, search: SearchState) -> tuple[Candidate, ...]:
        """Lines 7, 8, 15, 16: every beam's combination plus every item that it lacks."""
        return tuple(
            Candidate(
                node_id=f"{search.kind[0]}{search.depth}.b{index}.{number:02d}",
                parent=beam.node_id,
                protocol=beam.protocol.with_item(search.kind, item),
                added=item,
                beam=index,
                seeds=self.block_seeds(search, index),
            )
            for index, beam in enumerate(self.beams(search))
            for number, item in enumerate(self.actions.of(search.kind))
            if item not in beam.protocol.items
        )

    @override
    def admit(
        self,
        search: SearchState,
        grown: Sequence[Candidate],
        blocked: Mapping[str, str],
        table: Table,
        nominated: Mapping[str, Sequence[str]] | None = None,
    ) -> SearchState:
        """As `Strategy.admit`, but a horizon is simulated whole or not at all: the beams are not treated unequally."""
        search = search.model_copy(update={"beams": self.beams(search)})
        need = sum(self.cost(c, table) for c in grown if c.key not in blocked)
        if need > self.left(search, table):
            where = f"{search.kind} {search.depth} of Algorithm 1 needs {need} simulations"
            if search.mandatory:
                msg = f"The simulation budget of {self.settings.budget} is too small: {where}; raise --budget."
                raise PlanningError(msg)
            stop = f"The simulation budget of {self.settings.budget} was reached: {where}."
            return self.next_phase(search.model_copy(update={"stops": (*search.stops, stop)}))
        return super().admit(search, grown, blocked, table, None)

    @override
    def left(self, search: SearchState, table: Table) -> int:
        """As `Strategy.left`, with the whole first embolic horizon held back."""
        first = self.settings.beams * len(self.actions.embolics) * self.settings.replicas
        held = first if search.phase == "drug" else 0
        return self.settings.budget - used(table) - held - self.final_reserve()

    @override
    def identity(self, candidate: Candidate) -> str:
        """No candidate is the same as another beam's: each beam simulates for itself."""
        return candidate.node_id

    @override
    def is_last(self, search: SearchState) -> bool:
        """Complete rules are judged after line 22, not inside the loop."""
        return False

    @override
    def jobs(self, search: SearchState, table: Table) -> tuple[Job, ...]:
        """T replicas of every candidate, one batch per beam (its own seeds)."""
        jobs: list[Job] = []
        for index in range(len(search.beams)):
            wanted = {c.key: c.seeds for c in search.candidates if c.beam == index}
            jobs.extend(merge_jobs(wanted, table))
        return tuple(jobs)

    @override
    def prune(self, search: SearchState, table: Table) -> SearchState:
        """Lines 9 and 17 for every beam, then lines 11 and 12 (19 and 20)."""
        beams = list(search.beams)
        nodes: list[TreeNode] = []
        for index in range(len(search.beams)):
            mine = [c for c in search.candidates if c.beam == index]
            rows = {c.node_id: {seed: table[c.key][seed] for seed in c.seeds} for c in mine}
            score = {c.node_id: mean_se(list(rows[c.node_id].values()))[0] for c in mine}
            best = min(mine, key=lambda c: (score[c.node_id], c.node_id), default=None)
            if best is not None:
                beams[index] = Beam(protocol=best.protocol, node_id=best.node_id, score=score[best.node_id])
            for candidate in mine:
                status: NodeStatus = "kept" if candidate is best else "pruned"
                reason = f"beam {index + 1}: " + (
                    "lowest mean risk, appended" if candidate is best else "not the lowest mean risk"
                )
                nodes.append(self.node(search, candidate, status, reason, rows[candidate.node_id]))
        scores = [beam.score if beam.score is not None else float("inf") for beam in beams]
        worst, best_index = scores.index(max(scores)), scores.index(min(scores))
        if scores[worst] > scores[best_index]:
            nodes = [_replaced(node, beams[worst].node_id, worst, best_index) for node in nodes]
            beams[worst] = beams[best_index]
        update = {"beams": tuple(beams), "tree": (*search.tree, *nodes)}
        return self.next_depth(search.model_copy(update=update))

    @override
    def final_order(self, search: SearchState, table: Table, allowed: Sequence[str]) -> list[str]:
        """Line 22: the plans by their scores; then whatever else was assessed, by its mean."""
        order = sorted(enumerate(search.beams), key=lambda pair: (pair[1].score or 0.0, pair[0]))
        plans = [beam.protocol.key for _, beam in order if beam.protocol.key in allowed]
        rest = sorted(set(allowed) - set(plans), key=lambda key: (mean_se(list(table[key].values()))[0], key))
        return list(dict.fromkeys([*plans, *rest]))

    @override
    def choice_is_fixed(self) -> bool:
        """Line 22 chooses."""
        return True


def _replaced(node: TreeNode, node_id: str, worst: int, best: int) -> TreeNode:
    if node.node_id != node_id:
        return node
    reason = f"{node.reason}; then beam {worst + 1}, the worst, was replaced by beam {best + 1}, the best"
    return node.model_copy(update={"status": "pruned", "reason": reason})
