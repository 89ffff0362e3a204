"""Compare two evaluations case by case (`mewm eval compare A B`): B minus A, and whether chance explains it.

A is the reference, B the candidate. Cases are paired by id, epochs of a case averaged first. A side is a folder that
`mewm eval run` made, or ``FOLDER@NAME`` for another line of its table (``runs/a@constant``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from evals.measures import METRICS, OF_RANDOM, Metric, losses, per_case
from evals.results import EvalRun, ResultModel, read_run
from evals.statistics import holm, paired_difference, why_undetectable
from models.errors import InputError

CACHED = "Answers that came from the cache count their tokens and list price, but no request."
ROUNDING = 1e-9
"""A gain that misses its gate by less differs from it by floating point only."""


@dataclass(frozen=True)
class Side:
    """One line of one evaluation's table."""

    run: EvalRun
    who: str

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.run.spec.label if self.who == 'own' else self.who} of {self.run.folder}"


class Difference(ResultModel):
    """One metric: B minus A over the cases that both have."""

    metric: str
    label: str
    lower_is_better: bool
    mean_a: float
    mean_b: float
    mean: float
    low: float
    high: float
    p: float
    p_holm: float | None = Field(description="adjusted over the quality metrics; None for the others")
    n: int
    wins: int = Field(description="cases in which B is better")
    ties: int
    losses: int
    smallest_detectable: float | None
    missing: tuple[str, ...] = Field(description="cases in which only one side has a value")


class Comparison(ResultModel):
    """Two sides with every metric that both have."""

    a: str
    b: str
    variant: str
    n_a: int
    n_b: int
    missing_in_a: tuple[str, ...]
    missing_in_b: tuple[str, ...]
    incomplete: tuple[str, ...] = Field(description="A and B, where that evaluation has no finished log")
    settings: tuple[str, ...] = Field(description="what differs between the two runs")
    differences: tuple[Difference, ...]
    not_compared: tuple[str, ...] = Field(description="metrics that fewer than two common cases have")

    def difference(self, metric: str) -> Difference | None:
        """One metric, or None where it could not be compared."""
        return next((d for d in self.differences if d.metric == metric), None)


def read_side(text: str) -> Side:
    """``FOLDER`` or ``FOLDER@NAME``.

    Raises:
        RunError: no evaluation there.
        InputError: its table has no line of that name.
    """
    folder, mark, who = text.rpartition("@")
    if not mark or Path(text).is_dir():
        folder, who = text, "own"
    run = read_run(Path(folder))
    if who not in run.contestants:
        raise InputError(f"The evaluation {folder} has no line '{who}'; it has {', '.join(run.contestants)}.")
    return Side(run, who)


