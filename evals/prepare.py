"""Prepare: from the options of `mewm eval run`, or the `run.json` of a run that goes on, to all that it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from agent.guideline import load_knowledge
from agent.nodes import Services
from agent.run import Run
from agent.services import make_policy, make_services, publish
from agent.settings import PlannerSettings, make_settings
from agent.state import CaseFacts, Conditions
from agent.trace import content_hash
from evals.ablation import ASSISTANT, WithoutAssistant
from evals.baselines import NAMES, Baselines, baselines_for
from evals.datasets import Dataset, EvalCase, load_dataset
from evals.results import BaselineAnswer, BaselineAnswers, Limits, RunSpec, Stage
from evals.solver import Agent, PlannerAgent, shared
from models.case import Case
from models.engine import Device, Engine
from models.errors import InputError
from models.formulary import Formulary
from prompts.sets import absolute, load_prompt_set
from tools.artifacts import Value
from tools.registry import build_tools
from tools.rulebook import rules_hash
from tools.workspace import Workspace

EMBEDDED = "guideline"
ALONE = {"hcc_tace_seg": ("paper-vlm-hcc-tace-seg", "hcc_tace_seg")}
ALONE_ELSE = ("paper-vlm-in-house", "in_house")
"""Prompt set and action set of the paper's prompts for a vision-language model alone, by the dataset's action set."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that `run_evaluation` needs."""

    spec: RunSpec
    dataset: Dataset
    agent: Agent
    baselines: Callable[[EvalCase], BaselineAnswers]


MODEL_ALONE = "alone"
"""The vision-language model without a world model: it is asked beside the plan, and costs what a question costs."""
ALL_BASELINES = (*NAMES, MODEL_ALONE)


class EveryBaseline:
    """All baselines of a dataset for every gold variant, fitted when the first case asks."""

    def __init__(self, dataset: Dataset, names: tuple[str, ...], seed: int) -> None:
        """Args: names: of `evals.baselines.NAMES`. seed: of what is random."""
        self.dataset, self.names, self.seed = dataset, names, seed

    @cached_property
    def _fitted(self) -> dict[str, Baselines]:
        wanted = list(self.names)
        return {v: baselines_for(self.dataset, v, seed=self.seed, names=wanted) for v in self.dataset.variants}

    def __call__(self, case: EvalCase) -> BaselineAnswers:
        """What they say to a case."""
        if not self.names:
            return BaselineAnswers(answers={}, not_run={})
        answers: dict[str, BaselineAnswer] = {}
        first = self._fitted[self.dataset.variants[0]]
        with case.opened() if case.has_image else nullcontext():  # scans that are generated are rendered once for all
            for name, baseline in first.ready.items():
                said = {variant: fitted.ready[name].propose(case) for variant, fitted in self._fitted.items()}
                answers[name] = BaselineAnswer(label=baseline.label, protocols=said)
        return BaselineAnswers(answers=answers, not_run=dict(first.not_run))


def prepare(
    name: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    tier: str | None = None,
    data: Path | None = None,
    clinical: Path | None = None,
    stage: Stage = "plan",
    backend: str = EMBEDDED,
    reasoning: str | None = None,
    prompts: str | None = None,
    epochs: int = 1,
    limits: Limits | None = None,
    weights: Path | None = None,
    parts_off: tuple[str, ...] = (),
    baselines: tuple[str, ...] = NAMES,
    planner: Mapping[str, Any] | None = None,
    keep: bool = False,
    dataset: Dataset | None = None,
) -> Evaluation:
    """Load the dataset, settle the settings and check the conditions, before any case is asked.

    Args:
        name: Of the dataset.
        seed: Which phantom patients.
        limit: Most cases.
        tier: Of the phantom.
        data: Folder or file of the dataset.
        clinical: Clinical table of the dataset.
        stage: ``plan`` or ``propose``.
        backend: ``guideline``, or a backend's name.
        reasoning: Backend that refines and explains.
        prompts: Prompt set; needs a backend.
        epochs: How often each case is asked, with another seed each time.
        limits: Of one case.
        weights: Weight bundle; None is the shipped one.
        parts_off: ``assistant`` is switched off here; other names say what the weights lack.
        baselines: Names of `ALL_BASELINES`.
        planner: Fields of PlannerSettings; None values are left out.
        keep: Draw the report of every plan and keep its volumes.
        dataset: The dataset that these options name, where it is loaded already: evaluations of the same cases compute
            their truth once.

    Raises:
        InputError: an option that can't be used; the sentence names it.
        BackendError: the backend is not configured on this machine.
        WeightsError: weights missing or damaged.
    """
    if dataset is None:
        dataset = load_dataset(name, seed=seed, limit=limit, tier=tier, data=data, clinical=clinical,
                               strict=bool((planner or {}).get("strict")),
                               profile=(planner or {}).get("profile"))  # fmt: skip
    no_image = 0
    if stage == "plan":
        dataset, no_image = _with_images(dataset, limit)
    if epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {epochs}.")
    if unknown := [b for b in baselines if b not in ALL_BASELINES]:
        raise InputError(f"There is no baseline '{unknown[0]}'; choose from {', '.join(ALL_BASELINES)}.")
    settings = _settings(dataset, backend, reasoning, prompts, dict(planner or {}))
    alone = _alone(dataset, settings, baselines)
    for asked in (settings, alone):
        if asked is not None:
            make_policy(asked, _no_case)  # refuses a backend, a key or a prompt set before any case is asked
    world = _World(settings, weights, parts_off, stage, keep=keep)
    conditions = _conditions(dataset, settings, alone, world.conditions() if stage == "plan" else None)
    spec = RunSpec(
        created=datetime.now(UTC).isoformat(timespec="seconds"), dataset=name, dataset_version=dataset.version,
        dataset_hash=dataset.content_hash, data_origin=dataset.origin, actions=dataset.space.actions, rows=dataset.rows,
        no_image=no_image, seed=seed,
        limit=limit, tier=tier, data=_text(data), clinical=_text(clinical), stage=stage, backend=backend,
        prompts=settings.prompts if settings.policy_llm else None, prompts_hash=_prompts_hash(settings), epochs=epochs,
        settings=settings, parts_off=parts_off, weights=_text(weights), limits=limits or Limits(),
        baselines=tuple(baselines), keep=keep, conditions=conditions,
    )  # fmt: skip
    return Evaluation(spec, dataset, _agent(spec, alone, world), _every_baseline(spec, dataset))


