"""Protocols side by side: the same seeds, nothing simulated twice, differences paired by seed."""

from __future__ import annotations

import re
from statistics import mean, stdev

import pytest
from scipy.stats import t

from agent.compare import MOST_PROTOCOLS, compare
from agent.run import start_run
from agent.settings import PlannerSettings
from models.errors import InputError
from models.formulary import Formulary
from tests.agent.fake_tools import FakeWorld, fake_services, make_case
from tests.agent.scripted import one_platinum, unit

SETTINGS = PlannerSettings(actions="hcc_tace_seg", drug_horizon=1, embolic_horizon=1, finalist_replicas=5)
X, Y = "Cisplatin | Lipiodol", "Doxorubicin + Mitomycin | Lipiodol"


def protocols(*texts):
    return [Formulary.load("all").parse(text) for text in texts]


def objective(world, key, seed):
    drugs = key.split(" | ")[0].split(" + ")
    return world.risk.value(key, seed) + round(sum(0.3 * unit("toxicity", drug) for drug in drugs), 6)


def test_a_difference_is_paired_by_seed(tmp_path):
    world = FakeWorld(tmp_path / "log")
    found = compare(protocols(X, Y), "tiny", world.tools, SETTINGS)
    assert found.seeds == SETTINGS.seeds(5, start=SETTINGS.replicas)
    assert found.simulated == 10
    values = [objective(world, Y, seed) - objective(world, X, seed) for seed in found.seeds]
    first, second = found.rows
    assert (first.protocol, first.behind) == (X, None)
    assert second.behind.mean == pytest.approx(mean(values))
    half = t.ppf(0.975, 4) * stdev(values) / 5**0.5
    assert second.behind_interval == pytest.approx((mean(values) - half, mean(values) + half))
    assert second.tied == (abs(mean(values)) <= half)
    assert f"{Y} against {X}: objective {mean(values):+.3f}" in found.text
    assert compare(protocols(X, Y), "tiny", world.tools, SETTINGS).simulated == 0


def test_what_a_plan_simulated_is_used_again(tmp_path):
    world = FakeWorld(tmp_path / "log")
    run = start_run(make_case(tmp_path / "case"), tmp_path / "run", SETTINGS)
    plan = list(run.execute(fake_services(world)))[-1].plan
    calls = len(world.tools["simulate_tumor"].calls)
    one, two = plan.chosen.assessed.key, plan.runners_up[0].assessed.key
    found = compare(protocols(one, two), "tiny", world.tools, SETTINGS, plan)
    assert len(world.tools["simulate_tumor"].calls) == calls
    assert (found.simulated, found.seeds) == (0, tuple(r.seed for r in plan.chosen.assessed.replicas))
    assert found.rows[1].behind.mean == pytest.approx(plan.runners_up[0].margin.mean)
    assert found.rows[1].behind_interval == pytest.approx(plan.runners_up[0].margin_interval)
    assert found.rows[0].objective == plan.chosen.assessed.objective
    assert found.rows[0].median_survival_months == plan.chosen.assessed.median_survival_months
    mixed = compare(protocols(one, Y), "tiny", world.tools, SETTINGS, plan)
    assert mixed.simulated == 5


def test_a_goal_weighs_the_objective(tmp_path):
    world = FakeWorld(tmp_path / "log")
    plain = compare(protocols(X), "tiny", world.tools, SETTINGS).rows[0]
    gentle = compare(protocols(X), "tiny", world.tools, SETTINGS, goal="least toxicity").rows[0]
    assert gentle.toxicity_log_risk == plain.toxicity_log_risk > 0
    assert gentle.objective.mean > plain.objective.mean


@pytest.mark.parametrize("goal", ["", "spare the liver function", "downstage for transplant"])
def test_the_terms_that_are_told_add_up_to_the_objective(tmp_path, goal):
    world = FakeWorld(tmp_path / "log")
    text = compare(protocols(X), "tiny", world.tools, SETTINGS, goal=goal).text
    told = re.search(r"objective ([+-][\d.]+)(?: ± [\d.]+)? \((.*?)\);", text)
    terms = re.findall(r"([+-][\d.]+)(?: x ([\d.]+))?", told[2])
    assert len(terms) == (3 if "downstage" in goal else 2)
    assert float(told[1]) == pytest.approx(sum(float(v) * float(w or 1) for v, w in terms), abs=0.03)
    assert (" x " in told[2]) is ("spare" in goal)


def test_blocked_ones_are_compared_and_say_so(tmp_path):
    world = FakeWorld(tmp_path / "log", judge=one_platinum)
    found = compare(protocols(X, "Cisplatin + Oxaliplatin | Lipiodol"), "tiny", world.tools, SETTINGS)
    assert [row.allowed for row in found.rows] == [True, False]
    assert "Blocked by rules: fake-protocol: two platinum agents." in found.text
    assert ".." not in found.text


def test_too_many_or_none_are_refused(tmp_path):
    world = FakeWorld(tmp_path / "log")
    drugs = ("Cisplatin", "Doxorubicin", "Epirubicin", "Mitomycin", "Oxaliplatin", "Raltitrexed", "Lobaplatin")
    for several in ([], [f"{drug} | Lipiodol" for drug in drugs]):
        with pytest.raises(InputError, match=f"name 1 to {MOST_PROTOCOLS} to compare"):
            compare(protocols(*several), "tiny", world.tools, SETTINGS)
    assert world.simulated() == []
