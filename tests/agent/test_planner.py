"""The planner graph over fake tools: structure, trace, blocked cases, goals, invalid answers."""

from __future__ import annotations

from collections import Counter

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agent.contest import paired
from agent.events import Decided, DepthFinished, NodeStarted, Planned, ToolFinished
from agent.guideline import GuidelinePolicy
from agent.plan import Plan, read_plan
from agent.policy import Choice, Nomination, Proposal
from agent.run import start_run
from agent.search import parse_key
from agent.settings import PlannerSettings
from agent.state import STATE_TYPES
from agent.trace import read_trace
from models.clinical_survival import clinical_risk
from models.errors import PlanningError, TransientToolError
from tests.agent.fake_tools import RECORD, FakeWorld, fake_services, make_case
from tests.agent.scripted import one_platinum

SMALL = PlannerSettings(actions="hcc_tace_seg")


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "case")


def plan_of(tmp_path, case, settings=SMALL, goal="", world=None, name="run", **services):
    world = world or FakeWorld(tmp_path / f"{name}.log")
    run = start_run(case, tmp_path / name, settings, goal)
    seen = list(run.execute(fake_services(world, actions=settings.actions, **services)))
    assert isinstance(seen[-1], Planned)
    return seen[-1].plan, seen, world


def test_a_plan_from_case_to_files(tmp_path, case):
    plan, seen, world = plan_of(tmp_path, case)
    folder = tmp_path / "run"
    assert read_plan(folder / "plan.json") == plan
    assert Plan.model_validate_json((folder / "plan.json").read_text()) == plan
    assert plan.chosen is not None
    assert plan.chosen.assessed.protocol.drugs
    assert plan.chosen.assessed.protocol.embolics
    nodes = [event.node for event in seen if isinstance(event, NodeStarted)]
    assert nodes[:5] == ["load", "observe", "propose", "refine", "expand"]
    assert nodes[-2:] == ["explain", "report"]
    assert {"simulate", "segment", "score", "prune", "finalise"} <= set(nodes)
    depths = [(event.phase, event.depth) for event in seen if isinstance(event, DepthFinished)]
    assert depths[0] == ("drug", 1)
    assert depths == sorted(depths, key=lambda d: (d[0] == "embolic", d[1]))
    scores = {score.name: score for score in plan.scores}
    assert (scores["six-and-twelve"].value, scores["BCLC"].grade) == (4.1, "B")
    assert scores["ALBI"].missing == ("bilirubin_mg_dl", "albumin_g_dl")
    assert plan.clinical == clinical_risk(RECORD, 0.2)
    assert plan.clinical.log_risk is not None
    # Nothing was simulated twice, and the plan counts what was simulated.
    assert set(Counter(world.simulated()).values()) == {1}
    assert plan.simulations == len(world.simulated()) == plan.execution.simulated <= plan.settings["budget"]


def test_the_chosen_protocol_and_its_margin_are_what_the_scripted_table_says(tmp_path, case):
    plan, _, world = plan_of(tmp_path, case)
    seeds = SMALL.seeds(8, start=SMALL.replicas)  # fresh: the search used none of them
    mean = {}
    for place in plan.finalists:
        key = place.assessed.key
        values = {s: world.risk.value(key, s) + place.assessed.toxicity_log_risk for s in seeds}
        assert place.assessed.objective.mean == pytest.approx(sum(values.values()) / 8)
        assert [r.seed for r in place.assessed.replicas] == list(seeds)
        mean[key] = values
    order = sorted(mean, key=lambda key: sum(mean[key].values()))
    assert [place.assessed.key for place in plan.finalists] == order
    first = paired(mean, order[0], order[1])
    assert plan.margin is not None
    assert (plan.margin.mean, plan.margin.n) == (pytest.approx(first.mean), 8)
    assert plan.margin_interval == pytest.approx(first.interval)
    tied = [key for key in order[1:] if paired(mean, order[0], key).tied]
    assert list(plan.ties) == tied
    best = min((a for a in plan.assessed if a.rank), key=lambda a: a.rank)
    assert best.key == order[0]


