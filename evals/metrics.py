"""Scores of one protocol against a gold protocol, and what is made of them over cases. Pure: no model, no file.

As in the paper (Table 2): set metrics per case, then the unweighted mean over cases (example-based, scikit-learn's
``average="samples"``). Conventions that the paper leaves open: both sets empty scores 1, one of them empty scores 0; an
agent that nothing knows, or that is outside the action set, is a false positive; an invalid or missing answer is an
empty one, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Dose, Protocol
from tools.rule_facts import known_agents
from tools.rulebook import CheckRulesResult, ProtocolVerdict

Answer = Protocol | Sequence[str] | None
"""A protocol, agents by name as a model wrote them, or None where there is no valid answer."""

BEADS = "Drug-eluting beads"


class ProtocolScore(BaseModel):
    """One answer against one gold protocol. Shares lie in [0, 1], more is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    f1: float
    jaccard: float
    precision: float
    recall: float
    exact: bool = Field(description="The same set of agents, doses apart")
    drug_f1: float
    embolic_f1: float
    class_f1: float = Field(description="F1 over classes: any platinum is a platinum")
    dose_within: float | None = Field(
        description="Share of the agents that gold doses whose answered dose lies in the formulary's range; None where "
        "gold has no dose that a range is known for, and where the answer states no dose: a choice of agents only is "
        "not judged by doses"
    )
    unknown_items: tuple[str, ...] = Field(description="Answered agents outside the action set, each once")
    invalid: bool = Field(description="There was no valid answer")


class SetScore(NamedTuple):
    """Precision, recall, F1 and Jaccard index of two sets."""

    precision: float
    recall: float
    f1: float
    jaccard: float


class ItemCount(NamedTuple):
    """How often an agent was answered and how often it was right, over cases."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def f1(self) -> float | None:
        """F1 of this agent; None where it is neither in an answer nor in gold."""
        positives = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / positives if positives else None


class Violations(BaseModel):
    """The rules that an answer breaks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocking: tuple[str, ...] = Field(description="Ids of blocking rules that the protocol itself breaks")
    warnings: tuple[str, ...] = Field(description="Ids of warning rules that fired on the protocol")
    patient: tuple[str, ...] = Field(description="Ids of rules that block every protocol for this patient")
    not_evaluable: tuple[str, ...] = Field(description="Ids of rules that lack an input")

    @property
    def count(self) -> int:
        """Blocking rules that the protocol itself breaks."""
        return len(self.blocking)


class Reachability(BaseModel):
    """Whether a search under these rules and horizons could have returned the gold protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reachable: bool
    reasons: tuple[str, ...] = Field(default=(), description="Why not, one sentence each")


def set_score(answer: frozenset[str], gold: frozenset[str]) -> SetScore:
    """Set metrics of one case: i/|P|, i/|G|, 2i/(|P|+|G|), i/|P or G|; both empty 1, one empty 0."""
    if not answer and not gold:
        return SetScore(1.0, 1.0, 1.0, 1.0)
    hits = len(answer & gold)
    precision = hits / len(answer) if answer else 0.0
    recall = hits / len(gold) if gold else 0.0
    return SetScore(precision, recall, 2 * hits / (len(answer) + len(gold)), hits / len(answer | gold))


class _Read(NamedTuple):
    """An answer as sets of names. `strange` are names that nothing knows: they count against either side."""

    drugs: frozenset[str]
    embolics: frozenset[str]
    strange: frozenset[str]
    doses: dict[str, Dose]
    unknown: tuple[str, ...]

    @property
    def items(self) -> frozenset[str]:
        return self.drugs | self.embolics | self.strange


def _read(answer: Answer, formulary: Formulary) -> _Read:
    parts: list[Protocol] = []
    strange: dict[str, str] = {}
    if isinstance(answer, Protocol):
        parts = [answer]
    else:
        for text in answer or ():
            try:
                parts.append(known_agents().parse(text))
            except InputError:  # unknown, or with a dose that can't be: what was written is in no gold
                strange.setdefault(" ".join(text.casefold().split()), text.strip())
    named = dict.fromkeys(name for part in parts for name in part.items)
    return _Read(
        drugs=frozenset(name for part in parts for name in part.drugs),
        embolics=frozenset(name for part in parts for name in part.embolics),
        strange=frozenset(strange),
        doses={name: dose for part in parts for name, dose in part.doses},
        unknown=(*(name for name in named if name not in formulary), *strange.values()),
    )


def score_protocol(answer: Answer, gold: Protocol, formulary: Formulary) -> ProtocolScore:
    """Score one answer.

    Args:
        answer: A protocol, or names (each element one agent in any known spelling, a dose allowed); None for an
            invalid or missing answer. An element that can't be read is one false positive.
        gold: The gold protocol, with agents of `formulary` only.
        formulary: The action set that was asked for.

    Returns:
        The score.

    Raises:
        ValueError: Gold holds an agent outside the action set: dataset and action set do not belong together.
    """
    if strangers := [name for name in gold.items if name not in formulary]:
        raise ValueError(f"gold holds {', '.join(strangers)}, outside the action set {formulary.name!r}")
    read = _read(answer, formulary)
    every = set_score(read.items, frozenset(gold.items))
    classes = {i.name: i.name if i.item_class == "unclassified" else i.item_class for i in formulary.items}
    # An agent outside the action set keeps its name here: it must not pass for one of its class.
    answered_classes = frozenset(str(classes.get(name, name)) for name in read.items)
    return ProtocolScore(
        f1=every.f1,
        jaccard=every.jaccard,
        precision=every.precision,
        recall=every.recall,
        exact=read.items == frozenset(gold.items),
        drug_f1=set_score(read.drugs | read.strange, frozenset(gold.drugs)).f1,
        embolic_f1=set_score(read.embolics | read.strange, frozenset(gold.embolics)).f1,
        class_f1=set_score(answered_classes, frozenset(str(classes[name]) for name in gold.items)).f1,
        dose_within=_dose_within(read, gold, formulary),
        unknown_items=read.unknown,
        invalid=answer is None,
    )


def _dose_within(read: _Read, gold: Protocol, formulary: Formulary) -> float | None:
    if not read.doses:
        return None
    inside: list[bool] = []
    for name, _ in gold.doses:
        item = formulary.item(name)
        limits = item.dose_with_beads if BEADS in read.embolics and item.dose_with_beads is not None else item.dose
        if limits is None:
            continue
        dose = read.doses.get(name)
        inside.append(dose is not None and dose.unit == limits.unit and limits.low <= dose.amount <= limits.high)
    return sum(inside) / len(inside) if inside else None


def item_counts(pairs: Iterable[tuple[Answer, Protocol]], formulary: Formulary) -> dict[str, ItemCount]:
    """Confusion by agent over cases, in the formulary's order; answered agents outside the action set come after it.

    Args:
        pairs: Answer and gold of each case.
        formulary: The action set.
    """
    cases = [(_read(answer, formulary).items, frozenset(gold.items)) for answer, gold in pairs]
    known = [item.name for item in formulary.items]
    others = sorted({name for answered, _ in cases for name in answered} - set(known))
    return {
        name: ItemCount(
            sum(name in answered and name in gold for answered, gold in cases),
            sum(name in answered and name not in gold for answered, gold in cases),
            sum(name not in answered and name in gold for answered, gold in cases),
            sum(name not in answered and name not in gold for answered, gold in cases),
        )
        for name in (*known, *others)
    }


def micro_counts(pairs: Iterable[tuple[Answer, Protocol]], formulary: Formulary) -> tuple[int, int]:
    """Agents answered rightly, and agents answered wrongly or missed, over all cases.

    Args:
        pairs: Answer and gold of each case.
        formulary: The action set.
    """
    counts = item_counts(pairs, formulary).values()
    hits = sum(count.true_positive for count in counts)
    return hits, sum(count.false_positive + count.false_negative for count in counts)


def micro_f1(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F1 over all agents of all cases pooled; 1 where neither an answer nor a gold holds any agent.

    Args:
        counts: (..., 2) sums of `micro_counts`.

    Returns:
        (...) in [0, 1].
    """
    hits, errors = counts[..., 0], counts[..., 1]
    return np.where(hits + errors > 0, 2 * hits / np.maximum(2 * hits + errors, 1), 1.0)


