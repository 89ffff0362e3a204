"""Report doses: which amount of a clause belongs to which agent.

An amount goes to the agent that is nearest by what stands between them; a unit that does not fit the agent makes it
farther away, but never moves an amount past the agent that it touches: "100 ml Oxaliplatin, Lipiodol" gives Lipiodol
no dose.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.formulary import Formulary
from models.protocol import Dose
from tools.report_action import ParticleSize
from tools.report_text import AGENT, AMOUNT, Amount, Mention, ReportText
from tools.report_words import load_words

_WORD, _FOREIGN, _SEPARATOR, _CROSSING, _CLOSED = 0.3, 1.0, 3.0, 3.0, 3.0
_MISFIT_TOUCHING, _MISFIT, _MASS_OF_PARTICLES, _VOLUME_OF_PARTICLES, _FOLLOWING = 2.5, 6.0, 1.5, 0.3, 0.1
_FARTHEST = 8.0
_FARTHEST_MM = 1.5
"""Millimetres are also said of tumours and catheters: only right beside particles are they a particle size."""
_PARTICLES = ("temporary_particle", "permanent_particle", "drug_eluting", "unclassified")


@dataclass
class Assigned:
    """Amounts of one clause by the position of their mention in it."""

    doses: dict[int, Amount] = field(default_factory=dict)
    sizes: dict[int, list[ParticleSize]] = field(default_factory=dict)
    left: list[Amount] = field(default_factory=list)
    free_sizes: list[ParticleSize] = field(default_factory=list)


def assign(text: ReportText, mentions: Sequence[Mention], amounts: Sequence[Amount]) -> Assigned:
    """Share the amounts of a clause among its agents.

    Args:
        text: The report.
        mentions: Agents of the clause, in order.
        amounts: Amounts of the clause, in order.
    """
    out = Assigned()
    every = [a for a in amounts if a.unit in ("mg", "ml") and not _of_something_else(text, a)]
    doses = [a for a in every if not a.slashed]
    for amount in (a for a in amounts if a.unit in ("um", "mm")):
        _size(text, mentions, amount, out)
    if _in_order(text, mentions, doses, out) or _slash_list(text, mentions, every, out):
        return out
    pairs = sorted(
        (_distance(text, mentions, index, amount), amount.start, index, amount)
        for amount in doses
        for index in range(len(mentions))
    )
    taken: set[int] = set()
    # Amounts by body size last: beside one there may be the dose itself, in brackets.
    for body in (False, True):
        for distance, start, index, amount in pairs:
            if amount.body is body and distance <= _FARTHEST and start not in taken and index not in out.doses:
                out.doses[index] = amount
                taken.add(start)
                _share(text, mentions, index, amount, out)
    out.left = [a for a in doses if a.start not in taken and not a.body and not _diluent(mentions, a, out)]
    return out


def fits(name: str, unit: str) -> bool:
    """Whether an agent can be counted in that unit; particles are told in either."""
    counted = Formulary.load("all_known").item(name).unit
    return counted is None or counted == unit


def dose_of(name: str, amount: Amount, words: str) -> tuple[Dose | None, str | None]:
    """An amount as the dose of an agent, or why it can't be taken.

    Args:
        name: Canonical name.
        amount: What is stated.
        words: The words of the report.
    """
    words = " ".join(words.split())
    if amount.body:
        return None, f"'{words}' of {name} depends on body size: no session dose was taken."
    if amount.low != amount.high:
        return None, f"'{words}' of {name} is a range: no dose was taken."
    if not fits(name, amount.unit):
        unit = Formulary.load("all_known").item(name).unit
        return None, f"'{words}' of {name} is no dose, because {name} is counted in {unit}: no dose was taken."
    if amount.low <= 0:
        return None, None
    return Dose(amount=amount.low, unit="mg" if amount.unit == "mg" else "ml"), None


def _distance(text: ReportText, mentions: Sequence[Mention], index: int, amount: Amount) -> float:
    mention = mentions[index]
    follows = mention.start > amount.start
    gap = text.masked[amount.end : mention.start] if follows else text.masked[mention.end : amount.start]
    gap = re.sub(r"\([^()]*\)", " ", gap)  # what is in brackets between them parts nothing
    known = load_words()
    fillers = known.fillers
    plain = re.sub("|".join(f for f in fillers if not f.isascii()), " ", gap)
    words = [w.casefold() for w in re.findall(r"[^\W\d_]+", plain)]
    crossed = len(re.findall(f"{AGENT}+", gap)) + (0 if amount.body else len(re.findall(f"{AMOUNT}+", gap)))
    distance = _WORD * len(words) + _FOREIGN * sum(w not in fillers for w in words)
    distance += (
        _SEPARATOR * len(load_words().pattern("parting").findall(gap))
        + _CROSSING * crossed
        + (_FOLLOWING if follows else 0.0)
    )
    if ")" in gap:
        distance += _CLOSED  # the bracket closes between them: one of them belongs to something before it
    if not fits(mention.name, amount.unit):
        distance += _MISFIT_TOUCHING if distance <= _WORD + _FOLLOWING else _MISFIT
    elif Formulary.load("all_known").item(mention.name).unit is None:
        distance += _MASS_OF_PARTICLES if amount.unit == "mg" else _VOLUME_OF_PARTICLES
    return distance


def _in_order(text: ReportText, mentions: Sequence[Mention], doses: Sequence[Amount], out: Assigned) -> bool:
    """ "A and B, 10 mg and 20 mg respectively"."""
    if not mentions or len(mentions) != len(doses):
        return False
    first = min(mentions[0].start, doses[0].start)
    end = text.masked.find("\n", first)
    window = text.masked[first : end if end > 0 else None][: doses[-1].end - first + 40]
    apart = mentions[-1].end <= doses[0].start or doses[-1].end <= mentions[0].start
    if not (apart and load_words().pattern("respectively").search(window)):
        return False
    if not all(fits(m.name, d.unit) for m, d in zip(mentions, doses, strict=True)):
        return False
    out.doses = dict(enumerate(doses))
    return True


def _slash_list(text: ReportText, mentions: Sequence[Mention], doses: Sequence[Amount], out: Assigned) -> bool:
    """ "A/B (10 mg/20 ml)": amounts joined by slashes, in the order of agents that are joined too."""
    if len(mentions) != len(doses) or not any(amount.slashed for amount in doses):
        return False
    apart = mentions[-1].end <= doses[0].start or doses[-1].end <= mentions[0].start
    joints = [text.masked[a.end : b.start].strip() for a, b in itertools.pairwise(mentions)]
    if not apart or any(joint not in ("/", "-", "+", "&", "and") for joint in joints):
        return False
    if not all(a.slashed for a in doses[1:]) or not all(
        fits(m.name, d.unit) for m, d in zip(mentions, doses, strict=True)
    ):
        return False
    out.doses = dict(enumerate(doses))
    return True


def _share(text: ReportText, mentions: Sequence[Mention], index: int, amount: Amount, out: Assigned) -> None:
    """ "A and B 50 mg each": the same amount for every agent of the list that has none."""
    words = load_words()
    after = words.pattern("each").search(text.masked[amount.end : amount.end + 12])
    if after is None and not words.pattern("each_before").search(text.masked[: amount.start]):
        return
    step = -1 if mentions[index].end <= amount.start else 1
    other = index + step
    while 0 <= other < len(mentions) and other not in out.doses and fits(mentions[other].name, amount.unit):
        near, far = sorted((mentions[other], mentions[other - step]), key=lambda m: m.start)
        if not words.pattern("coordination").fullmatch(text.masked[near.end : far.start]):
            return
        out.doses[other] = amount
        other += step


def _size(text: ReportText, mentions: Sequence[Mention], amount: Amount, out: Assigned) -> None:
    scale = 1000.0 if amount.unit == "mm" else 1.0
    formulary = Formulary.load("all_known")
    if amount.low <= 0 or amount.low > amount.high:
        return
    size = ParticleSize(low_um=amount.low * scale, high_um=amount.high * scale)
    near = sorted(
        (_distance(text, mentions, index, amount) - _VOLUME_OF_PARTICLES, index)
        for index, mention in enumerate(mentions)
        if formulary.item(mention.name).item_class in _PARTICLES
    )
    if near and near[0][0] <= (_FARTHEST if amount.unit == "um" else _FARTHEST_MM):
        out.sizes.setdefault(near[0][1], []).append(size)
    elif amount.unit == "um":
        out.free_sizes.append(size)


def _of_something_else(text: ReportText, amount: Amount) -> bool:
    """Whether it is an amount of saline, of contrast agent, of the emulsion."""
    words = load_words()
    things = (*words.substances, words.mixtures) if amount.unit == "ml" else words.substances
    thing = rf"(?:{'|'.join(things)})(?![A-Za-z])"
    after, before = text.masked[amount.end : amount.end + 80], text.masked[max(0, amount.start - 60) : amount.start]
    own = re.search(rf"{AGENT}[\s(:,]*$", before) is not None  # "Lipiodol 10 ml emulsion"
    if re.match(rf"[\s\d%]*{'of ' if own else '(?:of )?'}[\s\d%]*{thing}", after, re.IGNORECASE):
        return True
    if amount.unit == "ml" and words.pattern("mixed_volume").match(after):
        return True
    if re.search(rf"(?<![A-Za-z]){thing}[\s:(]*$", before, re.IGNORECASE):
        return True
    if words.pattern("planned_dose").search(before):
        return True
    return amount.unit == "ml" and any(words.pattern(name).search(before) for name in ("diluted", "ratio"))


def _diluent(mentions: Sequence[Mention], amount: Amount, out: Assigned) -> bool:
    """Whether a volume that nothing took is what a drug with a dose was given in."""
    before = [index for index, mention in enumerate(mentions) if mention.end <= amount.start]
    if amount.unit != "ml" or not before:
        return False
    dosed = out.doses.get(before[-1])
    return mentions[before[-1]].kind == "drug" and dosed is not None and dosed.unit == "mg"
