"""The training pool: patches of phantom patients under random protocols, rendered in parallel to memory maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.formulary import Formulary
from models.networks.action import action_vector
from models.phantom.patient import draw_patient, parameters
from models.phantom.render import Scan, render
from models.phantom.response import TrueResponse, draw_survival, respond
from models.protocol import Dose, Protocol

SIZE = 64
_ARRAYS: dict[str, tuple[str, tuple[int, ...], bool]] = {  # name: dtype, shape after (P[, K]), per protocol
    "pre": ("int16", (SIZE, SIZE, SIZE), False),
    "pre_labels": ("uint8", (SIZE, SIZE, SIZE), False),
    "tumour_mask": ("uint8", (SIZE, SIZE, SIZE), False),
    "post": ("int16", (SIZE, SIZE, SIZE), True),
    "post_labels": ("uint8", (SIZE, SIZE, SIZE), True),
    "actions": ("float32", (18, 3), True),
    "burden": ("float32", (4,), True),
    "toxicity": ("float32", (), True),
    "true_log_risk": ("float32", (), True),
    "time_months": ("float32", (), True),
    "event": ("bool", (), True),
    "spacing_mm": ("float32", (), False),
}


@dataclass(frozen=True)
class PatchPool:
    """A rendered pool. P patients, K protocols each; arrays are read-only memory maps.

    Attributes:
        pre: (P, 64, 64, 64) int16 HU before treatment, arterial phase.
        pre_labels: (P, 64, 64, 64) tissue classes 0..4.
        tumour_mask: (P, 64, 64, 64) 1 inside the tumour before treatment.
        post: (P, K, 64, 64, 64) int16 HU after each protocol.
        post_labels: (P, K, 64, 64, 64) tissue classes.
        actions: (P, K, 18, 3) action vectors.
        burden: (P, K, 4) log1p viable ml, log1p tumour ml before, number of lesions, log2(spacing / 1.5 mm).
        toxicity: (P, K) fixed toxicity term, log hazard.
        true_log_risk: (P, K) true log hazard.
        time_months: (P, K) follow-up time.
        event: (P, K) death observed.
        spacing_mm: (P,) isotropic voxel size.
        protocols: P lists of K protocols.
        records: P clinical records.
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
    spacing_mm: npt.NDArray[np.float32]
    protocols: list[list[Protocol]]
    records: list[ClinicalRecord]
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
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        patients = np.arange(meta["patients"])
        cut = [int(meta["patients"] * share) for share in (0.85, 0.925)]
        return cls(
            **arrays,
            protocols=[[Protocol.model_validate(p) for p in row] for row in meta["protocols"]],
            records=[ClinicalRecord.model_validate(r) for r in meta["records"]],
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


def _render_patient(seed: int, k: int) -> dict[str, object]:
    patient = draw_patient(seed)
    rng = np.random.default_rng([seed, 29])
    lesion = patient.lesions[0] if rng.random() < 0.8 else patient.lesions[-1]
    extent = 2.0 * max(lesion.radii_mm)
    spacing = float(np.clip(extent * rng.uniform(1.15, 1.8) / SIZE, 1.5, 4.5))
    centre = np.array(lesion.centre_mm) + rng.normal(0.0, 2.0 * spacing, 3)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = centre - spacing * (SIZE - 1) / 2.0
    shape = (SIZE, SIZE, SIZE)

    def scan(scan_seed: int, response: TrueResponse | None = None) -> Scan:
        kernel = np.random.default_rng([seed, 31, scan_seed])
        return render(
            patient,
            affine,
            shape,
            response=response,
            scan_seed=scan_seed,
            noise_hu=float(kernel.uniform(3.0, 14.0)),
            blur_vox=tuple(kernel.uniform(0.25, 0.8, 3)),
        )

    before = scan(0)
    protocols = [random_protocol(rng) for _ in range(k)]
    responses = [respond(patient, protocol) for protocol in protocols]
    after = [scan(i + 1, response) for i, response in enumerate(responses)]
    time, event = draw_survival([r.log_hazard for r in responses], rng)
    shared = [np.log1p(patient.tumour_ml), float(len(patient.lesions)), np.log2(spacing / 1.5)]
    return {
        "pre": np.rint(before.hu), "pre_labels": before.tissue, "tumour_mask": before.tumour,
        "post": np.stack([np.rint(s.hu) for s in after]), "post_labels": np.stack([s.tissue for s in after]),
        "actions": np.stack([action_vector(p) for p in protocols]),
        "burden": np.array([[np.log1p(r.viable_ml), *shared] for r in responses]),
        "toxicity": np.array([r.toxicity for r in responses]),
        "true_log_risk": np.array([r.log_hazard for r in responses]),
        "time_months": time, "event": event, "spacing_mm": spacing,
        "protocols": [p.model_dump(mode="json") for p in protocols],
        "record": patient.record.model_dump(mode="json", exclude_none=True),
    }  # fmt: skip


def _write_block(folder: Path, first_seed: int, rows: range, k: int) -> tuple[list[object], list[object]]:
    arrays = {name: np.load(folder / f"{name}.npy.part", mmap_mode="r+") for name in _ARRAYS}
    protocols, records = [], []
    with threadpool_limits(1):
        for row in rows:
            rendered = _render_patient(first_seed + row, k)
            for name, array in arrays.items():
                array[row] = rendered[name]
            protocols.append(rendered["protocols"])
            records.append(rendered["record"])
    return protocols, records


def content_hash(folder: Path) -> str:
    """Short hash of what a rendered pool teaches: every action, label and outcome, and the first scans."""
    digest = hashlib.sha256()
    for name in ("actions", "true_log_risk", "toxicity", "time_months", "spacing_mm", "post_labels"):
        digest.update(np.load(folder / f"{name}.npy", mmap_mode="r").tobytes())
    digest.update(np.load(folder / "post.npy", mmap_mode="r")[:8].tobytes())
    return digest.hexdigest()[:16]


def write_pool(
    n: int, k: int, seed: int, out: Path, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Renders a training pool. A finished pool with the same arguments is kept.

    Args:
        n: Patients, at least 8.
        k: Protocols per patient, at least 2: with one, no patient shows what the choice of protocol changes.
        seed: Seed of the first patient. Evaluation uses seeds from 900000, so training must stay below.
        out: Folder.
        workers: Processes.
        progress: Called with (patients done, n).

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
    arguments = {"patients": n, "k": k, "seed": seed, "phantom_version": parameters()["version"]}
    index = out / "pool.json"
    try:
        if index.exists() and json.loads(index.read_text(encoding="utf-8"))["arguments"] == arguments:
            return
        out.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        for name, (dtype, shape, per_protocol) in _ARRAYS.items():
            full = (n, k, *shape) if per_protocol else (n, *shape)
            part = str(out / f"{name}.npy.part")
            np.lib.format.open_memmap(part, mode="w+", dtype=np.dtype(dtype), shape=full).flush()
    except OSError as error:
        raise InputError(
            f"The pool can't be written to {out}: {error.strerror or error}; choose another folder with --out."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged; remove it, or choose another folder with --out.") from error
    blocks = [range(start, min(start + 8, n)) for start in range(0, n, 8)]
    protocols: list[object] = []
    records: list[object] = []
    with ProcessPoolExecutor(workers) as executor:
        jobs = [executor.submit(_write_block, out, seed, rows, k) for rows in blocks]
        for rows, job in zip(blocks, jobs, strict=True):
            block_protocols, block_records = job.result()
            protocols += block_protocols
            records += block_records
            if progress:
                progress(rows.stop, n)
    for name in _ARRAYS:
        (out / f"{name}.npy.part").replace(out / f"{name}.npy")
    meta = {
        "arguments": arguments,
        "patients": n,
        "protocols": protocols,
        "records": records,
        "data_hash": content_hash(out),
    }
    index.write_text(json.dumps(meta), encoding="utf-8")
