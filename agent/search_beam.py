"""The default search: expand all beams, drop duplicates by protocol, keep the B best distinct."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from agent.contest import Table, contested, levels, ranking
from agent.plan import NodeStatus
from agent.search import Beam, Candidate, Job, SearchState, Strategy, merge_jobs
from models.protocol import Protocol


class BeamStrategy(Strategy):
    """Expand all beams, drop duplicates, keep the B best distinct protocols.

    Every candidate is screened with the same few seeds; up to T replicas go only to candidates whose place among the
    B best is open (at the last depth: among the finalists). From the second item on, a beam may also stay as it is
    and compete.
    """

    asks_policy = True

    @override
    def grow(self, search: SearchState) -> tuple[Candidate, ...]:
        """See `Strategy.grow`."""
        raw: list[tuple[Beam, int, str | None, Protocol]] = []
        if not search.mandatory:
            raw.extend((beam, index, None, beam.protocol) for index, beam in enumerate(search.beams))
        for index, beam in enumerate(search.beams):
            raw.extend(
                (beam, index, item, beam.protocol.with_item(search.kind, item))
                for item in self.actions.of(search.kind)
                if item not in beam.protocol.items
            )
        return tuple(
            Candidate(node_id=self.node_id(search, n), parent=beam.node_id, protocol=protocol, added=item, beam=index)
            for n, (beam, index, item, protocol) in enumerate(raw)
        )

    def places(self, search: SearchState) -> int:
        """How many places are contested at this depth."""
        return max(self.settings.beams, self.settings.finalists) if self.is_last(search) else self.settings.beams

    @override
    def jobs(self, search: SearchState, table: Table) -> tuple[Job, ...]:
        """Screening in one batch; then twice the replicas for each open candidate, up to T and within the budget."""
        keys = [candidate.key for candidate in search.candidates]
        screening = self.settings.seeds(self.settings.screening)
        if first := merge_jobs(dict.fromkeys(keys, screening), table):
            return first
        room = self.left(search, table)
        wanted: dict[str, Sequence[int]] = {}
        for key in contested(table, keys, self.places(search)):
            have = len(table[key])
            seeds = self.settings.seeds(min(2 * have, self.settings.replicas))
            cost = sum(seed not in table[key] for seed in seeds)
            if cost <= room:
                room -= cost
                wanted[key] = seeds
        return merge_jobs(wanted, table)

    @override
    def prune(self, search: SearchState, table: Table) -> SearchState:
        """Keep the B best distinct candidates."""
        order = ranking(table, [candidate.key for candidate in search.candidates])
        level = levels(table, order)
        place = {key: number for number, key in enumerate(order, 1)}
        by_key = {candidate.key: candidate for candidate in search.candidates}
        kept = order[: self.settings.beams]
        nodes = []
        for candidate in search.candidates:
            status: NodeStatus = "kept" if place[candidate.key] <= self.settings.beams else "pruned"
            word = "kept" if status == "kept" else "pruned"
            reason = f"{word}: place {place[candidate.key]} of {len(order)}, {self.settings.beams} beams are kept"
            nodes.append(self.node(search, candidate, status, reason, table[candidate.key], level[candidate.key]))
        beams = tuple(Beam(protocol=by_key[k].protocol, node_id=by_key[k].node_id, score=level[k]) for k in kept)
        before = None if search.mandatory else search.beams[0].protocol.key
        update = {"beams": beams, "tree": (*search.tree, *nodes), "previous_best": before}
        return self.next_depth(search.model_copy(update=update))