def stability(answers: Sequence[Protocol | None]) -> float | None:
    """Mean pairwise Jaccard index of repeated answers to one case (epochs, seeds); None for fewer than two.

    A missing answer is an empty one: two missing answers agree, one missing answer agrees with nothing.
    """
    sets = [frozenset(answer.items) if answer else frozenset[str]() for answer in answers]
    pairs = [set_score(one, other).jaccard for one, other in combinations(sets, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def violations(answer: Protocol, rules: CheckRulesResult) -> Violations:
    """The rules that an answer breaks.

    Args:
        answer: The answered protocol.
        rules: `check_rules` (``stage="complete"``) on a list that holds it.

    Raises:
        KeyError: The rules were not asked about this protocol.
    """
    findings = _verdict(answer, rules).findings
    return Violations(
        blocking=tuple(finding.rule_id for finding in findings if finding.blocks),
        warnings=tuple(f.rule_id for f in findings if f.status == "fired" and f.strength == "warn"),
        patient=tuple(finding.rule_id for finding in rules.patient if finding.blocks),
        not_evaluable=tuple(f.rule_id for f in (*findings, *rules.patient) if f.status == "not_evaluable"),
    )


def reachable(
    gold: Protocol, rules: CheckRulesResult, horizons: tuple[int, int], actions: Formulary | None = None
) -> Reachability:
    """Whether a search that obeys the rules could have returned the gold protocol: a limit on every score.

    Args:
        gold: The gold protocol.
        rules: `check_rules` (``stage="complete"``) on a list that holds it.
        horizons: Most drugs and most embolics of the search.
        actions: The action set of the search, where it is narrower than that of the gold.

    Raises:
        KeyError: The rules were not asked about this protocol.
    """
    reasons: list[str] = []
    for kind, items, most in (("drug", gold.drugs, horizons[0]), ("embolic", gold.embolics, horizons[1])):
        if not items:
            reasons.append(f"Gold has no {kind}, which a search always adds.")
        elif len(items) > most:
            reasons.append(f"Gold has {len(items)} {kind}s, the horizon is {most}.")
        if strangers := [name for name in items if actions is not None and name not in actions]:
            reasons.append(f"Gold has {', '.join(strangers)}, outside the action set of the search.")
    reasons += [f"{f.rule_id}: {f.message}" for f in (*rules.patient, *_verdict(gold, rules).findings) if f.blocks]
    return Reachability(reachable=not reasons, reasons=tuple(reasons))


def recall_of(proposed: Iterable[str], gold: Protocol) -> float:
    """Share of the gold agents inside a proposed action space (stage ``propose``); 1 where gold is empty.

    Args:
        proposed: Canonical names.
        gold: The gold protocol, or the truly best one.
    """
    wanted = set(gold.items)
    return len(wanted & set(proposed)) / len(wanted) if wanted else 1.0


def _verdict(protocol: Protocol, rules: CheckRulesResult) -> ProtocolVerdict:
    for verdict in rules.verdicts:
        if verdict.protocol == protocol.key:
            return verdict
    raise KeyError(protocol.key)
