"""Search over protocols: drugs first, then embolics. Pure: no model, no tool, no clock.

A strategy grows candidates from the beams, asks for replicas until the depth is settled, and prunes. Whoever drives
it (the planner graph, `run_search` in tests and evaluation) checks the rules, simulates what `jobs` asks for, and
hands back the table of objectives (protocol key -> seed -> objective, lower is better). This is equation (4) of the
paper: the argmin of the survival risk over the protocols that the policy proposes and the world model simulates.

    grow -> (rules) -> admit -> jobs -> (simulate) -> jobs -> ... -> prune -> grow -> ...

Strategies: `agent.search_beam` (default), `agent.search_paper` (Algorithm 1), `agent.search_exhaustive` (the oracle);
`agent.strategies` picks one by name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict

from agent.contest import Table, mean_se, ranking
from agent.plan import NodeStatus, TreeNode
from agent.settings import PlannerSettings
from models.errors import PlanningError
from models.protocol import Dose, DoseUnit, Kind, Protocol

ROOT = "root"
_DOSED = re.compile(r"(.+) (\d+(?:\.\d+)?) (mg|ml)")


class SearchModel(BaseModel):
    """Base of the search's parts: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Actions(SearchModel):
    """The action space after refinement: canonical names, in the policy's order."""

    drugs: tuple[str, ...]
    embolics: tuple[str, ...]

    def of(self, kind: Kind) -> tuple[str, ...]:
        """The items of one kind."""
        return self.drugs if kind == "drug" else self.embolics


class Beam(SearchModel):
    """A protocol that is being built. `score` is the objective that it had when it was kept (strategy `paper`)."""

    protocol: Protocol
    node_id: str
    score: float | None = None


class Candidate(SearchModel):
    """A protocol of the current depth. `seeds` are its own seeds where the strategy fixes them."""

    node_id: str
    parent: str
    protocol: Protocol
    added: str | None
    beam: int
    seeds: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Key of the protocol."""
        return self.protocol.key


class Job(SearchModel):
    """One batched call: every protocol with every seed."""

    protocols: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of outcomes."""
        return len(self.protocols) * len(self.seeds)


class SearchState(SearchModel):
    """Where a search stands.

    `phase` `final` means that the horizons are done and the finalists are to be compared. `previous_best` is the key
    of the best protocol one depth earlier within the same kind. `widened` is set once the beams were replaced because
    the rules left none of them an embolic.
    """

    phase: Literal["drug", "embolic", "final"] = "drug"
    depth: int = 1
    beams: tuple[Beam, ...] = (Beam(protocol=Protocol(), node_id=ROOT),)
    candidates: tuple[Candidate, ...] = ()
    tree: tuple[TreeNode, ...] = (
        TreeNode(
            node_id=ROOT,
            parent=None,
            phase="root",
            depth=0,
            protocol=Protocol().key,
            added=None,
            objective=None,
            se=None,
            n=0,
            status="kept",
            reason="nothing chosen yet",
        ),
    )
    stops: tuple[str, ...] = ()
    blocked: bool = False
    widened: bool = False
    previous_best: str | None = None

    @property
    def kind(self) -> Kind:
        """Kind of the items that the current depth adds."""
        return "embolic" if self.phase == "embolic" else "drug"

    @property
    def mandatory(self) -> bool:
        """True for the first drug and the first embolic."""
        return self.depth == 1


