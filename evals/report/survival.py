"""Survival by simulated risk: do patients whom the world model calls high risk die earlier?

Survival is that under the protocol really given, so the score of a patient is the simulated log-risk of that protocol,
which is simulated after the plan. Patients without a plan are in no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from evals.results import EvalRun, ResultModel, RiskCurve
from evals.statistics import Interval
from evals.survival_metrics import (
    Array,
    Curve,
    Outcomes,
    SurvivalScores,
    ipcw_interval,
    kaplan_meier,
    mean_auc_interval,
    nelson_aalen,
    survival_scores,
)

NOT_EVALUABLE = (
    "Not evaluable: follow-up and a simulated risk are known for too few cases, nobody died, or all risks are equal."
)
LEAST = 8
"""Fewest patients for a panel: with fewer, two curves say nothing."""


class SurvivalPanel(ResultModel):
    """Patients whose given protocol was assessed, split at the median of its simulated risk."""

    lower: Curve
    higher: Curve
    lower_hazard: Curve = Field(description="Nelson-Aalen cumulative hazard")
    higher_hazard: Curve
    scores: SurvivalScores
    ipcw: Interval | None = Field(description="Uno's c-index with its bootstrap interval by patient")
    mean_auc: Interval | None = Field(description="Mean time-dependent AUC with its interval")
    not_assessed: int = Field(description="patients with follow-up and without a plan")


def survival_panel(run: EvalRun, seed: int = 0) -> SurvivalPanel | None:
    """The panel; None where survival or risk are known for too few patients, nobody died, or all risks are equal."""
    followed = [row for row in run.rows if row.epoch == 1 and row.survival is not None]
    found = [(row, score) for row in followed if (score := row.given_risk) is not None]
    follow_up = [row.survival for row, _ in found if row.survival is not None]
    if len(found) < LEAST or not any(after.died for after in follow_up):
        return None
    risk = np.array([score for _, score in found])
    outcomes = Outcomes(
        np.array([after.months for after in follow_up]), np.array([after.died for after in follow_up], dtype=bool)
    )
    cut = float(np.median(risk))
    high = risk > cut
    if not high.any():
        return None
    scores = survival_scores(
        outcomes, risk, cut=cut, survival=_predicted([row.curve for row, _ in found], risk), seed=seed
    )
    return SurvivalPanel(
        lower=kaplan_meier(outcomes.only(~high)),
        higher=kaplan_meier(outcomes.only(high)),
        lower_hazard=nelson_aalen(outcomes.only(~high)),
        higher_hazard=nelson_aalen(outcomes.only(high)),
        scores=scores,
        ipcw=None if scores.ipcw is None else ipcw_interval(outcomes, risk, seed),
        mean_auc=None if scores.mean_auc is None else mean_auc_interval(outcomes, risk, seed),
        not_assessed=len(followed) - len(found),
    )


def _predicted(curves: Sequence[RiskCurve | None], risk: Array) -> Callable[[Array], Array] | None:
    """Times -> predicted survival under the protocol given; None where a plan has no curve.

    The plan's curve is that of the chosen protocol; under proportional hazards that of another log-risk is a power of
    it.
    """
    known = [curve for curve in curves if curve is not None]
    if len(known) < len(curves):
        return None

    def survival(times: Array) -> Array:
        if (last := min(curve.months[-1] for curve in known)) < times.max(initial=0.0):
            raise ValueError(f"the predicted survival curves end at {last:g} months")
        rows = []
        for curve, score in zip(known, risk, strict=True):
            steps = np.array([1.0, *curve.survival])[np.searchsorted(curve.months, times, side="right")]
            rows.append(steps ** np.exp(score - curve.log_risk))
        return np.stack(rows)

    return survival


def survival_text(found: SurvivalPanel) -> str:
    """The figures in words."""
    s = found.scores
    parts = [f"n = {s.n}, {s.deaths} deaths"]
    for name, interval in (
        ("Harrell's c-index", s.harrell),
        ("Uno's c-index", found.ipcw),
        ("mean time-dependent AUC", found.mean_auc),
    ):
        if interval is not None:
            parts.append(f"{name} {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    if s.integrated_brier is not None:
        parts.append(
            f"integrated Brier score of the predicted survival curves {s.integrated_brier:.3f} (less is better)"
        )
    if s.log_rank is not None:
        parts.append(f"log-rank p = {s.log_rank.p:.3g}")
    if s.mse_nelson_aalen is not None:
        parts.append(f"MSE against a Nelson-Aalen risk {s.mse_nelson_aalen:.3f} (our reconstruction of the paper's)")
    hazards = [curve.values[-1] for curve in (found.lower_hazard, found.higher_hazard)]
    unclear = (
        f" Not evaluable: {'; '.join(f'{k} ({v})' for k, v in s.not_evaluable.items())}." if s.not_evaluable else ""
    )
    return (
        f"{', '.join(parts)}. Nelson-Aalen cumulative hazard at the end of follow-up: {hazards[0]:.2f} where the "
        f"simulated risk is lower, {hazards[1]:.2f} where it is higher. Split at the median of these patients' own "
        "simulated risk, which makes the p optimistic. The score is the simulated risk of the protocol really given; "
        f"{found.not_assessed} patients without a plan are in no figure.{unclear}"
    )
