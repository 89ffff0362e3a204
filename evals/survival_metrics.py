"""Survival metrics by patient, through scikit-survival. A higher risk means an earlier death.

Months are those of the data; weights for censoring come from the training follow-up where a metric needs them. What
can't be computed on a sample is `not_evaluable` with the reason, never a number.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from sksurv.compare import compare_survival
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator, nelson_aalen_estimator
from sksurv.util import Surv

from evals.statistics import Interval

Array = npt.NDArray[np.float64]

MSE_NOTE = (
    "Reconstruction of ours: the MeWM paper reports a mean squared error against a Nelson-Aalen risk (0.2142, Cox "
    "0.3550) and does not define it. Here: the Nelson-Aalen cumulative hazard at each patient's time and the predicted "
    "risk, each scaled to [0, 1] by its least and greatest value on the evaluated patients."
)


@dataclass(frozen=True)
class Outcomes:
    """Follow-up of N patients.

    Attributes:
        months: (N,) time to death or to the end of follow-up, above 0.
        died: (N,) False where censored.
    """

    months: Array
    died: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that differ or times that are not positive and finite."""
        if self.months.shape != self.died.shape or self.months.ndim != 1:
            raise ValueError(f"{self.months.shape} times do not fit {self.died.shape} events")
        if not (np.isfinite(self.months).all() and (self.months > 0).all()):
            raise ValueError("follow-up times must be finite and above 0")

    @property
    def surv(self) -> Any:
        """As scikit-survival's structured array."""
        return Surv.from_arrays(self.died, self.months)

    def only(self, index: npt.NDArray[Any]) -> Outcomes:
        """Some of the patients, by index or mask."""
        return Outcomes(self.months[index], self.died[index])


class Curve(BaseModel):
    """A step function over months; `low` and `high` are its pointwise 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    months: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    at_risk: int = Field(description="Patients at the start")


class LogRank(BaseModel):
    """Log-rank test between groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chi2: float
    p: float
    groups: int


