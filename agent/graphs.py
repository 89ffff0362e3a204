"""Graphs for a LangGraph server (`langgraph.json`): the planner over case folders that the server can read.

The server brings its own checkpointer. A case is named by its folder below ``MEWM_CASES`` (default ``cases``); runs
leave their files in ``MEWM_RUNS`` (default ``runs``).
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path

from agent.nodes import Services
from agent.planner import build_planner
from agent.run import Run, RunRecord, case_facts
from agent.services import make_services
from agent.settings import PlannerSettings, make_settings
from agent.state import PlannerState
from agent.trace import content_hash
from models.errors import CaseError


def services_of(state: PlannerState) -> Services:
    """Services for a state of the server, one set for each case, goal and settings.

    Raises:
        CaseError: the case is not a folder below the cases folder.
        PlanningError: a setting is out of its range.
    """
    return _services(state.case_id, state.goal, make_settings(**state.options))


@lru_cache(maxsize=8)
def _services(case_id: str, goal: str, settings: PlannerSettings) -> Services:
    root = Path(os.environ.get("MEWM_CASES", "cases")).resolve()
    path = (root / case_id).resolve()
    if root not in path.parents:
        msg = f"There is no case '{case_id}' in {root}."
        raise CaseError(msg)
    facts = case_facts(path).model_copy(update={"case_id": case_id})
    record = RunRecord(
        created="",
        case_path=str(path),
        case_id=case_id,
        case_hash=facts.content_hash,
        settings=settings,
        goal=goal,
    )
    name = content_hash(record)[:16]
    folder = Path(os.environ.get("MEWM_RUNS", "runs")) / f"server-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return make_services(Run(folder, record), facts, threading.Event())


planner = build_planner(services_of)
