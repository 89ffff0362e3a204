"""Figures of longer commands that the card shows beside its own: planning, the full table, simulators compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from evals.model_card.figures import mean_figure, pooled_figure
from evals.report.summary import Summary
from models.errors import InputError

CONSTANT = "constant"


def read_extras(**files: Path | None) -> dict[str, Any]:
    """The content of result files by group; those that are None are left out.

    Raises:
        InputError: a file is missing or holds no results of that command.
    """
    found: dict[str, Any] = {}
    for group, path in files.items():
        if path is None:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"The results {path} can't be read: {error.strerror}.") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no JSON file; give the result that the command wrote.") from error
        if not isinstance(content, dict) or content.get("group") != group:
            raise InputError(f"{path} holds no results for --{group}; give the file that its command wrote.")
        found[group] = content
    return found


def read_full_table(path: Path) -> dict[str, Any]:
    """What the card shows of `mewm eval table`: regrets of the planner and of the best constant protocol.

    Args:
        path: The ``full-table.json`` that it published.

    Returns:
        Figures, with ``regret_over_constant`` the ratio of the two means.

    Raises:
        InputError: the file is missing or no such table.
    """
    try:
        found = Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The results {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is no table; give the full-table.json of `mewm eval table --publish`.") from error
    board = found.boards[0]
    constant = next((line for line in board.lines if line.who == CONSTANT and line.not_run is None), None)
    if constant is None or constant.label not in found.regrets or found.label not in found.regrets:
        raise InputError(f"The table {path} has no regrets of the planner and of the best constant protocol.")
    planner, best_constant = found.regrets[found.label], found.regrets[constant.label]
    pairs = np.array([planner, best_constant]).T
    settings = found.spec.settings
    return {
        "group": "table",
        "n": len(pairs),
        "weights": found.spec.conditions["weights_hash"],
        "beams": settings.beams,
        "replicas": settings.replicas,
        "planner": mean_figure(planner),
        "constant": mean_figure(best_constant),
        "regret_over_constant": pooled_figure(pairs, lambda sums: sums[..., 0] / sums[..., 1]),
    }
