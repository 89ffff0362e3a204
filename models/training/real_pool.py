"""Cubes of real patients before and after the treatment that they were given, in the layout of a training pool.

A case is used where its follow-up is registered and the registration passed its checks, its tumour is labelled and what
was given is known; every other case is left out with its reason. What is inside a real tumour afterwards nobody has
labelled: oil and dead tissue are told by HU, by the limits that the denoiser's validation uses. That is a rule, not a
reading, and the true hazard of a real patient is unknown (NaN).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.case import Case
from models.clinical_record import ClinicalRecord
from models.collection.splits import split_of, splits_hash
from models.errors import InputError, MewmError
from models.networks.action import action_vector
from models.networks.preset import Preset
from models.networks.segmenter import Tissue
from models.patch import (
    TUMOUR_LABEL,
    WIDE_SIZE,
    WIDE_SPACING_MM,
    Lesions,
    Patch,
    crop,
    crop_mask,
    lesion_components,
    plan_patches,
    voxel_ml,
)
from models.protocol import Protocol
from models.toxicity import toxicity
from models.training.denoiser import LOW_HU, OIL_HU
from models.training.given import Given
from models.volume import Volume

INDEX = "real_pool.json"
LIVER_LABELS = (1, 2, 3)
BIG = ("pre", "pre_labels", "tumour_mask", "post", "post_labels", "wide", "wide_labels")
SMALL = ("actions", "burden", "toxicity", "true_log_risk", "time_months", "event", "spacing_mm")


@dataclass(frozen=True, eq=False)
class RealPool:
    """Real patients as `models.training.pool.Pool` has them: P cubes, K = 1 protocol each.

    Attributes:
        arrays: by the names `BIG` and `SMALL`, read-only memory maps.
        cases: case id of each cube; a patient with several cubes stands several times.
        protocols: P lists of one.
        records: of each cube's patient.
        left_out: why other cases are not here, by case id.
        data_hash: of everything in the pool.
    """

    arrays: Mapping[str, NDArray[Any]]
    cases: tuple[str, ...]
    protocols: list[list[Protocol]]
    records: list[ClinicalRecord]
    left_out: Mapping[str, str]
    data_hash: str

    def rows(self, split: str) -> NDArray[np.int64]:
        """The cubes of a split; a patient's cubes are all in one (`models.collection.splits`)."""
        return np.flatnonzero([split_of(case) == split for case in self.cases])

    @classmethod
    def open(cls, folder: Path) -> RealPool:
        """Open what `write_real_pool` wrote."""
        meta = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return cls(
            arrays={name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*BIG, *SMALL)},
            cases=tuple(meta["cases"]),
            protocols=[[Protocol.model_validate(p) for p in row] for row in meta["protocols"]],
            records=[ClinicalRecord.model_validate(r) for r in meta["records"]],
            left_out=meta["left_out"],
            data_hash=meta["data_hash"],
        )


def case_folders(folder: Path) -> list[Path]:
    """The case folders in a folder, by name.

    Raises:
        InputError: there is none.
    """
    found = sorted(path.parent for path in folder.glob("*/case.json"))
    if not found:
        raise InputError(
            f"{folder} holds neither a training pool nor imported cases; give a folder made by `mewm data pool`, or "
            "one with a case folder per patient."
        )
    return found


def write_real_pool(
    cases: Path, given: Mapping[str, Given], out: Path, preset: Preset,
    progress: Callable[[int, int], None] | None = None,
) -> RealPool:  # fmt: skip
    """Cut the cubes of every case that can be used; what is there already for the same input is kept.

    Args:
        cases: folder of case folders.
        given: what was given, by case id.
        out: folder of the pool.
        preset: its cube and spacing.
        progress: called with (cases done, cases).

    Raises:
        InputError: no case can be used; the sentence says why for each.
    """
    folders = case_folders(cases)
    loaded = [Case.load(folder) for folder in folders]
    arguments = hashlib.sha256(
        json.dumps(
            {
                "cases": [(case.case_id, case.content_hash, _registered(case)) for case in loaded],
                "splits": splits_hash({case.case_id: split_of(case.case_id) for case in loaded}),
                "given": {c.case_id: repr(given.get(c.case_id)) for c in loaded},
                "size": preset.size,
                "spacing": preset.spacing_mm,
                "wide": [WIDE_SIZE, WIDE_SPACING_MM],
                "tissue": [OIL_HU, LOW_HU],
            },
            sort_keys=True,
        ).encode()
    ).hexdigest()[:16]
    index = out / INDEX
    if index.exists() and json.loads(index.read_text(encoding="utf-8")).get("data_hash") == arguments:
        return RealPool.open(out)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for number, case in enumerate(loaded, start=1):
        try:
            rows += _rows(case, given.get(case.case_id), preset)
        except MewmError as error:
            left_out[case.case_id] = str(error)
        if progress is not None:
            progress(number, len(loaded))
    if not rows:
        why = "; ".join(f"{case}: {reason}" for case, reason in left_out.items())
        raise InputError(f"None of the {len(loaded)} cases in {cases} can be trained on ({why})")
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for name in (*BIG, *SMALL):
            np.save(out / f"{name}.npy", np.stack([row[name] for row in rows]))
        meta = {
            "cases": [row["case"] for row in rows],
            "protocols": [[row["protocol"].model_dump(mode="json")] for row in rows],
            "records": [row["record"].model_dump(mode="json", exclude_none=True) for row in rows],
            "left_out": left_out,
            "data_hash": arguments,
        }
        temporary = index.with_suffix(".tmp")
        temporary.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        temporary.replace(index)  # the index last and at once: it says that the cubes are complete
    except OSError as error:
        raise InputError(f"The cubes can't be written to {out}: {error.strerror}; choose another --out.") from error
    return RealPool.open(out)


