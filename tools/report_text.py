"""Report text: a treatment report cut into sentences, with its agents and amounts found.

The words are data (`report_words.yaml`), the agents are those of the formulary.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from models.formulary import Formulary
from tools.report_words import Section, Unit, compiled, load_words

AGENT, AMOUNT, SOFT = "¤", "#", "¦"
"""What stands in the masked text for an agent, for an amount, and for a comma of a Chinese text."""

_SCALES = ("hundred", "thousand")
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?"
_BULLET = re.compile(r"\s*(?:[-*•·]|\(?\d{1,2}[.)])\s+")


@dataclass(frozen=True)
class Mention:
    """An agent's name in the text."""

    start: int
    end: int
    name: str
    kind: Literal["drug", "embolic"]


@dataclass(frozen=True)
class Amount:
    """A number with its unit; `high` differs from `low` in a range.

    `body`: relative to body size. `slashed`: behind the slash of another amount ("50 mg/10 ml"), often a concentration.
    """

    start: int
    end: int
    low: float
    high: float
    unit: Literal["mg", "ml", "um", "mm"]
    body: bool
    slashed: bool = False


@dataclass(frozen=True)
class Sentence:
    """A stretch of the text; `header` is what its line, or the section that it stands in, is about."""

    start: int
    end: int
    header: Section | None


@dataclass(frozen=True)
class ReportText:
    """A report, ready to be read.

    Attributes:
        text: The report after Unicode normalisation.
        masked: The same length; agents, amounts and Chinese commas are replaced by their marks.
        mentions: Agents in order.
        amounts: Amounts in order.
        sentences: Sentences in order.
    """

    text: str = field(repr=False)
    masked: str = field(repr=False)
    mentions: tuple[Mention, ...]
    amounts: tuple[Amount, ...]
    sentences: tuple[Sentence, ...]

    @classmethod
    def read(cls, report: str) -> ReportText:
        """Find agents, amounts and sentences."""
        text = _normalise(report)
        mentions, masked = _mentions(text)
        amounts = _amounts(masked)
        for amount in amounts:
            masked = _mask(masked, amount.start, amount.end, AMOUNT)
        return cls(text, masked, mentions, amounts, _sentences(masked))

    def parts(self, sentence: Sentence) -> list[tuple[int, int]]:
        """The stretches of a sentence between its semicolons."""
        cuts = [m.start() for m in re.finditer(";", self.masked[sentence.start : sentence.end])]
        edges = [sentence.start, *(sentence.start + c for c in cuts), sentence.end]
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def ordered(self, sentence: Sentence, start: int) -> bool:
        """Whether the part of a sentence that begins at `start` orders something, or is what an order dictates."""
        orders = load_words().orders
        before = [self.masked[a:b].lstrip("; ") for a, b in self.parts(sentence) if a <= start]
        return orders.search(before[-1]) is not None or any(":" in part and orders.search(part) for part in before)


def _normalise(report: str) -> str:
    for mark in (AGENT, AMOUNT, SOFT, "®", "™"):
        report = report.replace(mark, " ")
    report = unicodedata.normalize("NFKC", report.replace("，", SOFT).replace("\r\n", "\n").replace("\r", "\n"))
    # Invisible characters would hide words from the patterns: formatting ones go, other control characters part words.
    visible = (c for c in report if unicodedata.category(c) != "Cf")
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in visible)


def _mask(text: str, start: int, end: int, mark: str) -> str:
    return text[:start] + mark * (end - start) + text[end:]


@cache
def _agents() -> tuple[re.Pattern[str], tuple[tuple[str, ...], ...]]:
    """One pattern with a group per spelling, longest first, and the agents of each group."""
    words, formulary = load_words(), Formulary.load("all_known")
    spelled: list[tuple[str, tuple[str, ...]]] = []
    for item in formulary.items:
        for spelling in (item.name, *item.synonyms):
            runs = re.findall(r"[^\W_]+", spelling)
            spelled.append((r"[\s'‐-―-]*".join(map(re.escape, runs)), (item.name,)))
    spelled.sort(key=lambda pair: -len(pair[0]))
    exact = {re.escape(word) for word in words.exact_case}
    own = [(f"(?i:{pattern})", s.items) for s in words.spellings for pattern in s.patterns]
    own = [(p if p[4:-1] not in exact else p[4:-1], names) for p, names in own]
    listed = [(body if body in exact else f"(?i:{body})", names) for body, names in spelled]
    pattern = "|".join(f"({_bounded(body)})" for body, _ in (*own, *listed))
    return re.compile(pattern), tuple(names for _, names in (*own, *listed))


def _bounded(body: str) -> str:
    """A spelling as a word of its own; Chinese text has no spaces to stand between."""
    return rf"(?:(?<![A-Za-z0-9])|(?<=\dmg)|(?<=\dml)){body}s?(?![A-Za-z])" if re.search("[A-Za-z]", body) else body


def _mentions(text: str) -> tuple[tuple[Mention, ...], str]:
    words, formulary = load_words(), Formulary.load("all_known")
    pattern, names_of = _agents()
    hidden = text
    for look_alike in words.look_alikes:
        for found in compiled(look_alike).finditer(text):
            hidden = _mask(hidden, found.start(), found.end(), " ")
    mentions: list[Mention] = []
    masked = hidden
    for found in pattern.finditer(hidden):
        assert found.lastindex is not None  # every alternative is a group
        masked = _mask(masked, found.start(), found.end(), AGENT)
        for name in names_of[found.lastindex - 1]:
            seen = {mention.name for mention in mentions}
            generic = found.group().casefold().rstrip("s") == name.casefold().rstrip("s")
            if generic and words.anaphora.get(name) in seen:
                name = words.anaphora[name]
            mentions.append(Mention(found.start(), found.end(), name, formulary.item(name).kind))
    return tuple(mentions), masked


