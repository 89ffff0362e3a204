"""Splits and folds of patients that never change: each follows from a hash of the patient's id.

The hash is SHA-256 of ``<salt>:<purpose>:<patient id>``. A patient's split depends on that patient alone, so that more
patients move nobody. Folds are dealt out in the order of the hash, so that their sizes differ by one patient at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

SALT = "hcc-tace-seg-1"
"""Part of every hash; a new one makes new splits, and every result on the old ones loses its meaning."""

SHARES: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Shares of the default splits; the sizes of a small collection differ from them by chance."""


def split_of(patient_id: str, shares: Mapping[str, float] = SHARES, salt: str = SALT) -> str:
    """The split that a patient belongs to.

    Args:
        patient_id: name in the archive.
        shares: names of the splits with their shares, which add up to 1; their order counts.
        salt: see `SALT`.
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"the shares add up to {sum(shares.values()):g}, not 1")
    place = int(_digest(patient_id, "split", salt)[:13], 16) / 16**13  # 52 bits: exact in a float, in [0, 1)
    names = list(shares)
    for name in names[:-1]:
        if place < shares[name]:
            return name
        place -= shares[name]
    return names[-1]


def folds(patient_ids: Iterable[str], n: int, salt: str = SALT) -> tuple[tuple[str, ...], ...]:
    """Deal patients out to `n` folds, each once; the order in which they are given does not matter.

    Raises:
        ValueError: fewer patients than folds, or a patient twice.
    """
    patients = list(patient_ids)
    if n < 1 or len(patients) < n or len(set(patients)) < len(patients):
        raise ValueError(f"{len(patients)} patients ({len(set(patients))} different) can't make {n} folds")
    ordered = sorted(patients, key=lambda one: (_digest(one, "fold", salt), one))
    return tuple(tuple(sorted(ordered[k::n])) for k in range(n))


def splits_hash(assignment: Mapping[str, str]) -> str:
    """SHA-256 of who is where, to be written beside every result on it."""
    text = "\n".join(f"{patient}\t{split}" for patient, split in sorted(assignment.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(patient_id: str, purpose: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}:{purpose}:{patient_id}".encode()).hexdigest()
