"""Numbers in running text: where they stand, how many digits they have, which unit follows.

``11.0 to 4.2 ml`` holds two numbers of millilitres, ``67-year-old`` one of years, ``two lesions`` one without a unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict


class Unit(BaseModel):
    """A unit and how many of its dimension's first unit one of it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    dimension: str
    factor: float
    spellings: tuple[str, ...]


class Words(BaseModel):
    """Content of `number_check.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    units: tuple[Unit, ...]
    number_words: dict[str, float]
    share_words: dict[str, float]
    down: tuple[str, ...]
    up: tuple[str, ...]
    not_agents: tuple[str, ...]
    drug_stems: tuple[str, ...]
    other_drugs: tuple[str, ...]
    sources: tuple[re.Pattern[str], ...]


@lru_cache(maxsize=1)
def words() -> Words:
    """The shipped word lists, checked against their schema."""
    text = files("agent").joinpath("number_check.yaml").read_text(encoding="utf-8")
    return Words.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class Written:
    """A number as it stands in a text.

    Attributes:
        text: The number and its unit as written.
        value: Its value; negative where a minus sign stands before it.
        decimals: Digits after the point.
        signed: A sign stands before it.
        unit: The unit that follows it, or None.
        shared: Without a unit of its own, the unit of the next number that it is joined with ("11.0 to 4.2 ml").
        before: The word before it, in lower case; empty at the start of its sentence.
        after: The next words of its sentence in lower case, at most four, up to a punctuation mark.
        sentence: The sentence around it.
    """

    text: str
    value: float
    decimals: int
    signed: bool
    unit: Unit | None
    shared: Unit | None
    before: str
    after: tuple[str, ...]
    sentence: str


_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_LIST_MARK = re.compile(r"^[ \t]*\d{1,2}[.)](?=\s)", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# Between two numbers that share the unit of the second one.
_SHARED = re.compile(r"\s*(?:to|and|or|versus|vs\.?|against|,|/|-|–|—)(?:\s+(?:about|some|only))?\s*", re.IGNORECASE)


@lru_cache(maxsize=1)
def _spellings() -> dict[str, Unit]:
    return {spelling: unit for unit in words().units for spelling in unit.spellings}


def unit_of(spelling: str) -> Unit:
    """The unit of that spelling; one that is not listed stands for itself."""
    return _spellings().get(spelling) or Unit(unit=spelling, dimension=spelling, factor=1.0, spellings=(spelling,))


@lru_cache(maxsize=1)
def _number() -> re.Pattern[str]:
    units = "|".join(re.escape(s) for s in sorted(_spellings(), key=len, reverse=True))
    spelt = "|".join(sorted((*words().number_words, *words().share_words), key=len, reverse=True))
    return re.compile(
        rf"(?P<sign>(?<![\w)\]])[+−–-])?(?:(?<![\d.])(?P<digits>{_DIGITS})|\b(?P<word>{spelt})\b)"
        rf"(?:[ \u00a0\u202f-]?(?P<unit>{units})(?![A-Za-z0-9/^]))?",
        re.IGNORECASE,
    )


def numbers_in(text: str, known: Iterable[str] = ()) -> list[Written]:
    """All numbers of a text, in order.

    Args:
        text: Running text.
        known: Tokens with digits that are no numbers (rule ids, names of agents); marks of numbered lists are passed
            over as well.
    """
    for token in sorted(known, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", " " * len(token), text)
    text = _LIST_MARK.sub(lambda mark: " " * len(mark.group()), text)
    found: list[Written] = []
    previous_end = 0
    waiting: list[int] = []  # numbers without a unit that may share the next one's
    for match in _number().finditer(text):
        unit = None if match["unit"] is None else _unit_as_written(match["unit"])
        if not _SHARED.fullmatch(text[previous_end : match.start()]):
            waiting = []
        written = _written(text, match, unit)
        if unit is None:
            waiting.append(len(found))
        else:
            for index in waiting:
                found[index] = replace(found[index], shared=unit)
            waiting = []
        found.append(written)
        previous_end = match.end()
    return found


def _unit_as_written(spelling: str) -> Unit | None:
    known = _spellings()
    if spelling in known:
        return known[spelling]
    folded = {name.casefold(): unit for name, unit in known.items()}
    # One letter is a unit only as it is listed: "5 L" and "5 g", never "5 G".
    return folded.get(spelling.casefold()) if len(spelling) > 1 else None


def _written(text: str, match: re.Match[str], unit: Unit | None) -> Written:
    sign = match["sign"]
    spelt = match["word"]
    if spelt is not None:
        lists = words()
        share = lists.share_words.get(spelt.lower())
        value = lists.number_words[spelt.lower()] if share is None else share
        decimals, unit = 0, unit if share is None else unit_of("%")
    else:
        digits = match["digits"].replace(",", "")
        value, decimals = float(digits), len(digits.partition(".")[2])
    return Written(
        text=match.group().strip(),
        value=-value if sign in ("-", "−", "–") else value,
        decimals=decimals,
        signed=sign is not None,
        unit=unit,
        shared=None,
        before=_word_before(text[: match.start()]),
        after=_words_after(text[match.end() :]),
        sentence=sentence_at(text, match.start()),
    )


def _word_before(text: str) -> str:
    found = re.search(r"([^\W\d_]+)[\s=:(\[~≈'\"]*$", text)
    return found[1].lower() if found else ""


def _words_after(text: str) -> tuple[str, ...]:
    clause = re.split(r"[.,;:!?()\n]", text, maxsplit=1)[0]
    return tuple(word.lower() for word in re.findall(r"[^\W\d_]+", clause)[:4])


def sentence_at(text: str, place: int) -> str:
    """The sentence, or the line, that holds the character at `place`."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end.start() >= place:
            return text[start : end.start()]
        start = end.end()
    return text[start:]
