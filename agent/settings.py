"""Settings of one run of the planner; stored in `run.json`, so that a resumed run has the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InputError
from models.formulary import Formulary
from tools.rule_facts import SessionFacts

Strategy = Literal["beam", "paper", "exhaustive"]

SEED_STRIDE = 100_000
"""Seeds of replicas of one run are ``seed * SEED_STRIDE + index``, so that runs of different seeds share no noise."""

LANGUAGE_MODEL_PROPOSES = (6, 4)
"""Most drugs and embolic agents that a language model is asked for, unless the settings say otherwise."""


class PlannerSettings(BaseModel):
    """Parameters of the search. D, E, T, B and the horizons are those of Algorithm 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = "beam"
    drugs: int | None = Field(default=None, ge=1, description="D: drugs in the action space; None: see `proposed`")
    embolics: int | None = Field(default=None, ge=1, description="E: embolics in the action space; None likewise")
    replicas: int = Field(default=5, ge=1, description="T: most replicas of a protocol during the search")
    beams: int = Field(default=5, ge=1, description="B: beams kept after each depth")
    drug_horizon: int = Field(default=3, ge=1, description="H_d: most drugs in a protocol")
    embolic_horizon: int = Field(default=2, ge=1, description="H_e: most embolics in a protocol")
    screening_replicas: int = Field(default=2, ge=1, description="replicas that every candidate gets (at most T)")
    finalists: int = Field(default=5, ge=1, description="protocols of the last comparison")
    finalist_replicas: int = Field(default=8, ge=1, description="replicas of each finalist")
    budget: int = Field(default=1000, ge=24, description="hard cap on simulated outcomes (protocol, seed) of the run")
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="sampler steps of the denoiser; None is the preset's number"
    )
    seed: int = Field(default=0, ge=0, le=20_000)
    actions: Literal["policy", "in_house", "hcc_tace_seg"] = "policy"
    profile: Literal["eu", "us", "cn"] = "eu"
    strict: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    session: SessionFacts | None = Field(default=None, description="what is stated about the session")
    policy_llm: str | None = Field(
        default=None, description="backend that observes, proposes and nominates; None is the embedded policy"
    )
    reasoning_llm: str | None = Field(default=None, description="backend that refines and explains; None: policy_llm")
    prompts: str = Field(default="mewm", min_length=1, description="prompt set: a shipped one, or a folder's path")
    backends: str | None = Field(default=None, description="the user's backend file; None is the default place")
    llm_attempts: int = Field(default=3, ge=1, le=10, description="how often one backend is asked for a fitting answer")
    llm_requests_per_decision: int = Field(
        default=12, ge=1, le=100, description="most HTTP requests of one question, over all backends of its chain"
    )
    llm_requests: int = Field(default=120, ge=1, le=10_000, description="most HTTP requests to backends of the plan")
    approve_actions: bool = Field(default=False, description="a person approves the action space before the search")
    approve_plan: bool = Field(default=False, description="a person approves the plan before it is reported")

    @property
    def screening(self) -> int:
        """Replicas that every candidate gets: never more than T."""
        return min(self.screening_replicas, self.replicas)

    def proposed(self, formulary: Formulary) -> tuple[int, int]:
        """D and E: how many drugs and embolic agents the policy may propose.

        Unless told otherwise, the embedded policy proposes all agents of the action set, best first, and the search
        compares them: leaving some out by practice data costs more regret than it saves simulations (README). A
        language model is asked to choose.

        Args:
            formulary: The action set.
        """
        drugs, embolics = LANGUAGE_MODEL_PROPOSES
        if self.policy_llm is None:
            drugs, embolics = max(1, len(formulary.drugs)), max(1, len(formulary.embolics))
        return self.drugs or drugs, self.embolics or embolics

    def seeds(self, count: int, start: int = 0) -> tuple[int, ...]:
        """The seeds of replicas `start` to `start + count - 1` of this run."""
        return tuple(self.seed * SEED_STRIDE + index for index in range(start, start + count))

    def by_phase(self, seeds: Sequence[int]) -> tuple[tuple[bool, tuple[int, ...]], ...]:
        """Seeds of the search and those of the last comparison apart: the latter are simulated with more steps.

        Returns:
            (whether of the last comparison, seeds in the order given), no entry without seeds.
        """
        last = set(self.seeds(self.finalist_replicas, start=self.replicas))
        parts = ((late, tuple(seed for seed in seeds if (seed in last) == late)) for late in (False, True))
        return tuple((late, own) for late, own in parts if own)


def make_settings(**values: object) -> PlannerSettings:
    """Settings from loose values, leaving out those that are None.

    Raises:
        InputError: a value is out of its range; the sentence names it.
    """
    try:
        return PlannerSettings.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        msg = f"The setting {name}={first['input']!r} can't be used: {first['msg'].lower()}."
        raise InputError(msg) from exc