class SurvivalScores(BaseModel):
    """Metrics of one risk score on one set of patients; None where not evaluable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    deaths: int
    harrell: Interval | None = Field(description="Harrell's c-index with its bootstrap interval by patient")
    ipcw: float | None = Field(description="Uno's c-index, weighted for censoring, up to the last of `times`")
    times: tuple[float, ...] = Field(description="Months at which the AUC is taken")
    auc: tuple[float, ...] | None = Field(description="Time-dependent (cumulative, dynamic) AUC at `times`")
    mean_auc: float | None
    integrated_brier: float | None = Field(description="Needs predicted survival curves, lower is better")
    log_rank: LogRank | None = Field(description="High against low risk, split at `cut`")
    cut: float | None = Field(description="Risk that splits high from low; from training data or the p is optimistic")
    mse_nelson_aalen: float | None = Field(description=MSE_NOTE)
    not_evaluable: dict[str, str] = Field(description="Metric -> why it could not be computed")


def harrell(outcomes: Outcomes, risk: Array) -> float:
    """Harrell's c-index.

    Args:
        outcomes: (N,) follow-up.
        risk: (N,) risk, higher is earlier death.

    Raises:
        ValueError: No pair of patients can be compared.
    """
    return float(concordance_index_censored(outcomes.died, outcomes.months, risk)[0])


def harrell_interval(outcomes: Outcomes, risk: Array, seed: int = 0, draws: int = 1000) -> Interval:
    """Harrell's c-index with a 95 % percentile bootstrap interval by patient.

    Raises:
        ValueError: No pair of patients can be compared.
    """
    return _bootstrap(outcomes, lambda some, index: harrell(some, risk[index]), seed, draws)


def ipcw_interval(outcomes: Outcomes, risk: Array, seed: int = 0, draws: int = 200) -> Interval:
    """Uno's c-index up to the last of `evaluation_times`, with a 95 % percentile bootstrap interval by patient.

    Raises:
        ValueError: The censoring weights are not defined on the patients.
    """
    tau = evaluation_times(outcomes)[-1:]
    return _bootstrap(outcomes, lambda some, i: ipcw(some, some, risk[i], tau[0] if tau else None), seed, draws)


def mean_auc_interval(outcomes: Outcomes, risk: Array, seed: int = 0, draws: int = 200) -> Interval:
    """Mean time-dependent AUC over `evaluation_times`, with a 95 % percentile bootstrap interval by patient.

    Raises:
        ValueError: The AUC is not defined on the patients.
    """
    times = np.array(evaluation_times(outcomes))
    return _bootstrap(outcomes, lambda some, i: time_dependent_auc(some, some, risk[i], times)[1], seed, draws)


def _bootstrap(
    outcomes: Outcomes, statistic: Callable[[Outcomes, npt.NDArray[Any]], float], seed: int, draws: int
) -> Interval:
    n = len(outcomes.months)
    value = statistic(outcomes, np.arange(n))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        index = rng.integers(0, n, n)
        some = outcomes.only(index)
        # a resample of few patients can hold no pair that can be compared: it says nothing
        if some.died.any() and some.months[some.died].min() < some.months.max():
            with suppress(ValueError):  # a resample on which censoring weights are not defined says nothing either
                drawn.append(statistic(some, index))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high), n)


def evaluation_times(outcomes: Outcomes, count: int = 9) -> tuple[float, ...]:
    """Times inside the 10 to 90 % percentiles of follow-up, where censoring weights are stable, ascending."""
    found = np.unique(np.quantile(outcomes.months, np.linspace(0.1, 0.9, count)))
    last = outcomes.months.max()
    return tuple(float(time) for time in found if outcomes.months.min() < time < last)


def ipcw(train: Outcomes, test: Outcomes, risk: Array, tau: float | None = None) -> float:
    """Uno's c-index, weighted for censoring by the training follow-up.

    Raises:
        ValueError: The censoring weights are not defined on the test times.
    """
    return float(concordance_index_ipcw(train.surv, test.surv, risk, tau=tau)[0])


def time_dependent_auc(train: Outcomes, test: Outcomes, risk: Array, times: Array) -> tuple[tuple[float, ...], float]:
    """Cumulative, dynamic AUC at `times` (months), and its mean weighted by the survival curve.

    Raises:
        ValueError: A time outside the follow-up, or censoring weights that are not defined.
    """
    values, mean = cumulative_dynamic_auc(train.surv, test.surv, risk, times)
    return tuple(float(value) for value in values), float(mean)


def integrated_brier(train: Outcomes, test: Outcomes, survival: Array, times: Array) -> float:
    """Integrated Brier score of predicted survival, (N, T) at `times` (T,) in months; 0 is best.

    Raises:
        ValueError: A time outside the follow-up, or censoring weights that are not defined.
    """
    return float(integrated_brier_score(train.surv, test.surv, survival, times))


def log_rank(outcomes: Outcomes, group: npt.NDArray[Any]) -> LogRank:
    """Log-rank test between the groups.

    Raises:
        ValueError: Fewer than two groups.
    """
    chi2, p = compare_survival(outcomes.surv, group)
    return LogRank(chi2=float(chi2), p=float(p), groups=len(np.unique(group)))


def kaplan_meier(outcomes: Outcomes) -> Curve:
    """Kaplan-Meier survival with a log-log interval."""
    months, values, bounds = kaplan_meier_estimator(outcomes.died, outcomes.months, conf_type="log-log")
    return Curve(
        months=tuple(map(float, months)),
        values=tuple(map(float, values)),
        low=tuple(map(float, bounds[0])),
        high=tuple(map(float, bounds[1])),
        at_risk=len(outcomes.months),
    )


def nelson_aalen(outcomes: Outcomes) -> Curve:
    """Nelson-Aalen cumulative hazard."""
    months, values = nelson_aalen_estimator(outcomes.died, outcomes.months)
    return Curve(months=tuple(map(float, months)), values=tuple(map(float, values)), at_risk=len(outcomes.months))


def mse_nelson_aalen(outcomes: Outcomes, risk: Array) -> float:
    """Mean squared error against a Nelson-Aalen risk, reconstructed (`MSE_NOTE`); in [0, 1], lower is better.

    A patient who dies late has a high cumulative hazard at that time and a low risk, so that a good risk score does not
    bring this figure down: it is here to stand beside the paper's, not to choose a model by.

    Raises:
        ValueError: All hazards or all risks are equal.
    """
    months, hazard = nelson_aalen_estimator(outcomes.died, outcomes.months)
    at = hazard[np.searchsorted(months, outcomes.months)]
    if np.ptp(at) == 0 or np.ptp(risk) == 0:
        raise ValueError("all hazards or all risks are equal, so they can't be scaled")
    return float(np.mean(np.square((at - at.min()) / np.ptp(at) - (risk - risk.min()) / np.ptp(risk))))


def survival_scores(
    test: Outcomes,
    risk: Array,
    train: Outcomes | None = None,
    *,
    cut: float | None = None,
    survival: Callable[[Array], Array] | None = None,
    seed: int = 0,
) -> SurvivalScores:
    """Every metric of one risk score.

    Args:
        test: Follow-up of the evaluated patients, at least 2.
        risk: (N,) their predicted risk.
        train: Follow-up that the censoring weights come from; None takes the evaluated patients themselves.
        cut: Splits high from low risk, from training data; None leaves the log-rank test out.
        survival: Times (T,) in months -> predicted survival (N, T); None leaves the Brier score out.
        seed: Of the bootstrap.
    """
    train = test if train is None else train
    why: dict[str, str] = {}

    def attempt(name: str, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except ValueError as error:  # scikit-survival's word for a sample on which a metric is not defined
            why[name] = " ".join(str(error).split())
            return None

    times = np.array(evaluation_times(test))
    tau = float(times[-1]) if times.size else None
    auc = attempt("auc", lambda: time_dependent_auc(train, test, risk, times))
    brier, split = None, None
    if survival is None:
        why["integrated_brier"] = "there are no predicted survival curves"
    else:
        predicted = survival
        brier = attempt("integrated_brier", lambda: integrated_brier(train, test, predicted(times), times))
    if cut is None:
        why["log_rank"] = "there is no cut from training data"
    else:
        split = attempt("log_rank", lambda: log_rank(test, risk > cut))
    return SurvivalScores(
        n=len(risk),
        deaths=int(test.died.sum()),
        harrell=attempt("harrell", lambda: harrell_interval(test, risk, seed)),
        ipcw=attempt("ipcw", lambda: ipcw(train, test, risk, tau)),
        times=tuple(map(float, times)),
        auc=None if auc is None else auc[0],
        mean_auc=None if auc is None else auc[1],
        integrated_brier=brier,
        log_rank=split,
        cut=cut,
        mse_nelson_aalen=attempt("mse_nelson_aalen", lambda: mse_nelson_aalen(test, risk)),
        not_evaluable=why,
    )
