from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from agent.plan import Estimate
from agent.report.charts import reference_curve, risk_svg, survival_at, survival_svg, ticks
from agent.report.text import counts, estimate, interval, number, paragraphs, timestamp
from agent.report.tree import chosen_path, tags, tree_svg
from tests.agent.report.made_plan import made_plan


def test_charts_are_well_formed() -> None:
    plan = made_plan()
    names = [f.assessed.key for f in plan.finalists]
    for svg in (survival_svg(plan.finalists, names), risk_svg(plan.finalists, plan.assessed[3:]), tree_svg(plan)):
        ElementTree.fromstring(svg)


def test_survival_lines_are_at_the_curves_values() -> None:
    """The last point of the chosen curve lies at S(48 months), measured from the axis in the picture itself."""
    plan = made_plan()
    assert plan.chosen is not None
    assert plan.chosen.survival is not None
    svg = survival_svg([plan.chosen], ["chosen"])
    path = re.search(r'<path d="([^"]+)" fill="none" stroke="#0072B2"', svg)
    assert path is not None
    numbers = [float(v) for v in re.findall(r"[\d.]+", path.group(1))]
    top = numbers[1]
    base = max(float(y) for y in re.findall(r'<path d="M52 ([\d.]+)H', svg))
    assert (base - numbers[-1]) / (base - top) == pytest.approx(plan.chosen.survival.survival[-1], abs=0.001)


def test_reference_curve_undoes_the_risk() -> None:
    chosen = made_plan().chosen
    assert chosen is not None
    reference = reference_curve(chosen)
    assert reference is not None
    assert reference[11] == pytest.approx(math.exp(-0.035 * 12**1.05))


def test_survival_at_is_a_step_function() -> None:
    curve = made_plan().chosen.survival  # type: ignore[union-attr]
    assert curve is not None
    assert survival_at(curve, curve.survival, 0.5) == 1.0
    assert survival_at(curve, curve.survival, 12.9) == curve.survival[11]
    assert survival_at(curve, curve.survival, 49.0) is None


def test_risk_chart_has_a_dot_for_every_replica_of_the_finalists() -> None:
    plan = made_plan()
    svg = risk_svg(plan.finalists, plan.assessed[3:])
    assert svg.count("<circle") == sum(len(f.assessed.replicas) for f in plan.finalists)
    for f in plan.finalists:
        assert number(f.assessed.objective.mean, 3) in svg


def test_chosen_path_leads_from_the_root_to_the_chosen_protocol() -> None:
    plan = made_plan()
    assert plan.chosen is not None
    path = chosen_path(plan)
    nodes = [n for n in plan.tree if n.node_id in path]
    assert nodes[0].phase == "root"
    assert max(nodes, key=lambda n: n.depth).protocol == plan.chosen.assessed.key
    assert [n.depth for n in sorted(nodes, key=lambda n: n.depth)] == list(range(6))
    assert tree_svg(plan).count('fill="#0072B2"') == 5


def test_chosen_path_is_there_although_the_search_pruned_the_node() -> None:
    plan = made_plan()
    assert plan.chosen is not None
    key = plan.chosen.assessed.key
    tree = tuple(
        n.model_copy(update={"status": "pruned"}) if n.protocol == key and n.status == "kept" else n for n in plan.tree
    )
    pruned = plan.model_copy(update={"tree": tree})
    path = chosen_path(pruned)
    ends = {n.node_id for n in tree if n.protocol == key and n.n} & path
    assert len(path) == 6
    assert ends
    drawing = tree_svg(pruned)
    assert drawing.count('fill="#0072B2" font-weight="600"') == 2  # the pruned end: its name and its objective
    absent = plan.model_copy(update={"tree": tuple(n for n in plan.tree if n.protocol != key)})
    assert chosen_path(absent) == set()


def test_tags_name_kept_nodes_best_first() -> None:
    plan = made_plan()
    names = tags(plan.tree)
    first = sorted((n for n in plan.tree if n.depth == 1 and n.status == "kept"), key=lambda n: n.objective or 0.0)
    assert [names[n.node_id] for n in first] == ["1a", "1b", "1c", "1d", "1e"]


def test_numbers_are_written_as_a_reader_expects() -> None:
    assert number(-0.25, 1) in {"\N{MINUS SIGN}0.2", "\N{MINUS SIGN}0.3"}
    assert number(-0.001, 2) == "0.00"
    assert number(12345.6, 0) == "12\N{NARROW NO-BREAK SPACE}346"
    assert number(3.0, 1, signed=True) == "+3.0"
    assert interval((0.3, -0.2), 1) == "\N{MINUS SIGN}0.2 to 0.3"
    with pytest.raises(ValueError, match="can't be shown"):
        number(float("nan"))


def test_estimates_carry_interval_and_n() -> None:
    cell = estimate(Estimate(mean=10.0, se=1.0, n=8), "mm", "x", "why", 1)
    assert cell.note == "7.6 to 12.4, n = 8"  # t quantile with 7 degrees of freedom: 2.365
    assert estimate(Estimate(mean=10.0, se=None, n=1), "mm", "x", "why").note == "one replica, no interval"
    missing = estimate(None, "mm", "x", "why")
    assert missing.absent
    assert missing.note == "why"
    assert missing.data_value == ""
    assert estimate(Estimate(mean=float("nan"), se=None, n=2), "mm", "x", "why").absent


def test_counts_paragraphs_and_times() -> None:
    assert counts({"SD": 2, "CR": 1}) == "CR\N{NO-BREAK SPACE}1, SD\N{NO-BREAK SPACE}2"
    assert paragraphs("One\ntwo\n- a\n- b\n\nThree") == [("p", ["One two"]), ("ul", ["a", "b"]), ("p", ["Three"])]
    assert timestamp("2026-11-20T10:05:00+02:00") == "20 Nov 2026, 08:05 UTC"
    assert timestamp("yesterday") == "yesterday"


def test_ticks_are_round_and_cover_the_range() -> None:
    marks = ticks(-1.03, -0.38, 8)
    assert all(-1.03 <= m <= -0.38 for m in marks)
    assert 4 <= len(marks) <= 9
    steps = {round(b - a, 9) for a, b in itertools.pairwise(marks)}
    assert len(steps) == 1
