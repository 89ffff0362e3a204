from collections import Counter
from itertools import combinations

import pytest

from agent.contest import mean_se, ranking
from agent.search import Actions, SearchState, parse_key, run_search
from agent.settings import PlannerSettings, make_settings
from agent.strategies import make_strategy
from models.errors import InputError, PlanningError
from models.protocol import Protocol
from tests.agent.scripted import DRUGS, EMBOLICS, ScriptedRisk, allow_all, one_platinum

SMALL = Actions(drugs=DRUGS[:4], embolics=EMBOLICS[:3])


def complete(table, block=allow_all):
    keys = [key for key in table if parse_key(key).drugs and parse_key(key).embolics]
    return [key for key in keys if key not in block(keys, True)]


def best_of(strategy, search, table, block=allow_all):
    return strategy.final_order(search, table, complete(table, block))[0]


def run(settings, actions, risk, block=allow_all):
    strategy = make_strategy(settings, actions)
    search, table = run_search(strategy, risk, block)
    return strategy, search, table


def every_protocol(actions, h_d, h_e):
    for n in range(1, h_d + 1):
        for drugs in combinations(actions.drugs, n):
            for m in range(1, h_e + 1):
                for embolics in combinations(actions.embolics, m):
                    yield Protocol(drugs=drugs, embolics=embolics).key


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("block", [allow_all, one_platinum], ids=["free", "rules"])
def test_wide_beam_finds_what_exhaustive_and_brute_force_find(seed, block):
    actions = Actions(drugs=(*DRUGS[:3], "Oxaliplatin"), embolics=EMBOLICS[1:])
    noise = {"own_noise": 0.2, "shared_noise": 3.0}
    settings = PlannerSettings(beams=100, screening_replicas=5, drug_horizon=2, embolic_horizon=2)
    beam = run(settings, actions, ScriptedRisk(seed, **noise), block)
    oracle = run(settings.model_copy(update={"strategy": "exhaustive"}), actions, ScriptedRisk(seed, **noise), block)
    assert best_of(*beam, block) == best_of(*oracle, block)

    risk = ScriptedRisk(seed, **noise)
    keys = [key for key in every_protocol(actions, 2, 2) if key not in block([key], True)]
    brute = min(keys, key=lambda key: sum(risk.value(key, s) for s in settings.seeds(5)))
    assert best_of(*oracle, block) == brute
    assert set(complete(oracle[2], block)) == set(keys)