def agent_for(spec: RunSpec, dataset: Dataset) -> PlannerAgent:
    """The agent that `prepare` made for a spec, made again: in another process, on an engine of its own."""
    weights = None if spec.weights is None else Path(spec.weights)
    world = _World(spec.settings, weights, spec.parts_off, spec.stage, keep=spec.keep)
    return _agent(spec, _alone(dataset, spec.settings, spec.baselines), world)


def _every_baseline(spec: RunSpec, dataset: Dataset) -> EveryBaseline:
    return EveryBaseline(dataset, tuple(name for name in spec.baselines if name in NAMES), spec.seed)


def _agent(spec: RunSpec, alone: PlannerSettings | None, world: _World) -> PlannerAgent:
    return PlannerAgent(spec.settings, shared(world.services), stage=spec.stage, limits=spec.limits, alone=alone)


def _with_images(dataset: Dataset, limit: int | None) -> tuple[Dataset, int]:
    """The dataset with the cases that can be planned, and how many were left out.

    A case that nothing can simulate says nothing about a planner: it is not scored as an empty answer.

    Raises:
        InputError: no case can be planned.
    """
    every = dataset.pool if dataset.folds else dataset.cases  # the limit counts cases that can be planned
    found = [case for case in every if case.has_image]
    if not found:
        raise InputError(
            f"No case of {dataset.name} has an image to plan on: name the folder of imported cases with --data, or "
            "score the policy alone with --stage propose."
        )
    return replace(dataset, cases=tuple(found[:limit])), len(every) - len(found)


def prepare_again(spec: RunSpec) -> Evaluation:
    """The same evaluation as `prepare` made, under the conditions of this process; `run_evaluation` compares them.

    Raises:
        MewmError: see `prepare`.
    """
    settings = spec.settings
    given = settings.model_dump(exclude={"policy_llm", "reasoning_llm", "prompts"}, exclude_unset=True)
    return prepare(
        spec.dataset, seed=spec.seed, limit=spec.limit, tier=spec.tier,
        data=None if spec.data is None else Path(spec.data),
        clinical=None if spec.clinical is None else Path(spec.clinical), stage=spec.stage, backend=spec.backend,
        reasoning=settings.reasoning_llm, prompts=spec.prompts, epochs=spec.epochs, limits=spec.limits,
        weights=None if spec.weights is None else Path(spec.weights), parts_off=spec.parts_off,
        baselines=spec.baselines, planner=given, keep=spec.keep,
    )  # fmt: skip


def _no_case(case_id: str) -> Case:
    raise AssertionError(f"no case is looked at before a run, not {case_id}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _settings(
    dataset: Dataset, backend: str, reasoning: str | None, prompts: str | None, planner: dict[str, Any]
) -> PlannerSettings:
    llm = backend != EMBEDDED
    if not llm and (prompts or reasoning):
        raise InputError("The embedded policy reads no prompts: name a language model with --backend.")
    space = dataset.space
    if planner.get("actions") is None:
        planner["actions"] = space.actions if space.actions != "all" else "policy"
    for name, most in (("drug_horizon", space.drug_horizon), ("embolic_horizon", space.embolic_horizon)):
        if planner.get(name) is None:
            planner[name] = most
        elif planner[name] > most:
            raise InputError(f"The {name} of {dataset.name} is at most {most}, got {planner[name]}.")
    planner["profile"] = planner.get("profile") or space.profile
    settings = make_settings(
        **planner, policy_llm=backend if llm else None, reasoning_llm=reasoning,
        prompts=None if prompts is None else absolute(prompts),
    )  # fmt: skip
    outside = [i.name for i in Formulary.load(settings.actions).items if i.name not in dataset.formulary]
    if outside:
        raise InputError(
            f"The action set {settings.actions} holds {', '.join(outside)}, which no answer of {dataset.name} may "
            f"hold: choose --actions {space.actions}."
        )
    return settings