@cache
def _amount_pattern() -> tuple[re.Pattern[str], re.Pattern[str], dict[str, Unit]]:
    words = load_words()
    unit_of = {text.casefold(): unit for unit, texts in words.units.items() for text in texts}
    unit = "|".join(sorted(map(re.escape, unit_of), key=len, reverse=True))
    body, other = "|".join(words.per_body), "|".join(words.per_other)
    per = rf"(?:\s*(?:/|per)\s*(?:(?P<body>{body})|(?P<other>{other}))(?![A-Za-z0-9]))?"
    number = rf"(?:(?<![A-Za-z0-9.,/⁄])|(?P<slash>(?<=[A-Za-z]/)))(?P<low>{_NUMBER}|{_spelled()})"
    between = rf"\s*(?:{unit})?\s*(?:-|–|—|~|to|至|到)\s*"
    tolerance = rf"(?:\s*(?:±|\+/-|\+-)\s*(?:{_NUMBER}))?"
    amount = rf"{number}(?:{between}(?P<high>{_NUMBER}))?{tolerance}[\s-]?\s*(?P<unit>{unit})(?![A-Za-z]){per}"
    mass = "|".join(map(re.escape, (*words.units["mg"], *words.units["ml"])))
    turned = rf"(?<![A-Za-z0-9#/])(?P<unit>{mass})\.?\s+(?P<low>{_NUMBER})(?![\d.,]*\d)(?!\s*(?:{unit}|%))"
    return compiled(amount), compiled(turned), unit_of


def _amounts(masked: str) -> tuple[Amount, ...]:
    usual, turned, unit_of = _amount_pattern()
    found: list[Amount] = []
    left = masked
    for pattern in (usual, turned):  # "mg 50" is read only where no number stands before the unit
        for match in pattern.finditer(left):
            groups = match.groupdict()
            if groups.get("other"):
                continue
            unit = unit_of[groups["unit"].casefold()]
            low = _number(groups["low"])
            high = _number(groups["high"]) if groups.get("high") else low
            if low is None or high is None:
                continue
            if unit == "g":
                low, high, unit = low * 1000, high * 1000, "mg"
            slashed = groups.get("slash") is not None
            found.append(Amount(match.start(), match.end(), low, high, unit, bool(groups.get("body")), slashed))
        for match in pattern.finditer(left):
            left = _mask(left, match.start(), match.end(), AMOUNT)
    return tuple(sorted(found, key=lambda amount: amount.start))


def _spelled() -> str:
    """A number in words, always the whole of it: "five" of "twenty-five" is none."""
    word = rf"(?:{'|'.join(sorted((*load_words().number_words, *_SCALES), key=len, reverse=True))})"
    return rf"(?:a\s)?{word}(?:(?:[\s-]|(?<=hundred)\sand\s|(?<=thousand)\sand\s){word})*"


def _spelled_number(text: str) -> float | None:
    """``twenty-five`` is 25, ``one hundred and fifty`` 150; None where the words make no number ("two five")."""
    known = load_words().number_words
    thousands, below, last = 0, 0, 0
    for word in re.findall("[a-z]{2,}", text.casefold()):
        if word == "and":
            continue
        if word == "thousand":
            thousands, below = max(1, below) * 1000, 0
        elif word == "hundred":
            below = max(1, below) * 100
        elif 0 < last < 20 or (last and known[word] >= 10):
            return None
        else:
            below += known[word]
        last = known.get(word, 0)
    return float(thousands + below)


def _number(text: str) -> float | None:
    """``1,000`` is a thousand, ``7,5`` is seven and a half; None for words that make no number."""
    if text[0].isalpha():
        return _spelled_number(text)
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return float(text.replace(",", ""))
    return float(text.replace(",", "."))


def _sentences(masked: str) -> tuple[Sentence, ...]:
    words = load_words()
    spans: list[tuple[int, int]] = []
    start = 0
    for match in re.finditer(r"[.!?](?=\s|$)|[。！？]|\n", masked):
        before = masked[max(start, match.start() - 12) : match.start()].casefold().split()
        if match.group() == "." and before and before[-1] in words.abbreviations:
            continue
        if match.group() == "\n" and not _line_ends(masked, start, match.end()):
            continue
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(masked)))
    out: list[Sentence] = []
    section: Section | None = None
    for begin, end in spans:
        line = masked[begin:end]
        if not line.strip():
            if "\n" in line:
                section = None  # a blank line ends a section
            continue
        header: Section | None = None
        plain = _BULLET.sub("", line.strip(), count=1) if _BULLET.match(line.strip()) else line.strip()
        for kind in ("allergy", "previous", "planned", "given"):
            if re.match(rf"(?:{getattr(words.headers, kind)})\s*:", plain, re.IGNORECASE):
                header = kind
                break
        if header is not None and not plain.partition(":")[2].strip():
            section = header
        elif header is not None:
            section = None
        out.append(Sentence(begin, end, header or section))
    return tuple(out)


def _line_ends(masked: str, start: int, after: int) -> bool:
    """Whether a line end ends the sentence: not where a wrapped line goes on."""
    before, rest = masked[start : after - 1].rstrip(), masked[after:]
    following = rest.split("\n", 1)[0]
    if not before or not following.strip() or before[-1] in ".:;。!?" or _BULLET.match(following):
        return True
    first = following.lstrip()[0]
    return not (first.islower() or first in f"{AMOUNT}{AGENT}(")
