"""The risk, measured: order of patients, order of protocols within a patient, calibration, against oracle and Cox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from evals.model_card.figures import Figure, figure, mean_figure, rank_correlation, resampled_figure
from evals.model_card.scene import Scene
from evals.simulators import Simulator
from models.engine import Engine
from models.networks.record_vector import record_vector
from models.phantom.response import clinician_protocol, draw_survival, respond
from models.response import VIABLE
from models.survival_curve import survival_at
from models.weights import SurvivalBaseline
from tools.segment import tissue_ml

Array = npt.NDArray[np.float64]
Row = dict[str, Any]

FOLDS = 5
RIDGE = 0.1
"""Small: the features are standardised and patients many."""
GROUPS = 5
"""Groups of patients by predicted risk, for the calibration."""
HORIZONS_MONTHS = (12.0, 24.0, 36.0)
DRAWS = 1000
"""Resamples of patients for c-indices."""
SLOPE_DRAWS, SLOPE_RIDGE = 200, 1e-4
"""And for calibration slopes, each a fit."""
TIED = 1e-8
"""Risks as near as this count as equal, as in scikit-survival."""


def measure_survival(seed: int, engine: Engine, simulator: Callable[[Engine], Simulator], replicas: int) -> Row:
    """One patient under the protocol really given: follow-up, true hazard, risk on the true and simulated scans."""
    scene = Scene.of(seed, engine)
    patient, given = scene.patient, clinician_protocol(scene.patient)
    response = respond(patient, given)
    months, died = draw_survival([response.log_hazard], np.random.default_rng([patient.seed, 23]))
    (true,) = scene.follow_ups([scene.truth(response).hu])
    simulated = scene.simulated(simulator(engine), [(given, seed) for seed in range(replicas)])
    risks = scene.risks([true, *simulated], [given] * (1 + len(simulated)))
    record = record_vector(patient.record)
    viable = tissue_ml(scene.prepared, true.tissue)[VIABLE]
    return {
        "seed": seed,
        "months": float(months[0]),
        "died": bool(died[0]),
        "oracle": response.log_hazard,
        "true": risks[0],
        "simulated": float(np.mean(risks[1:])),
        "before": [float(np.log1p(scene.prepared.tumour_ml)), float(scene.prepared.lesions.count), scene.harm(given)],
        "record": [float(value) for value in record],
        "viable": float(np.log1p(viable)),
    }


def cox_out_of_fold(features: Array, months: Array, died: npt.NDArray[np.bool_]) -> Array:
    """Risk of every patient from a Cox model (scikit-survival, Efron ties) fitted on the other folds.

    Args:
        features: (N, F); constant ones are left out, the others standardised on the training folds.
        months: (N,) follow-up.
        died: (N,) death seen.
    """
    fold = np.arange(len(months)) % FOLDS
    risk = np.zeros(len(months))
    for held_out in range(FOLDS):
        train, test = fold != held_out, fold == held_out
        spread = features[train].std(0)
        kept = spread > 1e-9
        mean, scale = features[train].mean(0)[kept], spread[kept]
        model = CoxPHSurvivalAnalysis(alpha=RIDGE, ties="efron")
        model.fit((features[train][:, kept] - mean) / scale, Surv.from_arrays(died[train], months[train]))
        # centred, so that the folds' arbitrary zero points do not order patients
        risk[test] = model.predict((features[test][:, kept] - mean) / scale)
    return risk


class Pairs:
    """The pairs of patients that follow-up can order, as matrices: a bootstrap of c-indices is a few products.

    A patient who died is compared with everybody who was followed longer, and with who was censored on the same day.
    """

    def __init__(self, months: Array, died: npt.NDArray[np.bool_], draws: int, seed: int = 0) -> None:
        """Args: months, died: (N,) follow-up. draws, seed: of the resampling of patients."""
        later = months[:, None] < months[None, :]
        censored_then = (months[:, None] == months[None, :]) & ~died[None, :]
        self._comparable = (died[:, None] & (later | censored_then)).astype(np.float32)
        n = len(months)
        index = np.random.default_rng(seed).integers(0, n, (draws, n))
        self._weights = np.stack([np.bincount(row, minlength=n) for row in index]).astype(np.float32)
        self._held = self._sums(self._comparable)
        self.n = n

    def _sums(self, matrix: npt.NDArray[np.float32]) -> Array:
        """Of all patients first, then of every resample."""
        drawn = ((self._weights @ matrix) * self._weights).sum(1, dtype=np.float64)
        return np.concatenate([[matrix.sum(dtype=np.float64)], drawn])

    def c_index(self, risk: Array) -> Array:
        """C-index of all patients, then of every resample; NaN where no pair can be compared."""
        gap = risk[:, None] - risk[None, :]
        right = self._comparable * ((gap > TIED) + 0.5 * (np.abs(gap) <= TIED)).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self._sums(right) / self._held)

    def figure(self, values: Array) -> Figure:
        """A value with its interval, from the value of all patients and those of the resamples."""
        drawn = values[1:][np.isfinite(values[1:])]
        if drawn.size == 0:
            return figure(float(values[0]), n=self.n)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return figure(float(values[0]), float(low), float(high), self.n)


def summarise_survival(rows: Sequence[Row], baseline: SurvivalBaseline | None) -> dict[str, Any]:
    """Figures over patients: c-indices, share of the way to the oracle, calibration.

    Args:
        rows: Of `measure_survival`.
        baseline: Baseline survival of the weights; None leaves the calibration out.
    """
    months, oracle = (np.array([row[name] for row in rows]) for name in ("months", "oracle"))
    died = np.array([row["died"] for row in rows], bool)
    risks = {name: np.array([row[name] for row in rows]) for name in ("true", "simulated")}
    before = np.array([[*row["before"], *row["record"]] for row in rows], float)
    after = np.column_stack([before, [row["viable"] for row in rows]])
    scores = {
        "oracle": oracle,
        **risks,
        "cox_before": cox_out_of_fold(before, months, died),
        "cox_with_viable_ml": cox_out_of_fold(after, months, died),
    }
    pairs = Pairs(months, died, DRAWS)
    found = {name: pairs.c_index(risk) for name, risk in scores.items()}
    return {
        "deaths": int(died.sum()),
        "n": len(rows),
        "c_index": {name: pairs.figure(values) for name, values in found.items()},
        "share_of_oracle": {name: pairs.figure(share_of_oracle(found[name], found["oracle"])) for name in risks},
        "calibration": {name: calibrate(months, died, risk, baseline) for name, risk in risks.items()},
    }


def share_of_oracle(c_index: Array, best: Array) -> Array:
    """How far from 0.5 to the oracle's c-index a risk gets: 1 is the oracle, 0 a coin. NaN where the oracle is one."""
    return np.where(best > 0.5, (c_index - 0.5) / np.where(best > 0.5, best - 0.5, 1.0), np.nan)


