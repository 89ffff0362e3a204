"""Charts of the report as SVG text: survival curves and the risk of every finalist, replica by replica.

SVG is written directly: text stays sharp and selectable, the file stays small, and no plotting library has to start.
All text that comes from a plan passes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from agent.plan import AssessedProtocol, Finalist, SurvivalCurve
from agent.report.text import number

INK, MUTED, GRID = "#1c2b36", "#5d6f7c", "#e3e9ed"


@dataclass(frozen=True)
class SeriesStyle:
    """Colour and dash of one finalist, the same in every chart and table of the page."""

    colour: str
    dash: str


# Okabe and Ito's blue, vermillion and bluish green; the dashes tell them apart on a grey print.
SERIES = (SeriesStyle("#0072B2", "none"), SeriesStyle("#D55E00", "7 4"), SeriesStyle("#009E73", "2 3"))


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round tick values that cover [low, high], in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _digits(values: Sequence[float]) -> int:
    """Decimals that ticks need, at most 3."""
    return next((d for d in range(3) if all(abs(v - round(v, d)) < 1e-9 for v in values)), 3)


def _text(
    x: float, y: float, text: str, *, size: float = 12, anchor: str = "start", fill: str = MUTED, more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" {more}>{escape(text)}</text>'


def _step_path(times: Sequence[float], values: Sequence[float], sx: float, sy: float, x0: float, y0: float) -> str:
    """A survival step function: it holds its value until the next time."""
    path = f"M{x0:.1f} {y0 - sy:.1f}"
    for time, value in zip(times, values, strict=True):
        path += f"H{x0 + time * sx:.1f}V{y0 - value * sy:.1f}"
    return path


def survival_at(curve: SurvivalCurve, values: Sequence[float], month: float) -> float | None:
    """The step function's value at a month, or None beyond the last time of the curve."""
    if not curve.times_months or month > curve.times_months[-1]:
        return None
    reached = [v for t, v in zip(curve.times_months, values, strict=True) if t <= month]
    return reached[-1] if reached else 1.0


def reference_curve(finalist: Finalist) -> tuple[float, ...] | None:
    """The model's baseline S0(t), recovered from a finalist's curve by S = S0 ** exp(log-risk); None without one."""
    if finalist.survival is None:
        return None
    power = math.exp(-finalist.assessed.log_risk.mean)
    return tuple(value**power for value in finalist.survival.survival)


def survival_svg(finalists: Sequence[Finalist], names: Sequence[str]) -> str:
    """Survival curves with their bands, or an empty string where no finalist has one.

    Args:
        finalists: At most three, in order of place.
        names: How each is called in the chart.
    """
    drawn = [(f.survival, name, style) for f, name, style in zip(finalists, names, SERIES, strict=False) if f.survival]
    if not drawn:
        return ""
    width, height = 620, 360
    left, right, top, bottom = 52, 16, 16, 46
    longest = max(curve.times_months[-1] for curve, _, _ in drawn)
    sx, sy = (width - left - right) / longest, float(height - top - bottom)
    base = float(height - bottom)
    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Predicted survival after treatment">'
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * sy
        out.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="{GRID}" stroke-width="1"/>')
        out.append(_text(left - 8, y + 4, f"{share * 100:.0f} %", anchor="end"))
    step = next(s for s in (3, 6, 12, 24, 48, 96, 10_000) if longest / s <= 8)
    for month in range(0, int(longest) + 1, step):
        x = left + month * sx
        out.append(f'<path d="M{x:.1f} {base}v5" stroke="{MUTED}"/>' + _text(x, base + 19, str(month), anchor="middle"))
    out.append(_text((left + width - right) / 2, height - 6, "months after treatment", anchor="middle"))
    if reference := reference_curve(finalists[0]):
        times = finalists[0].survival.times_months if finalists[0].survival else ()
        path = _step_path(times, reference, sx, sy, left, base)
        out.append(f'<path class="reference" d="{path}" fill="none" stroke="#9aa8b2" stroke-width="1.5"/>')
    for curve, _, style in reversed(drawn):
        upper = _step_path(curve.times_months, curve.upper, sx, sy, left, base)
        lower = _step_path(curve.times_months, curve.lower, sx, sy, left, base)
        back = _reversed(lower)
        out.append(f'<path d="{upper}L{back}Z" fill="{style.colour}" fill-opacity="0.13"/>')
    for curve, name, style in reversed(drawn):
        path = _step_path(curve.times_months, curve.survival, sx, sy, left, base)
        out.append(
            f'<path d="{path}" fill="none" stroke="{style.colour}" stroke-width="2.2" stroke-dasharray="{style.dash}">'
            f"<title>{escape(name)}</title></path>"
        )
    legend = [(name, style.colour, style.dash) for _, name, style in drawn]
    if reference:
        legend.append(("baseline of the model (log-risk 0)", "#9aa8b2", "none"))
    for row, (name, colour, dash) in enumerate(legend):
        x, y = width - right - 10, top + 12 + 19 * row
        out.append(_text(x - 34, y + 4, _short(name, 50), anchor="end", fill=INK, more='class="halo"'))
        out.append(f'<path d="M{x - 26} {y}h26" stroke="{colour}" stroke-width="2.6" stroke-dasharray="{dash}"/>')
    out.append("</svg>")
    return "".join(out)


