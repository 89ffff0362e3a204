"""`mewm plan --dry-run-llm`: show exactly what would leave for the backends; nothing is sent and nothing is planned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.settings import PlannerSettings
from models.errors import InputError


def dry_run(
    case: Path,
    folder: Path | None,
    settings: PlannerSettings,
    goal: str,
    changes: Mapping[str, Any],
    console: Console,
) -> None:
    """Print the questions of a plan, and save them with their pictures.

    Args:
        case: Case folder.
        folder: Where to save; None makes ``runs/<case>-llm-dry-run-<time>``.
        settings: Of the plan; they name the backends and the prompt set.
        goal: Treatment goal in words.
        changes: Values of the clinical record that are other ones in this plan, as `start_run` takes them.
        console: Standard output.

    Raises:
        InputError: no language model is named, or a backend or prompt set can't be used.
        CaseError: the case can't be used.
        RunError: the folder can't be written.
    """
    from agent.planned_questions import as_text, planned_questions, save
    from agent.run import case_facts
    from agent.services import llm_policy
    from tools.registry import build_tools
    from tools.workspace import Workspace

    if settings.policy_llm is None:
        raise InputError("Nothing would be sent: the policy is the embedded one. Name a language model with --llm.")
    facts = case_facts(case, labelled=True, changes=changes)
    workspace = Workspace({facts.case_id: case}, Path("unused"), record_changes={facts.case_id: changes})
    policy = llm_policy(settings, workspace.case)
    pictures = policy.pictures(facts.case_id)
    planned = planned_questions(
        policy.prompts,
        lambda role: pictures if policy.chain(role)[0].vision else (),
        build_tools(workspace),
        facts.case_id,
        settings,
        goal,
    )
    backends = {one.role: policy.chain(one.role)[0] for one in planned}
    if folder is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", facts.case_id)
        folder = Path("runs") / f"{name}-llm-dry-run-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    files = save(planned, backends, folder)
    for one in planned:
        backend = backends[one.role]
        where = f"{backend.name}, model {backend.model}, {backend.base_url}"
        console.rule(f"{one.role}: to {where}", align="left", characters="=")
        console.print(f"{one.question.prompt.id}; {one.note}.\n", markup=False, highlight=False, soft_wrap=True)
        console.print(as_text(one, backend), markup=False, highlight=False, soft_wrap=True)
        console.print()
    console.rule("explain", align="left", characters="=")
    console.print(
        "Sent when the plan is made: its facts and numbers. Nominate is sent once for each step of the search.\n"
        f"Nothing was sent. {len(files)} files (questions as JSON with the form of the answer, and pictures) are "
        f"in {folder}.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