def _registered(case: Case) -> str:
    """Hash of the registrations beside a case."""
    from models.registration_file import FOLDER

    files = sorted((case.path / FOLDER).glob("*.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _rows(case: Case, given: Given | None, preset: Preset) -> list[dict[str, Any]]:
    """One row per cube of a case.

    Raises:
        InputError: the case can't be used.
    """
    from models.registration_file import load_registration

    if given is None:
        raise InputError("what was given is not known.")
    kept = load_registration(case)
    if kept is None:
        raise InputError("its follow-up is not registered; run `mewm case register`.")
    image, registration = kept
    if not registration.report.usable:
        raise InputError(" ".join(registration.report.problems))
    before, labels = case.volume(), case.label_array()
    after = registration.apply(case.volume(image.name), before)
    lesions = lesion_components(labels, before.affine)
    patches = plan_patches(labels, before.affine, preset.size, preset.spacing_mm, lesions=lesions)
    ml = voxel_ml(before.affine)
    organ = np.isin(labels, LIVER_LABELS)
    tumour_ml = float((labels == Tissue.VIABLE).sum()) * ml
    viable = (lesions.index > 0) & (after.data <= OIL_HU) & (after.data >= LOW_HU)
    shared = [np.log1p(tumour_ml), float(lesions.count)]
    term = toxicity(given.protocol, case.record, tumour_ml, float(organ.sum()) * ml if organ.any() else None)
    abdomen = _abdomen(before, labels, organ)
    return [
        {
            **_cubes(before, after, organ, lesions, patch),
            **abdomen,
            "actions": action_vector(given.protocol)[None],
            "burden": np.array(
                [[np.log1p(float(viable.sum()) * ml), *shared, np.log2(patch.spacing_mm / 1.5)]], np.float32
            ),
            "toxicity": np.array([term.log_hazard], np.float32),
            "true_log_risk": np.array([np.nan], np.float32),
            "time_months": np.array([np.nan if given.months is None else given.months], np.float32),
            "event": np.array([bool(given.died)]),
            "spacing_mm": np.float32(patch.spacing_mm),
            "case": case.case_id,
            "protocol": given.protocol,
            "record": case.record,
        }
        for patch in patches
    ]


def _abdomen(before: Volume, labels: NDArray[np.uint8], organ: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The scan before treatment in coarse voxels around the liver, and its classes."""
    where = organ if organ.any() else np.ones_like(organ)
    centre = before.affine[:3, :3] @ np.argwhere(where).mean(axis=0) + before.affine[:3, 3]
    affine = np.diag([*[WIDE_SPACING_MM] * 3, 1.0])
    affine[:3, 3] = centre - WIDE_SPACING_MM * (WIDE_SIZE - 1) / 2.0
    patch = Patch(0, affine, WIDE_SIZE, WIDE_SPACING_MM, ())
    tumour, liver = (crop_mask(mask, before.affine, patch) >= 0.5 for mask in (labels == TUMOUR_LABEL, organ))
    classes = np.where(tumour, Tissue.VIABLE, np.where(liver, Tissue.LIVER, Tissue.BACKGROUND))
    return {"wide": np.rint(crop(before, patch)).astype(np.int16), "wide_labels": classes.astype(np.uint8)}


def _cubes(
    before: Volume, after: Volume, organ: NDArray[np.bool_], lesions: Lesions, patch: Patch
) -> dict[str, NDArray[Any]]:
    """Scans and labels of one cube; those after treatment with a leading axis of one protocol."""
    pre, post = (np.rint(crop(volume, patch)).astype(np.int16) for volume in (before, after))
    liver = crop_mask(organ, before.affine, patch) >= 0.5
    tumour = crop_mask(lesions.index > 0, before.affine, patch) >= 0.5
    labels = np.where(tumour, Tissue.VIABLE, np.where(liver, Tissue.LIVER, Tissue.BACKGROUND)).astype(np.uint8)
    later = labels.copy()
    later[tumour & (post < LOW_HU)] = Tissue.NECROTIC
    later[tumour & (post > OIL_HU)] = Tissue.OIL
    own = crop_mask(np.isin(lesions.index, patch.lesions), before.affine, patch) >= 0.5
    return {
        "pre": pre,
        "pre_labels": labels,
        "tumour_mask": own.astype(np.uint8),
        "post": post[None],
        "post_labels": later[None],
    }
