"""Last comparison: which finalists meet on which seeds, within the budget, and who wins. Pure.

The seeds are fresh. Those of the search selected the finalists, so they favour each of them by another amount: the
lucky ones came far. Only seeds that had no part in the selection compare finalists fairly.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.contest import Table, ranking
from agent.search import used
from agent.settings import PlannerSettings
from agent.state import Contest

FEWEST_REPLICAS = 3
"""With a short budget the number of seeds falls to this before finalists are left out: two hardly give a spread."""

MOST_ROUNDS = 3
"""How often protocols may join because the replicas of the others moved them up."""

SEARCH_SEEDS = (
    "The budget left no simulations for it, so the seeds of the search were used again: they also selected the "
    "finalists, which makes the choice look surer than it is."
)


def take_part(
    settings: PlannerSettings, table: Table, order: Sequence[str], contest: Contest
) -> tuple[list[str], tuple[int, ...]]:
    """Who meets on which seeds.

    Args:
        settings: Number of replicas, budget and seeds.
        table: Objectives so far.
        order: Allowed complete protocols, best first, at most as many as there are finalists; not empty.
        contest: The comparison so far; once it has begun its seeds stay.

    Returns:
        Protocols in the order given and seeds; no seeds where the budget can't hold a comparison.
    """
    room = settings.budget - used(table)
    if contest.rounds:
        seeds = contest.seeds
    else:
        fewest = min(FEWEST_REPLICAS, settings.finalist_replicas)
        count = max(fewest, min(settings.finalist_replicas, room // len(order)))
        seeds = settings.seeds(count, start=settings.replicas)
    part = []
    for key in order:
        cost = sum(seed not in table[key] for seed in seeds)
        if cost <= room:
            room -= cost
            part.append(key)
    if not contest.rounds and len(part) < min(2, len(order)):
        return list(order), ()
    return part, seeds


def settle(
    table: Table, order: Sequence[str], allowed: Sequence[str], seeds: tuple[int, ...], rounds: int, *, fixed: bool
) -> Contest:
    """The comparison among those that have all its seeds, best first; the chosen protocol is its head.

    Args:
        table: Objectives.
        order: As for `take_part`.
        allowed: All allowed complete protocols.
        seeds: As `take_part` returned them; without any, the seeds that all finalists share take their place.
        rounds: Rounds so far.
        fixed: The strategy names the chosen protocol: the first of `order`.
    """
    full = [key for key in order if seeds and set(seeds) <= set(table[key])]
    fresh, note = bool(full), ""
    if full:
        if late := [key for key in order if key not in full]:
            spent = f"all {MOST_ROUNDS} rounds of the comparison were" if rounds >= MOST_ROUNDS else "the budget was"
            note = f"Ranked among the finalists but not compared, because {spent} used up: {'; '.join(late)}."
    else:
        note = SEARCH_SEEDS
        full = list(order)
        seeds = tuple(sorted(set.intersection(*(set(table[key]) for key in full))))
        if not seeds:  # Algorithm 1 simulates every beam with seeds of its own: nothing to pair
            full, seeds = full[:1], tuple(sorted(table[full[0]]))
    final = {key: {seed: table[key][seed] for seed in seeds} for key in full}
    ranked = ranking(final, full)
    if fixed:
        ranked = [full[0], *(key for key in ranked if key != full[0])]
    return Contest(
        finalists=tuple(ranked),
        allowed=tuple(allowed),
        seeds=seeds,
        rounds=rounds,
        settled=True,
        fresh=fresh,
        note=note,
    )
