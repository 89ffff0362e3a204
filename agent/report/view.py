"""The finalists as the page shows them: rows and cells of response, survival and risk. No file or volume is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from agent.plan import Estimate, Finalist, Plan
from agent.report.charts import SERIES, survival_at
from agent.report.text import Cell, absent, counts, estimate, interval, measure, number

SURVIVAL_MONTHS = (6, 12, 24, 36)


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is, how it is defined, and one cell per column."""

    label: str
    hint: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Named:
    """A finalist with the name and colour that it has all over the page."""

    finalist: Finalist
    name: str
    colour: str
    dash: str
    field: str

    @property
    def key(self) -> str:
        """Protocol key."""
        return self.finalist.assessed.key


def named_finalists(plan: Plan) -> list[Named]:
    """The chosen protocol and at most two runners-up; further finalists stay in `plan.json`."""
    out: list[Named] = []
    for i, finalist in enumerate(plan.finalists[:3]):
        first = plan.chosen is not None and i == 0
        name = "Chosen" if first else f"Runner-up {i}"
        field = "chosen" if first else f"runners_up.{i - 1}"
        out.append(Named(finalist, name, SERIES[i].colour, SERIES[i].dash, field))
    return out


def headline(plan: Plan) -> list[tuple[str, Cell]]:
    """The four figures beside the chosen protocol."""
    chosen = plan.chosen
    if chosen is None:
        return []
    response = chosen.assessed.response
    if plan.margin is None:
        margin = absent("margin.mean", "only one protocol was compared at the end")
    else:
        margin = _margin(plan.margin, plan.margin_interval, "margin.mean")
    sure = measure(plan.confidence, "%", "confidence", plan.confidence_note or "too few replicas", 0, factor=100.0)
    if not sure.absent:
        sure = Cell(sure.text, sure.field, sure.value, "of resamples of the seeds keep this choice")
    change = estimate(
        response.mrecist_change_percent,
        "%",
        "chosen.assessed.response.mrecist_change_percent.mean",
        _MRECIST_REASON,
        0,
        signed=True,
    )
    return [
        ("Margin over the runner-up", margin),
        ("How sure the search is", sure),
        ("mRECIST change", change),
        ("Predicted median survival", _with_note(_median(chosen, "chosen"), "at the mean risk, without an interval")),
    ]


_MRECIST_REASON = "no enhancing tumour could be measured before or after treatment"


def _margin(margin: Estimate, span: tuple[float, float] | None, field: str, *, signed: bool = False) -> Cell:
    """A paired difference with its interval; small ones get a digit more, so that they do not read as zero."""
    digits = 3 if abs(margin.mean) >= 0.01 else 4
    cell = measure(margin.mean, "", field, "the margin is not finite", digits, signed=signed)
    seen = f"95 % interval {interval(span, digits)}" if span else "no interval"
    return _with_note(cell, f"{seen}, n = {margin.n}")


def _with_note(cell: Cell, note: str) -> Cell:
    return cell if cell.absent else Cell(cell.text, cell.field, cell.value, note)


def _median(finalist: Finalist, field: str) -> Cell:
    return measure(
        finalist.assessed.median_survival_months,
        "months",
        f"{field}.assessed.median_survival_months",
        "the predicted curve does not reach 50 % within the model's follow-up",
        1,
    )


def response_rows(plan: Plan, finalists: list[Named]) -> list[Row]:
    """Response before treatment and under each finalist, in mm, mm2 and ml."""
    before = plan.before

    def line(
        label: str, hint: str, first: Cell, attribute: str, unit: str, reason: str, digits: int, **options: float | bool
    ) -> Row:
        cells = [
            estimate(
                getattr(f.finalist.assessed.response, attribute),
                unit,
                f"{f.field}.assessed.response.{attribute}.mean",
                reason,
                digits,
                signed=bool(options.get("signed", False)),
                factor=float(options.get("factor", 1.0)),
            )
            for f in finalists
        ]
        return Row(label, hint, (first, *cells))

    def categories(label: str, hint: str, attribute: str, reason: str) -> Row:
        cells = []
        for f in finalists:
            found: dict[str, int] = getattr(f.finalist.assessed.response, attribute)
            name = f"{f.field}.assessed.response.{attribute}"
            if not found:
                cells.append(absent(name, reason))
                continue
            total = sum(found.values())
            cells.append(Cell(counts(found), name, counts(found), f"of {total} replica{'s' if total != 1 else ''}"))
        return Row(label, hint, (dash(), *cells))

    easl = "no enhancing tumour could be measured before or after treatment"
    none_before = "not measured before treatment"
    return [
        Row(
            "Tumour, all lesions",
            "volume of the original outline",
            (
                measure(before.tumour_ml, "ml", "before.tumour_ml", none_before),
                *(dash() for _ in finalists),
            ),
        ),
        line(
            "Viable tumour",
            "after: segmented on the simulated CT",
            measure(before.viable_ml, "ml", "before.viable_ml", none_before),
            "viable_ml",
            "ml",
            "the segmentation gave no volume",
            1,
        ),
        line(
            "Necrotic share",
            "of the original tumour",
            dash(),
            "necrotic_fraction",
            "%",
            "no tumour volume to relate it to",
            0,
            factor=100.0,
        ),
        line(
            "Oil-like share",
            "above 200 HU inside the original tumour",
            dash(),
            "oil_fraction",
            "%",
            "no tumour volume to relate it to",
            0,
            factor=100.0,
        ),
        line(
            "mRECIST",
            "sum of the viable axial diameters of the target lesions",
            measure(before.mrecist_mm, "mm", "before.mrecist_mm", none_before, 0),
            "mrecist_mm",
            "mm",
            _MRECIST_REASON,
            0,
        ),
        line(
            "mRECIST change", "against before", dash(), "mrecist_change_percent", "%", _MRECIST_REASON, 0, signed=True
        ),
        categories("mRECIST category", "CR, PR, SD, PD by replica", "mrecist_categories", _MRECIST_REASON),
        line(
            "EASL",
            "sum of the largest viable axial areas of the target lesions",
            measure(before.easl_mm2, "mm\N{SUPERSCRIPT TWO}", "before.easl_mm2", none_before, 0),
            "easl_mm2",
            "mm\N{SUPERSCRIPT TWO}",
            easl,
            0,
        ),
        line("EASL change", "against before", dash(), "easl_change_percent", "%", easl, 0, signed=True),
        categories("EASL category", "by replica", "easl_categories", easl),
    ]


