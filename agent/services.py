"""Services of a real run: the registered tools on a workspace, the embedded policy, the report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from agent.guideline import GuidelinePolicy
from agent.nodes import Services
from agent.plan import Plan
from agent.run import Run
from agent.state import CaseFacts, Conditions
from models.errors import CaseError
from models.formulary import Formulary
from tools.registry import build_tools
from tools.rulebook import rules_hash
from tools.workspace import Workspace


def make_services(run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
    """Tools, policy and report for a run.

    Args:
        run: The run; its folder holds the artifacts.
        facts: The case.
        stop: Set to stop the run.
    """
    record = run.record
    workspace = Workspace(
        {record.case_id: Path(record.case_path)}, run.folder / "artifacts", device=record.settings.device
    )
    policy = GuidelinePolicy()

    def case(case_id: str) -> CaseFacts:
        if case_id != facts.case_id:
            raise CaseError(f"There is no case '{case_id}' here, only '{facts.case_id}'.")
        return facts

    def conditions() -> Conditions:
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
        fallback=policy,
        formulary=Formulary.load(record.settings.actions),
        case=case,
        conditions=conditions,
        publish=lambda plan: publish(plan, workspace, run.folder),
        command=run.command,
        listen=listen,
        stop=stop,
    )


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
