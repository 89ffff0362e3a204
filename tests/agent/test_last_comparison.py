import pytest

from agent.last_comparison import MOST_ROUNDS, SEARCH_SEEDS, settle, take_part
from agent.settings import PlannerSettings
from agent.state import Contest

KEYS = [f"Drug{n} | Lipiodol" for n in range(5)]


def searched(keys=KEYS, replicas=2):
    return {key: {seed: float(n) for seed in range(replicas)} for n, key in enumerate(keys)}


def test_the_seeds_are_fresh():
    settings = PlannerSettings(seed=3)
    part, seeds = take_part(settings, searched(), KEYS, Contest())
    assert part == KEYS
    assert seeds == settings.seeds(8, start=5)
    assert not set(seeds) & set(settings.seeds(settings.replicas))


@pytest.mark.parametrize(
    ("left", "finalists", "replicas"),
    [(40, 5, 8), (39, 5, 7), (15, 5, 3), (14, 4, 3), (6, 2, 3), (5, 5, 0), (0, 5, 0)],
)
def test_a_short_budget_takes_seeds_then_finalists(left, finalists, replicas):
    settings = PlannerSettings(budget=200)
    filler = {"Other | -": dict.fromkeys(range(200 - 10 - left), 0.0)}
    part, seeds = take_part(settings, {**searched(), **filler}, KEYS, Contest())
    assert (part, len(seeds)) == (KEYS[:finalists], replicas)
    if seeds:
        assert len(part) * len(seeds) <= left


def test_a_newcomer_joins_on_the_same_seeds_while_the_budget_lasts():
    settings = PlannerSettings(finalists=3, budget=24)
    seeds = settings.seeds(3, start=5)
    table = searched()
    for key in KEYS[:2]:
        table[key].update(dict.fromkeys(seeds, 0.5))
    begun = Contest(finalists=tuple(KEYS[:2]), seeds=seeds, rounds=1)
    assert take_part(settings, table, [KEYS[4], *KEYS[:2]], begun) == ([KEYS[4], *KEYS[:2]], seeds)
    table["Other | -"] = dict.fromkeys(range(6), 0.0)  # two simulations are left, a newcomer needs three
    assert take_part(settings, table, [KEYS[4], *KEYS[:2]], begun) == (KEYS[:2], seeds)


@pytest.mark.parametrize(("rounds", "word"), [(1, "the budget was used up"), (MOST_ROUNDS, "rounds")])
def test_who_was_ranked_but_not_compared_is_named(rounds, word):
    seeds = (5, 6, 7)
    table = searched()
    for value, key in zip((0.9, 0.1), KEYS[:2], strict=True):
        table[key].update(dict.fromkeys(seeds, value))
    done = settle(table, [KEYS[4], *KEYS[:2]], KEYS, seeds, rounds, fixed=False)
    assert done.finalists == (KEYS[1], KEYS[0])  # by the fresh seeds, not by those of the search
    assert done.fresh
    assert KEYS[4] in done.note
    assert word in done.note
    assert settle(table, KEYS[:2], KEYS, seeds, rounds, fixed=False).note == ""


def test_without_fresh_seeds_those_of_the_search_stand_in_and_it_is_said():
    done = settle(searched(), KEYS, KEYS, (), 0, fixed=False)
    assert (done.finalists, done.seeds, done.fresh) == (tuple(KEYS), (0, 1), False)
    assert done.note == SEARCH_SEEDS
    alone = settle({KEYS[0]: {0: 1.0}, KEYS[1]: {9: 0.0}}, KEYS[:2], KEYS[:2], (), 0, fixed=True)
    assert (alone.finalists, alone.seeds) == ((KEYS[0],), (0,))


def test_a_fixed_choice_is_not_overruled():
    seeds = (5, 6, 7)
    table = {key: dict.fromkeys(seeds, -float(n)) for n, key in enumerate(KEYS)}
    assert settle(table, KEYS, KEYS, seeds, 1, fixed=True).finalists == (KEYS[0], *reversed(KEYS[1:]))
