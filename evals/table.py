"""The full table (`mewm eval table`): the planner, each of its parts off, and every baseline, on the same cases.

One command that can be stopped and repeated: every part is an evaluation of its own below the output folder, and what
is finished is not asked again. The parts of one case are answered one after the other, so that none simulates what
another has simulated. Two parts are parts of training: they need weights that were trained without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.files import make_folder, write_text
from evals.ablation import ASSISTANT, check_trained_without
from evals.baselines import NAMES
from evals.datasets import load_dataset
from evals.prepare import prepare
from evals.report.markdown import report_markdown
from evals.report.summary import Summary
from evals.workers import Job, is_answered

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
MINUTES_PER_PLAN = (0.6, 0.9)
"""Minutes of one CPU core for a plan at B = T = 3, with what the parts of a patient share: of 58 patients on the
weights of preset ``small``."""


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
        MewmError: an evaluation can't be run, or weights were trained with what they are said to lack.
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
            check_trained_without(part.weights, mine)
        evaluation = prepare(
            "phantom", seed=seed, limit=n, weights=mine, parts_off=part.parts_off, dataset=dataset,
            baselines=NAMES if part.name == LEAD else (), planner={"seed": seed, **(planner or {}), **part.planner},
        )  # fmt: skip
        found.append(Job(out / part.name, evaluation))
    return found, not_run


def cost_estimate(jobs: Sequence[Job], processes: int) -> str:
    """What is still to be done and about how long it takes, for the terminal.

    Args:
        jobs: The evaluations of the table.
        processes: That answer.
    """
    cases = jobs[0].evaluation.dataset.cases
    plans = len(cases) * len(jobs)
    left = sum(not is_answered(job, case, 1) for job in jobs for case in cases)
    text = f"{len(cases)} patients, {len(jobs)} parts: {plans} plans, {plans - left} of them there already."
    if left and jobs[0].evaluation.spec.conditions.get("device") == "cpu":
        low, high = (minutes * left / processes / 60.0 for minutes in MINUTES_PER_PLAN)
        text += (
            f" The others take roughly {low:.1f} to {high:.1f} h on {processes} free core(s) at B = T = 3; the bar "
            "knows more after the first plans."
        )
    return text


def publish_table(summary: Summary, folder: Path) -> None:
    """Write the figures of the table as `full-table.json` and `full-table.md`, without cases, traces and paths. The
    regrets of all cases stay: from them the figures can be computed again.

    Raises:
        RunError: the folder can't be written.
    """
    make_folder(folder)
    spec = summary.spec.model_copy(update={"weights": None})  # a path of this machine; their hash is a condition
    calibration = summary.calibration and summary.calibration.model_copy(update={"pairs": ()})
    figures = summary.model_copy(update={"spec": spec, "cases": (), "calibration": calibration})
    write_text(folder / "full-table.json", figures.model_dump_json(indent=1) + "\n")
    write_text(folder / "full-table.md", report_markdown(summary, with_cases=False))
