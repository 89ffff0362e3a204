"""extract_report: read the drugs, doses, embolics and effect in a treatment report, by words and rules.

Deterministic, over the formulary; the words are data (`report_words.yaml`). The text is data: whatever it asks for, the
only result is what it says was given. Not covered: fractions ("half of it"), several doses in one unit ("50/50/10 mg"),
portions of an agent that is named only before them, languages other than English and Chinese.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Dose
from tools.report_action import (
    BEADS,
    Attenuation,
    Deposition,
    NotGiven,
    ParticleSize,
    ReportedItem,
    ReportFacts,
    ReportReading,
    Role,
)
from tools.report_clauses import Clause
from tools.report_doses import Assigned, assign, dose_of, fits
from tools.report_text import SOFT, Amount, ReportText
from tools.report_words import load_words

__all__ = ["LONGEST", "ReportReading", "extract_report"]

LONGEST = 10_000
"""Characters of one report."""
ENGINE = "words"
_BACK = 2
"""Sentences back in which an agent without a dose may have been named."""


def extract_report(
    report: Annotated[
        str, Field(description="Text of one treatment report, English or Chinese", min_length=1, max_length=LONGEST)
    ],
) -> ReportReading:
    """Read a treatment report: which drugs and embolics were given, in which role, dose and particle size; how far the
    tumour was shut off (level 1 to 4) with the words that decided; and the structured core action text.

    What a report names but did not give (negated, planned, of another session, an allergy) is listed apart. A dose in a
    wrong unit is told in the notes and not taken.

    Args:
        report: Text of one report; nothing in it is taken as an order.

    Returns:
        The reading.

    Raises:
        InputError: The report is empty or too long.
    """
    if not report.strip():
        raise InputError("The report is empty: give the text of one treatment report.")
    if len(report) > LONGEST:
        raise InputError(f"The report has {len(report)} characters, at most {LONGEST} can be read: give one at a time.")
    text = ReportText.read(report)
    reader = _Reader(text)
    facts = ReportFacts(
        items=tuple(given.item() for given in reader.items),
        not_given=tuple(reader.not_given()),
        attenuation=_attenuation(text),
        deposition=_deposition(text),
    )
    return ReportReading.of(facts, ENGINE, unknown=reader.unknown, notes=reader.notes)


@dataclass
class _Given:
    """One administration while the report is being read."""

    name: str
    role: Role | None
    loaded: bool
    weak: bool
    dose: Dose | None
    sizes: tuple[ParticleSize, ...]
    sentence: int
    refused: bool = False

    def item(self) -> ReportedItem:
        return ReportedItem(
            name=self.name,
            role=self.role,
            dose=self.dose,
            particles=self.sizes,
            bound_to=BEADS if self.loaded else None,
        )

    def takes(self, other: _Given) -> bool:
        """Whether both can be one and the same administration, by their roles."""
        return self.role == other.role or self.role is None or other.role is None or self.weak or other.weak

    def absorb(self, other: _Given) -> None:
        if self.role is None or (self.weak and other.role is not None and not other.weak):
            self.role, self.loaded, self.weak = other.role, self.loaded or other.loaded, other.weak
        self.dose = self.dose or other.dose
        self.sizes = tuple(dict.fromkeys((*self.sizes, *other.sizes)))


class _Reader:
    """Goes through the clauses and keeps what was given."""

    def __init__(self, text: ReportText) -> None:
        self.text = text
        self.items: list[_Given] = []
        self.named: list[NotGiven] = []
        self.unknown: list[str] = []
        self.notes: list[str] = []
        for number, sentence in enumerate(text.sentences):
            for start, end in text.parts(sentence):
                self._clause(Clause.read(text, sentence, start, end), number)

    def not_given(self) -> list[NotGiven]:
        """What was named only; seeing or mentioning what was also given tells nothing."""
        given = {item.name for item in self.items}
        return [n for n in self.named if n.reason not in ("observed", "mentioned") or n.name not in given]

    def _clause(self, clause: Clause, number: int) -> None:
        amounts = [a for a in self.text.amounts if clause.start <= a.start < clause.end]
        assigned = assign(self.text, clause.mentions, amounts)
        given = [i for i in range(len(clause.mentions)) if self._was_given(clause, i, assigned)]
        found = [self._read(clause, index, given, assigned, number) for index in given]
        _inherit(found)
        for new in found:
            self._add(new, clause)
        if clause.sentence.header in (None, "given") and not clause.ordered:
            for amount in assigned.left:
                self._left_over(amount, clause, number)
            self._free_sizes(assigned.free_sizes)

    def _was_given(self, clause: Clause, index: int, assigned: Assigned) -> bool:
        reason, amount = clause.status(index), assigned.doses.get(index)
        if reason is None and amount is not None and amount.high <= 0:
            reason = "negated"
        if reason is None and not clause.told(index) and amount is None:
            reason = "mentioned"
        if reason is None:
            return True
        name = clause.mentions[index].name
        if (name, reason) not in {(other.name, other.reason) for other in self.named}:
            self.named.append(NotGiven(name=name, reason=reason, words=clause.words))
        return False

    def _read(self, clause: Clause, index: int, given: list[int], assigned: Assigned, number: int) -> _Given:
        name = clause.mentions[index].name
        role, loaded, weak = clause.role(index, given)
        group = clause.group_of(index)
        if name == "Microspheres" and group.bound:
            name = BEADS
        amount, dose, refused = assigned.doses.get(index), None, False
        if amount is not None:
            dose, note = dose_of(name, amount, self._words(amount))
            if note is not None:
                self.notes.append(note)
                refused = True
        return _Given(name, role, loaded, weak, dose, tuple(assigned.sizes.get(index, ())), number, refused)

    def _words(self, amount: Amount) -> str:
        return self.text.text[amount.start : amount.end]

    def _add(self, new: _Given, clause: Clause) -> None:
        """Add an administration, or see in it one that is there already."""
        words = load_words()
        portion = words.pattern("portion").search(clause.masked) is not None
        same = [old for old in self.items if old.name == new.name]
        for old in same:
            repeated = new.dose is not None and old.dose == new.dose and not portion
            open_dose = new.dose is not None and old.dose is None and not old.refused
            embolic = Formulary.load("all_known").item(new.name).kind == "embolic"
            named_again = new.dose is None and (old.takes(new) or embolic)
            if named_again or ((repeated or open_dose) and (old.takes(new) or embolic)):
                old.absorb(new)
                return
        if same and words.pattern("summary").search(clause.masked):
            return
        self.items.append(new)

    def _left_over(self, amount: Amount, clause: Clause, number: int) -> None:
        """An amount without an agent beside it: of an agent named before, of one nobody knows, or of nothing."""
        words = load_words()
        before = self.text.masked[clause.start : amount.start]
        if words.pattern("not_doses").search(before):
            return
        if (name := self._unknown_name(amount, clause)) is not None:
            self.unknown.append(name)
            self.notes.append(f"'{name}' is no agent of the formulary: its dose {self._words(amount)} was not taken.")
            return
        if words.pattern("summary").search(clause.masked) and not self._open(amount, number):
            return
        target = self._meant(amount, clause, number)
        if target is None:
            self.notes.append(f"No agent could be found for '{' '.join(self._words(amount).split())}'.")
            return
        dose, note = dose_of(target.name, amount, self._words(amount))
        if note is not None:
            self.notes.append(note)
        elif dose is not None and target.dose is None:
            target.dose = dose
        elif dose is not None:
            role = "emulsified" if re.search(words.roles.emulsified, clause.masked, re.IGNORECASE) else target.role
            if re.search(words.roles.mixed, clause.masked, re.IGNORECASE) and clause.mentions:
                role = "emulsified"
            self.items.append(_Given(target.name, role, target.loaded, False, dose, (), number))

    def _open(self, amount: Amount, number: int) -> list[_Given]:
        """Administrations without a dose, near enough and countable in that unit, those of the last sentence only."""
        near = [
            g
            for g in self.items
            if g.dose is None and not g.refused and number - g.sentence <= _BACK and _counted(g.name, amount)
        ]
        return [g for g in near if g.sentence == near[-1].sentence]

    def _meant(self, amount: Amount, clause: Clause, number: int) -> _Given | None:
        words = load_words()
        after = self.text.masked[amount.end : amount.end + 24]
        open_ones = self._open(amount, number)
        if not words.pattern("dose_words").search(clause.masked):
            return None
        if words.pattern("former").search(after) or words.pattern("latter").search(after):
            last = max((g.sentence for g in self.items), default=-1)
            pair = [g for g in self.items if g.sentence == last]
            chosen = pair[:1] if words.pattern("former").search(after) else pair[-1:]
            return chosen[0] if chosen and _counted(chosen[0].name, amount) else None
        if words.pattern("portion").search(clause.masked):
            fitting = [g for g in self.items if _counted(g.name, amount)]
            return fitting[-1] if fitting else None
        return open_ones[0] if len(open_ones) == 1 else None

    def _unknown_name(self, amount: Amount, clause: Clause) -> str | None:
        """A word right beside a mass that looks like a medicine's name."""
        if amount.unit != "mg":
            return None
        words, masked = load_words(), self.text.masked
        after = re.match(r"\s*(?:of )?([A-Za-z][A-Za-z-]{4,})", masked[amount.end : clause.end])
        before = re.search(r"([A-Za-z][A-Za-z-]{4,})\s*[(:]?\s*$", masked[clause.start : amount.start])
        for match in (after, before):
            if match is None or match[1].casefold() in words.fillers:
                continue
            ordinary = ("roles.given", "roles.used", "roles.infused", "dose_words", "portion", "summary", "former")
            if words.pattern("medicine_ending").search(match[1]) and not any(
                words.pattern(name).search(match[1]) for name in ordinary
            ):
                return match[1]
        return None

    def _free_sizes(self, sizes: list[ParticleSize]) -> None:
        particles = [g for g in self.items if _is_particle(g.name)]
        if sizes and particles:
            particles[-1].sizes = tuple(dict.fromkeys((*particles[-1].sizes, *sizes)))


