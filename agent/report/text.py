"""Numbers and words of the report: how a value is written, and what stands where there is none."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.plan import Estimate

MINUS = "\N{MINUS SIGN}"
ABSENT = "not evaluable"


def number(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A finite number with fixed decimals, a true minus sign and no negative zero.

    Raises:
        ValueError: The value is NaN or infinite; callers show `ABSENT` with a reason instead.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} can't be shown as a number")
    text = f"{abs(value):,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    zero = not re.search(r"[1-9]", text)
    sign = "" if zero else MINUS if value < 0 else "+" if signed else ""
    return sign + text


@dataclass(frozen=True)
class Cell:
    """A value as shown: `field` and `value` travel as data attributes, so that a page can be checked by its plan."""

    text: str
    field: str = ""
    value: float | str | None = None
    note: str = ""
    absent: bool = False

    @property
    def data_value(self) -> str:
        """The exact value, as `repr` of the plan's number; empty where there is none."""
        return "" if self.value is None else repr(self.value) if isinstance(self.value, float) else str(self.value)


def absent(field: str, reason: str) -> Cell:
    """What stands in place of a number that does not exist, and why."""
    return Cell(ABSENT, field, None, reason, absent=True)


def measure(
    value: float | None,
    unit: str,
    field: str,
    reason: str,
    digits: int = 1,
    *,
    signed: bool = False,
    factor: float = 1.0,
    note: str = "",
) -> Cell:
    """A single number with its unit, or the reason why it is missing."""
    if value is None or not math.isfinite(value):
        return absent(field, reason)
    text = number(value * factor, digits, signed=signed) + (f"\N{NO-BREAK SPACE}{unit}" if unit else "")
    return Cell(text, field, float(value), note)


def estimate(
    value: Estimate | None,
    unit: str,
    field: str,
    reason: str,
    digits: int = 1,
    *,
    signed: bool = False,
    factor: float = 1.0,
) -> Cell:
    """A mean over replicas with its 95 % Student t interval and n as the note."""
    if value is None or not math.isfinite(value.mean):
        return absent(field, reason)
    cell = measure(value.mean, unit, field, reason, digits, signed=signed, factor=factor)
    return Cell(cell.text, field, float(value.mean), interval_note(value, digits, signed=signed, factor=factor))


def interval_note(value: Estimate, digits: int, *, signed: bool = False, factor: float = 1.0) -> str:
    """The interval and n of an estimate in words."""
    span = value.interval
    if span is None or not all(math.isfinite(end) for end in span):
        return "one replica, no interval" if value.n == 1 else f"n = {value.n}, no interval"
    return f"{interval(span, digits, signed=signed, factor=factor)}, n = {value.n}"


def interval(span: tuple[float, float], digits: int, *, signed: bool = False, factor: float = 1.0) -> str:
    """Two ends joined by 'to', which reads well beside minus signs."""
    low, high = sorted((span[0] * factor, span[1] * factor))
    return f"{number(low, digits, signed=signed)} to {number(high, digits, signed=signed)}"


def counts(categories: dict[str, int]) -> str:
    """``{"PR": 6, "SD": 2}`` as "PR 6, SD 2", best category first."""
    order = {"CR": 0, "PR": 1, "SD": 2, "PD": 3}
    return ", ".join(
        f"{name}\N{NO-BREAK SPACE}{n}" for name, n in sorted(categories.items(), key=lambda c: order.get(c[0], 9))
    )


def paragraphs(text: str) -> list[tuple[str, list[str]]]:
    """Plain text as blocks: ``("p", [text])`` or ``("ul", [item, ...])`` where lines start with a dash or a bullet."""
    blocks: list[tuple[str, list[str]]] = []
    for chunk in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in chunk.splitlines() if line.strip()]
        loose: list[str] = []
        for line in lines:
            if match := re.match(r"^[-*\u2022]\s+(.*)", line):
                if loose:
                    blocks.append(("p", [" ".join(loose)]))
                    loose = []
                if blocks and blocks[-1][0] == "ul":
                    blocks[-1][1].append(match.group(1))
                else:
                    blocks.append(("ul", [match.group(1)]))
            else:
                loose.append(line)
        if loose:
            blocks.append(("p", [" ".join(loose)]))
    return blocks


def timestamp(text: str) -> str:
    """An ISO 8601 time as "20 Nov 2026, 10:00 UTC"; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        return f"{moment:%-d %b %Y, %H:%M}"
    return f"{moment.astimezone(UTC):%-d %b %Y, %H:%M} UTC"