def dash() -> Cell:
    """A column in which the row has no meaning (a change before there is anything to compare)."""
    return Cell("\N{EN DASH}")


def risk_rows(finalists: list[Named]) -> list[Row]:
    """What the risk is made of."""

    def log_risk(f: Named) -> Cell:
        cell = estimate(
            f.finalist.assessed.log_risk, "", f"{f.field}.assessed.log_risk.mean", "no risk", 3, signed=True
        )
        ratio = math.exp(f.finalist.assessed.log_risk.mean)
        return Cell(cell.text, cell.field, cell.value, f"{cell.note}; hazard ratio {number(ratio, 2)}")

    def margin(f: Named) -> Cell:
        if f.finalist.place == 1:
            return Cell("\N{EN DASH}", note="the reference")
        found = f.finalist.margin
        if found is None:
            return absent(f"{f.field}.margin.mean", "no seeds in common with the chosen protocol")
        cell = _margin(found, f.finalist.margin_interval, f"{f.field}.margin.mean", signed=True)
        return _with_note(cell, cell.note + ("; tied" if f.finalist.tied_with_chosen else ""))

    def row(label: str, hint: str, make: Callable[[Named], Cell]) -> Row:
        return Row(label, hint, tuple(make(f) for f in finalists))

    return [
        row(
            "Objective",
            "what the search minimises, weighted by the goal",
            lambda f: estimate(
                f.finalist.assessed.objective, "", f"{f.field}.assessed.objective.mean", "no risk", 3, signed=True
            ),
        ),
        row("Worse than the chosen by", "paired over common seeds", margin),
        row("Log-risk of death", "tumour + toxicity share; hazard ratio to the baseline", log_risk),
        row(
            "Tumour share",
            "from the simulated image and what lives in it, survival network",
            lambda f: estimate(
                f.finalist.assessed.tumour_log_risk,
                "",
                f"{f.field}.assessed.tumour_log_risk.mean",
                "no risk",
                3,
                signed=True,
            ),
        ),
        row(
            "Toxicity share",
            "fixed term from the literature, not fitted",
            lambda f: measure(
                f.finalist.assessed.toxicity_log_risk,
                "",
                f"{f.field}.assessed.toxicity_log_risk",
                "no toxicity term",
                3,
                signed=True,
                note="; ".join(
                    f"{part.item} {number(part.value, 3, signed=True)}" for part in f.finalist.assessed.toxicity_parts
                ),
            ),
        ),
    ]


def survival_rows(finalists: list[Named]) -> list[Row]:
    """Survival at fixed months with its interval, and the median."""
    rows = []
    for month in SURVIVAL_MONTHS:
        cells = []
        for f in finalists:
            curve = f.finalist.survival
            name = f"{f.field}.survival@{month}"
            if curve is None:
                cells.append(absent(name, "no survival curve for this protocol"))
                continue
            middle, low, high = (survival_at(curve, v, month) for v in (curve.survival, curve.lower, curve.upper))
            if middle is None or low is None or high is None:
                cells.append(absent(name, f"the model's follow-up ends at {curve.times_months[-1]:.0f} months"))
                continue
            note = interval((low, high), 0, factor=100.0) + " %"
            cells.append(Cell(f"{number(middle * 100, 0)}\N{NO-BREAK SPACE}%", name, float(middle), note))
        rows.append(Row(f"{month}\N{NO-BREAK SPACE}months", "", tuple(cells)))
    rows.append(Row("Median", "", tuple(_median(f.finalist, f.field) for f in finalists)))
    return rows


def dose_line(finalist: Finalist) -> str:
    """The dose ranges of a protocol in one line, agents without a range left out."""
    return " \N{MIDDLE DOT} ".join(
        f"{dose.item} {dose.low:g} to {dose.high:g}\N{NO-BREAK SPACE}{dose.unit}"
        for dose in finalist.doses
        if dose.low is not None and dose.high is not None and dose.unit
    )


def weights_sentence(plan: Plan) -> str:
    """The goal's weights in words."""
    names = {"tumour": "tumour log-risk", "toxicity": "toxicity log-risk", "size": "mRECIST change"}
    parts = [
        f"{number(weight, 2)} \N{MULTIPLICATION SIGN} {names.get(k, k)}"
        for k, weight in plan.goal.weights.items()
        if weight
    ]
    return " + ".join(parts)
