"""Survival by simulated risk: do patients whom the world model calls high risk die earlier?

The score of a patient is the simulated log-risk of the protocol that was really given, or where the search did not
assess that one, of the protocol that it chose; survival is that under the protocol given.
"""

from __future__ import annotations

import numpy as np

from evals.results import CaseRow, EvalRun, ResultModel
from evals.survival_metrics import Curve, Outcomes, SurvivalScores, kaplan_meier, survival_scores

LEAST = 8
"""Fewest patients for a panel: with fewer, two curves say nothing."""


class SurvivalPanel(ResultModel):
    """Patients split at the median of the simulated risk."""

    lower: Curve
    higher: Curve
    scores: SurvivalScores
    given_assessed: int


def survival_panel(run: EvalRun, seed: int = 0) -> SurvivalPanel | None:
    """The panel; None where survival or risk are known for too few patients, nobody died, or all risks are equal."""
    found: list[tuple[float, float, bool, bool]] = []
    for row in run.rows:
        score = _score(row)
        if row.epoch == 1 and row.survival is not None and score is not None:
            found.append((score[0], row.survival.months, row.survival.died, score[1]))
    if len(found) < LEAST or not any(died for _, _, died, _ in found):
        return None
    risk = np.array([f[0] for f in found])
    outcomes = Outcomes(np.array([f[1] for f in found]), np.array([f[2] for f in found], dtype=bool))
    cut = float(np.median(risk))
    high = risk > cut
    if not high.any():
        return None
    return SurvivalPanel(
        lower=kaplan_meier(outcomes.only(~high)),
        higher=kaplan_meier(outcomes.only(high)),
        scores=survival_scores(outcomes, risk, cut=cut, seed=seed),
        given_assessed=sum(f[3] for f in found),
    )


def _score(row: CaseRow) -> tuple[float, bool] | None:
    risks = {risk.protocol: risk.simulated for risk in row.risks}
    if row.given is not None and row.given.key in risks:
        return risks[row.given.key], True
    if row.own.protocol is not None and row.own.protocol.key in risks:
        return risks[row.own.protocol.key], False
    return None


def survival_text(found: SurvivalPanel) -> str:
    """The figures in words."""
    s = found.scores
    parts = [f"n = {s.n}, {s.deaths} deaths"]
    if s.harrell is not None:
        parts.append(f"Harrell's c-index {s.harrell.mean:.3f} [{s.harrell.low:.3f}, {s.harrell.high:.3f}]")
    if s.ipcw is not None:
        parts.append(f"Uno's c-index {s.ipcw:.3f}")
    if s.mean_auc is not None:
        parts.append(f"mean time-dependent AUC {s.mean_auc:.3f}")
    if s.log_rank is not None:
        parts.append(f"log-rank p = {s.log_rank.p:.3g}")
    if s.mse_nelson_aalen is not None:
        parts.append(f"MSE against a Nelson-Aalen risk {s.mse_nelson_aalen:.3f} (our reconstruction of the paper's)")
    unclear = (
        f" Not evaluable: {'; '.join(f'{k} ({v})' for k, v in s.not_evaluable.items())}." if s.not_evaluable else ""
    )
    return (
        f"{', '.join(parts)}. Split at the median of these patients' own simulated risk, which makes the p optimistic. "
        f"The score is that of the protocol really given for {found.given_assessed} patients, else of the one chosen."
        f"{unclear}"
    )