def _reversed(path: str) -> str:
    """The points of an ``M x y H x V y ...`` path in reverse order, as ``x y L x y ...``."""
    points: list[tuple[str, str]] = []
    x, y = "", ""
    for token in path.replace("M", " M").replace("H", " H").replace("V", " V").split():
        if token[0] == "M":
            x = token[1:]
        elif token[0] == "H":
            x = token[1:]
            points.append((x, y))
        elif token[0] == "V":
            y = token[1:]
            points.append((x, y))
        else:
            y = token
            points.append((x, y))
    return "L".join(f"{px} {py}" for px, py in reversed(points))


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def risk_svg(finalists: Sequence[Finalist], others: Sequence[AssessedProtocol], limit: int = 7) -> str:
    """Dot plot of the objective: every replica of the finalists, means with 95 % t intervals, the best others in grey.

    The others have too few replicas for an interval that says anything (12.7 standard errors wide with two).

    Args:
        finalists: At most three, in order of place.
        others: Further assessed protocols, best first; the first `limit` are drawn.
        limit: How many others to draw.
    """
    rows: list[tuple[AssessedProtocol, SeriesStyle | None]] = [
        (f.assessed, style) for f, style in zip(finalists, SERIES, strict=False)
    ]
    rows += [(a, None) for a in others[:limit]]
    if not rows:
        return ""
    values: list[float] = []
    for assessed, style in rows:
        values.append(assessed.objective.mean)
        if style is not None:
            values.extend(assessed.objective.interval or ())
            values.extend(replica.objective for replica in assessed.replicas)
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or 0.1
    low, high = low - pad, high + pad
    width, label, right, top, bottom = 1180, 400, 100, 8, 44
    tall, short = 38, 23
    height = top + bottom + sum(tall if style else short for _, style in rows)
    scale = (width - label - right) / (high - low)

    def at(value: float) -> float:
        return label + (value - low) * scale

    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Objective of the best protocols">'
    ]
    marks = ticks(low, high, 8)
    for mark in marks:
        out.append(f'<path d="M{at(mark):.1f} {top}V{height - bottom}" stroke="{GRID}"/>')
        out.append(_text(at(mark), height - bottom + 17, number(mark, _digits(marks)), anchor="middle"))
    out.append(
        _text(
            (label + width - right) / 2, height - 6, "objective (log hazard; further left is better)", anchor="middle"
        )
    )
    y = float(top)
    for assessed, style in rows:
        tallness = tall if style else short
        middle = y + tallness / 2
        colour = style.colour if style else "#8a99a4"
        weight = 'font-weight="600"' if style else ""
        if style and len(assessed.key) > 48:  # two lines: drugs, then embolics
            drugs, _, embolics = assessed.key.partition(" | ")
            lines = [(_short(drugs, 52), middle - 4), ("with " + _short(embolics, 48), middle + 12)]
        else:
            lines = [(_short(assessed.key, 60), middle + 4)]
        for words, baseline in lines:
            size = 12.5 if style else 11.5
            ink = INK if style else MUTED
            out.append(_text(label - 14, baseline, words, size=size, anchor="end", fill=ink, more=weight))
        if style:
            for i, replica in enumerate(assessed.replicas):
                dy = (i % 3 - 1) * 5.0
                out.append(
                    f'<circle cx="{at(replica.objective):.1f}" cy="{middle + dy:.1f}" r="3" fill="{colour}" '
                    'fill-opacity="0.35">'
                    f"<title>seed {replica.seed}: {number(replica.objective, 3)}</title></circle>"
                )
        if style and (span := assessed.objective.interval) is not None:
            out.append(
                f'<path d="M{at(span[0]):.1f} {middle:.1f}H{at(span[1]):.1f}" stroke="{colour}" '
                'stroke-width="2.4" stroke-linecap="round"/>'
            )
        half = 5.5 if style else 3.6
        x = at(assessed.objective.mean)
        out.append(
            f'<path d="M{x - half:.1f} {middle:.1f}l{half} {-half}l{half} {half}l{-half} {half}Z" fill="{colour}" '
            'stroke="#fff" stroke-width="1"/>'
        )
        out.append(
            _text(
                width - right + 12,
                middle + 4,
                f"{number(assessed.objective.mean, 3)}  n {assessed.objective.n}",
                size=12,
                fill=INK if style else MUTED,
                more='class="num"',
            )
        )
        y += tallness
    out.append("</svg>")
    return "".join(out)
