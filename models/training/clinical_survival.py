"""Fits the clinical survival model on the table of HCC-TACE-Seg and measures it by nested cross-validation.

The variables were chosen before any outcome was looked at: those of the published TACE scores that the table has (HAP,
Pre-TACE-Predict, CLIP: AFP, liver function, vascular invasion, number, size). Nothing is imputed: a variant is fitted
on the patients who have all of its variables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import brier_score
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from models.clinical_survival import ClinicalModel, Interval, Term, Variable, Variant, clinical_risk
from models.collection.clinical_table import WEEKS_PER_MONTH, ClinicalTable, TablePatient
from models.errors import InputError
from models.scores import six_and_twelve

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
OUTER, INNER, REPEATS, RESAMPLES = 5, 5, 20, 2000
HORIZONS = (12.0, 24.0, 36.0)
VARIANTS: tuple[tuple[str, tuple[Variable, ...]], ...] = (
    ("all", ("log_afp", "child_pugh_b_c", "vascular_invasion", "multinodular", "over_half_of_liver")),
    ("without number", ("log_afp", "child_pugh_b_c", "vascular_invasion", "over_half_of_liver")),
    ("without vessels", ("log_afp", "child_pugh_b_c", "multinodular", "over_half_of_liver")),
    ("blood and size", ("log_afp", "child_pugh_b_c", "over_half_of_liver")),
    ("blood", ("log_afp", "child_pugh_b_c")),
)
DATA = (
    "HCC-TACE-Seg, clinical table V2 (Moawad et al. 2021, doi:10.7937/TCIA.5FNA-0924; Morshid et al. 2019, "
    "doi:10.1148/ryai.2019180021; Clark et al. 2013, doi:10.1007/s10278-013-9622-7), CC BY 4.0; real patients of one "
    "centre"
)
Array = NDArray[np.float64]
_BCLC = {"0": 0.0, "A": 1.0, "B": 2.0, "C": 3.0, "D": 4.0}


@dataclass(frozen=True, eq=False)
class Rows:
    """Patients of one analysis: P rows, V variables.

    Attributes:
        x: (P, V) values.
        months: (P,) time to death or end of follow-up.
        death: (P,) bool.
        patients: the rows of the table.
    """

    names: tuple[Variable, ...]
    x: Array
    months: Array
    death: NDArray[np.bool_]
    patients: tuple[TablePatient, ...]

    @property
    def y(self) -> NDArray[np.void]:
        """Outcome as scikit-survival takes it."""
        found: NDArray[np.void] = Surv.from_arrays(self.death, self.months)
        return found


def table_values(patient: TablePatient) -> dict[Variable, float]:
    """The model's variables of a row of the table, as far as it gives them."""
    given = patient.values
    values: dict[Variable, float] = {}
    if patient.record.afp_ng_ml is not None:
        values["log_afp"] = math.log10(1 + patient.record.afp_ng_ml)
    if patient.record.child_pugh_class is not None:
        values["child_pugh_b_c"] = float(patient.record.child_pugh_class != "A")
    vessels = [given.get(name) for name in ("vascular_invasion", "portal_vein_thrombosis")]
    if True in vessels or None not in vessels:
        values["vascular_invasion"] = float(True in vessels)
    if "nodularity" in given:
        values["multinodular"] = float(given["nodularity"] == "multinodular")
    if "liver_involvement" in given:
        values["over_half_of_liver"] = float(given["liver_involvement"] == "above 50%")
    seen = patient.categories("mRECIST")
    if seen:
        values["responders"] = float(np.mean([one in ("CR", "PR") for one in seen]))
    return values


def collect(table: ClinicalTable, names: Sequence[Variable], landmark: bool = False) -> Rows:
    """The patients who have all of the variables and an outcome.

    Args:
        table: the clinical table.
        names: of the variables.
        landmark: count time from the follow-up scan and leave out who had died or left before it; needed where a
            variable is only known then.
    """
    rows, months, death, kept = [], [], [], []
    for patient in table.patients:
        values = table_values(patient)
        if patient.os_weeks is None or patient.death is None or any(name not in values for name in names):
            continue
        weeks = patient.os_weeks
        if landmark:
            if patient.interval_follow_up_weeks is None or patient.interval_follow_up_weeks <= 0:
                continue
            weeks -= patient.interval_follow_up_weeks
        if weeks <= 0:
            continue
        rows.append([values[name] for name in names])
        months.append(weeks / WEEKS_PER_MONTH)
        death.append(patient.death)
        kept.append(patient)
    if sum(death) < 2 * OUTER:
        raise InputError(
            f"The table has {len(rows)} patients with all of {', '.join(names)}, {sum(death)} of them dead: too few to "
            "fit and cross-validate; give the full development table."
        )
    return Rows(tuple(names), np.array(rows), np.array(months), np.array(death, dtype=bool), tuple(kept))


