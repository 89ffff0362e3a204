"""A scene: one phantom patient as the engine sees it, with the truth of every protocol on the same patch grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evals.simulators import Simulator
from models.engine import Engine, Job, Prepared
from models.patch import voxel_ml
from models.phantom.anatomy import Anatomy, render_anatomy
from models.phantom.cohort import CASE_SHAPE, case_affine
from models.phantom.field import Grid
from models.phantom.patient import Patient, draw_patient
from models.phantom.render import render
from models.phantom.response import TrueResponse
from models.phantom.version import phantom_hash
from models.protocol import Protocol
from models.response import NECROTIC, VIABLE, criteria
from models.toxicity import toxicity
from models.volume import Volume
from tools.segment import tissue_ml
from tools.workspace import LIVER_LABELS

BATCH = 2
"""Of the engine that measures. Most of its calls are for a cube or two, and an engine fills every batch up: with the
planner's 6 a patient costs two to four times as much on a CPU."""
TRUE_SCAN = 1
"""Seed of the follow-up scan. The same for every protocol of a patient, so that true scans differ by the protocol."""


class Measures(NamedTuple):
    """What a follow-up shows, as shares of the original tumour's volume.

    Attributes:
        oil: Share above 200 HU.
        necrotic: Share that is necrotic tissue.
        viable: Viable tissue within 5 mm of the tumour; can pass 1 where it grows.
    """

    oil: float
    necrotic: float
    viable: float


@dataclass(frozen=True, eq=False)
class FollowUp:
    """A scan after treatment on the patch grid: HU and tissue classes, both (L, S, S, S).

    `tissue` is 0 beyond 5 mm of the tumour, as the planner's tools keep it.
    """

    hu: npt.NDArray[np.int16]
    tissue: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TrueFollowUp(FollowUp):
    """The phantom's own scan; `all_tissue` are the classes of the whole patches."""

    all_tissue: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scene:
    """One prepared patient.

    Attributes:
        patient: Truth included.
        engine: With the networks that are measured.
        volume: The CT before treatment on the grid of a written case.
        labels: (X, Y, Z) its labels.
        prepared: What the engine computed once.
        liver_ml: Volume of the liver with its tumours by the labels.
    """

    patient: Patient
    engine: Engine
    volume: Volume
    labels: npt.NDArray[np.uint8]
    prepared: Prepared
    liver_ml: float

    @classmethod
    def of(cls, seed: int, engine: Engine) -> Scene:
        """Draw, render and prepare the patient of a seed, as `mewm plan` would have it from a written case."""
        patient, affine = draw_patient(seed), case_affine()
        scan = render(patient, affine, CASE_SHAPE)
        volume = Volume(np.rint(scan.hu).astype(np.int16), affine)
        key = f"{patient.patient_id}-{phantom_hash()}"
        prepared = engine.prepare(volume, scan.organs, patient.record, key)
        liver = float(np.isin(scan.organs, LIVER_LABELS).sum()) * voxel_ml(affine)
        return cls(patient, engine, volume, scan.organs, prepared, liver)

    def truth(self, response: TrueResponse, scan_seed: int = TRUE_SCAN) -> TrueFollowUp:
        """The phantom's own follow-up scan and tissue."""
        hu, tissue = [], []
        for patch, anatomy in zip(self.prepared.patches, self._anatomies, strict=True):
            scan = render(
                self.patient, patch.affine, (patch.size,) * 3, response=response, scan_seed=scan_seed, anatomy=anatomy
            )
            hu.append(np.rint(scan.hu).astype(np.int16))
            tissue.append(scan.tissue)
        classes = np.stack(tissue)
        return TrueFollowUp(np.stack(hu), np.where(self.prepared.near > 0, classes, 0).astype(np.uint8), classes)

    @cached_property
    def _anatomies(self) -> list[Anatomy]:
        """The abdomen without tumours on each patch: half of a rendering, and the same for every protocol."""
        grids = [Grid.from_affine(patch.affine, (patch.size,) * 3) for patch in self.prepared.patches]
        return [render_anatomy(self.patient, grid) for grid in grids]

    def follow_ups(self, scans: list[npt.NDArray[np.int16]]) -> list[FollowUp]:
        """Scans after treatment (L, S, S, S) with the tissue that the assistant model finds in them."""
        if not scans:
            return []
        found = self.engine.segment_near(self.prepared, scans)
        return [FollowUp(hu, tissue) for hu, tissue in zip(scans, found, strict=True)]

    def simulated(self, simulator: Simulator, jobs: Sequence[Job]) -> list[FollowUp]:
        """Simulated scans of jobs, read as the planner's tool `segment` reads them."""
        return self.follow_ups(simulator.scans(self.prepared, jobs))

    def classes(self, scan: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
        """The tissue that the assistant model finds in whole patches (L, S, S, S)."""
        return self.engine.segment(scan, self.prepared.pre, self.prepared.numbers > 0)

    def measures(self, found: FollowUp) -> Measures:
        """Shares of the original tumour's volume; each lesion counted in the patch that simulates it."""
        tumour = self.tumour_ml
        return Measures(
            oil=self._share(found.hu > criteria().oil_hu),
            necrotic=self._share(found.tissue == NECROTIC),
            viable=tissue_ml(self.prepared, found.tissue)[VIABLE] / tumour,
        )

    @property
    def tumour_ml(self) -> float:
        """Volume of the original tumour on the patch grid, in ml."""
        sizes = zip(self.prepared.patches, self._tumours, strict=True)
        return sum(float(tumour.sum()) * voxel_ml(patch.affine) for patch, tumour in sizes)

    @property
    def _tumours(self) -> npt.NDArray[np.bool_]:
        return (self.prepared.own > 0) & (self.prepared.numbers > 0)

    def _share(self, mask: npt.NDArray[np.bool_]) -> float:
        held = zip(self.prepared.patches, mask & self._tumours, strict=True)
        return sum(float(part.sum()) * voxel_ml(patch.affine) for patch, part in held) / self.tumour_ml

    def risks(self, found: list[FollowUp], protocols: list[Protocol]) -> list[float]:
        """Total log-risk of scans under protocols, as the planner sees it: the network's with the toxicity term."""
        if not found:
            return []
        tumour = self.engine.log_risk(self.prepared, [f.hu for f in found], [f.tissue for f in found])
        return [value + self.harm(protocol) for value, protocol in zip(tumour, protocols, strict=True)]

    def harm(self, protocol: Protocol) -> float:
        """The toxicity term as `survival_risk` adds it."""
        return toxicity(protocol, self.patient.record, self.prepared.tumour_ml, self.liver_ml).log_hazard