def merge_jobs(wanted: Mapping[str, Sequence[int]], table: Table) -> tuple[Job, ...]:
    """Batches for what the table still lacks: protocols that lack the same seeds share a batch."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for key, seeds in wanted.items():
        missing = tuple(seed for seed in seeds if seed not in table.get(key, {}))
        if missing:
            groups.setdefault(missing, []).append(key)
    return tuple(Job(protocols=tuple(keys), seeds=seeds) for seeds, keys in groups.items())


def parse_key(key: str) -> Protocol:
    """The protocol that has this key."""
    doses: dict[str, Dose] = {}

    def name_of(part: str) -> str:
        if dosed := _DOSED.fullmatch(part):
            doses[dosed[1]] = Dose(amount=float(dosed[2]), unit=cast(DoseUnit, dosed[3]))
            return dosed[1]
        return part

    drugs, embolics = (
        [name_of(part) for part in side.split(" + ")] if side != "-" else [] for side in key.split(" | ")
    )
    return Protocol(drugs=tuple(drugs), embolics=tuple(embolics), doses=tuple(doses.items()))


def used(table: Table) -> int:
    """Outcomes in the table."""
    return sum(len(row) for row in table.values())


class Strategy(ABC):
    """Step functions of one search strategy over one action space."""

    asks_policy: ClassVar[bool] = False
    """Whether the policy nominates what to expand; Algorithm 1 and the oracle expand everything."""

    def __init__(self, settings: PlannerSettings, actions: Actions) -> None:
        """Raises PlanningError where the action space has no drug or no embolic."""
        if not actions.drugs or not actions.embolics:
            side = "drug" if not actions.drugs else "embolic agent"
            msg = f"The action set has no {side} to try: choose another action set with --actions."
            raise PlanningError(msg)
        self.settings = settings
        self.actions = actions

    @abstractmethod
    def grow(self, search: SearchState) -> tuple[Candidate, ...]:
        """All candidates of the next depth before rules, in a fixed order; beams that stay as they are included."""

    @abstractmethod
    def jobs(self, search: SearchState, table: Table) -> tuple[Job, ...]:
        """What still has to be simulated at this depth; empty when it is settled."""

    @abstractmethod
    def prune(self, search: SearchState, table: Table) -> SearchState:
        """Keep the best candidates as beams and go to the next depth."""

    def horizon(self, kind: Kind) -> int:
        """Most items of a kind."""
        return self.settings.drug_horizon if kind == "drug" else self.settings.embolic_horizon

    def is_last(self, search: SearchState) -> bool:
        """True at the last embolic depth, where every candidate may be a finished protocol."""
        return search.phase == "embolic" and search.depth >= self.settings.embolic_horizon

    def final_reserve(self) -> int:
        """Outcomes held back for the last comparison: at most a quarter of the budget."""
        wanted = self.settings.finalists * self.settings.finalist_replicas
        return min(wanted, self.settings.budget // 4)

    def left(self, search: SearchState, table: Table) -> int:
        """Outcomes that this depth may still use: what later mandatory steps need is held back."""
        reserve = self.final_reserve()
        if search.phase == "drug":
            first = self.settings.beams * len(self.actions.embolics) * self.settings.screening
            reserve += min(first, self.settings.budget // 3)
        return self.settings.budget - used(table) - reserve

    def admit(
        self,
        search: SearchState,
        grown: Sequence[Candidate],
        blocked: Mapping[str, str],
        table: Table,
        nominated: Mapping[str, Sequence[str]] | None = None,
    ) -> SearchState:
        """Set the candidates of this depth: allowed by the rules, nominated by the policy, distinct, within the budget.

        Args:
            search: The state that `grow` was called on.
            grown: What it returned.
            blocked: Protocol key -> reason for what the rules block.
            table: Objectives so far.
            nominated: Beam's protocol key -> items to try on it; None tries all. Beams that stay are always in.

        Returns:
            The state with `candidates`; with `blocked` where a mandatory depth has none left; in the next phase where
            an optional depth has nothing new to try.
        """
        kept: list[Candidate] = []
        nodes: list[TreeNode] = []
        first_by_key: dict[str, str] = {}
        room = self.left(search, table)
        cut = 0
        for candidate in grown:
            parent = search.beams[candidate.beam].protocol.key
            if (reason := blocked.get(candidate.key)) is not None:
                nodes.append(self.node(search, candidate, "blocked", reason))
            elif candidate.added and nominated is not None and candidate.added not in nominated.get(parent, ()):
                nodes.append(self.node(search, candidate, "unassessed", "not nominated by the policy"))
            elif (twin := first_by_key.get(self.identity(candidate))) is not None:
                nodes.append(self.node(search, candidate, "duplicate", f"same protocol as {twin}"))
            else:
                cost = self.cost(candidate, table)
                if cost > room and cost > 0:
                    cut += 1
                    nodes.append(self.node(search, candidate, "unassessed", "simulation budget reached"))
                    continue
                room -= cost
                first_by_key[self.identity(candidate)] = candidate.node_id
                kept.append(candidate)
        stops = search.stops
        if cut:
            stops = (
                *stops,
                f"The simulation budget of {self.settings.budget} was reached at {search.kind} {search.depth}: "
                f"{cut} of {cut + len(kept)} candidates were not simulated.",
            )
        after = search.model_copy(update={"tree": (*search.tree, *nodes), "stops": stops, "candidates": tuple(kept)})
        if any(candidate.added for candidate in kept):
            return after
        if not search.mandatory:
            return self.next_phase(after)
        if cut:
            msg = f"The simulation budget of {self.settings.budget} does not reach a complete protocol: raise --budget."
            raise PlanningError(msg)
        if wider := self.wider(after):
            return wider
        return after.model_copy(update={"candidates": (), "phase": "final", "blocked": True})

    def wider(self, search: SearchState) -> SearchState | None:
        """The pruned drug combinations as beams, where the rules leave the kept ones no embolic; None once done."""
        if search.phase != "embolic" or search.widened or self.choice_is_fixed():
            return None
        kept = {beam.protocol.key for beam in search.beams}
        nodes = {
            node.protocol: node for node in search.tree if node.phase == "drug" and node.n and node.protocol not in kept
        }
        if not nodes:
            return None
        order = sorted(nodes.values(), key=lambda node: (node.objective or 0.0, node.protocol))
        beams = tuple(Beam(protocol=parse_key(n.protocol), node_id=n.node_id, score=n.objective) for n in order)
        stop = (
            f"The rules allow no embolic for the {len(kept)} kept drug combinations; "
            f"the {len(beams)} pruned ones were tried."
        )
        update = {"beams": beams, "widened": True, "candidates": (), "stops": (*search.stops, stop)}
        return search.model_copy(update=update)

    def identity(self, candidate: Candidate) -> str:
        """What makes two candidates the same one."""
        return candidate.key

    def cost(self, candidate: Candidate, table: Table) -> int:
        """New outcomes that a candidate needs at least."""
        seeds = candidate.seeds or self.settings.seeds(self.settings.screening)
        return sum(seed not in table.get(candidate.key, {}) for seed in seeds)

    def stop(self, search: SearchState, reason: str) -> SearchState:
        """End the current kind here because the policy says so: the beams stay as they are.

        Raises:
            PlanningError: the first drug or the first embolic is still missing.
        """
        if search.mandatory:
            msg = f"The policy stopped before the first {search.kind}, which is mandatory."
            raise PlanningError(msg)
        stops = (*search.stops, f"The policy stopped at {search.kind} {search.depth}: {reason}")
        return self.next_phase(search.model_copy(update={"stops": stops}))

    def next_phase(self, search: SearchState) -> SearchState:
        """From drugs to embolics, from embolics to the last comparison, with the beams as they are."""
        phase = "embolic" if search.phase == "drug" else "final"
        return search.model_copy(update={"phase": phase, "depth": 1, "candidates": (), "previous_best": None})

    def next_depth(self, search: SearchState) -> SearchState:
        """One item deeper, or the next phase at the horizon."""
        if search.depth >= self.horizon(search.kind):
            return self.next_phase(search)
        return search.model_copy(update={"depth": search.depth + 1, "candidates": ()})

    def final_order(self, search: SearchState, table: Table, allowed: Sequence[str]) -> list[str]:  # noqa: ARG002 (subclasses)
        """Allowed complete protocols, best first: the finalists are taken from its head."""
        return ranking(table, allowed)

    def choice_is_fixed(self) -> bool:
        """True where the strategy itself names the chosen protocol and the last comparison only measures its margin."""
        return False

    def node_id(self, search: SearchState, index: int) -> str:
        """Id of the `index`-th candidate of this depth, such as ``e1.04``; ``e1w.04`` once the beams were widened."""
        return f"{search.kind[0]}{search.depth}{'w' if search.widened else ''}.{index:02d}"

    def tree_depth(self, search: SearchState) -> int:
        """Depth counted over both kinds."""
        return search.depth + (self.settings.drug_horizon if search.phase == "embolic" else 0)

    def node(
        self,
        search: SearchState,
        candidate: Candidate,
        status: NodeStatus,
        reason: str,
        row: Mapping[int, float] | None = None,
        level: float | None = None,
    ) -> TreeNode:
        """The tree node of a candidate, with `level` or else the mean of `row` where it was simulated."""
        mean, se = mean_se(list(row.values())) if row else (None, None)
        mean = mean if level is None else level
        return TreeNode(
            node_id=candidate.node_id,
            parent=candidate.parent,
            phase=search.kind,
            depth=self.tree_depth(search),
            beam=candidate.beam if candidate.seeds else None,
            protocol=candidate.key,
            added=candidate.added,
            objective=mean,
            se=se,
            n=len(row or ()),
            status=status,
            reason=reason,
        )


Score = Callable[[tuple[Job, ...]], Table]
Block = Callable[[Sequence[str], bool], Mapping[str, str]]


def run_search(strategy: Strategy, score: Score, block: Block) -> tuple[SearchState, dict[str, dict[int, float]]]:
    """Drive a strategy to the end of its horizons, without a policy.

    Args:
        strategy: The strategy.
        score: Jobs -> objectives of all their outcomes.
        block: (protocol keys, whether they are judged as complete) -> reasons of the blocked ones.

    Returns:
        The final state and the table of all objectives.
    """
    search = SearchState()
    table: dict[str, dict[int, float]] = {}
    while search.phase != "final":
        grown = strategy.grow(search)
        reasons = block(list(dict.fromkeys(c.key for c in grown)), strategy.is_last(search))
        search = strategy.admit(search, grown, reasons, table)
        if not search.candidates:
            continue
        while jobs := strategy.jobs(search, table):
            for key, row in score(jobs).items():
                table.setdefault(key, {}).update(row)
        search = strategy.prune(search, table)
    return search, table
