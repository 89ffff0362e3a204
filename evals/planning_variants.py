"""Variants of the engine for the planning table: a part of the chain replaced by nothing, by a stranger, or by truth.

Each is an engine like any other, so that the planner, its search, its rules and its policy are the same in every row.
Those that know the truth exist here only; no plan of `mewm` can reach them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.engine import Engine, Job, Prepared
from models.networks.localiser import Region
from models.patch import TUMOUR_LABEL, Patch, lesion_components, resample_to_grid
from models.phantom.anatomy import render_anatomy
from models.phantom.cohort import CASE_SHAPE, case_affine
from models.phantom.field import Grid
from models.phantom.patient import Patient
from models.phantom.render import render
from models.phantom.response import log_hazard, respond
from models.response import VIABLE
from models.volume import Volume
from tools.segment import tissue_ml


class Variant(Engine):
    """An engine on the networks of another one, under a hash of its own: its artifacts are never taken for others."""

    mark = ""

    def __init__(self, base: Engine, patient: Patient) -> None:
        """Args: base: lends its networks. patient: who is planned, truth included."""
        super().__init__(base.device, model=base.model, precision=base.precision, batch=base.batch)
        self.patient = patient

    @property
    def weights_hash(self) -> str:
        """Marked."""
        return f"{super().weights_hash}-{self.mark}"


class AsDrawn(Variant):
    """The scan as the denoiser draws it: nothing corrects how much lives in it."""

    mark = "as-drawn"

    @property
    def redraws(self) -> int:
        """0."""
        return 0


class AmountOnly(Variant):
    """The denoiser draws nothing: the scan before treatment, corrected until as much lives in it as is predicted."""

    mark = "amount-only"

    def _draw(
        self,
        prepared: Prepared,
        patches: list[int],
        seeds: list[int],  # noqa: ARG002 (as of `Engine._draw`)
        shares: Tensor,  # noqa: ARG002
        actions: Tensor,  # noqa: ARG002
        texts: Tensor,  # noqa: ARG002
        steps: int | None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        return prepared.decoded[patches]


class PreTreatmentImage(AsDrawn, AmountOnly):
    """The simulated image is the one before treatment."""

    mark = "pre-image"


class AnotherPatientsImage(Variant):
    """The change is simulated for another patient under the same protocol, and pasted into this one's tumour.

    Only the other's largest lesion is simulated. Its change is laid, in mm, so that its centre falls on that of the
    largest lesion of each patch; where it does not reach, nothing changes.
    """

    mark = "other-patient"

    def __init__(self, base: Engine, patient: Patient, other: Patient) -> None:
        """Args: base, patient: see `Variant`. other: whose simulation is used."""
        super().__init__(base, patient)
        affine = case_affine()
        scan = render(other, affine, CASE_SHAPE)
        volume = Volume(np.rint(scan.hu).astype(np.int16), affine)
        further = (scan.organs == TUMOUR_LABEL) & (lesion_components(scan.organs, affine).index != 1)
        self._other = base.prepare(volume, np.where(further, Region.LIVER, scan.organs), other.record)

    def simulate_differences(
        self, prepared: Prepared, jobs: Sequence[Job], steps: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """The other patient's change inside this patient's feathered tumours."""
        (source,) = self._other.patches
        where = lesion_centre(source, self._other.numbers[0])
        grids = []
        for patch, numbers in zip(prepared.patches, prepared.numbers, strict=True):
            grids.append(source.affine.copy())
            grids[-1][:3, 3] += lesion_centre(patch, numbers) - where
        for index, change in super().simulate_differences(self._other, jobs, steps):
            laid = [
                resample_to_grid(change[0], grid, patch.affine, (patch.size,) * 3)
                for grid, patch in zip(grids, prepared.patches, strict=True)
            ]
            yield index, np.rint(np.where(prepared.support, np.stack(laid), 0.0)).astype(np.int16)


def lesion_centre(patch: Patch, numbers: NDArray[np.int16]) -> NDArray[np.float64]:
    """Centre of mass of the largest lesion of a patch, (3,) in mm."""
    voxel = np.argwhere(numbers == patch.lesions[0]).mean(axis=0)
    centre: NDArray[np.float64] = patch.affine[:3, :3] @ voxel + patch.affine[:3, 3]
    return centre


class TrueImage(Variant):
    """The true scan after the protocol in place of the simulated one; the networks read it."""

    mark = "true-image"

    def simulate_differences(
        self,
        prepared: Prepared,
        jobs: Sequence[Job],
        steps: int | None = None,  # noqa: ARG002
    ) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """The true change inside the feather; each seed is another scan of the same state."""
        low, high = self.model.preset.hu_window
        before = np.clip(prepared.pre, low, high)
        grids = [Grid.from_affine(patch.affine, (patch.size,) * 3) for patch in prepared.patches]
        abdomens = [render_anatomy(self.patient, grid) for grid in grids]  # the same for every protocol
        for index, (protocol, seed) in enumerate(jobs):
            response = respond(self.patient, protocol)
            after = np.stack(
                [
                    render(
                        self.patient,
                        patch.affine,
                        (patch.size,) * 3,
                        response=response,
                        scan_seed=seed + 1,
                        anatomy=one,
                    ).hu
                    for patch, one in zip(prepared.patches, abdomens, strict=True)
                ]
            )
            change = np.where(prepared.support, np.clip(after, low, high) - before, 0.0)
            yield index, np.rint(change).astype(np.int16)


class TrueHazard(Variant):
    """The simulated image is read by the assistant model, and the phantom's own hazard replaces the learned risk."""

    mark = "true-hazard"

    def log_risk(
        self,
        prepared: Prepared,
        outcomes: Sequence[NDArray[np.int16]],  # noqa: ARG002 (as of `Engine.log_risk`)
        segmentations: Sequence[NDArray[np.uint8]],
    ) -> list[float]:
        """True log hazard of the viable volume of the simulation, toxicity apart.

        The planner adds its fixed toxicity term to it; how sensitive this patient is stays unknown to it.
        """
        found = (tissue_ml(prepared, tissue)[VIABLE] for tissue in segmentations)
        return [log_hazard(self.patient, viable, 0.0) for viable in found]
