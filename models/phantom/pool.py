"""The training pool: patches of phantom patients under random protocols, rendered in parallel to memory maps."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.formulary import Formulary
from models.networks.action import action_vector
from models.patch import WIDE_SIZE, WIDE_SPACING_MM
from models.phantom.anatomy import render_anatomy
from models.phantom.field import Grid
from models.phantom.patient import TRAITS, Patient, draw_patient
from models.phantom.render import Scan, render
from models.phantom.response import TrueResponse, clinician_protocol, draw_survival, respond
from models.phantom.version import parameters, phantom_hash
from models.protocol import Dose, Protocol
from models.worker_process import end_with_parent

ABDOMEN_MM = (0.0, -15.0, 0.0)
_BLOCK = 8
_BLOCK_FORMAT = 2  # of the files in `blocks`; a pool half written in another is begun anew
_MORE = 24  # further protocols of a patient whose response is known without a scan
_COARSEST = 3.0  # times the finest voxels
_CUBE = (0, 0, 0)  # stands for three edges of the cube
_ARRAYS: dict[str, tuple[str, tuple[int, ...], bool]] = {  # name: dtype, shape after (P[, K]), per protocol
    "pre": ("int16", _CUBE, False),
    "pre_labels": ("uint8", _CUBE, False),
    "tumour_mask": ("uint8", _CUBE, False),
    "post": ("int16", _CUBE, True),
    "post_labels": ("uint8", _CUBE, True),
    "actions": ("float32", (18, 3), True),
    "burden": ("float32", (4,), True),
    "toxicity": ("float32", (), True),
    "true_log_risk": ("float32", (), True),
    "time_months": ("float32", (), True),
    "event": ("bool", (), True),
    "shares": ("float32", (4,), True),
    "more_actions": ("float32", (_MORE, 18, 3), False),
    "more_shares": ("float32", (_MORE, 4), False),
    "traits": ("float32", (len(TRAITS),), False),
    "wide": ("int16", (WIDE_SIZE,) * 3, False),
    "wide_labels": ("uint8", (WIDE_SIZE,) * 3, False),
    "spacing_mm": ("float32", (), False),
}


@dataclass(frozen=True)
class PatchPool:
    """A rendered pool. P patients, K protocols each, cubes of edge S; arrays are read-only memory maps.

    Attributes:
        pre: (P, S, S, S) int16 HU before treatment, arterial phase.
        pre_labels: (P, S, S, S) tissue classes 0..4.
        tumour_mask: (P, S, S, S) 1 inside the tumour before treatment.
        post: (P, K, S, S, S) int16 HU after each protocol.
        post_labels: (P, K, S, S, S) tissue classes.
        actions: (P, K, 18, 3) action vectors.
        burden: (P, K, 4) log1p viable ml, log1p tumour ml before, number of lesions, log2(spacing / 1.5 mm).
        toxicity: (P, K) fixed toxicity term, log hazard.
        true_log_risk: (P, K) true log hazard.
        time_months: (P, K) follow-up time.
        event: (P, K) death observed.
        shares: (P, K, 4) truth of the whole tumour: living, necrotic without oil, oil-laden and vacated, each over its
            volume before treatment (the last is negative where it grew).
        more_actions: (P, 24, 18, 3) action vectors of further random protocols, without a scan after them.
        more_shares: (P, 24, 4) `shares` of those.
        traits: (P, 6) truth behind the image, in the order of `models.phantom.patient.TRAITS`; for measuring only.
        wide: (P, 72, 72, 72) int16 HU of the abdomen in 4 mm voxels, arterial or portal-venous phase, before or after
            treatment, a quarter of them of a liver without tumour; for the localiser.
        wide_labels: (P, 72, 72, 72) its tissue classes.
        spacing_mm: (P,) isotropic voxel size.
        protocols: P lists of K protocols.
        records: P clinical records.
        given: The protocol really given to each patient, by the imperfect clinician; without a scan after it.
        train: Patient indices for training; `val` and `test` are other patients.
    """

    pre: npt.NDArray[np.int16]
    pre_labels: npt.NDArray[np.uint8]
    tumour_mask: npt.NDArray[np.uint8]
    post: npt.NDArray[np.int16]
    post_labels: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.float32]
    burden: npt.NDArray[np.float32]
    toxicity: npt.NDArray[np.float32]
    true_log_risk: npt.NDArray[np.float32]
    time_months: npt.NDArray[np.float32]
    event: npt.NDArray[np.bool_]
    shares: npt.NDArray[np.float32]
    more_actions: npt.NDArray[np.float32]
    more_shares: npt.NDArray[np.float32]
    traits: npt.NDArray[np.float32]
    wide: npt.NDArray[np.int16]
    wide_labels: npt.NDArray[np.uint8]
    spacing_mm: npt.NDArray[np.float32]
    protocols: list[list[Protocol]]
    records: list[ClinicalRecord]
    given: list[Protocol]
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    data_hash: str

    @classmethod
    def open(cls, folder: Path) -> PatchPool:
        """Opens a finished pool.

        Args:
            folder: Written by `write_pool`.

        Raises:
            InputError: There is no finished pool in the folder.
        """
        index = folder / "pool.json"
        if not index.exists():
            raise InputError(f"No training pool in {folder}; write one with: mewm data pool --out {folder}")
        meta = json.loads(index.read_text(encoding="utf-8"))
        if "wide" not in meta.get("arrays", ()):
            raise InputError(
                f"The pool in {folder} was written by an earlier version of this program; write it again with: "
                f"mewm data pool --out {folder}"
            )
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        patients = np.arange(meta["patients"])
        cut = [int(meta["patients"] * share) for share in (0.85, 0.925)]
        return cls(
            **arrays,
            protocols=[[Protocol.model_validate(p) for p in row] for row in meta["protocols"]],
            records=[ClinicalRecord.model_validate(r) for r in meta["records"]],
            given=[Protocol.model_validate(p) for p in meta["given"]],
            train=patients[: cut[0]],
            val=patients[cut[0] : cut[1]],
            test=patients[cut[1] :],
            data_hash=meta["data_hash"],
        )


def random_protocol(rng: np.random.Generator) -> Protocol:
    """A random protocol for training: 1 to 3 drugs, 0 to 2 embolics, 40 % of the agents with a stated dose.

    A quarter has no embolic, since the drug phase of the search asks about just those. Lipiodol is in half of the
    others: it is in nearly every real protocol, and its clumps are the hardest thing to draw.
    """
    formulary = Formulary.load("all")
    drugs = rng.choice(
        [i.name for i in formulary.drugs], int(rng.choice([1, 2, 3], p=[0.35, 0.35, 0.3])), replace=False
    )
    number = int(rng.choice([0, 1, 2], p=[0.25, 0.4, 0.35]))
    others = [item.name for item in formulary.embolics if item.name != "Lipiodol"]
    embolics = list(rng.choice(others, number, replace=False))
    if number and rng.random() < 0.5:
        embolics[0] = "Lipiodol"
    doses = {}
    for name in [*drugs, *embolics]:
        dose = formulary.item(str(name)).dose
        if dose is not None and rng.random() < 0.4:
            amount = dose.reference * float(np.exp(rng.uniform(np.log(0.5), np.log(1.7))))
            doses[str(name)] = Dose(amount=round(amount, 1), unit=dose.unit)
    return Protocol(drugs=tuple(map(str, drugs)), embolics=tuple(map(str, embolics)), doses=tuple(doses.items()))


def _cube(centre: npt.NDArray[np.float64], spacing: float, size: int) -> npt.NDArray[np.float64]:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = centre - spacing * (size - 1) / 2.0
    return affine


def _look(seed: int, scan_seed: int) -> dict[str, Any]:
    """Noise and kernel of a resampled cube: less noise and more blur than a scan has."""
    kernel = np.random.default_rng([seed, 31, scan_seed])
    return {"noise_hu": float(kernel.uniform(3.0, 14.0)), "blur_vox": tuple(kernel.uniform(0.25, 0.8, 3))}


def _render_wide(patient: Patient, response: TrueResponse) -> dict[str, object]:
    """The abdomen in coarse voxels, never quite at the same place: what the localiser looks at."""
    rng = np.random.default_rng([patient.seed, 43])
    centre = np.array(ABDOMEN_MM) + rng.uniform(-25.0, 25.0, 3)
    kind, phase = rng.random(), "arterial" if rng.random() < 0.65 else "portal"
    look = {**_look(patient.seed, 90), "noise_hu": float(rng.uniform(1.0, 8.0))}  # voxels so large average noise out
    scan = render(
        patient,
        _cube(centre, WIDE_SPACING_MM, WIDE_SIZE),
        (WIDE_SIZE,) * 3,
        phase=phase,
        response=response if kind > 0.75 else None,
        scan_seed=90,
        with_tumour=kind > 0.25,
        **look,
    )
    return {"wide": np.rint(scan.hu), "wide_labels": scan.tissue}


def true_shares(patient: Patient, response: TrueResponse) -> npt.NDArray[np.float64]:
    """Living, necrotic without oil, oil-laden and vacated, each over the tumour's volume before treatment.

    Args:
        patient: The patient.
        response: To a protocol.

    Returns:
        (4,), of sum 1; the last is negative where the tumour grew.
    """
    volumes = np.array([lesion.volume_ml for lesion in patient.lesions])
    ratio = np.array([out.volume_ratio for out in response.lesions])
    living = np.array([out.living_share for out in response.lesions])
    wet = np.array([out.oil_fraction for out in response.lesions]) * (ratio - living)
    rows = np.stack([living, ratio - living - wet, wet, 1.0 - ratio])
    return np.asarray(rows @ volumes / volumes.sum())


def _render_patient(seed: int, k: int, size: int, finest_mm: float) -> dict[str, object]:
    patient = draw_patient(seed)
    rng = np.random.default_rng([seed, 29])
    lesion = patient.lesions[0] if rng.random() < 0.8 else patient.lesions[-1]
    extent = 2.0 * max(lesion.radii_mm)
    spacing = float(np.clip(extent * rng.uniform(1.15, 1.8) / size, finest_mm, _COARSEST * finest_mm))
    affine = _cube(np.array(lesion.centre_mm) + rng.normal(0.0, 2.0 * spacing, 3), spacing, size)
    shape = (size, size, size)
    anatomy = render_anatomy(patient, Grid.from_affine(affine, shape))

    def scan(scan_seed: int, response: TrueResponse | None = None) -> Scan:
        look = _look(seed, scan_seed)
        return render(patient, affine, shape, response=response, scan_seed=scan_seed, anatomy=anatomy, **look)

    before = scan(0)
    protocols = [random_protocol(rng) for _ in range(k)]
    responses = [respond(patient, protocol) for protocol in protocols]
    after = [scan(i + 1, response) for i, response in enumerate(responses)]
    time, event = draw_survival([r.log_hazard for r in responses], rng)
    other = np.random.default_rng([seed, 47])
    more = [random_protocol(other) for _ in range(_MORE)]
    shared = [np.log1p(patient.tumour_ml), float(len(patient.lesions)), np.log2(spacing / 1.5)]
    return {
        "pre": np.rint(before.hu), "pre_labels": before.tissue, "tumour_mask": before.tumour,
        "post": np.stack([np.rint(s.hu) for s in after]), "post_labels": np.stack([s.tissue for s in after]),
        "actions": np.stack([action_vector(p) for p in protocols]),
        "burden": np.array([[np.log1p(r.viable_ml), *shared] for r in responses]),
        "toxicity": np.array([r.toxicity for r in responses]),
        "true_log_risk": np.array([r.log_hazard for r in responses]),
        "shares": np.stack([true_shares(patient, r) for r in responses]),
        "more_actions": np.stack([action_vector(p) for p in more]),
        "more_shares": np.stack([true_shares(patient, respond(patient, p)) for p in more]),
        "traits": np.array([patient.traits[name] for name in TRAITS]),
        "time_months": time, "event": event, "spacing_mm": spacing, **_render_wide(patient, responses[0]),
        "protocols": [p.model_dump(mode="json") for p in protocols],
        "record": patient.record.model_dump(mode="json", exclude_none=True),
        "given": clinician_protocol(patient).model_dump(mode="json"),
    }  # fmt: skip


def _block_file(folder: Path, start: int) -> Path:
    return folder / "blocks" / f"{start:06d}.json"


def _write_block(folder: Path, first_seed: int, rows: range, k: int, size: int, finest_mm: float) -> None:
    arrays = {name: np.load(folder / f"{name}.npy.part", mmap_mode="r+") for name in _ARRAYS}
    texts: dict[str, list[object]] = {"protocols": [], "record": [], "given": []}
    hashes = []
    with threadpool_limits(1):
        for row in rows:
            rendered = _render_patient(first_seed + row, k, size, finest_mm)
            digest = hashlib.sha256(json.dumps([rendered[name] for name in texts]).encode())
            for name, array in arrays.items():
                array[row] = rendered[name]
                digest.update(np.ascontiguousarray(array[row]).tobytes())
            for name, values in texts.items():
                values.append(rendered[name])
            hashes.append(digest.hexdigest())
    for array in arrays.values():
        array.flush()
    done = _block_file(folder, rows.start)
    part = done.with_suffix(".part")
    part.write_text(json.dumps({**texts, "hashes": hashes}), encoding="utf-8")
    part.replace(done)  # the block counts as written once this file has its name


def pool_hash(patients: Sequence[str]) -> str:
    """Short hash of all that a rendered pool holds, arrays, protocols and records, from those of its patients."""
    return hashlib.sha256("".join(patients).encode()).hexdigest()[:16]


def write_pool(
    n: int, k: int, seed: int, out: Path, workers: int = 2, progress: Callable[[int, int], None] | None = None, *,
    size: int = 64, finest_mm: float = 1.5,
) -> None:  # fmt: skip
    """Renders a training pool in parallel processes. A finished pool with the same arguments is kept, a broken-off one
    is gone on with. The result does not depend on the number of processes.

    Args:
        n: Patients, at least 8.
        k: Protocols per patient, at least 2: with one, no patient shows what the choice of protocol changes.
        seed: Seed of the first patient. Evaluation uses seeds from 900000, so training must stay below.
        out: Folder.
        workers: Processes.
        progress: Called with (patients done, n).
        size: Edge of the cubes in voxels, that of the preset that is trained on them.
        finest_mm: Smallest edge of a voxel in mm; where a tumour is large they are up to three times as large.

    Raises:
        InputError: The sizes are too small, the seeds are negative or would reach the evaluation cohort, the folder
            can't be written or holds a damaged pool.
    """
    if n < 8 or k < 2 or seed < 0:
        raise InputError(
            "A pool needs at least 8 patients, 2 protocols each and a seed of 0 or more; "
            f"got --n {n} --k {k} --seed {seed}."
        )
    if seed + n >= 900_000:
        raise InputError(
            f"Training seeds must stay below 900000, where the evaluation cohort begins; got {seed} + {n}."
        )
    arguments = {
        "patients": n, "k": k, "seed": seed, "size": size, "finest_mm": finest_mm,
        "phantom_version": parameters()["version"], "phantom_hash": phantom_hash(),
    }  # fmt: skip
    index = out / "pool.json"
    try:
        if index.exists() and json.loads(index.read_text(encoding="utf-8"))["arguments"] == arguments:
            return
        _prepare(out, arguments)
    except OSError as error:
        raise InputError(
            f"The pool can't be written to {out}: {error.strerror or error}; choose another folder with --out."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged; remove it, or choose another folder with --out.") from error
    blocks = [range(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    open_blocks = [rows for rows in blocks if not _block_file(out, rows.start).exists()]
    done = n - sum(len(rows) for rows in open_blocks)
    if progress:
        progress(done, n)
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as executor:
        jobs = {executor.submit(_write_block, out, seed, rows, k, size, finest_mm): rows for rows in open_blocks}
        try:
            for job in as_completed(jobs):
                job.result()
                done += len(jobs[job])
                if progress:
                    progress(done, n)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    texts = [json.loads(_block_file(out, rows.start).read_text(encoding="utf-8")) for rows in blocks]
    for name in _ARRAYS:
        if (part := out / f"{name}.npy.part").exists():  # else an earlier call was broken off after this one
            part.replace(out / f"{name}.npy")
    meta = {
        "arguments": arguments,
        "arrays": sorted(_ARRAYS),
        "patients": n,
        "protocols": [row for text in texts for row in text["protocols"]],
        "records": [row for text in texts for row in text["record"]],
        "given": [row for text in texts for row in text["given"]],
        "data_hash": pool_hash([patient for text in texts for patient in text["hashes"]]),
    }
    temporary = index.with_suffix(".tmp")
    temporary.write_text(json.dumps(meta), encoding="utf-8")
    temporary.replace(index)
    shutil.rmtree(out / "blocks")
    (out / "pool.part.json").unlink()


def _prepare(out: Path, arguments: dict[str, object]) -> None:
    """Makes room for a pool; what a broken-off call of this version with the same arguments has written stays."""
    out.mkdir(parents=True, exist_ok=True)
    begun, of_blocks = out / "pool.part.json", {**arguments, "block_format": _BLOCK_FORMAT}
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) == of_blocks:
        return
    (out / "pool.json").unlink(missing_ok=True)
    begun.unlink(missing_ok=True)
    shutil.rmtree(out / "blocks", ignore_errors=True)
    for name, (dtype, shape, per_protocol) in _ARRAYS.items():
        leading = (arguments["patients"], arguments["k"]) if per_protocol else (arguments["patients"],)
        part = str(out / f"{name}.npy.part")
        inner = (arguments["size"],) * 3 if shape == _CUBE else shape
        np.lib.format.open_memmap(part, mode="w+", dtype=np.dtype(dtype), shape=(*leading, *inner)).flush()
    (out / "blocks").mkdir()
    begun.write_text(json.dumps(of_blocks), encoding="utf-8")
