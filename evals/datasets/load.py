"""Load a dataset by its name."""

from __future__ import annotations

from pathlib import Path

from evals.datasets.eval_case import Dataset
from evals.datasets.hcc_tace_seg import load_hcc_tace_seg
from evals.datasets.own import load_own
from evals.datasets.phantom import load_phantom, phantom_space
from models.errors import InputError
from tools.rulebook import Profile

NAMES = ("phantom", "hcc-tace-seg", "own")


def load_dataset(
    name: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    tier: str | None = None,
    data: Path | None = None,
    clinical: Path | None = None,
    strict: bool = False,
    profile: Profile | None = None,
) -> Dataset:
    """Load a dataset.

    Args:
        name: One of `NAMES`.
        seed: Which phantom patients; the others have none to choose.
        limit: Most cases; None is all, for ``phantom`` the default number.
        tier: Of ``phantom``: ``easy``, ``standard`` (None) or ``hard``.
        data: For ``hcc-tace-seg`` the folder of imported cases (None: records only); for ``own`` the JSONL or CSV file.
        clinical: For ``hcc-tace-seg`` the clinical table as the archive publishes it.
        strict: Allowed is what the strict strengths of the rules allow, as a planner with ``--strict`` has them.
        profile: Guideline region of the rules; None is ``eu``, which is the only one of ``phantom``.

    Raises:
        InputError: No such dataset, an option that it does not have or lacks, or files that can't be used.
    """
    if name not in NAMES:
        raise InputError(f"There is no dataset {name!r}; choose one of {', '.join(NAMES)}.")
    if limit is not None and limit < 1:
        raise InputError(f"The limit of cases must be at least 1, got {limit}.")
    if tier is not None and name != "phantom":
        raise InputError(f"Only the dataset phantom has tiers; leave {tier!r} out for {name}.")
    if clinical is not None and name != "hcc-tace-seg":
        raise InputError(f"Only the dataset hcc-tace-seg has a clinical table; leave {clinical} out for {name}.")
    if name == "phantom":
        if data is not None:
            raise InputError(f"The dataset phantom is made from a seed and reads no files; leave {data} out.")
        if profile not in (None, phantom_space().profile):
            raise InputError(
                f"The dataset phantom has the rules of profile {phantom_space().profile} only; leave {profile} out."
            )
        return load_phantom(seed, limit, tier, strict)
    if name == "own":
        if data is None:
            raise InputError("The dataset own needs its JSONL or CSV file; name it with --data (docs/own-dataset.md).")
        return load_own(data, limit, strict, profile or "eu")
    if clinical is None:
        raise InputError(
            "The dataset hcc-tace-seg needs its clinical table; "
            "name HCC-TACE-Seg_clinical_data-V2.xlsx with --clinical."
        )
    return load_hcc_tace_seg(clinical, data, limit, strict, profile or "eu")