def test_every_tool_call_and_node_is_traced_once(tmp_path, case):
    plan, seen, world = plan_of(tmp_path, case)
    trace = read_trace(tmp_path / "run" / "trace.jsonl")
    ids = [decision.decision_id for decision in trace]
    assert len(set(ids)) == len(ids)
    assert [decision.step for decision in trace] == list(range(len(trace)))
    assert [event.decision for event in seen if isinstance(event, Decided)] == trace
    calls = Counter(decision.tool for decision in trace if decision.kind == "tool")
    assert calls == {name: len(tool.calls) for name, tool in world.tools.items()}
    assert sum(isinstance(event, ToolFinished) for event in seen) == sum(calls.values())
    nodes = Counter(decision.node for decision in trace if decision.kind == "node")
    assert nodes == Counter(event.node for event in seen if isinstance(event, NodeStarted))
    # What the report draws is asked for by a traced call too: a resumed process prepares the case in it.
    assert [d.tool for d in trace if d.node == "report"] == ["segment", None]
    assert set(world.tools["segment"].calls[-1]["outcome_ids"]) == {
        finalist.assessed.shown_replica.outcome_id for finalist in plan.finalists
    }
    simulations = [d for d in trace if d.tool == "simulate_tumor"]
    assert {d.weights_hash for d in simulations} == {"fakeweights"}
    assert all(d.backend == "guideline" for d in trace if d.kind == "policy")
    assert plan.execution.from_cache == 0


def test_the_seeds_of_the_last_comparison_and_no_others_get_its_steps(tmp_path, case):
    plan, _, world = plan_of(tmp_path, case)
    seeds: dict[bool, set[int]] = {False: set(), True: set()}
    for call in world.tools["simulate_tumor"].calls:
        seeds[call["last_comparison"]].update(call["seeds"])
    assert seeds[True] == {replica.seed for replica in plan.chosen.assessed.replicas}
    assert seeds[False] == set(SMALL.seeds(SMALL.replicas))


