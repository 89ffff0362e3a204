"""Graphs for a LangGraph server (`langgraph.json`): planner and chat over case folders that the server can read.

The server brings its own checkpointer. A case is named by its folder below ``MEWM_CASES`` (default ``cases``); runs
leave their files in ``MEWM_RUNS`` (default ``runs``), the chat's plans in ``MEWM_CHATS`` (default ``chats``). The chat
is held with the backend ``MEWM_LLM``, or with the embedded policy where that is not set. Its gates are answered with
`mewm resume` on the plan's run folder: no message to a server counts as an approval.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path

from agent.chat import build_chat, model_for
from agent.chat_store import ChatStore
from agent.desk import Desk, make_tools
from agent.nodes import Services
from agent.planner import build_planner
from agent.run import Run, RunRecord, case_facts
from agent.services import make_services
from agent.settings import PlannerSettings, make_settings
from agent.state import PlannerState
from agent.trace import content_hash
from models.errors import CaseError, InputError
from prompts.loader import prompt_sets
from tools.registry import build_tools
from tools.workspace import Workspace


def services_of(state: PlannerState) -> Services:
    """Services for a state of the server, one set for each case, goal and settings.

    Raises:
        CaseError: the case is not a folder below the cases folder.
        InputError: a setting is out of its range.
        InputError: the client names a file of the server, or a prompt set that is not shipped.
    """
    settings = make_settings(**state.options)
    # A client's backend file could send the patient's pictures anywhere.
    if settings.backends is not None or settings.prompts not in prompt_sets():
        msg = "A client of the server can't name files: set MEWM_BACKENDS on the server, and use a shipped prompt set."
        raise InputError(msg)
    return _services(state.case_id, state.goal, settings)


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


@lru_cache(maxsize=64)
def desk_of(thread_id: str) -> Desk:
    """The desk of a conversation that the server began; its plans wait for approval at both gates.

    Raises:
        InputError: the server's id has characters that are not allowed.
    """
    store = ChatStore(Path(os.environ.get("MEWM_CHATS", "chats")))
    try:
        thread = store.thread(thread_id)
    except InputError:
        settings = PlannerSettings(approve_actions=True, approve_plan=True)
        thread = store.begin(settings, os.environ.get("MEWM_LLM") or None, settings.prompts, thread_id)
    return Desk(store, thread, make_services, make_tools, Path(os.environ.get("MEWM_CASES", "cases")))


planner = build_planner(services_of)
_asked = model_for(os.environ.get("MEWM_LLM") or None, PlannerSettings())
chat = build_chat(
    _asked.model,
    desk_of,
    list(build_tools(Workspace({}, Path())).values()),
    _asked.system_prompt,
    fallbacks=_asked.fallbacks,
)
