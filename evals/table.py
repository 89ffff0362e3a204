"""The full table (`mewm eval table`): the planner, each of its parts off, and every baseline, on the same cases.

One command that can be stopped and repeated: every part is an evaluation of its own below the output folder, and what
is finished is not asked again. Two parts are parts of training: they need weights that were trained without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.ablation import ASSISTANT
from evals.baselines import NAMES
from evals.prepare import Evaluation, prepare
from evals.report.page import write_reports
from evals.report.summary import Summary
from evals.results import EvalRun

LEAD = "planner"


@dataclass(frozen=True)
class Part:
    """One evaluation of the table.

    Attributes:
        name: Its folder.
        label: What is off, for a line that could not be run.
        planner: Fields of PlannerSettings that differ from the lead's.
        parts_off: What is off, for the line's name; empty where the settings say it.
        weights: Key of the weights that it needs; None takes the lead's.
    """

    name: str
    label: str
    planner: Mapping[str, Any] = field(default_factory=dict)
    parts_off: tuple[str, ...] = ()
    weights: str | None = None


PARTS = (
    Part(LEAD, "the whole planner"),
    Part("greedy", "greedy instead of beam (B = 1)", {"beams": 1}, ("beam (B = 1)",)),
    Part("paper-search", "the paper's search (Algorithm 1)", {"strategy": "paper"}),
    Part("no-assistant", "without the assistant model", {}, (ASSISTANT,)),
    Part("no-contrastive", "without contrastive learning", {}, ("contrastive learning",), "contrastive"),
    Part("no-attenuation", "without attenuation", {}, ("attenuation",), "attenuation"),
)
NO_WEIGHTS = "no weights that were trained so: give them with --weights-without {what}=FOLDER"

Run = Callable[[Evaluation, Path], EvalRun]
"""Runs one evaluation into a folder, or goes on with it."""


def full_table(
    out: Path,
    run: Run,
    *,
    n: int = 100,
    seed: int = 0,
    planner: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    weights_without: Mapping[str, Path] | None = None,
    parts: tuple[Part, ...] = PARTS,
) -> Summary:
    """Run every part on the phantom and write the reports into `out`.

    Args:
        out: Folder of the table; one that is there goes on.
        run: Runs one evaluation.
        n: Cases.
        seed: Which synthetic patients, and the planner's first seed.
        planner: Fields of PlannerSettings for all parts.
        weights: The lead's weights; None is the shipped bundle.
        weights_without: ``contrastive`` and ``attenuation`` -> weights that were trained without it.
        parts: Which parts; the first one leads.

    Raises:
        MewmError: an evaluation can't be run.
    """
    runs: list[EvalRun] = []
    not_run: dict[str, str] = {}
    for part in parts:
        mine = weights
        if part.weights is not None:
            mine = (weights_without or {}).get(part.weights)
            if mine is None:
                not_run[part.label] = NO_WEIGHTS.format(what=part.weights)
                continue
        evaluation = prepare(
            "phantom", seed=seed, limit=n, weights=mine, parts_off=part.parts_off,
            baselines=NAMES if part.name == LEAD else (), planner={"seed": seed, **(planner or {}), **part.planner},
        )  # fmt: skip
        runs.append(run(evaluation, out / part.name))
    return write_reports(runs, out, not_run=not_run)
