"""Algorithm 1 against a table that was worked out by hand: B = T = 2, H_d = H_e = 2, no Cisplatin with Mitomycin.

Risks by horizon and beam; two replicas each, mean in brackets; ``->`` is what lines 9/17 append:

    drug 1     beam 1 (empty)    C 1,11 (6)    D 2,9 (5.5)    M 6,6 (6)       -> D 5.5  (not C, whose 1 is lowest)
               beam 2 (empty)    C 3,5  (4)    D 5,5 (5)      M 6,3 (4.5)     -> C 4
               lines 11-12       worst is beam 1 (5.5), best beam 2 (4)       => beam 1 := C 4
    drug 2     beam 1 (C)        C+D 4,3 (3.5)      C+M forbidden             -> C+D 3.5
               beam 2 (C)        C+D 6,4 (5)        C+M forbidden             -> C+D 5   (appended although C had 4)
               lines 11-12       worst is beam 2 (5), best beam 1 (3.5)       => beam 2 := C+D 3.5
    embolic 1  beam 1 (C+D)      Lip 3,3 (3)        PVA 2,3 (2.5)             -> C+D | PVA 2.5
               beam 2 (C+D)      Lip 1,2 (1.5)      PVA 4,4 (4)               -> C+D | Lip 1.5
               lines 19-20       worst is beam 1 (2.5), best beam 2 (1.5)     => beam 1 := C+D | Lip 1.5
    embolic 2  beam 1            Lip+PVA 2,2 (2)                              -> C+D | Lip+PVA 2
               beam 2            Lip+PVA 3,2 (2.5)                            -> C+D | Lip+PVA 2.5
               lines 19-20       worst is beam 2 (2.5), best beam 1 (2)       => beam 2 := C+D | Lip+PVA 2
    line 22    C+D | Lip+PVA, although C+D | Lip had 1.5: Algorithm 1 always appends
"""

from agent.search import Actions, SearchState
from agent.settings import PlannerSettings
from agent.strategies import make_strategy

ACTIONS = Actions(drugs=("Cisplatin", "Doxorubicin", "Mitomycin"), embolics=("Lipiodol", "PVA"))
CD = "Cisplatin + Doxorubicin"

RISKS = [
    [
        {"Cisplatin | -": (1, 11), "Doxorubicin | -": (2, 9), "Mitomycin | -": (6, 6)},
        {"Cisplatin | -": (3, 5), "Doxorubicin | -": (5, 5), "Mitomycin | -": (6, 3)},
    ],
    [{f"{CD} | -": (4, 3)}, {f"{CD} | -": (6, 4)}],
    [
        {f"{CD} | Lipiodol": (3, 3), f"{CD} | PVA": (2, 3)},
        {f"{CD} | Lipiodol": (1, 2), f"{CD} | PVA": (4, 4)},
    ],
    [{f"{CD} | Lipiodol + PVA": (2, 2)}, {f"{CD} | Lipiodol + PVA": (3, 2)}],
]

AFTER_EACH_HORIZON = [
    [("Cisplatin | -", 4.0), ("Cisplatin | -", 4.0)],
    [(f"{CD} | -", 3.5), (f"{CD} | -", 3.5)],
    [(f"{CD} | Lipiodol", 1.5), (f"{CD} | Lipiodol", 1.5)],
    [(f"{CD} | Lipiodol + PVA", 2.0), (f"{CD} | Lipiodol + PVA", 2.0)],
]

APPENDED = [
    ["Doxorubicin | -", "Cisplatin | -"],
    [f"{CD} | -", f"{CD} | -"],
    [f"{CD} | PVA", f"{CD} | Lipiodol"],
    [f"{CD} | Lipiodol + PVA", f"{CD} | Lipiodol + PVA"],
]


def block(keys):
    return {key: "forbidden" for key in keys if "Cisplatin + Mitomycin" in key}


def test_paper_follows_the_hand_worked_table_step_by_step():
    settings = PlannerSettings(
        strategy="paper", beams=2, replicas=2, drug_horizon=2, embolic_horizon=2, finalists=2, budget=200
    )
    strategy = make_strategy(settings, ACTIONS)
    search, table = SearchState(), {}
    asked = 0
    for horizon, expected in enumerate(AFTER_EACH_HORIZON):
        grown = strategy.grow(search)
        search = strategy.admit(search, grown, block([c.key for c in grown]), table)
        jobs = strategy.jobs(search, table)
        assert len(jobs) == 2  # one batch per beam, each with T seeds of its own
        for beam, job in enumerate(jobs):
            assert set(job.protocols) == set(RISKS[horizon][beam])
            assert len(job.seeds) == 2
            for key in job.protocols:
                row = table.setdefault(key, {})
                assert not set(row) & set(job.seeds)
                row.update(zip(job.seeds, RISKS[horizon][beam][key], strict=True))
            asked += job.size
        assert strategy.jobs(search, table) == ()
        before = len(search.tree)
        search = strategy.prune(search, table)
        assert [(beam.protocol.key, beam.score) for beam in search.beams] == expected
        nodes = search.tree[before:]
        appended = [node.protocol for node in nodes if node.status == "kept" or "was replaced" in node.reason]
        assert appended == APPENDED[horizon]
    assert search.phase == "final"
    assert asked == 2 * (6 + 2 + 4 + 2)
    assert strategy.choice_is_fixed()
    complete = [key for key in table if not key.endswith("| -")]
    assert strategy.final_order(search, table, complete)[0] == f"{CD} | Lipiodol + PVA"
    # Where a complete rule forbids the plan of line 22, the next best mean among what was assessed follows.
    assert strategy.final_order(search, table, [f"{CD} | PVA", f"{CD} | Lipiodol"])[0] == f"{CD} | Lipiodol"


def test_a_beam_without_an_allowed_item_stays_as_it_is():
    settings = PlannerSettings(strategy="paper", beams=1, replicas=1, drug_horizon=2, embolic_horizon=1, budget=200)
    strategy = make_strategy(settings, Actions(drugs=("Cisplatin", "Mitomycin"), embolics=("Lipiodol",)))
    search = SearchState()
    search = strategy.admit(search, strategy.grow(search), {}, {})
    seeds = strategy.jobs(search, {})[0].seeds
    table = {"Cisplatin | -": {seeds[0]: 1.0}, "Mitomycin | -": {seeds[0]: 2.0}}
    search = strategy.prune(search, table)
    grown = strategy.grow(search)
    search = strategy.admit(search, grown, block([c.key for c in grown]), table)
    assert search.phase == "embolic"
    assert [beam.protocol.key for beam in search.beams] == ["Cisplatin | -"]