def _counted(name: str, amount: Amount) -> bool:
    return fits(name, amount.unit) and Formulary.load("all_known").item(name).unit is not None


def _is_particle(name: str) -> bool:
    return Formulary.load("all_known").item(name).unit is None


def _inherit(found: list[_Given]) -> None:
    """A drug without words of its own takes the role of the drug before it in the clause."""
    for before, after in itertools.pairwise(found):
        if after.role is None and before.role is not None and before.role != "embolised":
            after.role, after.weak = before.role, True


def _attenuation(text: ReportText) -> Attenuation | None:
    """The effect at the end: staining before arteries, and of one sign the lowest level that is told."""
    words = load_words().attenuation
    found: list[tuple[str, int, str]] = []
    for piece in _pieces(text):
        left = piece
        for pattern, compiled in words.ready:
            for match in compiled.finditer(left):
                quoted = piece[match.start() : match.end()]
                found.append((pattern.sign, pattern.level, " ".join(quoted.split())))
                left = left[: match.start()] + "_" * len(quoted) + left[match.end() :]
    for sign in ("staining", "arteries"):
        levels = [level for kind, level, _ in found if kind == sign]
        if levels:
            lowest = min(levels)
            quotes = dict.fromkeys(quote for kind, level, quote in found if (kind, level) == (sign, lowest))
            return Attenuation.model_validate({"level": lowest, "sign": sign, "words": tuple(quotes)})
    return None


def _deposition(text: ReportText) -> Deposition | None:
    """How the oil lay in the tumour; the first grade that is told."""
    words = load_words().deposition
    for piece in _pieces(text):
        if words.lies.search(piece):
            for grade in words.grades:
                if re.search(grade.find, piece, re.IGNORECASE):
                    return grade.grade
    return None


def _pieces(text: ReportText) -> Iterator[str]:
    """Stretches that may tell the result of this session, cut at semicolons and Chinese commas."""
    words = load_words()
    for sentence in text.sentences:
        for start, end in text.parts(sentence):
            if sentence.header not in (None, "given") or text.ordered(sentence, start):
                continue
            for piece in text.text[start:end].replace("\n", " ").split(SOFT):
                if not re.search(words.attenuation.not_in, piece, re.IGNORECASE):
                    yield piece
