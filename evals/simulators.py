"""Simulators: the world model and what it is compared with, behind one small interface.

A simulator turns a prepared case and jobs (protocol, seed) into changes of HU on the patch grid; all of them are
composited, segmented and measured by the same code.
Four are made by hand, after what the paper compares with; they are small versions of the idea, honest about what they
ignore, and none is the authors' program:

- no change: the scan before treatment.
- mean change: the mean change of HU that training patients show, by relative depth in the tumour.
- texture (after SynTumor, Hu et al. 2023): blurred, thresholded noise decides which tissue lies where.
- cells (after Pixel2Cancer, Lai et al. 2024): a cellular automaton in which death spreads from the core and the border
  grows or shrinks.

The latter two draw how much dies from training patients and never see the protocol. Two more are trained networks
(`evals.trained_baselines`): the same diffusion without action (after DiffTumor) and with text only (after TextoMorph).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.engine import Engine, Job, Prepared
from models.phantom.patient import draw_patient
from models.phantom.pool import random_protocol
from models.phantom.render import render
from models.phantom.response import respond
from models.response import NECROTIC, OIL, VIABLE

Difference = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]

FIT_SEED = 700_000
"""Patients that the hand-made simulators take their numbers from; never measured (those begin at 900000)."""
FIT_PATIENTS = 60
DEPTH_BINS = 8
_FIT_SIZE = 48


class Simulator(Interface):
    """What can be measured as a simulation."""

    @property
    def name(self) -> str:
        """As options and JSON call it."""
        ...

    @property
    def label(self) -> str:
        """As tables call it."""
        ...

    def differences(self, prepared: Prepared, jobs: Sequence[Job]) -> list[tuple[int, Difference]]:
        """(position in `jobs`, change in HU (L, S, S, S), 0 outside the feather), in the order of `jobs`."""
        ...

    def scans(self, prepared: Prepared, jobs: Sequence[Job]) -> list[npt.NDArray[np.int16]]:
        """The simulated CT patches (L, S, S, S) of each job."""
        ...


@dataclass(frozen=True)
class _OnEngine:
    """Composites differences as the engine does."""

    engine: Engine

    def differences(self, prepared: Prepared, jobs: Sequence[Job]) -> list[tuple[int, Difference]]:
        """See `Simulator.differences`."""
        return [(index, self._difference(prepared, job)) for index, job in enumerate(jobs)]

    def scans(self, prepared: Prepared, jobs: Sequence[Job]) -> list[npt.NDArray[np.int16]]:
        """See `Simulator.scans`."""
        return [self.engine.composite(prepared, change) for _, change in self.differences(prepared, jobs)]

    def _difference(self, prepared: Prepared, job: Job) -> Difference:
        raise NotImplementedError


@dataclass(frozen=True)
class WorldModelSimulator(_OnEngine):
    """The engine's own denoiser, or another one of the same latents."""

    name: str = "world_model"
    label: str = "the world model"
    steps: int | None = None

    def differences(self, prepared: Prepared, jobs: Sequence[Job]) -> list[tuple[int, Difference]]:
        """See `Simulator.differences`."""
        return sorted(self.engine.simulate_differences(prepared, jobs, self.steps), key=lambda pair: pair[0])


@dataclass(frozen=True)
class NoChange(_OnEngine):
    """The scan before treatment."""

    name: str = "no_change"
    label: str = "no change"

    def _difference(self, prepared: Prepared, job: Job) -> Difference:  # noqa: ARG002 (ignores the protocol)
        return np.zeros(prepared.pre.shape, np.int16)


@dataclass(frozen=True)
class Training:
    """What the hand-made simulators know of training patients under random protocols.

    Attributes:
        change: (DEPTH_BINS,) mean change of HU by relative depth in the tumour, from its border inwards.
        dead: (N,) share of each tumour that was necrotic or oily afterwards.
        oily: (N,) share that was oily.
        volume_ratio: (N,) tumour volume afterwards over before.
        hu: Tissue class -> mean HU.
        grain: Tissue class -> standard deviation of HU within it.
    """

    change: npt.NDArray[np.float64]
    dead: npt.NDArray[np.float64]
    oily: npt.NDArray[np.float64]
    volume_ratio: npt.NDArray[np.float64]
    hu: dict[int, float]
    grain: dict[int, float]


