"""The full table (`mewm eval table`): the planner, each of its parts off, and every baseline, on the same cases.

One command that can be stopped and repeated: every part is an evaluation of its own below the output folder, and what
is finished is not asked again. The parts of one case are answered one after the other, so that none simulates what
another has simulated. Two parts are parts of training: they need weights that were trained without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.files import write_text
from evals.ablation import ASSISTANT
from evals.baselines import NAMES
from evals.datasets import load_dataset
from evals.prepare import prepare
from evals.report.markdown import report_markdown
from evals.report.summary import Summary
from evals.workers import Job

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
NO_WEIGHTS = "not trained; weights that were trained so are given with --weights-without {what}=FOLDER"


def evaluations(
    out: Path,
    *,
    n: int = 100,
    seed: int = 0,
    planner: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    weights_without: Mapping[str, Path] | None = None,
    parts: tuple[Part, ...] = PARTS,
) -> tuple[list[Job], dict[str, str]]:
    """The evaluations of the table, on the same cases, none of them begun.

    Args:
        out: Folder of the table.
        n: Cases.
        seed: Which synthetic patients, and the planner's first seed.
        planner: Fields of PlannerSettings for all parts.
        weights: The lead's weights; None is the shipped bundle.
        weights_without: ``contrastive`` and ``attenuation`` -> weights that were trained without it.
        parts: Which parts; the first one leads.

    Returns:
        What can be run, the lead first, and why the other parts can't, by their labels.

    Raises:
        MewmError: an evaluation can't be run.
    """
    dataset = load_dataset("phantom", seed=seed, limit=n)
    found: list[Job] = []
    not_run: dict[str, str] = {}
    for part in parts:
        mine = weights
        if part.weights is not None:
            mine = (weights_without or {}).get(part.weights)
            if mine is None:
                not_run[part.label] = NO_WEIGHTS.format(what=part.weights)
                continue
        evaluation = prepare(
            "phantom", seed=seed, limit=n, weights=mine, parts_off=part.parts_off, dataset=dataset,
            baselines=NAMES if part.name == LEAD else (), planner={"seed": seed, **(planner or {}), **part.planner},
        )  # fmt: skip
        found.append(Job(out / part.name, evaluation))
    return found, not_run


def publish_table(summary: Summary, folder: Path) -> None:
    """Write the figures of the table as `full-table.json` and `full-table.md`, without cases, traces and paths.

    Raises:
        RunError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = summary.spec.model_copy(update={"weights": None})  # a path of this machine; their hash is a condition
    calibration = summary.calibration and summary.calibration.model_copy(update={"pairs": ()})
    figures = summary.model_copy(update={"spec": spec, "cases": (), "regrets": {}, "calibration": calibration})
    write_text(folder / "full-table.json", figures.model_dump_json(indent=1) + "\n")
    write_text(folder / "full-table.md", report_markdown(summary, with_cases=False))
