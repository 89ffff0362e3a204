"""Services of a real run: the registered tools on a workspace, the policy, the report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agent.guideline import GuidelinePolicy
from agent.nodes import Services
from agent.plan import Plan
from agent.policy import Metered, Policy
from agent.run import Run
from agent.settings import PlannerSettings
from agent.state import CaseFacts, Conditions
from models.errors import CaseError, InputError
from tools.registry import build_tools
from tools.rulebook import rules_hash
from tools.workspace import Workspace

if TYPE_CHECKING:
    from agent.llm_policy import LlmPolicy
    from models.case import Case


def make_services(run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
    """Tools, policy and report for a run.

    Args:
        run: The run; its folder holds the artifacts.
        facts: The case.
        stop: Set to stop the run.

    Raises:
        InputError: a backend or a prompt set can't be used.
    """
    record = run.record
    workspace = Workspace(
        {record.case_id: Path(record.case_path)},
        run.artifacts,
        device=record.settings.device,
        record_changes={record.case_id: record.changes},
    )

    policy = make_policy(record.settings, workspace.case)

    def case(case_id: str) -> CaseFacts:
        if case_id != facts.case_id:
            raise CaseError(f"There is no case '{case_id}' here, only '{facts.case_id}'.")
        return facts

    def conditions() -> Conditions:
        if isinstance(policy, Metered):
            policy.check_configured()
        engine = workspace.engine
        return Conditions(
            weights_hash=engine.weights_hash,
            preset=engine.preset,
            precision=engine.precision,
            device=engine.device,
            rules_hash=rules_hash(),
        )

    def listen(listener: Callable[[str, int, int], None] | None) -> None:
        workspace.progress = listener

    return Services(
        tools=build_tools(workspace),
        policy=policy,
        fallback=GuidelinePolicy(),
        formulary=run.formulary,
        case=case,
        conditions=conditions,
        publish=lambda plan: publish(plan, workspace, run.folder),
        command=run.command,
        listen=listen,
        stop=stop,
    )


def make_policy(settings: PlannerSettings, case: Callable[[str], Case]) -> Policy:
    """The policy that the settings name: a plan, a chat and an evaluation all get it here. No key is needed to make it.

    Args:
        settings: Names the backends and the prompt set.
        case: Case id -> the case, whose pictures a model with vision is shown.

    Raises:
        InputError: a backend or a prompt set is unknown, not valid or does not fit.
    """
    if settings.policy_llm is None:
        if settings.reasoning_llm is not None:
            raise InputError(
                f"--reasoning-llm {settings.reasoning_llm} needs a language model that looks at the case too: "
                "add --policy-llm NAME, or give --llm NAME for both."
            )
        return GuidelinePolicy()
    return llm_policy(settings, case)


def llm_policy(settings: PlannerSettings, case: Callable[[str], Case]) -> LlmPolicy:
    """The language models that the settings name as a policy.

    Raises:
        InputError: a backend or a prompt set is unknown, not valid or does not fit.
    """
    # Drawing and the clients are loaded only where a language model is used.
    from agent.backends import load_backends, resolve_chain
    from agent.llm_images import Picture, case_pictures
    from agent.llm_policy import LlmPolicy
    from prompts.sets import load_prompt_set

    assert settings.policy_llm is not None
    backends = load_backends(None if settings.backends is None else Path(settings.backends))

    @cache
    def pictures(case_id: str) -> tuple[Picture, ...]:
        return case_pictures(case(case_id))

    policy = LlmPolicy(
        sees=resolve_chain(settings.policy_llm, backends),
        reasons=resolve_chain(settings.reasoning_llm or settings.policy_llm, backends),
        prompts=load_prompt_set(settings.prompts),
        pictures=pictures,
        attempts=settings.llm_attempts,
        per_decision=settings.llm_requests_per_decision,
        per_plan=settings.llm_requests,
    )
    policy.check_actions(settings.actions)
    return policy


def publish(plan: Plan, workspace: Workspace, folder: Path) -> dict[str, str]:
    """Write the finalists' volumes and the report into a run folder.

    Returns:
        Files relative to the run folder, by what they are.

    Raises:
        RunError: the folder can't be written.
    """
    # The report draws with matplotlib: loaded when it is needed, not when a run starts.
    from agent.export import export_finalists
    from agent.report import write_report

    volumes = export_finalists(plan, workspace, folder)
    report = write_report(plan.model_copy(update={"artifacts": volumes}), workspace, folder)
    return {**volumes, "report": report.relative_to(folder).as_posix()}