def calibrate(
    months: Array, died: npt.NDArray[np.bool_], risk: Array, baseline: SurvivalBaseline | None
) -> dict[str, Any]:
    """Slope of the risk in a Cox model of its own (1 is calibrated), and survival by group, predicted and observed.

    Args:
        months: (N,) follow-up.
        died: (N,) death seen.
        risk: (N,) total log-risk.
        baseline: Of the weights; None leaves the groups out.

    Source:
        Royston and Altman, BMC Med Res Methodol 2013 (calibration slope). Borgan and Liestol, Scand J Stat 1990 (the
        log-log interval of the observed survival).
    """

    def slope_of(index: npt.NDArray[np.int64]) -> float:
        if np.ptp(risk[index]) == 0 or not died[index].any():
            return float("nan")
        # where the risk orders a small resample perfectly the slope has no maximum: a trace of ridge bounds it
        model = CoxPHSurvivalAnalysis(alpha=SLOPE_RIDGE, ties="efron")
        with np.errstate(all="ignore"):
            model.fit(risk[index][:, None] - risk[index].mean(), Surv.from_arrays(died[index], months[index]))
        return float(model.coef_[0])

    out: dict[str, Any] = {"slope": resampled_figure(len(months), slope_of, draws=SLOPE_DRAWS), "groups": []}
    if baseline is None:
        return out
    order = np.argsort(risk, kind="stable")
    errors = []
    for place, group in enumerate(np.array_split(order, GROUPS), start=1):
        times, observed, (low, high) = kaplan_meier_estimator(died[group], months[group], conf_type="log-log")
        for horizon in HORIZONS_MONTHS:
            curves = [
                float(np.interp(horizon, baseline.times_months, survival_at(baseline.survival, float(value))))
                for value in risk[group]
            ]
            last = np.searchsorted(times, horizon, side="right") - 1
            # before the first time nobody has died, and Kaplan-Meier's variance is none
            seen = figure(observed[last], low[last], high[last], len(group)) if last >= 0 else figure(1.0, n=len(group))
            errors.append(abs(float(np.mean(curves)) - seen["value"]))
            out["groups"].append(
                {"group": place, "months": horizon, "predicted": float(np.mean(curves)), "observed": seen}
            )
    out["mean_absolute_error"] = figure(float(np.mean(errors)), n=len(months))
    return out


def summarise_risk(rows: Sequence[Sequence[Row]]) -> dict[str, Figure]:
    """Rank correlation over the protocols of a patient of predicted with true risk: what planning needs.

    Args:
        rows: Per patient the rows of `dynamics.measure_effects` with those of `dynamics.add_risks`.
    """
    true = [[row["true_risk"] for row in patient] for patient in rows]
    on_true = [[row["risk_on_true"] for row in patient] for patient in rows]
    on_simulated = [[float(np.mean(row["risk_on_simulated"])) for row in patient] for patient in rows]
    found = {"on_true_scans": on_true, "on_simulated_scans": on_simulated}
    return {
        name: mean_figure([rank_correlation(x, y) for x, y in zip(true, risks, strict=True)])
        for name, risks in found.items()
    }
