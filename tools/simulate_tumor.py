"""simulate_tumor: the CT after treatment, for every protocol and every seed, in one batch."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from models.errors import ToolError
from models.patch import describe_patches
from models.protocol import Protocol
from tools.artifacts import artifact_id
from tools.workspace import Workspace, pack

MOST_STEPS = 1000
MOST_SEED = 2**31 - 1


class Outcome(BaseModel):
    """One simulated state of the tumour: a protocol under a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_id: str
    protocol: str = Field(description="protocol key, drugs | embolics")
    seed: int
    steps: int = Field(description="sampling steps of the denoiser")
    patches: int = Field(description="cubes that were simulated")
    cached: bool = Field(description="it was there already")


class SimulateTumorResult(BaseModel):
    """The outcomes: protocols in the order given, seeds within; what was given twice occurs once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    outcomes: tuple[Outcome, ...]
    simulated: int = Field(description="outcomes computed by this call")
    from_cache: int = Field(description="outcomes that were there already")
    seconds: float
    weights_hash: str
    origin: str = Field(description="what the weights were trained on")
    how: str = Field(description="patches and voxel sizes")


def simulate_tumor(
    case_id: Annotated[str, Field(description="Id of a known case")],
    protocols: Annotated[
        list[str],
        Field(
            description="Protocols, each its agents by name, for example 'Cisplatin 50 mg; Pirarubicin; Lipiodol'",
            min_length=1,
        ),
    ],
    seeds: Annotated[
        list[int],
        Field(description="Seeds; every protocol is simulated under each, with common random numbers", min_length=1),
    ],
    steps: Annotated[
        int | None, Field(description="Sampling steps; leave out for the preset's", ge=1, le=MOST_STEPS)
    ] = None,
    last_comparison: Annotated[
        bool,
        Field(description="Take the preset's steps for a plan's last comparison, which are more; without `steps` only"),
    ] = False,
    *,
    workspace: Workspace,
) -> SimulateTumorResult:
    """Simulate the tumour on CT after each protocol under each seed.

    All lesions are simulated. What was simulated before is not simulated again, also not by a new process; a damaged
    artifact is computed again. Each outcome is stored as soon as it is there.

    Raises:
        ToolError: unknown case, no protocols or seeds, a seed or number of steps that is out of range, an empty
            protocol.
        UnknownItemError: an agent that is not in the action set.
        TransientToolError: the device ran out of memory.
    """
    started = time.perf_counter()
    wanted = _read_protocols(protocols, workspace)
    draws = list(dict.fromkeys(seeds))
    if not draws:
        raise ToolError("simulate_tumor needs at least one seed.")
    if stray := [seed for seed in draws if not 0 <= seed <= MOST_SEED]:
        raise ToolError(f"The seed {stray[0]} is out of range: use whole numbers from 0 to {MOST_SEED}.")
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise ToolError(f"{steps} steps are out of range: use 1 to {MOST_STEPS}.")
    workspace.case(case_id)
    engine = workspace.engine
    count = steps if steps is not None else engine.finalist_steps if last_comparison else engine.steps
    prepared = workspace.prepared(case_id)
    jobs = [(protocol, seed) for protocol in wanted for seed in draws]
    keys = [workspace.outcome_key(case_id, protocol, seed, count) for protocol, seed in jobs]
    names = [artifact_id("outcome", key) for key in keys]
    size = int(prepared.support.sum())
    missing = []
    for position, name in enumerate(names):
        stored = workspace.artifacts.find(name)
        if stored is None or stored.arrays["difference"].shape != (size,):
            missing.append(position)
    workspace.report("simulate_tumor", len(jobs) - len(missing), len(jobs))
    done = len(jobs) - len(missing)
    for position, difference in workspace.engine.simulate_differences(prepared, [jobs[m] for m in missing], count):
        workspace.artifacts.put("outcome", keys[missing[position]], {"difference": pack(prepared, difference)})
        done += 1
        workspace.report("simulate_tumor", done, len(jobs))
    absent = set(missing)
    return SimulateTumorResult(
        case_id=case_id,
        outcomes=tuple(
            Outcome(
                outcome_id=name,
                protocol=protocol.key,
                seed=seed,
                steps=count,
                patches=len(prepared.patches),
                cached=position not in absent,
            )
            for position, (name, (protocol, seed)) in enumerate(zip(names, jobs, strict=True))
        ),
        simulated=len(missing),
        from_cache=len(jobs) - len(missing),
        seconds=time.perf_counter() - started,
        weights_hash=workspace.engine.weights_hash,
        origin=workspace.engine.origin,
        how=describe_patches(prepared.patches, prepared.lesions, workspace.engine.model.preset.spacing_mm),
    )


def _read_protocols(texts: list[str], workspace: Workspace) -> list[Protocol]:
    found: dict[str, Protocol] = {}
    for text in texts:
        protocol = workspace.formulary.parse(text)
        if not protocol.items:
            raise ToolError(f"The protocol {text!r} names no agent: name at least one drug or embolic.")
        found[protocol.key] = protocol
    if not found:
        raise ToolError("simulate_tumor needs at least one protocol.")
    return list(found.values())
