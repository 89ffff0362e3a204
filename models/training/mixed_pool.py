"""Training data of a command: a phantom pool, real cases, or both in a stated ratio, all read as one pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.networks.preset import Preset
from models.phantom.pool import PatchPool
from models.protocol import Protocol
from models.training.given import read_given
from models.training.real_pool import BIG, SMALL, RealPool, case_folders, write_real_pool

REAL_FOLDER = "real"


class Stack:
    """Arrays of several pools under one numbering, without copying them: what a memory map gives, patient by patient.

    The first index is one patient. An array of fewer protocols than `protocols` repeats those that it has.
    """

    def __init__(self, parts: Sequence[NDArray[Any]], protocols: int | None = None) -> None:
        """Args: protocols: K of (P, K, ...) arrays; None for (P, ...) arrays."""
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self._protocols = protocols

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, K, ...) or (P, ...)."""
        rest = self._parts[0].shape[1:] if self._protocols is None else (self._protocols, *self._parts[0].shape[2:])
        return (int(self._ends[-1]), *rest)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        patient, *rest = key if isinstance(key, tuple) else (key,)
        number = int(patient)
        if not 0 <= number < self._ends[-1]:
            raise IndexError(f"patient {number} of {self._ends[-1]}")
        place = int(np.searchsorted(self._ends, number, side="right"))
        part = self._parts[place]
        row = number - int(self._ends[place - 1]) if place else number
        if self._protocols is None:
            return np.asarray(part[(row, *rest)])
        have = part.shape[1]
        if rest and np.ndim(rest[0]) == 0 and not isinstance(rest[0], slice):
            return np.asarray(part[(row, int(rest[0]) % have, *rest[1:])])
        repeated = part[row] if have == self._protocols else part[row][np.arange(self._protocols) % have]
        return np.asarray(repeated[tuple(rest)])


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What `models.training.pool.Pool` asks for, from one or two pools.

    Attributes:
        origin: of the patients.
        train: patient numbers to draw from. In a mix, numbers stand several times so that draws have the ratio.
        ratio: phantoms to one real cube among the draws; None without a mix.
        left_out: cases that can't be used, with the reason.
        without_outcome: real patients whose survival is not known.
        others: as in `Pool`.
    """

    pre: Any
    pre_labels: Any
    tumour_mask: Any
    post: Any
    post_labels: Any
    wide: Any
    wide_labels: Any
    actions: NDArray[np.float32]
    burden: NDArray[np.float32]
    toxicity: NDArray[np.float32]
    true_log_risk: NDArray[np.float32]
    time_months: NDArray[np.float32]
    event: NDArray[np.bool_]
    spacing_mm: NDArray[np.float32]
    protocols: list[list[Protocol]]
    records: list[ClinicalRecord]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    data_hash: str
    origin: Literal["synthetic", "real", "mixed"]
    ratio: float | None
    left_out: dict[str, str]
    without_outcome: tuple[str, ...]


def open_training_data(
    data: Path, out: Path, preset: Preset, given: Path | None = None, mix: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PatchPool | TrainingData:  # fmt: skip
    """Open what a training command was given.

    Args:
        data: a phantom pool, or a folder with a case folder per patient.
        out: folder of the run; the cubes of real cases are kept in it.
        preset: of the networks.
        given: what the real patients were given (`read_given`); needed for real cases.
        mix: ``POOL:RATIO``, a phantom pool and how many phantoms are drawn for one real cube.
        progress: called with (cases done, cases).

    Raises:
        InputError: a part is missing or can't be used, or the sizes differ.
    """
    if (data / "pool.json").exists():
        if given is not None or mix is not None:
            raise InputError(f"{data} is a phantom pool; --given and --mix go with a folder of real cases in --data.")
        pool = PatchPool.open(data)
        _check_size(pool.pre.shape[1], preset, data)
        return pool
    case_folders(data)
    if given is None:
        raise InputError("Real cases need --given FILE: the clinical table (.xlsx) or a CSV of what each was given.")
    phantoms, ratio = _parse_mix(mix)
    if phantoms is not None:
        _check_size(phantoms.pre.shape[1], preset, Path(str(mix).rpartition(":")[0]))
    real = write_real_pool(data, read_given(given), out / REAL_FOLDER, preset, progress)
    return mixed(real, phantoms, ratio)


def _parse_mix(mix: str | None) -> tuple[PatchPool | None, float]:
    if mix is None:
        return None, 0.0
    folder, _, number = mix.rpartition(":")
    try:
        ratio = float(number)
    except ValueError:
        ratio = -1.0
    if not folder or not 0 < ratio <= 1000:
        raise InputError(f"--mix is {mix!r}; give a phantom pool and phantoms per real cube, such as POOL:3.")
    return PatchPool.open(Path(folder)), ratio


def _check_size(size: int, preset: Preset, where: Path) -> None:
    if size != preset.size:
        raise InputError(f"The pool in {where} has cubes of {size} voxels; preset '{preset.name}' needs {preset.size}.")


def mixed(real: RealPool, phantoms: PatchPool | None, ratio: float) -> TrainingData:
    """Real cubes, with phantoms beside them where there are any.

    In a mix the validation and test patients are the phantoms': their truth is known. Real patients of the validation
    and test splits are then left alone. Without phantoms they are what is validated on.

    Args:
        real: P cubes.
        phantoms: a pool with K protocols, or None.
        ratio: phantoms to one real cube among the draws.

    Raises:
        InputError: no real patient to train on, or none to validate on.
    """
    train, val, test = (real.rows(split) for split in ("train", "validation", "test"))
    if not train.size:
        raise InputError(f"None of the {len(set(real.cases))} usable patients is in the training split; import more.")
    if phantoms is None:
        if not val.size:
            raise InputError(
                f"None of the {len(set(real.cases))} usable patients is in the validation split; import more, or add "
                "phantoms with --mix."
            )
        parts: list[dict[str, NDArray[Any]]] = [dict(real.arrays)]
        protocols, records = real.protocols, real.records
        count = 2  # the denoiser draws two protocols of a patient: here twice the one that was given
    else:
        parts = [{name: getattr(phantoms, name) for name in (*BIG, *SMALL)}, dict(real.arrays)]
        protocols, records = [*phantoms.protocols, *real.protocols], [*phantoms.records, *real.records]
        count = phantoms.post.shape[1]
        first = len(phantoms.records)
        once, often = _repeats(len(phantoms.train), len(train), ratio)
        ratio = once * len(phantoms.train) / (often * len(train))
        train = np.concatenate([np.tile(phantoms.train, once), np.tile(train + first, often)])
        val, test = phantoms.val, phantoms.test

    def small(name: str) -> NDArray[Any]:
        arrays = [part[name] for part in parts]
        if name != "spacing_mm":
            arrays = [array[:, np.arange(count) % array.shape[1]] for array in arrays]
        return np.concatenate(arrays)

    arrays: dict[str, Any] = {name: small(name) for name in SMALL}
    for name in BIG:
        arrays[name] = Stack([part[name] for part in parts], count if name.startswith("post") else None)
    return TrainingData(
        **arrays,
        protocols=[[row[k % len(row)] for k in range(count)] for row in protocols],
        records=records,
        train=train,
        val=val,
        test=test,
        data_hash=real.data_hash if phantoms is None else f"{real.data_hash}+{phantoms.data_hash}x{ratio:.3g}",
        origin="real" if phantoms is None else "mixed",
        ratio=None if phantoms is None else ratio,
        left_out=dict(real.left_out),
        without_outcome=tuple(
            dict.fromkeys(
                case for case, months in zip(real.cases, real.arrays["time_months"], strict=True) if np.isnan(months[0])
            )
        ),
    )


def _repeats(phantoms: int, real: int, ratio: float) -> tuple[int, int]:
    """How often each phantom and each real cube is numbered, so that draws have the ratio."""
    if phantoms >= ratio * real:
        return 1, max(1, round(phantoms / (ratio * real)))
    return max(1, round(ratio * real / phantoms)), 1
