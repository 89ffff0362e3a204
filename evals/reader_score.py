"""Score of a reader study: both answers of every reader against gold, paired by case, and who changed what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from evals.metrics import score_protocol, set_score
from evals.reader import Answers, Key, ReaderCase
from evals.results import ResultModel
from evals.statistics import Interval, Paired, bootstrap_mean, holm, paired_difference
from models.errors import InputError
from models.formulary import Formulary
from models.protocol import Protocol

METRICS = ("f1", "jaccard", "precision", "recall")
EVERYBODY = "all readers"
Kind = Literal["unchanged", "took the plan over", "towards the plan", "away from the plan", "changed otherwise"]
Scores = dict[str, float]
Pair = tuple[Scores, Scores]
"""Scores before and after."""


class MetricResult(ResultModel):
    """One metric before and after, paired by case."""

    metric: str
    before: Interval
    after: Interval
    difference: Paired = Field(description="after minus before")
    p_holm: float


class Change(ResultModel):
    """What one reader did in one case."""

    reader: str
    case: str
    case_id: str
    before: str
    after: str
    plan: str
    gold: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    kind: Kind
    f1_before: float
    f1_after: float


class ReaderResult(ResultModel):
    """One reader, or the mean over all."""

    reader: str
    n: int
    metrics: tuple[MetricResult, ...]
    kinds: dict[str, int]
    unanswered: tuple[str, ...]


class StudyResult(ResultModel):
    """The whole study."""

    variant: str
    planned_by: str
    data: str
    readers: tuple[ReaderResult, ...]
    plan: dict[str, Interval] = Field(description="the plan itself on the cases that some reader answered")
    n: int = Field(description="cases that some reader answered")
    changes: tuple[Change, ...]


def score_reader(
    key: Key, forms: Mapping[str, Mapping[str, Answers]], *, variant: str | None = None, seed: int = 0
) -> StudyResult:
    """Both answers of every reader against gold.

    Args:
        key: Cases, plans and gold.
        forms: Answers by reader and case.
        variant: Gold variant; None is the first.
        seed: Of bootstrap and permutation.

    Raises:
        InputError: no form, an unknown variant, or fewer than two cases answered by a reader.
    """
    variants = list(key.cases[0].gold)
    variant = variants[0] if variant is None else variant
    if variant not in variants:
        raise InputError(f"There is no gold variant '{variant}'; the study has {', '.join(variants)}.")
    if not forms:
        raise InputError("No filled form was given: mewm eval reader score KEY FORM...")
    formulary = Formulary.load(key.actions)
    entries = {entry.case: entry for entry in key.cases}
    scores: dict[str, dict[str, Pair]] = {}
    changes: list[Change] = []
    for reader, answers in forms.items():
        if len(answers) < 2:
            raise InputError(f"The reader {reader} answered {len(answers)} case: an interval needs at least two.")
        for case, given in answers.items():
            entry = entries[case]
            before, after = (_scores(p, entry.gold[variant], formulary) for p in given)
            scores.setdefault(reader, {})[case] = (before, after)
            changes.append(_change(reader, entry, given, variant, before["f1"], after["f1"]))
    results = [_result(reader, found, key, changes, seed) for reader, found in scores.items()]
    if len(forms) > 1:
        results.append(_result(EVERYBODY, _mean_over_readers(scores), key, changes, seed))
    answered = [entry for entry in key.cases if any(entry.case in found for found in scores.values())]
    plan = {m: [_scores(e.plan, e.gold[variant], formulary)[m] for e in answered] for m in METRICS}
    return StudyResult(
        variant=variant, planned_by=key.planned_by, data=key.data, readers=tuple(results),
        plan={m: bootstrap_mean(values, seed=seed) for m, values in plan.items()}, n=len(answered),
        changes=tuple(changes),
    )  # fmt: skip


def _scores(protocol: Protocol, gold: Protocol, formulary: Formulary) -> dict[str, float]:
    score = score_protocol(protocol, gold, formulary)
    return {metric: float(getattr(score, metric)) for metric in METRICS}


def _mean_over_readers(
    scores: Mapping[str, Mapping[str, Pair]],
) -> dict[str, Pair]:
    """Readers of one case are averaged first: they are not independent of each other."""
    cases = sorted({case for found in scores.values() for case in found})
    pooled = {}
    for case in cases:
        there = [found[case] for found in scores.values() if case in found]
        before, after = ({m: sum(pair[side][m] for pair in there) / len(there) for m in METRICS} for side in (0, 1))
        pooled[case] = (before, after)
    return pooled


def _result(
    reader: str,
    found: Mapping[str, Pair],
    key: Key,
    changes: Sequence[Change],
    seed: int,
) -> ReaderResult:
    sides = {m: tuple({case: pair[side][m] for case, pair in found.items()} for side in (0, 1)) for m in METRICS}
    pairs = {m: paired_difference(after, before, seed=seed) for m, (before, after) in sides.items()}
    adjusted = holm({m: pair.p for m, pair in pairs.items()})
    return ReaderResult(
        reader=reader,
        n=len(found),
        metrics=tuple(
            MetricResult(
                metric=m,
                before=bootstrap_mean([before[c] for c in sorted(before)], seed=seed),
                after=bootstrap_mean([after[c] for c in sorted(after)], seed=seed),
                difference=pairs[m],
                p_holm=adjusted[m],
            )
            for m, (before, after) in sides.items()
        ),
        kinds=dict(Counter(c.kind for c in changes if reader in (EVERYBODY, c.reader))),
        unanswered=tuple(entry.case for entry in key.cases if entry.case not in found),
    )


def _change(reader: str, entry: ReaderCase, given: Answers, variant: str, before: float, after: float) -> Change:
    one, two, plan = (frozenset(p.items) for p in (given.before, given.after, entry.plan))
    nearer = set_score(two, plan).jaccard - set_score(one, plan).jaccard
    kind: Kind = "changed otherwise"
    if one == two:
        kind = "unchanged"
    elif two == plan:
        kind = "took the plan over"
    elif nearer:
        kind = "towards the plan" if nearer > 0 else "away from the plan"
    return Change(
        reader=reader, case=entry.case, case_id=entry.case_id, before=given.before.key, after=given.after.key,
        plan=entry.plan.key, gold=entry.gold[variant].key, added=tuple(sorted(two - one)),
        removed=tuple(sorted(one - two)), kind=kind, f1_before=before, f1_after=after,
    )  # fmt: skip


def reader_markdown(result: StudyResult) -> str:
    """The study as Markdown; figures in percent as in the paper's Table 2."""

    def percent(value: Interval) -> str:
        return f"{100 * value.mean:.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"

    lines = [
        "# Reader study",
        "",
        f"{result.data}; plans: {result.planned_by}; gold: {result.variant}. In percent with 95 % bootstrap intervals "
        "over cases; difference after minus before, paired by case, sign-flip p, Holm over the four metrics.",
        "",
        "| reader | metric | before | after seeing the plan | difference | p | p (Holm) | better / same / worse | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for reader in result.readers:
        for m in reader.metrics:
            d = m.difference
            difference = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            lines.append(
                f"| {reader.reader} | {m.metric} | {percent(m.before)} | {percent(m.after)} | {difference} | "
                f"{d.p:.4g} | {m.p_holm:.4g} | {d.wins} / {d.ties} / {d.losses} | {d.n} |"
            )
    found = ", ".join(f"{m} {percent(v)}" for m, v in result.plan.items())
    lines += ["", f"The plan itself on the {result.n} cases that were answered: {found}."]
    lines += ["", "## Who changed what", ""]
    for reader in result.readers:
        kinds = ", ".join(f"{count} {kind}" for kind, count in reader.kinds.items())
        missing = f"; not answered: {', '.join(reader.unanswered)}" if reader.unanswered else ""
        lines.append(f"- {reader.reader}: {kinds}{missing}")
    lines += ["", "| reader | case | before | after | added | removed | | plan | gold | F1 before | F1 after |",
              "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for c in result.changes:
        if c.kind != "unchanged":
            cells = (c.reader, f"{c.case} ({c.case_id})", c.before, c.after, ", ".join(c.added), ", ".join(c.removed),
                     c.kind, c.plan, c.gold, f"{100 * c.f1_before:.1f}", f"{100 * c.f1_after:.1f}")  # fmt: skip
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
