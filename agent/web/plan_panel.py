"""Plan panel: a plan as HTML, with the report's own tables, charts and tree; every protocol in it can be picked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agent.plan import AssessedProtocol, Estimate, Plan, TreeNode
from agent.report import grounds, view
from agent.report.charts import risk_svg, survival_svg
from agent.report.text import paragraphs, timestamp
from agent.report.tree import chosen_path, draw_tree

TABLE_HEADS = (
    "Protocol", "Rank", "Objective", "± SE", "n", "Viable ml", "mRECIST %", "Necrotic %", "Oil-like %", "Median mo",
    "State",
)  # fmt: skip
TABLE_TYPES: list[Any] = ["str", *["number"] * 9, "str"]
PICK = """
const key = target => target.closest('[data-protocol]');
element.addEventListener('click', event => {
  const found = key(event.target);
  if (found && element.contains(found)) trigger('select', { protocol: found.dataset.protocol });
});
element.addEventListener('keydown', event => {
  if (event.key !== 'Enter' && event.key !== ' ') return;
  const found = key(event.target);
  if (!found || found.tagName === 'BUTTON') return;
  event.preventDefault();
  trigger('select', { protocol: found.dataset.protocol });
});
"""
"""Script of an HTML component: a click or Enter on anything with `data-protocol` is the event `select`."""


@cache
def templates() -> Environment:
    """The page's templates; all that comes from a plan or a case is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def part(macro_name: str, /, **values: Any) -> str:
    """One part of `plan.html.j2`."""
    macro = getattr(templates().get_template("plan.html.j2").module, macro_name)
    return str(macro(**values))


def overview_html(plan: Plan, name: str) -> str:
    """What is proposed, how sure that is, what people decided, and why."""
    edited = next((a.by for a in reversed(plan.approvals) if (a.gate, a.decision) == ("plan", "edit")), "")
    return part(
        "overview",
        plan=plan,
        name=name,
        headline=view.headline(plan),
        dose_line=view.dose_line(plan.chosen) if plan.chosen else "",
        put_in_by=edited,
        rationale=paragraphs(plan.explanation),
        observation=paragraphs(plan.observation),
        blocks=grounds.rule_rows(plan, view.named_finalists(plan))[0],
        moment=timestamp,
        refused=plan.rejected is not None and plan.rejected.gate == "actions",
    )


def tree_html(nodes: Sequence[TreeNode], path: set[str], running: bool) -> str:
    """The search tree, finished or as it grows."""
    svg = draw_tree(nodes, path)
    if not svg:
        return empty("The search has not begun: the tree grows here, depth by depth.") if running else ""
    # In the report the tree is a picture; here its boxes can be reached and pressed.
    reachable = svg.replace("<g data-node=", '<g tabindex="0" role="button" data-node=')
    blocked = [node for node in nodes if node.status != "kept" and node.phase != "root"]
    return part("tree", svg=Markup(reachable), running=running, left_out=blocked)


def plan_tree_html(plan: Plan) -> str:
    """The search tree of a plan; a sentence where nothing was searched."""
    why = "Nothing was searched: the rules or a person ended the plan before."
    return tree_html(plan.tree, chosen_path(plan), running=False) or empty(why)


def outcome_html(plan: Plan) -> str:
    """Survival curves, response measures and risk of the finalists."""
    finalists = view.named_finalists(plan)
    if not finalists:
        return empty("No protocol was compared, so there is no outcome to show.")
    shown = {f.key for f in finalists}
    others = [a for a in plan.assessed if a.key not in shown and a.complete and a.allowed]
    return part(
        "outcome",
        plan=plan,
        finalists=finalists,
        response=view.response_rows(plan, finalists),
        survival=view.survival_rows(finalists),
        risk=view.risk_rows(finalists),
        survival_svg=Markup(survival_svg([f.finalist for f in finalists], [f"{f.name}: {f.key}" for f in finalists])),
        risk_svg=Markup(risk_svg([f.finalist for f in finalists], others)),
        synthetic=plan.origin.model_origin == "synthetic",
    )


def rules_html(plan: Plan) -> str:
    """Rules that fired, with their sources, what was not evaluable, and where every number comes from."""
    finalists = view.named_finalists(plan)
    fired, elsewhere = grounds.rule_rows(plan, finalists)
    unclear = [row for rows in grounds.rule_rows(plan, finalists, "not_evaluable") for row in rows]
    return part(
        "rules",
        plan=plan,
        fired=fired,
        elsewhere=elsewhere,
        unclear=unclear,
        missing=grounds.missing_inputs(plan, finalists, unclear),
        origins=grounds.origin_rows(plan),
        scores=grounds.score_rows(plan),
    )


def table_rows(plan: Plan | None) -> list[list[Any]]:
    """The assessed protocols for a table that sorts: one row each, best rank first."""
    if plan is None:
        return []
    ordered = sorted(plan.assessed, key=lambda a: (a.rank is None, a.rank or 0, a.objective.mean))
    return [_row(assessed, plan) for assessed in ordered]


def _row(assessed: AssessedProtocol, plan: Plan) -> list[Any]:
    response = assessed.response
    chosen = plan.chosen is not None and plan.chosen.assessed.key == assessed.key
    state = "chosen" if chosen else "finalist" if assessed.finalist else "allowed"
    state = state if assessed.allowed else "blocked"
    return [
        assessed.key,
        assessed.rank,
        round(assessed.objective.mean, 3),
        None if assessed.objective.se is None else round(assessed.objective.se, 3),
        assessed.objective.n,
        round(response.viable_ml.mean, 1),
        _mean(response.mrecist_change_percent, 1.0),
        _mean(response.necrotic_fraction, 100.0),
        _mean(response.oil_fraction, 100.0),
        None if assessed.median_survival_months is None else round(assessed.median_survival_months, 1),
        state if assessed.complete else "unfinished",
    ]


def _mean(value: Estimate | None, factor: float) -> int | None:
    return None if value is None else round(value.mean * factor)


def progress_html(doing: tuple[str, int, int], simulations: tuple[int, int]) -> str:
    """What the conversation does right now, with a bar."""
    text, done, total = doing
    return part("progress", text=text or "Working", done=done, total=total, simulations=simulations)


def empty(text: str) -> str:
    """A sentence where there is nothing to show yet."""
    return part("empty", text=text)


def problem(text: str) -> str:
    """What went wrong, at its place."""
    return part("problem", text=text)