@lru_cache(maxsize=2)
def training(patients: int = FIT_PATIENTS, first_seed: int = FIT_SEED) -> Training:
    """Measure training patients under random protocols, on a coarse cube around the largest lesion. Half a minute."""
    totals, counts = np.zeros(DEPTH_BINS), np.zeros(DEPTH_BINS)
    dead, oily, ratio = [], [], []
    values: dict[int, list[npt.NDArray[np.float64]]] = {VIABLE: [], NECROTIC: [], OIL: []}
    for seed in range(first_seed, first_seed + patients):
        patient = draw_patient(seed)
        lesion = patient.lesions[0]
        spacing = float(np.clip(3.0 * max(lesion.radii_mm) / _FIT_SIZE, 1.5, 4.5))
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = np.array(lesion.centre_mm) - spacing * (_FIT_SIZE - 1) / 2.0
        shape = (_FIT_SIZE,) * 3
        before = render(patient, affine, shape)
        response = respond(patient, random_protocol(np.random.default_rng([seed, 53])))
        after = render(patient, affine, shape, response=response, scan_seed=1)
        if not before.tumour.any():
            continue
        bins = depth_bins(before.tumour)
        totals += np.bincount(bins[before.tumour], (after.hu - before.hu)[before.tumour], DEPTH_BINS)
        counts += np.bincount(bins[before.tumour], minlength=DEPTH_BINS)
        inside = after.tissue[before.tumour]
        dead.append(float(np.isin(inside, (NECROTIC, OIL)).mean()))
        oily.append(float((inside == OIL).mean()))
        ratio.append(float((after.tissue >= VIABLE).sum() / (before.tissue >= VIABLE).sum()))
        for tissue, found in values.items():
            if (here := after.tissue == tissue).any():
                found.append(after.hu[here].astype(np.float64))
    pooled = {tissue: np.concatenate(found) if found else np.zeros(1) for tissue, found in values.items()}
    return Training(
        change=totals / np.maximum(counts, 1.0),
        dead=np.array(dead),
        oily=np.array(oily),
        volume_ratio=np.array(ratio),
        hu={tissue: float(found.mean()) for tissue, found in pooled.items()},
        grain={tissue: float(found.std()) for tissue, found in pooled.items()},
    )


def depth_bins(tumour: Mask) -> npt.NDArray[np.int64]:
    """Relative depth in a mask as a bin, 0 at the border to `DEPTH_BINS` - 1 at the deepest voxel; 0 outside."""
    depth = ndimage.distance_transform_edt(tumour)
    share = depth / max(float(depth.max()), 1.0)
    return np.asarray(np.clip((share * DEPTH_BINS).astype(np.int64), 0, DEPTH_BINS - 1))


@dataclass(frozen=True)
class MeanChange(_OnEngine):
    """The mean change of training patients at the same relative depth, whatever the protocol."""

    name: str = "mean_change"
    label: str = "mean change"

    def _difference(self, prepared: Prepared, job: Job) -> Difference:  # noqa: ARG002 (ignores the protocol)
        known = training()
        change = [np.where(n > 0, known.change[depth_bins(n > 0)], 0.0) for n in prepared.numbers]
        return _finished(prepared, np.stack(change))


@dataclass(frozen=True)
class Texture(_OnEngine):
    """Hand-crafted texture: blurred uniform noise, thresholded and blurred again, decides the tissue of every voxel."""

    name: str = "texture"
    label: str = "hand-crafted texture (after SynTumor)"

    def _difference(self, prepared: Prepared, job: Job) -> Difference:
        known, rng = training(), _rng(prepared, job, self.name)
        drawn = int(rng.integers(known.dead.size))
        painted = []
        for patch, numbers in enumerate(prepared.numbers):
            tumour = numbers > 0
            blur = rng.uniform(3.0, 15.0) / prepared.patches[patch].spacing_mm
            dead = _top_share(ndimage.gaussian_filter(rng.random(tumour.shape), blur), tumour, known.dead[drawn])
            oily_share = known.oily[drawn] / max(known.dead[drawn], 1e-6)
            oily = _top_share(ndimage.gaussian_filter(rng.random(tumour.shape), blur / 2.0), dead, oily_share)
            painted.append(_paint(tumour, dead, oily, known, rng) - prepared.pre[patch])
        return _finished(prepared, np.stack(painted))