def compare(a: Side, b: Side, *, variant: str | None = None, seed: int = 0, draws: int = 10_000) -> Comparison:
    """Pair two sides by case id.

    Args:
        a: The reference.
        b: The candidate.
        variant: Gold variant; None is the first one that both have.
        seed: Of bootstrap and permutation.
        draws: Bootstrap resamples and drawn sign patterns.

    Raises:
        InputError: other data, an unknown gold variant, or fewer than two cases in common.
    """
    variant = _variant(a, b, variant)
    ids_a, ids_b = set(a.run.case_ids), set(b.run.case_ids)
    if len(ids_a & ids_b) < 2:
        raise InputError(
            f"{a.run.folder} and {b.run.folder} have {len(ids_a & ids_b)} cases in common: a comparison needs at least "
            "two. Run both on the same --seed and --limit."
        )
    raw: list[tuple[Metric, Mapping[str, float], Mapping[str, float]]] = []
    left_out = []
    for metric in METRICS.values():
        values_a, values_b = (_values(side, metric.name, variant) for side in (a, b))
        common = values_a.keys() & values_b.keys()
        if len(common) >= 2:
            raw.append((metric, values_a, values_b))
        elif values_a or values_b:
            left_out.append(metric.name)
    random = {case: loss.random for case, loss in losses(a.run, a.who, variant).items()}
    units = {metric.name: random if metric.name == OF_RANDOM else None for metric, _, _ in raw}
    found = {
        metric.name: paired_difference(
            vb, va, lower_is_better=metric.lower_is_better, seed=seed, draws=draws, unit=units[metric.name]
        )
        for metric, va, vb in raw
    }
    adjusted = holm({m.name: found[m.name].p for m, _, _ in raw if m.quality})
    differences = []
    for metric, va, vb in raw:
        pair = found[metric.name]
        both = sorted(va.keys() & vb.keys())
        unit = units[metric.name]
        total = len(both) if unit is None else math.fsum(unit[c] for c in both) or len(both)
        differences.append(
            Difference(
                metric=metric.name,
                label=metric.label,
                lower_is_better=metric.lower_is_better,
                mean_a=math.fsum(va[c] for c in both) / total,
                mean_b=math.fsum(vb[c] for c in both) / total,
                p_holm=adjusted.get(metric.name),
                **pair._asdict(),
            )
        )
    return Comparison(
        a=a.label,
        b=b.label,
        variant=variant,
        n_a=len(ids_a),
        n_b=len(ids_b),
        missing_in_a=tuple(sorted(ids_b - ids_a)),
        missing_in_b=tuple(sorted(ids_a - ids_b)),
        incomplete=tuple(name for name, side in (("A", a), ("B", b)) if not side.run.complete),
        settings=tuple(f"{name}: A {one}, B {two}" for name, one, two in a.run.spec.differences(b.run.spec)),
        differences=tuple(differences),
        not_compared=tuple(left_out),
    )


def _values(side: Side, metric: str, variant: str) -> dict[str, float]:
    if metric == OF_RANDOM:
        return {case: loss.chosen for case, loss in losses(side.run, side.who, variant).items()}
    return per_case(side.run, side.who, metric, variant)


def no_case_yet(run: EvalRun) -> str:
    """What to tell where an evaluation has nothing to show."""
    return f"The evaluation in {run.folder} has no finished case yet: mewm eval resume {run.folder}."


def check_same_data(a: Side, b: Side) -> None:
    """Two runs on other data can't be compared.

    Raises:
        InputError: another dataset or version, or another gold for a case that both have.
    """
    for name in ("dataset", "dataset_version"):
        one, two = (getattr(side.run.spec, name) for side in (a, b))
        if one != two:
            raise InputError(
                f"{a.run.folder} and {b.run.folder} can't be compared: {name.replace('_', ' ')} is {one} in the one "
                f"and {two} in the other."
            )
    gold = {row.case_id: row.gold for row in a.run.rows}
    # the hash of a dataset covers cases that the other run may not have: what is compared has to be the same
    if other := sorted({row.case_id for row in b.run.rows if gold.get(row.case_id, row.gold) != row.gold}):
        raise InputError(
            f"{a.run.folder} and {b.run.folder} can't be compared: they have another gold for {', '.join(other[:5])}."
        )


def _variant(a: Side, b: Side, variant: str | None) -> str:
    check_same_data(a, b)
    for side in (a, b):
        if not side.run.rows:
            raise InputError(no_case_yet(side.run))
    both = [name for name in a.run.variants if name in b.run.variants]
    if not both:
        raise InputError(f"{a.run.folder} and {b.run.folder} have no kind of gold in common: run both on one dataset.")
    if variant is None:
        return both[0]
    if variant not in both:
        raise InputError(f"There is no gold variant '{variant}' in both runs; both have {', '.join(both)}.")
    return variant


def parse_gates(texts: Sequence[str]) -> dict[str, float]:
    """``["F1=-0.02"]`` -> ``{"f1": -0.02}``.

    Raises:
        InputError: not NAME=NUMBER, or no such metric.
    """
    gates: dict[str, float] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        metric = name.strip().lower().replace("-", "_")
        if metric not in METRICS:
            raise InputError(f"There is no metric '{name}' for --fail-below; use one of {', '.join(METRICS)}.")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not mark or not math.isfinite(number):
            raise InputError(f"--fail-below takes NAME=NUMBER, such as F1=-0.02; got '{text}'.")
        gates[metric] = number
    return gates


