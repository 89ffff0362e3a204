"""survival_risk: log hazard of death and median survival of segmented outcomes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from models.clinical_survival import ClinicalRisk, clinical_risk
from models.engine import Prepared
from models.errors import ToolError
from models.survival_curve import median_survival, survival_at
from models.toxicity import ToxicityPart, ToxicityTerm, toxicity
from tools.workspace import StoredSegmentation, Workspace


class RiskEstimate(BaseModel):
    """Risk of one outcome. Log hazards have no unit; 0 is the reference patient of the baseline, higher is worse."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_id: str
    segmentation_id: str
    protocol: str
    seed: int
    log_risk: float = Field(description="tumour_log_risk + toxicity_log_risk")
    tumour_log_risk: float = Field(description="by the survival network, from images, burden and record")
    toxicity_log_risk: float = Field(description="fixed, sourced term of the agents; never fitted")
    toxicity_parts: tuple[ToxicityPart, ...]
    not_evaluable: tuple[str, ...] = Field(description="inputs of the toxicity term that the record does not state")
    median_survival_months: float | None = Field(
        description="None where survival stays above one half, or without baseline"
    )


class SurvivalRiskResult(BaseModel):
    """The estimates in the order given, and the baseline that turns a log hazard into a survival curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    estimates: tuple[RiskEstimate, ...]
    times_months: tuple[float, ...]
    baseline: tuple[float, ...] = Field(description="survival of the reference patient at `times_months`")
    baseline_n: int | None
    baseline_origin: str | None = Field(description="data that the baseline was estimated on")
    weights_hash: str
    origin: str = Field(description="what the weights were trained on")
    clinical: ClinicalRisk | None = Field(
        default=None,
        description="a separate model of the record alone, fitted on real patients; the same for all protocols, "
        "part of no risk",
    )


def survival_risk(
    case_id: Annotated[str, Field(description="Id of a known case")],
    segmentation_ids: Annotated[list[str], Field(description="Ids that segment returned", min_length=1)],
    *,
    workspace: Workspace,
) -> SurvivalRiskResult:
    """Estimate the log hazard of death of segmented outcomes: the network's tumour term plus the fixed toxicity term.

    Raises:
        ToolError: unknown case or segmentation, or a segmentation of another case.
        ArtifactDamagedError: an artifact is damaged.
        TransientToolError: the device ran out of memory.
    """
    wanted = list(dict.fromkeys(segmentation_ids))
    if not wanted:
        raise ToolError("survival_risk needs at least one segmentation_id.")
    case, engine = workspace.case(case_id), workspace.engine
    prepared = workspace.prepared(case_id)
    liver_ml, baseline = workspace.liver_ml(case_id), engine.model.baseline
    times = baseline.times_months if baseline is not None else ()
    survival = baseline.survival if baseline is not None else ()
    terms: dict[str, ToxicityTerm] = {}
    estimates: list[RiskEstimate] = []
    # Read in portions: an outcome is a few MB in memory, and a call may hold hundreds.
    for start in range(0, len(wanted), engine.batch):
        stored = [workspace.segmentation(name, case_id) for name in wanted[start : start + engine.batch]]
        _score_missing(stored, case.content_hash, prepared, workspace)
        for item in stored:
            protocol = item.outcome.protocol
            if protocol.key not in terms:
                terms[protocol.key] = toxicity(protocol, case.record, prepared.tumour_ml, liver_ml)
            term = terms[protocol.key]
            tumour = workspace.risks[case.content_hash, item.segmentation_id, engine.weights_hash]
            total = tumour + term.log_hazard
            estimates.append(
                RiskEstimate(
                    outcome_id=item.outcome.outcome_id,
                    segmentation_id=item.segmentation_id,
                    protocol=protocol.key,
                    seed=item.outcome.seed,
                    log_risk=total,
                    tumour_log_risk=tumour,
                    toxicity_log_risk=term.log_hazard,
                    toxicity_parts=term.parts,
                    not_evaluable=term.not_evaluable,
                    median_survival_months=median_survival(times, survival_at(survival, total)),
                )
            )
        workspace.report("survival_risk", len(estimates), len(wanted))
    return SurvivalRiskResult(
        case_id=case_id,
        estimates=tuple(estimates),
        times_months=times,
        baseline=survival,
        baseline_n=None if baseline is None else baseline.n,
        baseline_origin=None if baseline is None else baseline.data_origin,
        weights_hash=engine.weights_hash,
        origin=engine.origin,
        clinical=clinical_risk(case.record, None if liver_ml is None else prepared.tumour_ml / liver_ml),
    )


def _score_missing(stored: list[StoredSegmentation], case: str, prepared: Prepared, workspace: Workspace) -> None:
    """Score what is not known yet for the case of that content hash: the network reads its record too."""
    engine = workspace.engine
    missing = [item for item in stored if (case, item.segmentation_id, engine.weights_hash) not in workspace.risks]
    if missing:
        composites = [item.outcome.composite for item in missing]
        values = engine.log_risk(prepared, composites, [item.tissue for item in missing])
        for item, value in zip(missing, values, strict=True):
            workspace.risks[case, item.segmentation_id, engine.weights_hash] = value