@dataclass(frozen=True)
class Cells(_OnEngine):
    """Cellular growth and death: death spreads from the core cell by cell, then the border is lost or gained."""

    name: str = "cells"
    label: str = "cellular growth and death (after Pixel2Cancer)"
    chance: float = 0.35
    most_steps: int = 200

    def _difference(self, prepared: Prepared, job: Job) -> Difference:
        known, rng = training(), _rng(prepared, job, self.name)
        drawn = int(rng.integers(known.dead.size))
        painted = []
        for patch, numbers in enumerate(prepared.numbers):
            tumour = numbers > 0
            dead = self.spread(tumour, float(known.dead[drawn]), rng)
            body, alive = self.regrown(tumour, float(known.volume_ratio[drawn]), rng), prepared.pre[patch].copy()
            alive[body & ~tumour] = known.hu[VIABLE]
            vacated = tumour & ~body
            liver = prepared.pre[patch][~tumour & (prepared.weight[patch] > 0)]
            alive[vacated] = float(np.median(liver)) if liver.size else known.hu[VIABLE]
            grain = ndimage.gaussian_filter(rng.standard_normal(tumour.shape), 0.6)
            dead_hu = known.hu[NECROTIC] + 12.0 * grain / max(float(grain.std()), 1e-6)
            painted.append(np.where(dead & body, dead_hu, alive) - prepared.pre[patch])
        return _finished(prepared, np.stack(painted))

    def spread(self, tumour: Mask, share: float, rng: np.random.Generator) -> Mask:
        """Dead cells: every living neighbour of a dead one dies with `chance`, until `share` of the tumour is dead."""
        target = round(share * int(tumour.sum()))
        dead = np.zeros(tumour.shape, bool)
        if target == 0:
            return dead
        depth = ndimage.distance_transform_edt(tumour)
        dead[np.unravel_index(int(depth.argmax()), dead.shape)] = True
        for _ in range(self.most_steps):
            count = int(dead.sum())
            if count >= target:
                break
            front = np.flatnonzero(ndimage.binary_dilation(dead) & tumour & ~dead)
            if front.size == 0:
                break
            dying = front[rng.random(front.size) < self.chance]
            dead.flat[dying[: target - count]] = True
        return dead

    def regrown(self, tumour: Mask, ratio: float, rng: np.random.Generator) -> Mask:
        """The tumour after its border cells were lost (`ratio` below 1) or have divided (above)."""
        body, target = tumour.copy(), round(ratio * int(tumour.sum()))
        for _ in range(self.most_steps):
            count = int(body.sum())
            if count == target:
                break
            grows = count < target
            border = (ndimage.binary_dilation(body) & ~body) if grows else (body & ~ndimage.binary_erosion(body))
            cells = np.flatnonzero(border)
            if cells.size == 0:
                break
            chosen = cells[rng.random(cells.size) < self.chance][: abs(target - count)]
            body.flat[chosen] = grows
        return body


HAND_MADE = (NoChange, MeanChange, Texture, Cells)


def hand_made(engine: Engine) -> list[Simulator]:
    """The simulators that need no training of networks."""
    return [kind(engine) for kind in HAND_MADE]


def _rng(prepared: Prepared, job: Job, name: str) -> np.random.Generator:
    # of case, seed and name only: every protocol meets the same noise, as in the engine
    digest = hashlib.sha256(f"{prepared.key}:{job[1]}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _top_share(field: npt.NDArray[np.float64], inside: Mask, share: float) -> Mask:
    if share <= 0 or not inside.any():
        return np.zeros(inside.shape, bool)
    return np.asarray(inside & (field >= np.quantile(field[inside], max(0.0, 1.0 - share))))


def _paint(tumour: Mask, dead: Mask, oily: Mask, known: Training, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    hu = np.full(tumour.shape, known.hu[VIABLE])
    hu[dead] = known.hu[NECROTIC]
    hu[oily] = known.hu[OIL]
    hu = ndimage.gaussian_filter(hu, rng.uniform(0.5, 1.0))
    grain = ndimage.gaussian_filter(rng.standard_normal(tumour.shape), 0.6)
    out: npt.NDArray[np.float64] = hu + 12.0 * grain / max(float(grain.std()), 1e-6)
    return out


def _finished(prepared: Prepared, change: npt.NDArray[np.floating]) -> Difference:
    kept = np.where(prepared.support, change, 0.0)
    return np.asarray(np.rint(np.clip(kept, -2000, 3000)).astype(np.int16))


def by_name(simulators: Iterable[Simulator]) -> dict[str, Simulator]:
    """Simulators by name."""
    return {simulator.name: simulator for simulator in simulators}
