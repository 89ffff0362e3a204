"""A plan as the page shows it: every number is the plan's, every protocol can be picked, nothing in it is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from agent.report.text import number
from agent.web import plan_panel
from tests.agent.report.made_plan import blocked_plan, made_plan


class Reader(HTMLParser):
    """Tags, attributes and text of a part."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def picks(self) -> set[str]:
        return {found["data-protocol"] for _, found in self.tags if "data-protocol" in found}


@pytest.fixture(scope="module")
def plan():
    return made_plan()


def test_the_table_has_every_assessed_protocol_with_the_plans_numbers(plan):
    rows = plan_panel.table_rows(plan)
    assert [row[0] for row in rows[: len(plan.finalists)]] == [
        f.assessed.key for f in sorted(plan.finalists, key=lambda f: f.assessed.rank)
    ]
    assert {row[0] for row in rows} == {a.key for a in plan.assessed}
    assert all(len(row) == len(plan_panel.TABLE_HEADS) == len(plan_panel.TABLE_TYPES) for row in rows)
    by_key = {row[0]: dict(zip(plan_panel.TABLE_HEADS, row, strict=True)) for row in rows}
    for assessed in plan.assessed:
        row = by_key[assessed.key]
        assert row["Objective"] == pytest.approx(assessed.objective.mean, abs=5e-4)
        assert row["Viable ml"] == pytest.approx(assessed.response.viable_ml.mean, abs=0.05)
        assert row["n"] == len(assessed.replicas)
    assert by_key[plan.chosen.assessed.key]["State"] == "chosen"
    assert plan_panel.table_rows(None) == []


def test_every_protocol_of_the_tree_can_be_reached_by_key_and_picked(plan):
    found = Reader(plan_panel.plan_tree_html(plan))
    drawn = [attributes for tag, attributes in found.tags if tag == "g" and "data-node" in attributes]
    nodes = {node.node_id: node for node in plan.tree}
    assert {a["data-node"] for a in drawn} >= {n.node_id for n in plan.tree if n.status == "kept" and n.phase != "root"}
    for attributes in drawn:
        assert (attributes["tabindex"], attributes["role"]) == ("0", "button")
        assert attributes["data-protocol"] == nodes[attributes["data-node"]].protocol
    left_out = [n for n in plan.tree if n.status != "kept"]
    assert all(node.reason in found.text for node in left_out)


def test_a_tree_that_grows_shows_what_is_there(plan):
    assert "has not begun" in plan_panel.tree_html(plan.tree[:1], set(), running=True)
    first = [node for node in plan.tree if node.depth <= 1]
    found = Reader(plan_panel.tree_html(first, set(), running=True))
    assert found.picks() == {n.protocol for n in first if n.phase != "root" and n.status != "duplicate"}
    assert "at work" in found.text


def test_overview_outcome_and_rules_say_what_the_plan_says(plan):
    overview = Reader(plan_panel.overview_html(plan, "plan-1"))
    keys = [f.assessed.key for f in plan.finalists[:3]]
    assert overview.picks() >= set(keys[:2])
    assert plan.disclaimer in overview.text
    outcome = Reader(plan_panel.outcome_html(plan))
    assert set(keys) <= outcome.picks()
    assert number(plan.chosen.assessed.response.viable_ml.mean, 1) in outcome.text
    assert sum(tag == "svg" for tag, _ in outcome.tags) == 2
    rules = Reader(plan_panel.rules_html(plan))
    for finding in plan.rules:
        if finding.status == "fired":
            assert finding.rule_id in rules.text
            assert finding.source in rules.text
    assert all(text in rules.text for text in plan.not_evaluable if ":" not in text)


def test_a_blocked_plan_says_by_which_rule():
    plan = blocked_plan()
    overview = Reader(plan_panel.overview_html(plan, "plan-1"))
    assert "No protocol" in overview.text
    assert plan.blocked_by[0].rule_id in overview.text
    assert plan.blocked_by[0].source in overview.text
    assert "No protocol was compared" in plan_panel.outcome_html(plan)


def test_text_of_a_plan_is_text(plan):
    evil = '<img src=x onerror="alert(1)">'
    harmed = plan.model_copy(
        update={"explanation": evil, "case_id": evil, "observation": evil, "not_modelled": (evil,)}
    )
    html = plan_panel.overview_html(harmed, evil) + plan_panel.rules_html(harmed)
    assert not [tag for tag, _ in Reader(html).tags if tag in ("img", "script")]
    assert evil in Reader(html).text


def test_nothing_comes_from_elsewhere(plan):
    html = plan_panel.overview_html(plan, "p") + plan_panel.outcome_html(plan) + plan_panel.plan_tree_html(plan)
    assert not re.search(r'(src|href)="', html)


def test_progress_has_a_bar_and_words():
    html = plan_panel.progress_html(("Simulating", 3, 12), (40, 100))
    assert "25.0%" in html
    assert "3 of 12" in html
    assert "40 of at most 100 simulations" in html
    assert "unknown" in plan_panel.progress_html(("", 0, 0), (0, 0))