def failed_gates(comparison: Comparison, gates: Mapping[str, float]) -> list[str]:
    """The gates that B does not pass, as sentences. A gate bounds the gain of B over A: positive is better for B.

    For metrics of which less is better (regret, cost) the gain is A minus B, so that one rule reads alike for all:
    ``regret=-0.02`` allows B a regret up to 0.02 above that of A. Missing cases and an evaluation that is not complete
    fail every gate, because a run that leaves out its hard cases must not pass.

    Raises:
        InputError: a gated metric could not be compared.
    """
    sentences = []
    for name, bound in gates.items():
        found = comparison.difference(name)
        if found is None:
            raise InputError(f"The metric {name} could not be compared: fewer than two cases have it in both runs.")
        gain = -found.mean if found.lower_is_better else found.mean
        if gain < bound - ROUNDING:
            how = "worse" if gain < 0 else "better"
            gained = f"{how} by {abs(gain):.4f}" if abs(gain) > ROUNDING else "as good as A"
            sentences.append(f"{found.label}: B is {gained} (n = {found.n}), the gate asks for a gain of at least "
                             f"{bound:+.4f}.")  # fmt: skip
    if gates and comparison.missing_in_b:
        sentences.append(f"{len(comparison.missing_in_b)} cases of A are missing in B.")
    if gates:
        sentences += [f"The evaluation {name} is not complete." for name in comparison.incomplete]
    return sentences


def comparison_markdown(found: Comparison) -> str:
    """The comparison as Markdown. Metrics in percent are shown times 100."""
    lines = [
        "# Comparison",
        "",
        f"- A: {found.a}, {found.n_a} cases",
        f"- B: {found.b}, {found.n_b} cases",
        f"- Gold: {found.variant}. Differences are B minus A, paired by case; 95 % paired bootstrap interval, "
        "two-sided sign-flip p (exact for 20 cases and fewer), Holm over the quality metrics.",
        f"- Settings that differ: {'; '.join(found.settings) or 'none'}",
        "",
        "| metric | A | B | B - A [95 %] | p | p (Holm) | wins / ties / losses of B | n | smallest detectable |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for d in found.differences:
        metric = METRICS[d.metric]
        factor = 100.0 if metric.percent else 1.0
        digits = metric.digits

        def show(value: float, signed: bool = False, factor: float = factor, digits: int = digits) -> str:
            # rounded first, and + 0.0: a difference that is shown as nothing has no sign
            return f"{round(value * factor, digits) + 0.0:{'+' if signed else ''}.{digits}f}"

        adjusted = "" if d.p_holm is None else f"{d.p_holm:.4g}"
        least = why_undetectable(d.n) if d.smallest_detectable is None else show(d.smallest_detectable)
        arrow = "lower is better" if d.lower_is_better else ""
        lines.append(
            f"| {d.label}{' %' if metric.percent else ''}{f' ({arrow})' if arrow else ''} | {show(d.mean_a)} | "
            f"{show(d.mean_b)} | {show(d.mean, True)} [{show(d.low, True)}, {show(d.high, True)}] | {d.p:.4g} | "
            f"{adjusted} | {d.wins} / {d.ties} / {d.losses} | {d.n} | {least} |"
        )
    lines.append("")
    lines += [
        f"The evaluation {name} is not complete: figures are of the cases that are finished."
        for name in found.incomplete
    ]
    for name, ids in (("A", found.missing_in_a), ("B", found.missing_in_b)):
        if ids:
            lines.append(f"Missing in {name} ({len(ids)}), not in any figure: {', '.join(ids)}.")
    absent = {*found.missing_in_a, *found.missing_in_b}
    lines += [
        f"{d.label} is known on one side only for {', '.join(partial)}."
        for d in found.differences
        if (partial := [case for case in d.missing if case not in absent])
    ]
    if any(d.metric == "requests" for d in found.differences):
        lines.append(CACHED)
    if found.not_compared:
        lines.append(f"Not compared, fewer than two common cases: {', '.join(found.not_compared)}.")
    return "\n".join(lines).rstrip() + "\n"
