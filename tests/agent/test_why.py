"""Why an agent or a protocol was dropped: the answer agrees with the plan's tree, rules and figures."""

from __future__ import annotations

import pytest

from agent.run import start_run
from agent.search import parse_key
from agent.settings import PlannerSettings
from agent.why import why
from models.errors import InputError, UnknownItemError
from tests.agent.fake_tools import FakeWorld, fake_services, make_case

SETTINGS = PlannerSettings(actions="policy", drugs=5, embolics=3, drug_horizon=2, embolic_horizon=1, beams=2)


def judge(keys, complete):
    protocols = {key: parse_key(key) for key in keys}
    return {
        key: "no raltitrexed" if p.drugs == ("Raltitrexed",) and not p.embolics else "not with oil"
        for key, p in protocols.items()
        if (p.drugs == ("Raltitrexed",) and not p.embolics) or {"Cisplatin", "Lipiodol"} <= set(p.items)
    }


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("why")
    run = start_run(make_case(folder / "case"), folder / "run", SETTINGS)
    world = FakeWorld(folder / "log", seed=5, judge=judge)
    return list(run.execute(fake_services(world, actions="policy")))[-1].plan


def test_the_chosen_one_and_its_agents(plan):
    chosen = plan.chosen.assessed
    assert why(plan, chosen.key)[1].startswith(f"{chosen.key} is the chosen protocol. {plan.explanation}")
    for item in chosen.protocol.items:
        name, text = why(plan, item.lower())
        assert name == item
        assert f"It is in the chosen protocol, {chosen.key}." in text
        best = min((a for a in plan.assessed if a.rank and item not in a.protocol.items), key=lambda a: a.rank)
        assert f"{best.key} (rank {best.rank}," in text


def test_an_agent_that_was_tried_and_lost(plan):
    chosen = plan.chosen.assessed
    tried = {node.added for node in plan.tree if node.added}
    lost = sorted(tried - set(chosen.protocol.items))
    assert lost
    for item in lost:
        text = why(plan, item)[1]
        statuses = {node.status for node in plan.tree if node.added == item} - {"duplicate"}
        words = {"kept": "was kept", "pruned": "was pruned", "blocked": "was blocked by rules"}
        for status in statuses & set(words):
            assert words[status] in text, (item, status)
        ranked = [a for a in plan.assessed if a.rank and item in a.protocol.items]
        if ranked:
            best = min(ranked, key=lambda a: a.rank)
            assert f"{best.key} (rank {best.rank}, objective {best.objective.mean:+.2f}" in text
            assert f"{chosen.objective.mean:+.2f}" in text


def test_a_rule_that_dropped_an_agent_is_named(plan):
    notes = {n.item: n for n in plan.proposals}
    assert not notes["Raltitrexed"].kept
    assert why(plan, "Tomudex") == (
        "Raltitrexed",
        f"Raltitrexed was taken out before the search (fake-protocol): {notes['Raltitrexed'].reason}",
    )


def test_a_protocol_is_found_in_any_spelling_with_its_place(plan):
    second = plan.runners_up[0]
    spelled = "; ".join(reversed(second.assessed.protocol.items)).lower()
    key, text = why(plan, spelled)
    assert key == second.assessed.key
    assert f"(rank {second.assessed.rank}," in text
    assert f"behind the chosen one by {second.margin.mean:+.3f}" in text
    assert ("can't be told apart" in text) == second.tied_with_chosen


def test_a_blocked_protocol_names_its_rule(plan):
    blocked = next(
        n for n in plan.tree if n.status == "blocked" and {"Cisplatin", "Lipiodol"} <= set(n.protocol.split())
    )
    text = why(plan, blocked.protocol)[1]
    assert "Rules block it: fake-protocol: not with oil" in text


def test_what_was_never_tried_says_why(plan):
    absent = next(i for i in ("Idarubicin", "Nedaplatin", "KMG") if i not in {n.item for n in plan.proposals})
    assert f"{absent} was not tried: it was not among the agents proposed" in why(plan, absent)[1]
    kept = [n.item for n in plan.proposals if n.kept and n.kind == "drug"]
    known = {node.protocol for node in plan.tree}
    embolic = next(n.item for n in plan.proposals if n.kept and n.kind == "embolic")
    triple = f"{' + '.join(sorted(kept[:3]))} | {embolic}"
    assert triple not in known  # the horizon is two drugs
    assert f"{triple} was not tried: " in why(plan, triple)[1]
    outside = why(plan, f"{absent} | Lipiodol") if absent != "KMG" else why(plan, "Cisplatin | KMG")
    assert f"because {absent} was not in the action space" in outside[1]


def test_what_nobody_knows_is_an_error(plan):
    with pytest.raises(UnknownItemError, match="'aspirin' is not a known drug"):
        why(plan, "aspirin")
    with pytest.raises(InputError):
        why(plan, "Cisplatin 50 mg/m2 | Lipiodol")
