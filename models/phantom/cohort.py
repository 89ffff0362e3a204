"""Writes phantom patients as cases, and their truth to a folder apart."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.case import Case, ImageMeta, write_case
from models.errors import CaseError, InputError
from models.formulary import Formulary
from models.phantom.patient import Patient, draw_patient
from models.phantom.render import Scan, render
from models.phantom.response import clinician_protocol, draw_survival, respond
from models.phantom.version import parameters
from models.protocol import Protocol
from models.volume import Volume, write_label_nifti, write_nifti

# The field of view of a written case: 352 x 268 x 220 mm around the liver.
CASE_SHAPE = (176, 134, 88)
CASE_SPACING_MM = (2.0, 2.0, 2.5)
DEMO_SEED = 182
ORIGIN_NOTE = "synthetic phantom (models/phantom, version {version}, seed {seed}); not a patient"


def case_affine() -> npt.NDArray[np.float64]:
    """Voxel to world of every written case (RAS, mm)."""
    affine = np.diag([*CASE_SPACING_MM, 1.0])
    affine[:3, 3] = (-175.0, -150.0, -112.0)
    return affine


def _volume(scan: Scan, affine: npt.NDArray[np.float64]) -> Volume:
    return Volume(np.rint(scan.hu).astype(np.int16), affine)


def write_phantom_case(patient: Patient, out: Path) -> Case:
    """Writes what the agent may read: pre-treatment CT in two phases, labels and record.

    Args:
        patient: The patient.
        out: Case folder; must not exist.

    Returns:
        The written case.

    Raises:
        CaseError: The folder exists or can't be written.
    """
    affine = case_affine()
    scans = {phase: render(patient, affine, CASE_SHAPE, phase=phase) for phase in ("arterial", "portal")}
    return write_case(
        out,
        case_id=patient.patient_id,
        origin="synthetic",
        origin_note=_origin_note(patient),
        images={
            ImageMeta("pre_arterial", "pre", "arterial"): _volume(scans["arterial"], affine),
            ImageMeta("pre_portal", "pre", "portal"): _volume(scans["portal"], affine),
        },
        labels=scans["arterial"].organs,
        record=patient.record,
        labels_image="pre_arterial",
    )


def write_truth(patient: Patient, out: Path) -> None:
    """Writes what the agent must never read: traits, the protocol given, true follow-up and survival.

    Args:
        patient: The patient.
        out: Folder for this patient; created.
    """
    out.mkdir(parents=True, exist_ok=True)
    affine = case_affine()
    given = clinician_protocol(patient)
    response = respond(patient, given)
    scan = render(patient, affine, CASE_SHAPE, response=response, scan_seed=1)
    write_nifti(_volume(scan, affine), out / "follow_up_arterial.nii.gz")
    write_label_nifti(scan.tissue, affine, out / "follow_up_tissue.nii.gz")
    time, event = draw_survival([response.log_hazard], np.random.default_rng([patient.seed, 23]))
    truth = {
        "patient": {**asdict(patient), "record": patient.record.model_dump(exclude_none=True)},
        "given_protocol": given.key,
        "response": asdict(response),
        "survival_months": float(time[0]),
        "death_observed": bool(event[0]),
        "phantom_version": parameters()["version"],
    }
    (out / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")


def truth_folder(out: Path) -> Path:
    """Where the truth of the cases in `out` goes unless another folder is named: ``OUT-truth`` beside it.

    Raises:
        InputError: There is nothing beside `out` (the root of the file system).
    """
    folder = out.resolve()
    if not folder.name:
        raise InputError(f"There is no place for the truth beside {out}; choose another --out, or one with --truth.")
    return folder.with_name(folder.name + "-truth")


def _origin_note(patient: Patient) -> str:
    return ORIGIN_NOTE.format(version=parameters()["version"], seed=patient.seed)


def write_cohort(
    n: int, seed: int, out: Path, truth: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Writes `n` cases and their truth. Patients that are already there are kept, so an interrupted call can go on.

    Args:
        n: Number of patients, at least 1.
        seed: The first patient's seed; the others follow.
        out: Folder of case folders.
        truth: Folder of truth, apart from `out`; `truth_folder` when None. Written wherever it is missing.
        progress: Called with (done, n) after every patient.

    Returns:
        The case folders.

    Raises:
        InputError: `n` is not positive, the truth folder lies inside the folder of cases, a folder can't be written, or
            a case that is already there is none of these patients.
    """
    if n < 1 or seed < 0:
        raise InputError(f"A cohort needs at least one patient and a seed of 0 or more; got --n {n} --seed {seed}.")
    truth = truth or truth_folder(out)
    if truth.resolve().is_relative_to(out.resolve()):
        raise InputError(f"The truth folder {truth} lies inside the case folder {out}; choose one apart with --truth.")
    written = []
    for index in range(n):
        patient = draw_patient(seed + index)
        folder = out / patient.patient_id
        try:
            exists = (folder / "case.json").exists()
            if exists and Case.load(folder, verify=False).origin_note != _origin_note(patient):
                raise InputError(f"{folder} is not the case of this patient and seed; choose another --out.")
            # The truth first: an interrupted call leaves no case without it.
            if not (truth / patient.patient_id / "truth.json").exists():
                write_truth(patient, truth / patient.patient_id)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{error.filename or truth} can't be written: {reason}; choose another folder.") from error
        if not exists:
            write_phantom_case(patient, folder)
        written.append(folder)
        if progress:
            progress(index + 1, n)
    return written


def write_demo_case(out: Path) -> Case:
    """The embedded demo case, drawn from the cohort by a fixed seed.

    It is reused where it is there already, undamaged and of this phantom version, and else written anew in its place.

    Args:
        out: Case folder.

    Returns:
        The demo case.

    Raises:
        InputError: The folder holds a case that does not say that it is synthetic: nobody can make it again.
        CaseError: It can't be written.
    """
    patient = draw_patient(DEMO_SEED)
    try:
        stated = json.loads((out / "case.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return write_phantom_case(patient, out)
    except OSError as error:
        raise CaseError(f"The demo case {out} can't be read: {error.strerror}.") from error
    except ValueError:
        stated = None
    if not isinstance(stated, dict) or stated.get("origin") != "synthetic":
        raise InputError(f"{out} is a case of its own and not the demo case; move it, or plan it by its path.")
    if stated.get("origin_note") == _origin_note(patient):
        try:
            return Case.load(out)
        except CaseError:
            pass  # damaged, and what its seed makes: it is written anew
    return _rewrite(patient, out)


def _rewrite(patient: Patient, out: Path) -> Case:
    """Put a newly written case in the place of one that is there, which stays until the new one is complete."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
            write_phantom_case(patient, Path(work) / "new")
            out.rename(Path(work) / "old")
            (Path(work) / "new").rename(out)
    except OSError as error:
        raise CaseError(f"The demo case can't be written to {out}: {error.strerror}.") from error
    return Case.load(out)


def all_protocols(action_set: str, drug_horizon: int, embolic_horizon: int) -> Iterator[Protocol]:
    """Every protocol with 1 to `drug_horizon` drugs and 1 to `embolic_horizon` embolics, rules apart."""
    formulary = Formulary.load(action_set)
    for i in range(1, drug_horizon + 1):
        for drugs in combinations([item.name for item in formulary.drugs], i):
            for j in range(1, embolic_horizon + 1):
                for embolics in combinations([item.name for item in formulary.embolics], j):
                    yield Protocol(drugs=drugs, embolics=embolics)