def comparable(months: Array, death: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P, P): whether it is known that the first patient died before the second (Harrell's pairs)."""
    earlier = months[:, None] < months[None, :]
    tied = (months[:, None] == months[None, :]) & ~death[None, :]
    return np.asarray(death[:, None] & (earlier | tied))


def concordant(risk: Array) -> Array:
    """(P, P): 1 where the first patient has the higher risk, one half for equal risks."""
    difference = risk[:, None] - risk[None, :]
    return np.where(np.abs(difference) < 1e-8, 0.5, (difference > 0).astype(float))


@dataclass(frozen=True, eq=False)
class Held:
    """Out-of-fold predictions of R repeats.

    Attributes:
        folds: (R, P) fold of each patient.
        risk: (R, P) log hazard by the model that had not seen the patient's fold.
        survival: (R, P, H) survival at `HORIZONS`.
        penalties: chosen, one per repeat and fold.
    """

    folds: NDArray[np.int64]
    risk: Array
    survival: Array
    penalties: tuple[float, ...]


def fold_numbers(death: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(P,) fold of each patient: deaths and others are dealt out in turn after shuffling."""
    folds = np.empty(len(death), dtype=np.int64)
    start = 0
    for group in (np.flatnonzero(death), np.flatnonzero(~death)):
        order = rng.permutation(group)
        folds[order] = (start + np.arange(len(order))) % count
        start += len(order)
    return folds


@dataclass(frozen=True, eq=False)
class Fitted:
    """A ridge Cox model on standardised variables."""

    cox: CoxPHSurvivalAnalysis
    mean: Array
    scale: Array

    @classmethod
    def of(cls, rows: Rows, chosen: NDArray[np.bool_], penalty: float) -> Fitted:
        """Fit on the chosen rows; a variable without spread there is left unscaled and gets no weight from it."""
        x = rows.x[chosen]
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        cox = CoxPHSurvivalAnalysis(alpha=penalty, ties="efron")
        cox.fit((x - mean) / scale, rows.y[chosen])
        return cls(cox, mean, scale)

    def risk(self, x: Array) -> Array:
        """Log hazard against the mean patient of the fit."""
        return np.asarray(self.cox.predict((x - self.mean) / self.scale))

    def survival(self, x: Array, times: Sequence[float]) -> Array:
        """(P, T) survival; after the last time of the fit it stays where it is, before the first it is 1."""
        baseline = self.baseline(times)
        return np.asarray(baseline[None, :] ** np.exp(self.risk(x))[:, None])

    def baseline(self, times: Sequence[float]) -> Array:
        """Survival of the mean patient at some times."""
        curve = self.cox.baseline_survival_
        places = np.searchsorted(curve.x, np.asarray(times), side="right") - 1
        return np.where(places < 0, 1.0, curve.y[np.maximum(places, 0)])


def choose_penalty(rows: Rows, chosen: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """The penalty with the best c-index over inner folds of the chosen rows; the stronger one of equals."""
    index = np.flatnonzero(chosen)
    folds = fold_numbers(rows.death[index], INNER, rng)
    pairs = comparable(rows.months[index], rows.death[index]) & (folds[:, None] == folds[None, :])
    best, best_score = PENALTIES[-1], -1.0
    for penalty in sorted(PENALTIES, reverse=True):
        risk = np.empty(len(index))
        for fold in range(INNER):
            train = np.zeros(len(rows.x), dtype=bool)
            train[index[folds != fold]] = True
            risk[folds == fold] = Fitted.of(rows, train, penalty).risk(rows.x[index[folds == fold]])
        score = float(concordant(risk)[pairs].mean())
        if score > best_score + 1e-9:
            best, best_score = penalty, score
    return best


def cross_validate(rows: Rows, seed: int, repeats: int = REPEATS, tick: Callable[[], None] | None = None) -> Held:
    """Nested cross-validation: the penalty of each outer fold is chosen inside its training part.

    Args:
        rows: patients.
        seed: of the folds.
        repeats: of the whole, with other folds.
        tick: called after each repeat.
    """
    count = len(rows.x)
    folds = np.empty((repeats, count), dtype=np.int64)
    risk, survival = np.empty((repeats, count)), np.empty((repeats, count, len(HORIZONS)))
    penalties = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        folds[repeat] = fold_numbers(rows.death, OUTER, rng)
        for fold in range(OUTER):
            held = folds[repeat] == fold
            penalty = choose_penalty(rows, ~held, rng)
            fitted = Fitted.of(rows, ~held, penalty)
            risk[repeat, held] = fitted.risk(rows.x[held])
            survival[repeat, held] = fitted.survival(rows.x[held], HORIZONS)
            penalties.append(penalty)
        if tick is not None:
            tick()
    return Held(folds, risk, survival, tuple(penalties))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sums over repeats of comparable and concordant pairs inside a fold: (P, P) each."""

    comparable: Array
    concordant: Array

    @classmethod
    def of(cls, rows: Rows, folds: NDArray[np.int64], risk: Array) -> Pairs:
        """Args: risk: (R, P) out of fold, or (P,) of a score that was fitted on nobody here."""
        known = comparable(rows.months, rows.death)
        total, right = np.zeros(known.shape), np.zeros(known.shape)
        for repeat, numbers in enumerate(folds):
            inside = known & (numbers[:, None] == numbers[None, :])
            total += inside
            right += inside * concordant(risk if risk.ndim == 1 else risk[repeat])
        return cls(total, right)

    def restricted(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Only pairs of chosen patients."""
        both = chosen[:, None] & chosen[None, :]
        return Pairs(self.comparable * both, self.concordant * both)

    def index(self, weights: Array) -> Array:
        """(S,) c-index of S samples in which each patient counts `weights` (S, P) times."""
        right, total = (((weights @ pairs) * weights).sum(axis=1) for pairs in (self.concordant, self.comparable))
        return np.asarray(right / total)

    @property
    def value(self) -> float:
        """C-index of the patients themselves."""
        return float(self.index(np.ones((1, len(self.comparable))))[0])


def resamples(count: int, seed: int) -> Array:
    """(RESAMPLES, count): how often each patient was drawn, for a bootstrap over patients."""
    rng = np.random.default_rng([seed, 999])
    return np.asarray(rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES), dtype=float)


def interval(value: float, draws: Sequence[float] | Array) -> Interval:
    """The figure with the middle 95% of its bootstrap draws."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(value=round(value, 3), low=round(float(low), 3), high=round(float(high), 3))


def c_index(pairs: Pairs, seed: int) -> Interval:
    """C-index with its interval over patients; 0.5 is a coin."""
    return interval(pairs.value, pairs.index(resamples(len(pairs.comparable), seed)))


def c_difference(one: Pairs, other: Pairs, seed: int) -> Interval:
    """Difference of two c-indices on the same pairs, paired by patient."""
    weights = resamples(len(one.comparable), seed)
    return interval(one.value - other.value, one.index(weights) - other.index(weights))


def final_fit(name: str, rows: Rows, held: Held, penalty: float, seed: int) -> Variant:
    """The variant that is kept, fitted on all rows.

    Args:
        name: of the variant.
        rows: patients.
        held: its cross-validation.
        penalty: one for all variants, so that a patient's log hazard does not grow where a variable is unknown.
        seed: of the bootstrap.
    """
    fitted = Fitted.of(rows, np.ones(len(rows.x), dtype=bool), penalty)
    # To the ninth decile of the times: beyond, few patients carry the curve.
    last = math.floor(float(np.quantile(rows.months, 0.9)))
    return Variant(
        name=name,
        terms={
            variable: Term(coefficient=round(float(w / s), 4), mean=round(float(m), 4))
            for variable, w, s, m in zip(rows.names, fitted.cox.coef_, fitted.scale, fitted.mean, strict=True)
        },
        penalty=penalty,
        n=len(rows.x),
        deaths=int(rows.death.sum()),
        c_index=c_index(Pairs.of(rows, held.folds, held.risk), seed),
        baseline=tuple(round(float(s), 3) for s in fitted.baseline(range(last + 1))),
    )


def usual_penalty(held: Held) -> float:
    """The penalty that the outer folds chose most often, the strongest of equals."""
    return max(sorted(PENALTIES, reverse=True), key=held.penalties.count)


@dataclass(frozen=True)
class Comparison:
    """A score beside the model, on the patients that have the score."""

    name: str
    n: int
    score: Interval
    model: Interval
    difference: Interval


def compare(name: str, values: Sequence[float | None], rows: Rows, held: Held, seed: int) -> Comparison:
    """C-index of a published score and of the model on the same patients and pairs.

    Args:
        name: of the score.
        values: one per row, higher is worse; None where it can't be had.
        rows: patients.
        held: the model's cross-validation.
        seed: of the bootstrap.
    """
    known = np.array([value is not None for value in values])
    risk = np.array([0.0 if value is None else value for value in values])
    score = Pairs.of(rows, held.folds, risk).restricted(known)
    model = Pairs.of(rows, held.folds, held.risk).restricted(known)
    return Comparison(
        name, int(known.sum()), c_index(score, seed), c_index(model, seed), c_difference(model, score, seed)
    )


def bclc_stage(patient: TablePatient) -> float | None:
    """BCLC as a number, 0 to 4."""
    return None if patient.record.bclc is None else _BCLC[patient.record.bclc]


def clip_points(patient: TablePatient) -> float | None:
    """CLIP points as the table states them."""
    points = patient.values.get("clip_score")
    return None if points is None else float(points)


def size_plus_number(patient: TablePatient) -> float | None:
    """Six-and-twelve. The table gives a number for single tumours only; their size is its own, else the readers'."""
    if patient.record.tumour_number is None:
        return None
    size = patient.values.get("tumour_size_cm")
    if size is None:
        read = [one.before for one in patient.readings("RECIST") if one.before]
        size = float(np.median(read)) / 10 if read else None
    return six_and_twelve(None if size is None else float(size), patient.record.tumour_number).value


@dataclass(frozen=True)
class Calibration:
    """How the predicted survival of held-out patients compares with what was seen.

    Attributes:
        slope: of the outcome on the predicted log hazard: 1 is right, below 1 the predictions are too far apart.
        predicted: mean predicted survival at `HORIZONS`.
        seen: Kaplan-Meier at `HORIZONS`.
        groups: (patients, predicted, seen) at 24 months, from low to high predicted risk.
        brier: of the model at `HORIZONS`; `brier_mean` of the Kaplan-Meier curve of the other folds.
    """

    slope: Interval
    predicted: tuple[float, ...]
    seen: tuple[float, ...]
    groups: tuple[tuple[int, float, float], ...]
    brier: tuple[float, ...]
    brier_mean: tuple[float, ...]


def kaplan_meier(rows: Rows, chosen: NDArray[np.bool_], times: Sequence[float]) -> Array:
    """Kaplan-Meier survival of the chosen rows at some times."""
    at, survival = kaplan_meier_estimator(rows.death[chosen], rows.months[chosen])
    places = np.searchsorted(at, np.asarray(times), side="right") - 1
    return np.where(places < 0, 1.0, survival[np.maximum(places, 0)])


def calibrate(rows: Rows, held: Held, seed: int) -> Calibration:
    """Calibration of out-of-fold predictions, averaged over the repeats."""
    everyone = np.ones(len(rows.x), dtype=bool)
    risk, survival = held.risk.mean(axis=0), held.survival.mean(axis=0)

    def slope(index: NDArray[np.int64]) -> float:
        cox = CoxPHSurvivalAnalysis(alpha=1e-6, ties="efron")
        cox.fit(risk[index][:, None], rows.y[index])
        return float(cox.coef_[0])

    drawn = [np.repeat(np.arange(len(risk)), w.astype(int)) for w in resamples(len(risk), seed)[:500]]
    groups = []
    for part in np.array_split(np.argsort(risk, kind="stable"), 3):
        chosen = np.isin(np.arange(len(risk)), part)
        groups.append((len(part), float(survival[part, 1].mean()), float(kaplan_meier(rows, chosen, [HORIZONS[1]])[0])))
    base = np.empty_like(held.survival)
    for repeat, numbers in enumerate(held.folds):
        for fold in range(OUTER):
            base[repeat, numbers == fold] = kaplan_meier(rows, numbers != fold, HORIZONS)
    briers = [brier_score(rows.y, rows.y, s.mean(axis=0), HORIZONS)[1] for s in (held.survival, base)]
    return Calibration(
        slope=interval(slope(np.arange(len(risk))), [slope(index) for index in drawn]),
        predicted=tuple(float(s) for s in survival.mean(axis=0)),
        seen=tuple(float(s) for s in kaplan_meier(rows, everyone, HORIZONS)),
        groups=tuple(groups),
        brier=tuple(float(b) for b in briers[0]),
        brier_mean=tuple(float(b) for b in briers[1]),
    )


@dataclass(frozen=True)
class ClinicalStudy:
    """The model and everything that its card tells.

    Attributes:
        from_records: how many patients each variant answers from the clinical record that an imported case carries.
    """

    model: ClinicalModel
    penalties: tuple[float, ...]
    comparisons: tuple[Comparison, ...]
    calibration: Calibration
    before_on_the_same: Interval
    response_gain: Interval
    patients: int
    from_records: tuple[tuple[str, int], ...]


def study(table: ClinicalTable, seed: int, command: str, tick: Callable[[], None] | None = None) -> ClinicalStudy:
    """Fit every variant, cross-validate it, and compare it with the scores.

    Args:
        table: the clinical table.
        seed: of folds and bootstrap.
        command: that makes the model, kept with it.
        tick: called `study_steps()` times.

    Raises:
        InputError: too few patients with the variables.
    """
    checked = []
    for _, names in VARIANTS:
        rows = collect(table, names)
        checked.append((rows, cross_validate(rows, seed, tick=tick)))
    rows, held = checked[0]
    penalty = usual_penalty(held)
    later = collect(table, (*VARIANTS[0][1], "responders"), landmark=True)
    with_response = cross_validate(later, seed, tick=tick)
    same = Rows(VARIANTS[0][1], later.x[:, :-1], later.months, later.death, later.patients)
    without = cross_validate(same, seed, tick=tick)  # equal folds: they depend on deaths and seed alone
    before, after = (
        Pairs.of(same, without.folds, without.risk),
        Pairs.of(later, with_response.folds, with_response.risk),
    )
    model = ClinicalModel(
        schema_version=1,
        data=DATA,
        table_sha256=table.content_hash,
        command=command,
        seed=seed,
        variants=tuple(final_fit(name, *one, penalty, seed) for (name, _), one in zip(VARIANTS, checked, strict=True)),
        after_treatment=final_fit("with response", later, with_response, penalty, seed),
    )
    scores = (("BCLC stage alone", bclc_stage), ("six-and-twelve", size_plus_number), ("CLIP", clip_points))
    return ClinicalStudy(
        model=model,
        penalties=held.penalties,
        comparisons=tuple(
            compare(name, [score(patient) for patient in rows.patients], rows, held, seed) for name, score in scores
        ),
        calibration=calibrate(rows, held, seed),
        before_on_the_same=c_index(before, seed),
        response_gain=c_difference(after, before, seed),
        patients=len(table.patients),
        from_records=answered(table, model),
    )


def answered(table: ClinicalTable, model: ClinicalModel) -> tuple[tuple[str, int], ...]:
    """How many patients each variant answers from their record, the share of the liver measured; the last is none."""
    used = Counter(clinical_risk(patient.record, 0.0, model).variant or "none" for patient in table.patients)
    return tuple((name, used[name]) for name in (*(one.name for one in model.variants if one.informative), "none"))


def study_steps() -> int:
    """How often `study` calls its tick."""
    return (len(VARIANTS) + 2) * REPEATS


class _Readable(yaml.SafeDumper):
    """Numbers in one line, so that a curve is a line and not a page."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """As `yaml.SafeDumper`, a list of numbers in flow style."""
        numbers = all(isinstance(one, float) for one in sequence)
        return super().represent_sequence(tag, sequence, flow_style=True if numbers else flow_style)


def to_yaml(model: ClinicalModel) -> str:
    """The model as the text that `models.clinical_survival.clinical_model` reads."""
    return yaml.dump(model.model_dump(mode="json"), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120)