def test_the_same_run_gives_the_same_plan_and_decision_ids(tmp_path, case):
    one, _, _ = plan_of(tmp_path, case, name="one")
    two, _, _ = plan_of(tmp_path, case, name="two")
    assert one.model_dump(exclude={"execution"}) == two.model_dump(exclude={"execution"})
    ids = [[d.decision_id for d in read_trace(tmp_path / name / "trace.jsonl")] for name in ("one", "two")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("strategy", ["paper", "exhaustive"])
def test_other_strategies_run_through_the_same_graph(tmp_path, case, strategy):
    settings = SMALL.model_copy(update={"strategy": strategy, "drug_horizon": 2, "beams": 2, "replicas": 3})
    plan, _, world = plan_of(tmp_path, case, settings)
    assert plan.chosen is not None
    assert set(Counter(world.simulated()).values()) == {1}
    if strategy == "exhaustive":
        assert sum(a.complete for a in plan.assessed) == (3 + 3) * (2 + 1)
    else:
        assert len(plan.chosen.assessed.protocol.items) == 4  # two drugs and both embolics: Algorithm 1 always appends
        assert "what the search strategy itself chose" in plan.explanation
    assert f"of the {len(plan.finalists)} finalists" in plan.explanation or strategy == "paper"
    assert (plan.origin.baseline_n, plan.origin.baseline_origin) == (100, "synthetic")


def test_wide_beam_and_exhaustive_agree_through_the_graph(tmp_path, case):
    class Tireless(GuidelinePolicy):
        def __init__(self):
            super().__init__(stop_gain_in_spreads=float("-inf"))

    base = SMALL.model_copy(update={"screening_replicas": 5, "beams": 60})
    for seed in range(3):
        chosen = []
        for strategy in ("beam", "exhaustive"):
            world = FakeWorld(tmp_path / f"{strategy}{seed}.log", seed=seed)
            settings = base.model_copy(update={"strategy": strategy})
            plan, _, _ = plan_of(tmp_path, case, settings, world=world, name=f"{strategy}{seed}", policy=Tireless())
            chosen.append(plan.chosen.assessed.key)
        assert chosen[0] == chosen[1]


def test_a_patient_rule_blocks_the_plan_with_the_rule_instead_of_a_protocol(tmp_path, case):
    world = FakeWorld(tmp_path / "log", patient_block="decompensated cirrhosis")
    plan, _, _ = plan_of(tmp_path, case, world=world)
    assert plan.blocked
    assert plan.patient_blocked
    assert plan.chosen is None
    assert [f.message for f in plan.blocked_by] == ["decompensated cirrhosis"]
    assert "decompensated cirrhosis" in plan.explanation
    assert world.simulated() == []
    assert read_plan(tmp_path / "run" / "plan.json") == plan


@pytest.mark.parametrize("stage", ["items", "drugs", "complete"])
def test_all_protocols_blocked_at_any_stage_is_a_plan_and_no_exception(tmp_path, case, stage):
    def judge(keys, complete):
        protocols = {key: parse_key(key) for key in keys}
        return {
            key: f"blocked as {stage}"
            for key, p in protocols.items()
            if (stage == "items" and p.drugs)
            or (stage == "drugs" and p.drugs and p.embolics)
            or (stage == "complete" and complete)
        }

    plan, _, _ = plan_of(tmp_path, case, world=FakeWorld(tmp_path / "log", judge=judge))
    assert plan.blocked
    assert not plan.patient_blocked
    assert {f.message for f in plan.blocked_by} == {f"blocked as {stage}"}
    assert plan.explanation.startswith("Every protocol that was tried is blocked")


def test_a_blocked_plan_names_what_blocks_the_last_candidates_only(tmp_path, case):
    def judge(keys, complete):
        reasons = {}
        for key in keys:
            protocol = parse_key(key)
            if protocol.drugs and protocol.embolics:
                reasons[key] = "no embolic fits"
            elif len(protocol.drugs) == 2:
                reasons[key] = "a pair of drugs, met on the way"
        return reasons

    plan, _, _ = plan_of(tmp_path, case, world=FakeWorld(tmp_path / "log", judge=judge))
    assert [f.message for f in plan.blocked_by] == ["no embolic fits"]
    assert {f.message for f in plan.rules} == {"no embolic fits", "a pair of drugs, met on the way"}


def test_blocked_combinations_are_never_simulated(tmp_path, case):
    settings = PlannerSettings(actions="policy", drugs=10)
    world = FakeWorld(tmp_path / "log", judge=one_platinum)
    plan, _, _ = plan_of(tmp_path, case, settings, world=world)
    assert not any("Cisplatin + Oxaliplatin" in line for line in world.simulated())
    assert all(a.key.split(" | ")[1] != "PVA" for a in plan.assessed if a.rank)


def mortality(world, one, other):
    """Log-risk of `one` minus that of `other` on all seeds that both were simulated with."""
    lines = [line.split("\t") for line in world.simulated()]
    common = set.intersection(*({int(seed) for key, seed in lines if key == a.key} for a in (one, other)))
    tumour = sum(world.risk.value(one.key, s) - world.risk.value(other.key, s) for s in common) / len(common)
    return tumour + one.toxicity_log_risk - other.toxicity_log_risk


def test_a_goal_is_stated_and_what_it_changed_is_compared_on_the_same_protocols(tmp_path, case):
    moved = []
    for seed in range(6):
        world = FakeWorld(tmp_path / f"{seed}.log", seed=seed)
        plan, _, _ = plan_of(tmp_path, case, goal="least toxicity please", world=world, name=f"run{seed}")
        goal, by_key = plan.goal, {a.key: a for a in plan.assessed}
        assert goal.understood
        assert goal.weights["toxicity"] > 1
        for r in (r for a in plan.assessed for r in a.replicas):
            size = goal.weights["size"] * r.mrecist_change_percent / 100
            toxicity = goal.weights["toxicity"] * r.toxicity_log_risk
            assert r.objective == pytest.approx(goal.weights["tumour"] * r.tumour_log_risk + toxicity + size)
        # The default weights' choice among the finalists has the lowest mortality risk on the same seeds.
        finalists = [place.assessed for place in plan.finalists]
        lowest = min(finalists, key=lambda a: a.log_risk.mean)
        default = by_key[goal.default_choice]
        assert default.key == lowest.key or not default.finalist
        assert mortality(world, default, lowest) <= 0.2
        chosen = plan.chosen.assessed
        moved.append(chosen.key != goal.default_choice)
        if moved[-1]:
            assert f"the goal moved the choice to {chosen.key}" in goal.changed
            assert f"mortality log-risk {mortality(world, chosen, default):+.2f}" in goal.changed
        else:
            assert goal.changed.startswith("It did not change the choice")
    assert set(moved) == {True, False}


def test_a_size_goal_without_viable_tissue_before_treatment_says_that_size_decides_nothing(tmp_path, case):
    class Necrotic(FakeWorld):
        def measure_response(self, case_id, segmentation_ids):
            found = super().measure_response(case_id, segmentation_ids)
            none = {
                "mrecist_before_mm": 0.0,
                "mrecist_mm": 0.0,
                "mrecist_change_percent": None,
                "mrecist_category": "NE",
            }
            return found.model_copy(update={"responses": tuple(r.model_copy(update=none) for r in found.responses)})

    plan, _, _ = plan_of(tmp_path, case, goal="down-stage to transplant", world=Necrotic(tmp_path / "log"))
    plain, _, _ = plan_of(tmp_path, case, world=Necrotic(tmp_path / "log"), name="plain")
    assert plan.chosen.assessed.key == plain.chosen.assessed.key
    assert plan.chosen.assessed.objective == plain.chosen.assessed.objective
    assert plan.goal.names == ("downstage",)
    assert plan.goal.weights["size"] == 0
    assert "no viable tumour before treatment" in plan.goal.note
    assert "no viable tumour" not in plain.goal.note


def test_an_unknown_goal_is_said_and_changes_nothing(tmp_path, case):
    plain, _, _ = plan_of(tmp_path, case, name="plain")
    plan, _, _ = plan_of(tmp_path, case, goal="make the fish purple", name="odd")
    assert not plan.goal.understood
    assert plan.chosen == plain.chosen


def test_doses_are_ranges_and_lipiodol_is_in_ml(tmp_path, case):
    plan, _, _ = plan_of(tmp_path, case)
    doses = {d.item: d for place in plan.finalists for d in place.doses}
    assert doses["Lipiodol"].unit == "ml"
    for dose in doses.values():
        if dose.low is not None:
            assert dose.low < dose.high
    assert plan.chosen is not None
    assert {d.item for d in plan.chosen.doses} == set(plan.chosen.assessed.protocol.items)


def test_a_transient_tool_error_is_tried_once_more(tmp_path, case):
    plan, _, world = plan_of(tmp_path, case, world=FakeWorld(tmp_path / "log", fail_once=True))
    assert plan.chosen is not None
    trace = read_trace(tmp_path / "run" / "trace.jsonl")
    assert len({d.decision_id for d in trace}) == len(trace)
    assert len(world.tools["simulate_tumor"].calls) == sum(d.tool == "simulate_tumor" for d in trace) + 1


def test_a_lasting_tool_error_is_not_tried_for_ever(tmp_path, case):
    world = FakeWorld(tmp_path / "log")

    def broken(**arguments):
        raise TransientToolError("The device ran out of memory.")

    world.tools["segment"].function = broken
    with pytest.raises(TransientToolError):
        plan_of(tmp_path, case, world=world)
    assert len(world.tools["segment"].calls) == 2


def test_the_budget_is_kept_through_the_last_comparison(tmp_path, case):
    settings = PlannerSettings(actions="policy", budget=60)
    plan, _, world = plan_of(tmp_path, case, settings)
    assert len(world.simulated()) <= 60
    assert plan.chosen is not None
    assert plan.stopped_early is not None
    assert "budget" in plan.stopped_early


class Liar(GuidelinePolicy):
    """Proposes what is not in the action set and nominates what is not allowed."""

    name = "liar"

    def propose(self, case, observation, formulary, d, e, goal):
        choice = (Choice(item="Aspirin", reason="why not"),)
        return Proposal(drugs=choice, embolics=(Choice(item="Lipiodol", reason="usual"),))

    def nominate(self, view):
        return Nomination(stop=True, reason="enough") if view.mandatory else super().nominate(view)


def test_an_invalid_answer_falls_back_to_the_embedded_policy_and_the_plan_says_so(tmp_path, case):
    plan, _, _ = plan_of(tmp_path, case, policy=Liar())
    plain, _, _ = plan_of(tmp_path, case, name="plain")
    assert plan.degraded
    assert "Aspirin" in plan.degraded_reason
    assert "mandatory" in plan.degraded_reason
    assert plan.chosen == plain.chosen
    trace = read_trace(tmp_path / "run" / "trace.jsonl")
    assert any(d.kind == "policy" and d.reason.startswith("liar: invalid answer") for d in trace)


def test_an_empty_proposal_is_an_error(tmp_path, case):
    class Empty(GuidelinePolicy):
        def propose(self, case, observation, formulary, d, e, goal):
            return Proposal(drugs=(), embolics=())

    with pytest.raises(PlanningError, match="gives no drug to try"):
        plan_of(tmp_path, case, policy=Empty())


def test_everything_in_the_state_survives_a_checkpoint(tmp_path, case):
    """A type that does not validate after loading would come back as a bare shell without any error."""
    from agent.nodes import Nodes
    from agent.state import PlannerState

    states = []
    begin = Nodes.begin

    def spy(self, node, text, state, runtime):
        states.append(state)
        return begin(self, node, text, state, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nodes, "begin", spy)
        plan_of(tmp_path, case)
    serde = JsonPlusSerializer(allowed_msgpack_modules=STATE_TYPES)
    for state in (states[-1], states[8]):
        values = {name: getattr(state, name) for name in PlannerState.model_fields}
        loaded = {name: serde.loads_typed(serde.dumps_typed(value)) for name, value in values.items()}
        assert PlannerState.model_validate(loaded) == state
        assert loaded["plan"] == state.plan