def _alone(dataset: Dataset, settings: PlannerSettings, baselines: Sequence[str]) -> PlannerSettings | None:
    """Settings of the vision-language model alone; None where there is none, or it is left out."""
    if settings.policy_llm is None or MODEL_ALONE not in baselines:
        return None
    prompts, actions = ALONE.get(dataset.space.actions, ALONE_ELSE)
    space = dataset.space
    return settings.model_copy(
        update={
            "prompts": prompts, "actions": actions, "drugs": space.drug_horizon, "embolics": space.embolic_horizon
        }
    )  # fmt: skip


def _prompts_hash(settings: PlannerSettings) -> str | None:
    if settings.policy_llm is None:
        return None
    return load_prompt_set(settings.prompts).content_hash


def _conditions(
    dataset: Dataset, settings: PlannerSettings, alone: PlannerSettings | None, world: Conditions | None
) -> dict[str, str]:
    found = {"rules": rules_hash(), "formulary": dataset.formulary.content_hash}
    if world is not None:
        found |= world.model_dump(exclude={"rules_hash"})
    # every plan asks the embedded policy where a language model fails, so it belongs to the conditions of all
    found["embedded policy"] = content_hash(load_knowledge())
    if alone is not None:
        found["prompts of the model alone"] = _prompts_hash(alone) or ""
    if settings.policy_llm is not None:
        from agent.backends import load_backends, resolve_chain

        backends = load_backends(None if settings.backends is None else Path(settings.backends))
        for role, name in (("policy model", settings.policy_llm), ("reasoning model", settings.reasoning_llm)):
            if name is not None:
                found[role] = " then ".join(b.model for b in resolve_chain(name, backends))
    return found


class _World:
    """Tools on one engine that all cases of the process share."""

    def __init__(
        self,
        settings: PlannerSettings,
        weights: Path | None,
        parts_off: tuple[str, ...],
        stage: Stage,
        *,
        keep: bool,
    ) -> None:
        self.settings, self.weights, self.stage, self.keep = settings, weights, stage, keep
        self.assistant = ASSISTANT not in parts_off

    def engine(self) -> Engine:
        """The engine, loaded when it is first needed."""
        with _LOADING:
            return _engine(self.settings.device, self.weights, self.assistant)

    def conditions(self) -> Conditions:
        """What the numbers depend on; before any simulation that is no engine."""
        if self.stage == "propose":
            return Conditions(weights_hash="", preset="", precision="", device="", rules_hash=rules_hash())
        engine = self.engine()
        return Conditions(
            # marked, so that a plan of the one is never gone on with by the other
            weights_hash=engine.weights_hash + ("" if self.assistant else f"-no-{ASSISTANT}"),
            preset=engine.preset,
            precision=engine.precision,
            device=engine.device,
            rules_hash=rules_hash(),
        )

    def services(self, run: Run, facts: CaseFacts, stop: threading.Event) -> Services:
        """As `mewm plan` has them, on the shared engine."""
        made = make_services(run, facts, stop)
        paths = {run.record.case_id: Path(run.record.case_path)}
        workspace = _LazyWorkspace(paths, run.artifacts, self.engine, None if self.assistant else ASSISTANT)

        def listen(listener: Callable[[str, int, int], None] | None) -> None:
            workspace.progress = listener

        report = (lambda plan: publish(plan, workspace, run.folder)) if self.keep else (lambda _: {})
        return replace(made, tools=build_tools(workspace), conditions=self.conditions, listen=listen, publish=report)


_LOADING = threading.Lock()


@cache
def _engine(device: Device, weights: Path | None, assistant: bool) -> Engine:
    """The engines of this process; with and without the assistant they share their networks."""
    return Engine(device, weights) if assistant else WithoutAssistant(_engine(device, weights, True))


class _LazyWorkspace(Workspace):
    """A workspace on an engine that is loaded no sooner than a tool needs it: proposing needs none.

    Evaluations may keep their simulations in one folder: outcomes are the same with and without the assistant,
    segmentations are not.
    """

    def __init__(
        self, cases: Mapping[str, Path], artifacts: Path, engine: Callable[[], Engine], off: str | None = None
    ) -> None:
        super().__init__(cases, artifacts)
        self._make, self._off = engine, off

    def segmentation_key(self, outcome_id: str) -> dict[str, Value]:
        """As of `Workspace`, and what is switched off."""
        key = super().segmentation_key(outcome_id)
        return key if self._off is None else {**key, "without": self._off}

    @cached_property
    def engine(self) -> Engine:
        """The shared engine."""
        return self._make()
