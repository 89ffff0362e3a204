"""Workspace: what the tools share and no caller sees: the known cases, the artifacts, the engine and the formulary.

Cases are reached by their id only and artifacts by theirs, so no tool argument is ever a path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.case import Case
from models.engine import Device, Engine, Precision, Prepared
from models.errors import ToolError
from models.formulary import Formulary
from models.patch import voxel_ml
from models.protocol import Protocol
from models.volume import Volume
from tools.artifacts import ArtifactDamagedError, ArtifactStore, Value

LIVER_LABELS = (1, 2, 3)  # liver, tumour and portal vein: the tumour and the vessel lie inside the organ
_engines: dict[tuple[str, str | None, str], Engine] = {}


@dataclass(frozen=True, eq=False)
class StoredOutcome:
    """One simulated state, read back from the artifacts. L patches of S voxels along each edge."""

    outcome_id: str
    case_id: str
    protocol: Protocol
    seed: int
    steps: int
    prepared: Prepared
    difference: NDArray[np.int16]
    composite: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class StoredSegmentation:
    """One segmented outcome: `tissue` is (L, S, S, S) uint8, 0 outside the tumour's neighbourhood."""

    segmentation_id: str
    outcome: StoredOutcome
    tissue: NDArray[np.uint8]


class Workspace:
    """The hidden argument of every tool."""

    def __init__(
        self,
        cases: Mapping[str, Path],
        artifacts: Path,
        *,
        device: Device = "auto",
        weights: Path | None = None,
        formulary: str | Formulary = "all",
        precision: Precision = "auto",
        engine: Engine | None = None,
        record_changes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Nothing is read or written before a tool needs it.

        Args:
            cases: folder of each case by id.
            artifacts: folder for simulated and segmented outcomes.
            device: where the networks run.
            weights: folder of a weight bundle; None is the shipped one.
            formulary: the action set that protocols are read with.
            precision: of the networks; "auto" is what the device is fast at.
            engine: an engine that exists already, in place of `device`, `weights` and `precision`.
            record_changes: by case id, fields of the clinical record that are another value here (None: unknown), to
                ask "what if"; the case folder is not touched.
        """
        self.artifacts = ArtifactStore(artifacts)
        self.formulary = formulary if isinstance(formulary, Formulary) else Formulary.load(formulary)
        self.progress: Callable[[str, int, int], None] | None = None
        """Called with (tool, done, total) while a tool works through a batch."""
        self.risks: dict[tuple[str, str, str], float] = {}
        """Network log-risks by (case content hash, segmentation id, weights hash): scored once per process."""
        self.composed: OrderedDict[str, tuple[Volume, NDArray[np.uint8]]] = OrderedDict()
        """Full volumes of the outcomes that were composed last (`tools.compose_outcome`)."""
        self._paths = dict(cases)
        self._device, self._weights, self._precision = device, weights, precision
        self._given = engine
        self._changes = dict(record_changes or {})
        self._cases: dict[str, Case] = {}
        self._liver_ml: dict[str, float | None] = {}
        self._images: dict[str, tuple[Volume, NDArray[np.uint8]]] = {}

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Ids of the known cases, sorted."""
        return tuple(sorted(self._paths))

    @cached_property
    def engine(self) -> Engine:
        """The engine; made on first use, one per process for each device, weights and precision.

        Raises:
            WeightsError: weights missing or damaged.
            InputError: the device is not there.
        """
        if self._given is not None:
            return self._given
        key = (self._device, None if self._weights is None else str(self._weights.resolve()), self._precision)
        if key not in _engines:
            _engines[key] = Engine(self._device, self._weights, precision=self._precision)
        return _engines[key]

    def case(self, case_id: str) -> Case:
        """The case of that id; its files are verified when it is opened first.

        Raises:
            ToolError: no case has that id.
            CaseError: the case is missing, damaged or changed.
        """
        if case_id not in self._paths:
            known = ", ".join(self.case_ids) or "none"
            raise ToolError(f"There is no case '{case_id[:80]}'; the known cases are: {known}.")
        if case_id not in self._cases:
            self._cases[case_id] = Case.load(self._paths[case_id]).with_changes(self._changes.get(case_id, {}))
        return self._cases[case_id]

    def image(self, case_id: str) -> tuple[Volume, NDArray[np.uint8]]:
        """The CT that is planned on and its labels (X, Y, Z). The last case used is kept in memory.

        Raises:
            CaseError: the case has no labels.
        """
        if case_id not in self._images:
            case = self.case(case_id)
            self._images = {case_id: (case.volume(case.default_image().name), case.label_array())}
        return self._images[case_id]

    def prepared(self, case_id: str) -> Prepared:
        """Patches, latents and tokens of a case before treatment; computed once per process."""
        case = self.case(case_id)
        found = self.engine.prepared(case.image_key)
        if found is None:
            volume, labels = self.image(case_id)
            found = self.engine.prepare(volume, labels, case.record, case.image_key)
        return self.engine.with_record(found, case.record)

    def liver_ml(self, case_id: str) -> float | None:
        """Volume of the liver with its tumours in ml, or None where no liver is labelled."""
        if case_id not in self._liver_ml:
            volume, labels = self.image(case_id)
            counts = np.bincount(labels.ravel(), minlength=max(LIVER_LABELS) + 1)
            total = float(sum(counts[label] for label in LIVER_LABELS)) * voxel_ml(volume.affine)
            self._liver_ml[case_id] = total if counts[LIVER_LABELS[0]] else None
        return self._liver_ml[case_id]

    def report(self, tool: str, done: int, total: int) -> None:
        """Tells `progress`, where somebody listens."""
        if self.progress is not None:
            self.progress(tool, done, total)

    def outcome_key(self, case_id: str, protocol: Protocol, seed: int, steps: int) -> dict[str, Value]:
        """Everything that a simulated outcome depends on: equal keys are equal bits on the same kind of device."""
        engine = self.engine
        return {
            "case": self.case(case_id).image_key,
            "protocol": protocol.key,
            "seed": seed,
            "steps": steps,
            "preset": engine.preset,
            "weights": engine.weights_hash,
            "precision": engine.precision,
            "device": engine.device,
        }

    def segmentation_key(self, outcome_id: str) -> dict[str, Value]:
        """Everything that a segmentation depends on (the outcome's id covers its own inputs)."""
        return {"outcome": outcome_id, "weights": self.engine.weights_hash, "precision": self.engine.precision}

    def outcome(self, outcome_id: str) -> StoredOutcome:
        """Reads a simulated outcome back.

        Raises:
            ToolError: no such outcome, one of an unknown case or of other weights.
            ArtifactDamagedError: its file is damaged; simulating it again mends it.
        """
        artifact = self.artifacts.get(outcome_id) if outcome_id.startswith("outcome-") else None
        if artifact is None:
            raise ToolError(f"There is no outcome '{outcome_id[:80]}': use an outcome_id that simulate_tumor returned.")
        key = artifact.key
        case_id = self._case_of(str(key["case"]), outcome_id)
        if key["weights"] != self.engine.weights_hash:
            raise ToolError(
                f"The outcome {outcome_id} was simulated with the weights {key['weights']}, this workspace has "
                f"{self.engine.weights_hash}: simulate it again."
            )
        prepared = self.prepared(case_id)
        difference = unpack(prepared, artifact.arrays["difference"], outcome_id).astype(np.int16)
        return StoredOutcome(
            outcome_id=outcome_id,
            case_id=case_id,
            protocol=self._protocol(str(key["protocol"])),
            seed=int(key["seed"] or 0),
            steps=int(key["steps"] or 0),
            prepared=prepared,
            difference=difference,
            composite=self.engine.composite(prepared, difference),
        )

    def segmentation(self, segmentation_id: str, case_id: str | None = None) -> StoredSegmentation:
        """Reads a segmentation and its outcome back.

        Args:
            segmentation_id: from the tool `segment`.
            case_id: the case that it has to belong to.

        Raises:
            ToolError: no such segmentation, or one of another case.
            ArtifactDamagedError: its file is damaged; segmenting the outcome again mends it.
        """
        artifact = self.artifacts.get(segmentation_id) if segmentation_id.startswith("segmentation-") else None
        if artifact is None:
            raise ToolError(
                f"There is no segmentation '{segmentation_id[:80]}': use a segmentation_id of the tool segment."
            )
        outcome = self.outcome(str(artifact.key["outcome"]))
        if case_id is not None and self.case(case_id).image_key != self.case(outcome.case_id).image_key:
            raise ToolError(
                f"The segmentation {segmentation_id} belongs to case '{outcome.case_id}', not to '{case_id}'."
            )
        tissue = unpack(outcome.prepared, artifact.arrays["tissue"], segmentation_id).astype(np.uint8)
        return StoredSegmentation(segmentation_id, outcome, tissue)

    def _case_of(self, image_key: str, artifact: str) -> str:
        # Opened cases first: opening one verifies its files.
        for case_id in sorted(self._paths, key=lambda name: (name not in self._cases, name)):
            if self.case(case_id).image_key == image_key:
                return case_id
        raise ToolError(f"The artifact {artifact} belongs to a case that is not known here, or that changed since.")

    def _protocol(self, key: str) -> Protocol:
        return Formulary.load("all").parse(key)


def pack(prepared: Prepared, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The voxels of (L, S, S, S) that a simulation can change, as one row: a tenth of the volume and less."""
    return np.asarray(values)[prepared.support]


def unpack(prepared: Prepared, row: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """The inverse of `pack`; 0 elsewhere.

    Raises:
        ArtifactDamagedError: the row has another length than the case's support.
    """
    support = prepared.support
    if row.shape != (int(support.sum()),):
        raise ArtifactDamagedError(f"The artifact {name} does not fit its case: compute it again.")
    values = np.zeros(support.shape, dtype=row.dtype)
    values[support] = row
    return values