@pytest.mark.parametrize("seed", range(6))
def test_default_beam_is_near_the_oracle_and_much_cheaper(seed):
    actions = Actions(drugs=DRUGS, embolics=EMBOLICS)
    risk = ScriptedRisk(seed, own_noise=0.1, shared_noise=2.0)
    strategy, search, table = run(PlannerSettings(), actions, risk)
    truths = sorted(risk.truth(key) for key in every_protocol(actions, 3, 2))
    reached = risk.truth(best_of(strategy, search, table))
    assert reached <= truths[len(truths) // 20]  # among the best 5 % of 410 protocols
    assert sum(risk.simulated.values()) < 410 * 5 / 4


@pytest.mark.parametrize("strategy", ["beam", "paper", "exhaustive"])
def test_nothing_is_simulated_twice_and_the_structure_holds(strategy):
    risk = ScriptedRisk(3, own_noise=0.5, shared_noise=1.0)
    settings = PlannerSettings(strategy=strategy, drug_horizon=2, budget=2000)
    _, search, table = run(settings, SMALL, risk)
    assert set(risk.simulated.values()) == {1}
    assert sum(risk.simulated.values()) == sum(len(row) for row in table.values())
    for key in table:
        protocol = parse_key(key)
        assert len(protocol.drugs) in (1, 2)
        assert len(protocol.embolics) <= 2
    ids = [node.node_id for node in search.tree]
    assert len(set(ids)) == len(ids)
    assert {node.parent for node in search.tree} - {None} <= set(ids)


def test_candidates_of_a_depth_are_distinct_and_screened_in_one_batch():
    risk = ScriptedRisk(0)
    _, search, _ = run(PlannerSettings(beams=4, drug_horizon=2, embolic_horizon=1), SMALL, risk)
    # Deterministic risks leave no contest open: one call per depth, and 4 + 6 distinct pairs (12 ordered ones) + 4 x 3.
    assert [sum(job.size for job in jobs) for jobs in risk.calls] == [4 * 2, 6 * 2, 4 * 3 * 2]
    assert all(len(jobs) == 1 for jobs in risk.calls)
    second = [node for node in search.tree if node.phase == "drug" and node.depth == 2]
    assert Counter(node.status == "duplicate" for node in second) == {True: 6, False: 6 + 4}
    assert sum(node.added is None for node in second) == 4  # beams that stay and compete


def test_a_beam_may_stay_when_more_agents_only_harm():
    class Harm(ScriptedRisk):
        def truth(self, key):
            protocol = parse_key(key)
            return len(protocol.items) + (0.5 if "Doxorubicin" not in protocol.drugs else 0)

    strategy, search, table = run(PlannerSettings(), SMALL, Harm(0))
    best = parse_key(best_of(strategy, search, table))
    assert best.drugs == ("Doxorubicin",)
    assert len(best.embolics) == 1


def test_replicas_go_where_the_contest_is_close():
    levels = {"Cisplatin": 0.0, "Doxorubicin": 1.0, "Epirubicin": 1.01, "Mitomycin": 3.0}

    class Close(ScriptedRisk):
        def truth(self, key):
            protocol = parse_key(key)
            return sum(levels[name] for name in protocol.drugs) + 0.3 * len(protocol.embolics)

    risk = Close(0, own_noise=0.3, shared_noise=5.0)
    settings = PlannerSettings(beams=2, drug_horizon=1, embolic_horizon=1, replicas=6)
    _, _, table = run(settings, Actions(drugs=DRUGS[:4], embolics=EMBOLICS[:1]), risk)
    replicas = {key: len(table[key]) for key in table if key.endswith("| -")}
    assert replicas == {"Cisplatin | -": 2, "Doxorubicin | -": 6, "Epirubicin | -": 6, "Mitomycin | -": 2}


def test_partial_rules_prune_before_anything_is_simulated():
    risk = ScriptedRisk(1)
    actions = Actions(drugs=("Cisplatin", "Oxaliplatin"), embolics=("Lipiodol", "PVA"))
    _, search, table = run(PlannerSettings(), actions, risk, one_platinum)
    assert not any({"Cisplatin", "Oxaliplatin"} <= set(parse_key(key).drugs) for key in table)
    blocked = [node for node in search.tree if node.status == "blocked"]
    assert {node.reason for node in blocked} == {"two platinum agents", "PVA alone"}


def test_all_blocked_is_a_state_and_no_exception():
    risk = ScriptedRisk(0)
    _, search, table = run(
        PlannerSettings(), SMALL, risk, lambda keys, complete: dict.fromkeys(keys, "contraindicated")
    )
    assert search.blocked
    assert not table
    assert not risk.calls


def test_pruned_drugs_are_tried_where_the_rules_leave_the_kept_ones_no_embolic():
    risk = ScriptedRisk(5)
    order = ranking({f"{d} | -": {0: risk.truth(f"{d} | -")} for d in SMALL.drugs}, [f"{d} | -" for d in SMALL.drugs])
    last = parse_key(order[-1]).drugs[0]

    def only_last(keys, complete):
        return {key: "no" for key in keys if parse_key(key).embolics and parse_key(key).drugs != (last,)}

    strategy, search, table = run(PlannerSettings(beams=1, drug_horizon=1), SMALL, risk, only_last)
    assert not search.blocked
    assert parse_key(best_of(strategy, search, table)).drugs == (last,)
    assert "pruned ones were tried" in search.stops[0]
    ids = [node.node_id for node in search.tree]
    assert len(set(ids)) == len(ids)
    assert {node.node_id.split(".")[0] for node in search.tree if node.phase == "embolic"} >= {"e1", "e1w"}


@pytest.mark.parametrize("budget", [24, 40, 80, 120])
def test_the_budget_is_a_hard_cap_and_still_gives_a_complete_protocol(budget):
    risk = ScriptedRisk(2, own_noise=1.0)
    settings = PlannerSettings(budget=budget)
    _, search, table = run(settings, Actions(drugs=DRUGS, embolics=EMBOLICS), risk)
    assert sum(risk.simulated.values()) <= budget
    assert complete(table)
    assert any("budget" in stop for stop in search.stops)
    assert any(node.status == "unassessed" for node in search.tree)


def test_exhaustive_refuses_what_the_budget_can_not_hold():
    settings = PlannerSettings(strategy="exhaustive", budget=100)
    risk = ScriptedRisk(0)
    with pytest.raises(PlanningError, match=r"410 protocols, 2050 simulations with 5 replicas.*--strategy beam"):
        run(settings, Actions(drugs=DRUGS, embolics=EMBOLICS), risk)
    assert not risk.calls
    with pytest.raises(PlanningError, match="too small"):
        run(PlannerSettings(strategy="paper", budget=100), Actions(drugs=DRUGS, embolics=EMBOLICS), risk)


@pytest.mark.parametrize("actions", [Actions(drugs=(), embolics=EMBOLICS), Actions(drugs=DRUGS, embolics=())])
def test_an_empty_action_set_is_an_error(actions):
    with pytest.raises(PlanningError, match=r"has no (drug|embolic agent) to try"):
        make_strategy(PlannerSettings(), actions)


def test_the_policy_can_not_stop_before_the_first_drug():
    strategy = make_strategy(PlannerSettings(), SMALL)
    with pytest.raises(PlanningError, match="mandatory"):
        strategy.stop(SearchState(), "enough")
    second = SearchState(depth=2)
    assert strategy.stop(second, "enough").phase == "embolic"


def test_nominations_limit_the_expansion():
    strategy = make_strategy(PlannerSettings(), SMALL)
    start = SearchState()
    search = strategy.admit(start, strategy.grow(start), {}, {}, {"- | -": ["Epirubicin"]})
    assert [candidate.key for candidate in search.candidates] == ["Epirubicin | -"]
    assert sum(node.reason == "not nominated by the policy" for node in search.tree) == 3


def test_settings_out_of_range_are_a_sentence():
    with pytest.raises(InputError, match=r"beams=0 can't be used: input should be greater than or equal to 1\."):
        make_settings(beams=0, seed=None)
    assert make_settings(beams=3, seed=None) == PlannerSettings(beams=3)


def test_seeds_of_two_runs_do_not_overlap():
    assert not set(PlannerSettings(seed=0).seeds(2000)) & set(PlannerSettings(seed=1).seeds(2000))
    assert PlannerSettings(seed=2).seeds(2, 3) == (200003, 200004)


def test_mean_se_against_a_hand_calculation():
    assert mean_se([1.0, 2.0, 6.0]) == (3.0, pytest.approx((14 / 2 / 3) ** 0.5))
    assert mean_se([4.0]) == (4.0, None)
