from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sksurv.metrics import concordance_index_censored

from models.clinical_record import ClinicalRecord
from models.clinical_survival import ClinicalModel, clinical_model
from models.collection.clinical_table import ClinicalTable, ReaderResponse, TablePatient, read_clinical_table
from models.errors import InputError
from models.training import clinical_survival
from models.training.clinical_card import clinical_card
from models.training.clinical_survival import (
    OUTER,
    VARIANTS,
    WEEKS_PER_MONTH,
    Fitted,
    Pairs,
    Rows,
    bclc_stage,
    c_difference,
    c_index,
    calibrate,
    collect,
    compare,
    cross_validate,
    final_fit,
    fold_numbers,
    size_plus_number,
    study,
    table_values,
    to_yaml,
)

NAMES = VARIANTS[0][1]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few penalties and bootstrap samples: what is tested does not hang on their number."""
    monkeypatch.setattr(clinical_survival, "PENALTIES", (1.0, 10.0))
    monkeypatch.setattr(clinical_survival, "RESAMPLES", 200)


def patient(number: int, months: float, death: bool, **given: Any) -> TablePatient:
    values = {
        "nodularity": "uninodular", "liver_involvement": "at most 50%", "vascular_invasion": False,
        "portal_vein_thrombosis": False, "clip_score": 1, **given.pop("values", {}),
    }  # fmt: skip
    record = {"afp_ng_ml": 10.0, "child_pugh_class": "A", "bclc": "C", **given.pop("record", {})}
    fields: dict[str, Any] = {
        "regimen_text": None, "regimen": None, "ttp_weeks": None, "progression": None, "interval_baseline_days": None,
        "interval_follow_up_weeks": 5.0, "readers": (), "remarks": (), **given,
    }  # fmt: skip
    return TablePatient(
        patient_id=f"P{number}", record=ClinicalRecord(**record), os_weeks=months * WEEKS_PER_MONTH, death=death,
        values=values, **fields,
    )  # fmt: skip


def made_table(count: int = 90, signal: float = 1.5, seed: int = 0) -> ClinicalTable:
    """Survival with a log hazard of `signal` for tumour in the vessels and half of it for Child-Pugh B."""
    rng = np.random.default_rng(seed)
    patients = []
    for number in range(count):
        vessels, b, multi, half = (bool(v) for v in rng.random(4) < (0.4, 0.4, 0.5, 0.3))
        months = float(rng.exponential(30.0 / np.exp(signal * vessels + 0.5 * signal * b))) + 2.0
        death = bool(rng.random() < 0.85)
        responders = int(rng.integers(0, 4))
        readers = tuple(
            ReaderResponse(k + 1, "mRECIST", 50.0, 20.0, "mm", 2, "PR" if k < responders else "SD") for k in range(3)
        )
        patients.append(
            patient(
                number, months, death, readers=readers,
                record={
                    "afp_ng_ml": float(10 ** rng.uniform(0, 5)), "child_pugh_class": "B" if b else "A",
                    "bclc": str(rng.choice(["A", "B", "C"])), "tumour_number": None if multi else 1,
                },
                values={
                    "nodularity": "multinodular" if multi else "uninodular", "vascular_invasion": vessels,
                    "liver_involvement": "above 50%" if half else "at most 50%", "tumour_size_cm": 4.0,
                },
            )
        )  # fmt: skip
    return ClinicalTable(tuple(patients), "f" * 64)


def test_the_c_index_is_that_of_scikit_survival() -> None:
    rng = np.random.default_rng(1)
    months, death = np.round(rng.exponential(20, 40)), rng.random(40) < 0.7
    risk = np.round(rng.normal(0, 1, 40), 1)
    rows = Rows(NAMES, np.zeros((40, 5)), months, death, ())
    pairs = Pairs.of(rows, np.zeros((1, 40), dtype=np.int64), risk)
    assert pairs.value == pytest.approx(concordance_index_censored(death, months, risk)[0])
    # of some patients only, and with patients that count twice, as a bootstrap sample does
    chosen = rng.random(40) < 0.6
    half = concordance_index_censored(death[chosen], months[chosen], risk[chosen])[0]
    assert pairs.restricted(chosen).value == pytest.approx(half)
    drawn = rng.multinomial(40, np.full(40, 1 / 40))
    again = np.repeat(np.arange(40), drawn)
    # copies of one patient are no pair of two, while scikit-survival can't know that: only ties in time differ
    distinct = np.arange(40) + 0.0
    free = Pairs.of(Rows(NAMES, rows.x, distinct, death, ()), np.zeros((1, 40), dtype=np.int64), risk)
    expected = concordance_index_censored(death[again], distinct[again], risk[again])[0]
    assert free.index(drawn[None].astype(float))[0] == pytest.approx(expected)


def test_pairs_stay_inside_a_fold() -> None:
    rows = collect(made_table(), NAMES)
    folds = fold_numbers(rows.death, OUTER, np.random.default_rng(0))[None]
    pairs = Pairs.of(rows, folds, rows.x[:, 2])
    assert pairs.comparable[folds[0] == 0][:, folds[0] == 1].sum() == 0
    counts = np.bincount(folds[0])
    assert counts.max() - counts.min() <= 1
    deaths = np.bincount(folds[0], weights=rows.death)
    assert deaths.max() - deaths.min() <= 1


def test_a_strong_signal_is_found_and_noise_is_not() -> None:
    table = made_table(signal=2.0)
    rows = collect(table, NAMES)
    held = cross_validate(rows, 0, repeats=2)
    found = c_index(Pairs.of(rows, held.folds, held.risk), 0)
    assert found.value > 0.68
    assert found.low > 0.55
    oracle = Pairs.of(rows, held.folds, rows.x[:, 2] + 0.5 * rows.x[:, 1])
    assert c_difference(Pairs.of(rows, held.folds, held.risk), oracle, 0).value > -0.06
    # the same patients with outcomes of others: what is left over a coin would be a leak
    values = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(rows.months))
        mixed = Rows(rows.names, rows.x, rows.months[order], rows.death[order], rows.patients)
        out = cross_validate(mixed, seed, repeats=1)
        values.append(Pairs.of(mixed, out.folds, out.risk).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_a_held_out_patient_has_no_say_in_its_own_prediction() -> None:
    rows = collect(made_table(), NAMES)
    before = cross_validate(rows, 3, repeats=1)
    fold = before.folds[0] == 0
    # its own time says nothing about it: exchange the times of the held-out deaths among themselves
    months = rows.months.copy()
    own = np.flatnonzero(fold & rows.death)
    months[own] = months[own][::-1]
    after = cross_validate(Rows(rows.names, rows.x, months, rows.death, rows.patients), 3, repeats=1)
    np.testing.assert_array_equal(before.folds, after.folds)
    np.testing.assert_array_equal(before.risk[0][fold], after.risk[0][fold])
    assert not np.array_equal(before.risk[0][~fold], after.risk[0][~fold])


def test_the_kept_coefficients_give_the_fitted_risk() -> None:
    rows = collect(made_table(), NAMES)
    held = cross_validate(rows, 0, repeats=1)
    variant = final_fit("all", rows, held, 1.0, 0)
    fitted = Fitted.of(rows, np.ones(len(rows.x), dtype=bool), 1.0)
    ours = [variant.log_risk(dict(zip(rows.names, line, strict=True))) for line in rows.x]
    np.testing.assert_allclose(ours, fitted.risk(rows.x), atol=2e-3)
    # and the fitted survival is the library's own
    library = fitted.cox.predict_survival_function((rows.x[:3] - fitted.mean) / fitted.scale)
    np.testing.assert_allclose(fitted.survival(rows.x[:3], [12.0])[:, 0], [f(12.0) for f in library], rtol=1e-9)
    assert fitted.baseline([0.0])[0] == 1.0


def test_predictions_from_the_truth_are_calibrated() -> None:
    rows = collect(made_table(count=200, signal=1.5), NAMES)
    held = cross_validate(rows, 0, repeats=1)
    found = calibrate(rows, held, 0)
    assert found.slope.low < 1 < found.slope.high
    np.testing.assert_allclose(found.predicted, found.seen, atol=0.06)
    predicted = [p for _, p, _ in found.groups]
    seen = [s for _, _, s in found.groups]
    assert predicted == sorted(predicted, reverse=True)
    assert seen == sorted(seen, reverse=True)
    assert found.brier[0] < found.brier_mean[0]


def test_what_a_row_gives_and_what_it_leaves_open() -> None:
    full = patient(1, 10, True, values={"portal_vein_thrombosis": True}, record={"afp_ng_ml": 99.0})
    assert table_values(full) == pytest.approx(
        {"log_afp": 2.0, "child_pugh_b_c": 0, "vascular_invasion": 1, "multinodular": 0, "over_half_of_liver": 0}
    )
    open_ = patient(2, 10, True, record={"afp_ng_ml": None})
    del open_.values["portal_vein_thrombosis"], open_.values["nodularity"]
    assert table_values(open_) == pytest.approx({"child_pugh_b_c": 0, "over_half_of_liver": 0})
    assert size_plus_number(full) is None
    one = {"record": {"tumour_number": 1}}
    assert size_plus_number(patient(3, 10, True, values={"tumour_size_cm": 7.5}, **one)) == pytest.approx(8.5)
    read = tuple(
        ReaderResponse(k, "RECIST", size, None, "mm", None, None) for k, size in ((1, 40.0), (2, 50.0), (3, 70.0))
    )
    assert size_plus_number(patient(4, 10, True, readers=read, **one)) == pytest.approx(6.0)
    assert size_plus_number(patient(5, 10, True, **one)) is None
    assert bclc_stage(full) == 3


def test_time_after_a_landmark_leaves_out_who_had_died() -> None:
    rows = [patient(n, 1.0 if n < 3 else 12.0 + n, n % 3 != 0) for n in range(60)]
    rows[5] = patient(5, 20.0, True, interval_follow_up_weeks=None)
    rows[6] = patient(6, 20.0, True, interval_follow_up_weeks=-1.0)
    table = ClinicalTable(tuple(rows), "0")
    plain, later = collect(table, NAMES), collect(table, NAMES, landmark=True)
    assert len(plain.months) == 60
    assert len(later.months) == 60 - 3 - 2
    assert later.months[0] == pytest.approx(15.0 - 5.0 / WEEKS_PER_MONTH)
    with pytest.raises(InputError, match="too few"):
        collect(ClinicalTable(tuple(rows[:9]), "0"), NAMES)


def test_a_score_is_compared_on_the_patients_that_have_it() -> None:
    rows = collect(made_table(signal=2.0), NAMES)
    held = cross_validate(rows, 0, repeats=2)
    known = [None if n % 3 == 0 else float(line[2]) for n, line in enumerate(rows.x)]
    found = compare("vessels", known, rows, held, 0)
    assert found.n == sum(value is not None for value in known)
    assert found.difference.value == pytest.approx(found.model.value - found.score.value, abs=2e-3)
    assert found.score.value > 0.6


def test_study_yaml_and_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinical_survival, "REPEATS", 1)
    monkeypatch.setattr(clinical_survival.cross_validate, "__defaults__", (1, None))
    ticks: list[int] = []
    found = study(made_table(), 4, "mewm train clinical", lambda: ticks.append(1))
    assert len(ticks) == clinical_survival.study_steps()
    again = ClinicalModel.model_validate(yaml.safe_load(to_yaml(found.model)))
    assert again == found.model
    text = to_yaml(found.model)
    assert "baseline: [1.0," in text
    assert len(text.splitlines()) < 250
    card = clinical_card(found)
    full = found.model.variants[0]
    for figure in (f"{full.c_index.value:.3f} ({full.c_index.low:.3f}", "BCLC stage alone", "six-and-twelve", "Slope"):
        assert figure in card
    assert sum(count for _, count in found.from_records) == found.patients == 90
    assert f"as they are imported: {', '.join(f'{name} {count}' for name, count in found.from_records)}." in card
    assert "P17" not in card
    assert "P17" not in text
    assert found.model.after_treatment.terms.keys() == {*NAMES, "responders"}


def test_the_shipped_coefficients_come_from_the_real_table(real_data: Path) -> None:
    table = read_clinical_table(real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx")
    shipped = clinical_model()
    assert shipped.table_sha256 == table.content_hash
    for (name, names), variant in zip(VARIANTS, shipped.variants, strict=True):
        rows = collect(table, names)
        assert (variant.name, variant.n, variant.deaths) == (name, len(rows.x), int(rows.death.sum()))
        fitted = Fitted.of(rows, np.ones(len(rows.x), dtype=bool), variant.penalty)
        ours = [variant.log_risk(dict(zip(rows.names, line, strict=True))) for line in rows.x]
        np.testing.assert_allclose(ours, fitted.risk(rows.x), atol=2e-3)
    no_patient = to_yaml(shipped)
    assert not any(one.patient_id in no_patient for one in table.patients)
