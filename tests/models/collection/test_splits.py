from __future__ import annotations

from collections import Counter

import pytest

from models.collection.splits import folds, split_of, splits_hash

PATIENTS = [f"HCC_{n:03d}" for n in range(1, 106)]
EXPECTED = [
    "train",
    "train",
    "validation",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "test",
    "train",
    "train",
]
EXPECTED_HASH = "451270a1ea87c9411b47a75dd0f7186ba8a9541e7ab36a89d0d438dbfe72cacd"


def test_splits_are_fixed() -> None:
    # Written down once: a change of the hash would silently mix training and test patients of published results.
    assert [split_of(name) for name in PATIENTS[:12]] == EXPECTED
    assert splits_hash({name: split_of(name) for name in PATIENTS}) == EXPECTED_HASH


def test_a_patient_stays_whoever_else_is_there() -> None:
    shares = Counter(split_of(f"HCC_{n}") for n in range(20_000))
    assert shares["train"] / 20_000 == pytest.approx(0.7, abs=0.015)
    assert shares["test"] / 20_000 == pytest.approx(0.2, abs=0.015)
    assert split_of("HCC_009", {"a": 1.0}) == "a"
    assert {split_of(name, salt="other") == split_of(name) for name in PATIENTS} == {True, False}


def test_folds_are_even_and_do_not_depend_on_the_order() -> None:
    dealt = folds(PATIENTS, 4)
    assert sorted(name for fold in dealt for name in fold) == PATIENTS
    assert sorted(map(len, dealt)) == [26, 26, 26, 27]
    assert dealt == folds(reversed(PATIENTS), 4)
    assert dealt != folds(PATIENTS, 4, salt="other")


def test_impossible_splits_raise() -> None:
    with pytest.raises(ValueError, match=r"add up to 0\.9"):
        split_of("HCC_001", {"a": 0.5, "b": 0.4})
    with pytest.raises(ValueError, match="can't make 3 folds"):
        folds(["HCC_001", "HCC_002"], 3)
    with pytest.raises(ValueError, match="can't make 1 folds"):
        folds(["HCC_001", "HCC_001"], 1)
