"""Charts of a report as SVG text; everything that comes from data passes through `escape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from agent.report.charts import GRID, INK, MUTED, ticks

LEAD, OTHER, FAINT = "#0072B2", "#5d6f7c", "#b8c4cc"
SERIES = ("#0072B2", "#D55E00", "#009E73")
"""Okabe and Ito's blue, vermillion and bluish green, which colour-blind readers can tell apart."""


@dataclass(frozen=True)
class Mark:
    """A value with its interval (None: no interval), and whether it is the evaluated agent's."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None
    lead: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Curve:
    """A Kaplan-Meier curve: survival after each time, with its band."""

    label: str
    times: Sequence[float]
    survival: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]
    n: int


def _text(x: float, y: float, text: str, *, size: float = 12, anchor: str = "start", fill: str = MUTED) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
    )


def _open(width: float, height: float, label: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'


def _tick(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def interval_svg(marks: Sequence[Mark], axis: str, digits: int = 1) -> str:
    """A leaderboard: means with their intervals, one row each; empty where there is nothing to draw.

    Args:
        marks: In the order of the table.
        axis: What is drawn, with its unit and direction.
        digits: Decimals of the printed means.
    """
    if not marks:
        return ""
    values = [v for m in marks for v in (m.mean, m.low, m.high) if v is not None]
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or 0.5
    low, high = low - pad, high + pad
    width, label, right, top, bottom, row = 1120, 360, 190, 6, 42, 26
    height = top + bottom + row * len(marks)
    scale = (width - label - right) / (high - low)

    def at(value: float) -> float:
        return label + (value - low) * scale

    out = [_open(width, height, axis)]
    for tick in ticks(low, high, 7):
        out.append(f'<path d="M{at(tick):.1f} {top}V{height - bottom}" stroke="{GRID}"/>')
        out.append(_text(at(tick), height - bottom + 17, _tick(tick), anchor="middle"))
    out.append(_text((label + width - right) / 2, height - 6, axis, anchor="middle"))
    for index, mark in enumerate(marks):
        y = top + row * (index + 0.5)
        colour = LEAD if mark.lead else FAINT if mark.faint else OTHER
        out.append(_text(label - 14, y + 4, _short(mark.label, 56), anchor="end", fill=INK if mark.lead else MUTED))
        text = f"{mark.mean:.{digits}f}"
        if mark.low is not None and mark.high is not None:
            out.append(
                f'<path d="M{at(mark.low):.1f} {y:.1f}H{at(mark.high):.1f}" stroke="{colour}" stroke-width="2.4" '
                'stroke-linecap="round"/>'
            )
            text += f" [{mark.low:.{digits}f}, {mark.high:.{digits}f}]"
        x = at(mark.mean)
        out.append(f'<path d="M{x - 5:.1f} {y:.1f}l5 -5l5 5l-5 5Z" fill="{colour}" stroke="#fff"/>')
        out.append(_text(width - right + 12, y + 4, text, fill=INK if mark.lead else MUTED))
    return "".join([*out, "</svg>"])


def strip_svg(groups: Mapping[str, Sequence[float]], axis: str, lead: str) -> str:
    """One dot a case and the mean as a diamond, one row for each group; empty where there is nothing to draw.

    Args:
        groups: Label -> values, one per case.
        axis: What is drawn.
        lead: Label of the evaluated agent.
    """
    groups = {label: values for label, values in groups.items() if values}
    if not groups:
        return ""
    high = max(1.0, *(max(values) for values in groups.values()))
    width, label, right, top, bottom, row = 1120, 360, 30, 6, 42, 30
    height = top + bottom + row * len(groups)
    scale = (width - label - right) / high
    out = [_open(width, height, axis)]
    for mark in ticks(0.0, high, 8):
        out.append(f'<path d="M{label + mark * scale:.1f} {top}V{height - bottom}" stroke="{GRID}"/>')
        out.append(_text(label + mark * scale, height - bottom + 17, _tick(mark), anchor="middle"))
    out.append(_text((label + width - right) / 2, height - 6, axis, anchor="middle"))
    for index, (name, values) in enumerate(groups.items()):
        y = top + row * (index + 0.5)
        colour = LEAD if name == lead else OTHER
        out.append(_text(label - 14, y + 4, _short(name, 56), anchor="end", fill=INK if name == lead else MUTED))
        for number, value in enumerate(values):
            # fixed offsets in place of random ones: the same run draws the same page
            dy = (number * 7 % 5 - 2) * 3.2
            place = f'cx="{label + value * scale:.1f}" cy="{y + dy:.1f}"'
            out.append(f'<circle {place} r="2.6" fill="{colour}" fill-opacity="0.35"/>')
        x = label + sum(values) / len(values) * scale
        out.append(f'<path d="M{x - 6:.1f} {y:.1f}l6 -6l6 6l-6 6Z" fill="{colour}" stroke="#fff" stroke-width="1.4"/>')
    return "".join([*out, "</svg>"])


def scatter_svg(points: Sequence[tuple[str, float, float, bool]], x_axis: str, y_axis: str) -> str:
    """Labelled points; empty where there are none.

    Args:
        points: Label, x, y, whether it is the evaluated agent.
        x_axis: What x is, with its unit.
        y_axis: What y is, with its unit.
    """
    if not points:
        return ""
    width, height, left, right, top, bottom = 1120, 380, 70, 30, 16, 48
    highest_x = max(x for _, x, _, _ in points) or 1.0
    low, high = min(y for _, _, y, _ in points), max(y for _, _, y, _ in points)
    pad = (high - low) * 0.1 or 1.0
    low, high = low - pad, high + pad
    sx, sy = (width - left - right) / highest_x, (height - top - bottom) / (high - low)
    out = [_open(width, height, f"{y_axis} against {x_axis}")]
    for mark in ticks(0.0, highest_x, 6):
        out.append(f'<path d="M{left + mark * sx:.1f} {top}V{height - bottom}" stroke="{GRID}"/>')
        out.append(_text(left + mark * sx, height - bottom + 17, _tick(mark), anchor="middle"))
    for mark in ticks(low, high, 6):
        y = height - bottom - (mark - low) * sy
        out.append(
            f'<path d="M{left} {y:.1f}H{width - right}" stroke="{GRID}"/>'
            + _text(left - 8, y + 4, _tick(mark), anchor="end")
        )
    out.append(_text((left + width - right) / 2, height - 8, x_axis, anchor="middle"))
    out.append(_text(8, top + 4, y_axis))
    taken: list[tuple[float, float]] = []
    for label, value, quality, lead in sorted(points, key=lambda p: (p[1], -p[2])):
        x, y = left + value * sx, height - bottom - (quality - low) * sy
        line = y + 4
        while any(abs(line - other) < 13 and abs(x - near) < 260 for near, other in taken):
            line += 13
        taken.append((x, line))
        colour = LEAD if lead else OTHER
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if lead else 4.5}" fill="{colour}" stroke="#fff"/>')
        # from the middle on the label stands on the left: on the right it would leave the picture
        side = (x - 10, "end") if x > width / 2 else (x + 10, "start")
        out.append(_text(side[0], line, _short(label, 44), size=11.5, anchor=side[1], fill=INK if lead else MUTED))
    return "".join([*out, "</svg>"])


def survival_svg(curves: Sequence[Curve], *, hazard: bool = False) -> str:
    """Kaplan-Meier curves with their bands, or cumulative hazards; empty where there are none.

    Args:
        curves: To draw; one without bounds has no band.
        hazard: The values are cumulative hazards, which rise from 0.
    """
    drawn = [curve for curve in curves if len(curve.times)]
    if not drawn:
        return ""
    width, height, left, right, top, bottom = 760, 380, 52, 16, 14, 46
    longest = max(curve.times[-1] for curve in drawn) or 1.0
    sx, sy, base = (width - left - right) / longest, float(height - top - bottom), float(height - bottom)
    what = "Nelson-Aalen cumulative hazard" if hazard else "Kaplan-Meier survival"
    out = [_open(width, height, f"{what} by simulated risk")]
    most = (max(max(curve.survival) for curve in drawn) or 1.0) if hazard else 1.0
    sy /= most
    for share in ticks(0.0, most, 5) if hazard else (0.0, 0.25, 0.5, 0.75, 1.0):
        y = base - share * sy
        out.append(
            f'<path d="M{left} {y:.1f}H{width - right}" stroke="{GRID}"/>'
            + _text(left - 8, y + 4, _tick(share) if hazard else f"{share:.0%}", anchor="end")
        )
    out += [_text(left + mark * sx, base + 19, _tick(mark), anchor="middle") for mark in ticks(0.0, longest, 7)]
    out.append(_text((left + width - right) / 2, height - 6, "months", anchor="middle"))
    for index, curve in enumerate(drawn):
        colour = SERIES[index % len(SERIES)]
        if len(curve.upper):
            band = _corners(curve.times, curve.upper) + _corners(curve.times, curve.lower)[::-1]
            path = "L".join(f"{left + t * sx:.1f} {base - s * sy:.1f}" for t, s in band)
            out.append(f'<path d="M{path}Z" fill="{colour}" fill-opacity="0.13"/>')
        steps = _corners(curve.times, curve.survival, 0.0 if hazard else 1.0)
        path = "L".join(f"{left + t * sx:.1f} {base - s * sy:.1f}" for t, s in steps)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        y = top + 14 + 19 * index
        # a hazard rises to the right: its names stand where it has not risen yet
        words, line, anchor = (
            (left + 48, left + 12, "start") if hazard else (width - right - 44, width - right - 36, "end")
        )
        out.append(_text(words, y + 4, f"{curve.label} (n = {curve.n})", anchor=anchor, fill=INK))
        out.append(f'<path d="M{line} {y}h28" stroke="{colour}" stroke-width="2.6"/>')
    return "".join([*out, "</svg>"])


def _corners(times: Sequence[float], values: Sequence[float], start: float = 1.0) -> list[tuple[float, float]]:
    """The points of a step function that holds its value until the next time."""
    points, before = [(0.0, start)], start
    for time, value in zip(times, values, strict=True):
        points += [(time, before), (time, value)]
        before = value
    return points


def calibration_svg(pairs: Sequence[tuple[float, float]], x_axis: str, y_axis: str) -> str:
    """Points with the diagonal on which they should lie; empty where there are none."""
    if not pairs:
        return ""
    size, left, top, bottom = 420, 56, 14, 46
    low, high = min(min(p) for p in pairs), max(max(p) for p in pairs)
    pad = (high - low) * 0.05 or 1.0
    low, high = low - pad, high + pad
    scale = (size - left - top) / (high - low)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) * scale, size - bottom - (y - low) * scale

    height = size - bottom - (high - low) * scale
    out = [_open(size, size, f"{y_axis} against {x_axis}")]
    for mark in ticks(low, high, 5):
        x, y = place(mark, mark)
        out.append(f'<path d="M{x:.1f} {height:.1f}V{size - bottom}M{left} {y:.1f}H{size - top}" stroke="{GRID}"/>')
        out.append(_text(x, size - bottom + 16, _tick(mark), anchor="middle"))
        out.append(_text(left - 7, y + 4, _tick(mark), anchor="end"))
    (x1, y1), (x2, y2) = place(low, low), place(high, high)
    out.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{MUTED}" stroke-dasharray="5 4"/>')
    for pair in pairs:
        x, y = place(*pair)
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{LEAD}" fill-opacity="0.3"/>')
    out.append(_text((left + size) / 2, size - 8, x_axis, anchor="middle"))
    out.append(_text(4, 12, y_axis))
    return "".join([*out, "</svg>"])
