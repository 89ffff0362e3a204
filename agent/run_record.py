"""RunRecord: what a run is: its case, settings and changes; `run.json`, and the command that repeats it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.settings import PlannerSettings
from models.formulary import Formulary

FORMAT_VERSION = 1
OPTIONS = {
    "strategy": "--strategy",
    "drugs": "--drugs",
    "embolics": "--embolics",
    "replicas": "--replicas",
    "beams": "--beams",
    "drug_horizon": "--drug-horizon",
    "embolic_horizon": "--embolic-horizon",
    "budget": "--budget",
    "steps": "--steps",
    "seed": "--seed",
    "actions": "--actions",
    "profile": "--profile",
    "strict": "--strict",
    "device": "--device",
    "policy_llm": "--policy-llm",
    "reasoning_llm": "--reasoning-llm",
    "prompts": "--prompts",
    "backends": "--backends",
    "llm_requests": "--llm-requests",
    "approve_actions": "--approve-actions",
    "approve_plan": "--approve-plan",
}
"""Settings that have an option of `mewm plan`."""


class RunRecord(BaseModel):
    """Content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    created: str
    case_path: str
    case_id: str
    case_hash: str
    settings: PlannerSettings
    goal: str
    session_file: str | None = None
    changes: dict[str, Any] = Field(
        default_factory=dict, description="fields of the clinical record with the values that this run takes instead"
    )
    artifacts: str | None = Field(default=None, description="folder of the artifacts where it is not the run's own")
    agents: tuple[str, ...] = Field(
        default=(), description="the only ones that may be proposed: a what-if keeps to what a person left; empty: all"
    )

    @property
    def formulary(self) -> Formulary:
        """The action set of this run."""
        every = Formulary.load(self.settings.actions)
        return every.only(self.agents) if self.agents else every

    @property
    def command(self) -> str:
        """The command that repeats this run, with the settings that differ from the defaults."""
        parts = ["mewm", "plan", _quoted(self.case_path)]
        if self.goal:
            parts += ["--goal", _quoted(self.goal)]
        for name, default in PlannerSettings().model_dump().items():
            value = getattr(self.settings, name)
            if value != default and name in OPTIONS:
                parts += [OPTIONS[name]] if value is True else [OPTIONS[name], _quoted(str(value))]
        for name, value in self.changes.items():
            parts += ["--change", _quoted(f"{name}={'unknown' if value is None else value}")]
        if self.session_file:
            parts += ["--session", _quoted(self.session_file)]
        return " ".join(parts) + self._without_option()

    def _without_option(self) -> str:
        """A shell comment with the settings that the command can't give, where they differ from the defaults."""
        settings, default = self.settings, PlannerSettings()
        loose = [name for name in PlannerSettings.model_fields if name not in (*OPTIONS, "session")]
        other = [f"{name}={value}" for name in loose if (value := getattr(settings, name)) != getattr(default, name)]
        other += [f"agents={', '.join(self.agents)}"] if self.agents else []
        return f"  # with {', '.join(other)}, which have no option" if other else ""


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "'\\''") + "'"
