"""Number check: every number of a written text against what is known.

A number is right where some known quantity of its unit, rounded to the digits that were written, is that number. A text
may be rounder than the facts, never finer, and never of another unit; a change may not lose its direction. Dates,
doses and figures from memory fall through, because no quantity has them. What it can't see: a right number that is
given to the wrong thing of the same unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.quantities import Quantity
from agent.written_numbers import Unit, Written, numbers_in, unit_of, words

_SLACK = 1e-9


@dataclass(frozen=True)
class KnownNumbers:
    """What a text may state.

    Attributes:
        quantities: Numbers with their units.
        texts: Sentences of the facts that may be repeated with the numbers in them.
        names: Tokens with digits that are no numbers: rule ids, names of agents.
    """

    quantities: Sequence[Quantity]
    texts: Sequence[str] = ()
    names: Sequence[str] = ()
    _quoted: list[Written] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the numbers of the texts once."""
        quoted = [number for text in self.texts for number in numbers_in(text, self.names)]
        object.__setattr__(self, "_quoted", quoted)

    def faults(self, text: str) -> list[str]:
        """What is wrong with the numbers of a text, one sentence each; empty where all are right."""
        return list(dict.fromkeys(filter(None, (self._fault(number) for number in numbers_in(text, self.names)))))

    def _fault(self, number: Written) -> str | None:
        units = (number.unit,) if number.unit is not None else (None, number.shared)
        if any(self._fits(number, unit) for unit in dict.fromkeys(units)):
            return None
        wrong_way = [q for q in self.quantities if _equal(number, q, number.unit) and not _directed(number, q)]
        if wrong_way:
            found = wrong_way[0]
            return (
                f"The number '{number.text}' has the wrong or no direction: {found.name} is {found.shown} {found.unit}"
                ".".replace(" .", ".")
            )
        return f"The number '{number.text}' is not among the facts; use only the numbers given, with their unit."

    def _fits(self, number: Written, unit: Unit | None) -> bool:
        counted = self._counted(number)
        return any(
            _equal(number, q, unit) and _directed(number, q) and _in_place(number, q, counted) for q in self.quantities
        ) or any(_repeats(number, unit, quoted) for quoted in self._quoted)

    def _counted(self, number: Written) -> str | None:
        """The thing that is counted, where the next words name one that is known."""
        nouns = {noun for q in self.quantities for noun in q.nouns}
        return next((word for word in number.after if word in nouns), None)


def _repeats(number: Written, unit: Unit | None, quoted: Written) -> bool:
    """Whether a number stands in a sentence of the facts: with the same unit, or without one beside the same word."""
    theirs = quoted.unit or quoted.shared
    if unit is not None or theirs is not None:
        if unit is None or theirs is None or unit.dimension != theirs.dimension:
            return False
        return math.isclose(abs(number.value) * unit.factor, abs(quoted.value) * theirs.factor)
    if abs(number.value) != abs(quoted.value):
        return False
    beside = number.after[:1] == quoted.after[:1] != ()
    return beside or (number.before == quoted.before != "")


def _in_place(number: Written, quantity: Quantity, counted: str | None) -> bool:
    """Whether the words around the number speak of this quantity, as far as it asks for certain words."""
    if quantity.nouns:
        named = (counted,) if counted is not None else (number.before,)
        return number.before == "n" or any(word in quantity.nouns for word in named)
    return not quantity.near or bool(_words_of(number.sentence) & set(quantity.near))


def _words_of(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]+", sentence.lower()))


def _equal(number: Written, quantity: Quantity, unit: Unit | None) -> bool:
    """Whether the quantity, rounded to the written digits, is the written number, apart from the sign."""
    written = abs(number.value)
    if quantity.count:
        return unit is None and number.decimals == 0 and written == abs(quantity.value)
    own = unit_of(quantity.unit) if quantity.unit else None
    factor = 1.0
    if own is not None and unit is not None and own.dimension == unit.dimension:
        factor = own.factor / unit.factor
    elif own is not None and unit is None and own.dimension == "share":
        factor = 0.01  # a share without the percent sign: 0.38 of 1
    elif own is not None or unit is not None:
        return False
    exact, shown = abs(quantity.value) * factor, abs(float(quantity.shown)) * factor
    if factor == 0.01 or quantity.unit == "":
        # An integer says nothing of a log-risk or a share of 1: 0.52 would pass as "1".
        whole = exact == round(exact)
        if number.decimals == 0 and not whole:
            return False
    half = 0.5 * 10.0**-number.decimals
    if written == 0 and exact > 0.1 * half:
        return False  # "0 ml" is no rounding of 0.4 ml
    return min(abs(written - exact), abs(written - shown)) <= half + _SLACK


def _directed(number: Written, quantity: Quantity) -> bool:
    """Whether the text tells the sign, or the direction, rightly."""
    if number.signed or quantity.value == 0:
        return number.value == 0 or (number.value < 0) == (quantity.value < 0)
    if number.before in ("minus", "negative"):
        return quantity.value < 0
    if quantity.direction == "sign":
        return quantity.value > 0
    said = _words_of(number.sentence)
    down, up = bool(said & set(words().down)), bool(said & set(words().up))
    if quantity.value < 0:
        return down
    return quantity.direction == "words" or up or not down
