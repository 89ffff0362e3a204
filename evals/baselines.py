"""Baselines: what a score has to be compared with before it means anything.

None of them simulates. Those that learn never see the case that they answer: on the phantom they learn from other
patients, on a table from the other folds. On the phantom they obey the rules, because a forbidden answer counts as the
worst there; on a table they do not, because its gold does not either (a regimen without any embolic is blocked).
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from agent.goal import interpret_goal
from agent.guideline import GuidelinePolicy
from agent.policy import single_item_keys
from evals.datasets.eval_case import Dataset, EvalCase
from evals.datasets.phantom import training_cases
from evals.regressor import DirectRegressor, Labels
from models.networks.record_vector import record_vector
from models.protocol import Protocol
from tools.check_rules import judge_protocols

SUBSETS_UP_TO = 8
"""Action sets of up to so many agents: every subset is tried as the constant answer."""
BEADS_LEAK = " (its count of bead regimens is this table's)"
"""`agent/guideline.yaml` counts how often beads are used in the table that is scored: a small leak, named in tables."""
SMALLEST_STRATUM = 5
"""A stratum with fewer training cases answers as the whole training split does."""


class Baseline(Interface):
    """An answer to a case without a simulation."""

    @property
    def name(self) -> str:
        """One of `NAMES`."""
        ...

    @property
    def label(self) -> str:
        """How the table calls it, with what it was told."""
        ...

    def propose(self, case: EvalCase) -> Protocol | None:
        """The protocol; None where the rules leave none."""
        ...


class Baselines(NamedTuple):
    """Those that can answer, by name, and why the others can't."""

    ready: dict[str, Baseline]
    not_run: dict[str, str]


@dataclass(frozen=True)
class Constant:
    """One fixed list for everybody: its first protocol, or where the rules are obeyed its first allowed one."""

    ranked: tuple[Protocol, ...]
    obey: bool
    name: str = "constant"
    label: str = "best constant of the training split"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        return _first(self.ranked, case, self.obey)

    @classmethod
    def fit(cls, train: Sequence[EvalCase], variant: str, obey: bool) -> Constant:
        """Rank by mean true regret where the truth is known, else by mean F1 against gold."""
        if train[0].truth is not None:
            return cls(_by_regret(train), obey)
        return cls(_by_f1(train, variant), obey)


@dataclass(frozen=True)
class StratumFrequency:
    """The agents that gold names most within the BCLC stage, as many drugs and embolics as its median gold has."""

    shares: dict[str, dict[str, float]]
    sizes: dict[str, tuple[int, int]]
    obey: bool
    name: str = "frequency"
    label: str = "most frequent agents in the BCLC stage"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        key = _stratum(case)
        key = key if key in self.shares else ""
        share, (drugs, embolics) = self.shares[key], self.sizes[key]
        if not self.obey:
            formulary = case.space.formulary
            return Protocol(
                drugs=_most([item.name for item in formulary.drugs], share, drugs),
                embolics=_most([item.name for item in formulary.embolics], share, embolics),
            )

        def worth(protocol: Protocol) -> tuple[int, float]:
            miss = abs(len(protocol.drugs) - drugs) + abs(len(protocol.embolics) - embolics)
            return -miss, sum(share[name] for name in protocol.items)

        return max(case.allowed, key=worth, default=None)

    @classmethod
    def fit(cls, train: Sequence[EvalCase], variant: str, obey: bool) -> StratumFrequency:
        """Count gold agents by stage; the empty key is the whole training split."""
        groups: dict[str, list[EvalCase]] = {"": list(train)}
        for case in train:
            groups.setdefault(_stratum(case), []).append(case)
        groups = {key: cases for key, cases in groups.items() if not key or len(cases) >= SMALLEST_STRATUM}
        shares: dict[str, dict[str, float]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for key, cases in groups.items():
            golds = [case.gold[variant] for case in cases]
            counts = Counter(name for gold in golds for name in gold.items)
            shares[key] = {item.name: counts[item.name] / len(golds) for item in cases[0].space.formulary.items}
            sizes[key] = (
                round(statistics.median(len(gold.drugs) for gold in golds)),
                round(statistics.median(len(gold.embolics) for gold in golds)),
            )
        return cls(shares, sizes, obey)


@dataclass(frozen=True)
class RandomAllowed:
    """Any protocol that the rules allow, all equally likely; the same one for the same seed and case."""

    seed: int = 0
    name: str = "random"
    label: str = "random allowed protocol"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        return case.allowed[int(_rng(case, self.seed).integers(len(case.allowed)))] if case.allowed else None


@dataclass(frozen=True)
class RulesOnly:
    """Of random allowed protocols, one on which the fewest warnings fire."""

    seed: int = 0
    looked_at: int = 100
    name: str = "rules"
    label: str = "rules only: of 100 random allowed protocols, one with the fewest warnings"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        if not case.allowed:
            return None
        order = _rng(case, self.seed).permutation(len(case.allowed))[: self.looked_at]
        allowed = [case.allowed[int(index)] for index in order]
        judged = judge_protocols(
            case.case_id, case.facts, allowed, case.space.profile, case.space.strict, "complete"
        ).verdicts
        warnings = [sum(f.status == "fired" and f.strength == "warn" for f in v.findings) for v in judged]
        return allowed[warnings.index(min(warnings))]


@dataclass(frozen=True)
class NearestNeighbour:
    """The gold protocol of the training case whose clinical record is nearest."""

    records: npt.NDArray[np.float32]
    golds: tuple[Protocol, ...]
    obey: bool
    name: str = "neighbour"
    label: str = "gold of the nearest clinical record"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`; where the nearest one's is forbidden, the next nearest."""
        distance = np.linalg.norm(self.records - record_vector(case.record), axis=1)
        return _first([self.golds[index] for index in distance.argsort(kind="stable")], case, self.obey)

    @classmethod
    def fit(cls, train: Sequence[EvalCase], variant: str, obey: bool) -> NearestNeighbour:
        """Keep records and gold."""
        records = np.stack([record_vector(case.record) for case in train])
        return cls(records, tuple(case.gold[variant] for case in train), obey)


@dataclass(frozen=True)
class PolicyAlone:
    """The embedded policy without a world model: its best agents that the rules allow together.

    It knows pharmacology, practice and rules (`agent/guideline.yaml`); nothing of it was fitted to any outcome.
    """

    drugs: int
    embolics: int
    name: str
    label: str

    def propose(self, case: EvalCase) -> Protocol | None:
        """Walk down its ranking and take every agent that the rules allow beside those taken, up to the sizes."""
        policy, formulary, goal = GuidelinePolicy(), case.space.formulary, interpret_goal("")
        summary, facts, profile, strict = case.summary, case.facts, case.space.profile, case.space.strict
        d, e = len(formulary.drugs), len(formulary.embolics)
        proposal = policy.propose(summary, policy.observe(summary), formulary, d, e, goal)
        keys = single_item_keys(proposal.items, formulary)
        singles = [Protocol().with_item(formulary.item(name).kind, name) for name in keys]
        judged = judge_protocols(case.case_id, facts, singles, profile, strict, "partial")
        if not judged.patient_allowed:
            return None
        kept = policy.refine(summary, proposal, judged.verdicts, d, e)
        taken = Protocol()
        for kind, most, choices in (("drug", self.drugs, kept.drugs), ("embolic", self.embolics, kept.embolics)):
            for choice in choices:
                grown = taken.with_item("drug" if kind == "drug" else "embolic", choice.item)
                if len(grown.drugs if kind == "drug" else grown.embolics) > most:
                    break
                verdict = judge_protocols(case.case_id, facts, [grown], profile, strict, "partial").verdicts[0]
                taken = grown if verdict.allowed else taken
        return taken if taken.drugs and taken.embolics else None


class Regressor:
    """The allowed protocol to which a direct regressor gives the lowest risk; fitted when it is first asked."""

    def __init__(self, labels: Labels, seed: int = 0) -> None:
        """Args: labels: see `evals.regressor`. seed: of the fit."""
        self.name = {"survival": "regressor", "true_risk": "regressor_told"}[labels]
        self.label = {
            "survival": "regressor without simulation (image features, record, protocol)",
            "true_risk": "the same regressor, told the true risk of its training protocols (reference)",
        }[labels]
        self._labels: Labels = labels
        self._seed = seed
        self._fitted: DirectRegressor | None = None

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        if not case.allowed:
            return None
        if self._fitted is None:
            self._fitted = DirectRegressor(self._labels, seed=self._seed)
        return case.allowed[int(self._fitted.risks(case, case.allowed).argmin())]


@dataclass(frozen=True)
class OutOfFold:
    """A baseline fitted once per fold on the other folds; each case is answered by the fit that never saw it."""

    fits: tuple[Baseline, ...]
    fold_of: Mapping[str, int]

    @property
    def name(self) -> str:
        """As of the fits."""
        return self.fits[0].name

    @property
    def label(self) -> str:
        """As of the fits."""
        return f"{self.fits[0].label} (out of fold)"

    def propose(self, case: EvalCase) -> Protocol | None:
        """See `Baseline.propose`."""
        return self.fits[self.fold_of[case.case_id]].propose(case)


Fit = Callable[[Sequence[EvalCase], str, bool], Baseline]
LEARNED: dict[str, Fit] = {
    "constant": Constant.fit,
    "frequency": StratumFrequency.fit,
    "neighbour": NearestNeighbour.fit,
}
NAMES = ("constant", "frequency", "random", "rules", "neighbour", "policy_first", "policy_full", "regressor",
         "regressor_told")  # fmt: skip


def baselines_for(
    dataset: Dataset, variant: str | None = None, *, seed: int = 0, names: Collection[str] | None = None
) -> Baselines:
    """The baselines of a dataset, fitted where they learn.

    Args:
        dataset: What is scored.
        variant: The gold variant that they learn; None is the one that the dataset leads with. A constant that is best
            for one variant is not best for another, so that each variant has its own.
        seed: Of what is random.
        names: Only these of `NAMES`; None is all.

    Returns:
        Those that are ready, in the order of `NAMES`, and why the others are not. Learning from the phantom's training
        patients takes about a minute once per process, the regressors about another.

    Raises:
        ValueError: An unknown name or variant.
    """
    variant = dataset.variants[0] if variant is None else variant
    wanted = NAMES if names is None else tuple(names)
    if unknown := [name for name in (*wanted, variant) if name not in (*NAMES, *dataset.variants)]:
        raise ValueError(f"no such baseline or variant: {', '.join(unknown)}")
    space = dataset.space
    leak = BEADS_LEAK if dataset.name == "hcc-tace-seg" else ""
    first = PolicyAlone(1, 1, "policy_first", f"embedded policy alone: its first drug and embolic{leak}")
    full = PolicyAlone(
        space.drug_horizon, space.embolic_horizon, "policy_full", f"embedded policy alone, filled to the horizons{leak}"
    )
    fixed: list[Baseline] = [RandomAllowed(seed), RulesOnly(seed), first, full]
    ready: dict[str, Baseline] = {baseline.name: baseline for baseline in fixed}
    not_run: dict[str, str] = {}
    phantom = dataset.name == "phantom"
    for labels in ("survival", "true_risk"):
        regressor = Regressor("survival" if labels == "survival" else "true_risk", seed)
        if phantom:
            ready[regressor.name] = regressor
        else:
            not_run[regressor.name] = "it learns from phantom patients under random protocols; here there are none"
    for name, fit in LEARNED.items():
        if name not in wanted:
            continue
        if phantom:
            ready[name] = fit(training_cases(space.strict), variant, True)
        elif len(dataset.folds) < 2:
            not_run[name] = f"{len(dataset.pool)} case(s) leave nothing to learn from"
        else:
            ready[name] = _out_of_fold(fit, dataset, variant)
    return Baselines(
        {name: ready[name] for name in NAMES if name in ready and name in wanted},
        {name: not_run[name] for name in NAMES if name in not_run and name in wanted},
    )


def _out_of_fold(fit: Fit, dataset: Dataset, variant: str) -> OutOfFold:
    fold_of = {case_id: index for index, fold in enumerate(dataset.folds) for case_id in fold}
    fits = [
        fit([case for case in dataset.pool if fold_of[case.case_id] != index], variant, False)
        for index in range(len(dataset.folds))
    ]
    return OutOfFold(tuple(fits), fold_of)


def _first(ranked: Sequence[Protocol], case: EvalCase, obey: bool) -> Protocol | None:
    if not obey:
        return ranked[0]
    allowed = set(case.allowed)
    return next((protocol for protocol in ranked if protocol in allowed), None)


def _rng(case: EvalCase, seed: int) -> np.random.Generator:
    """Random numbers of a case: the same for the same seed, whatever else was drawn before."""
    digest = hashlib.sha256(case.case_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def _stratum(case: EvalCase) -> str:
    return case.record.bclc or "not stated"


def _most(names: Sequence[str], share: Mapping[str, float], count: int) -> tuple[str, ...]:
    ordered = sorted(names, key=lambda name: (-share[name], name))
    return tuple(name for name in ordered[:count] if share[name] > 0)


def _by_regret(train: Sequence[EvalCase]) -> tuple[Protocol, ...]:
    """Every protocol of the space, by mean regret on the training cases; forbidden counts as the worst."""
    protocols = train[0].space.protocols
    total = np.zeros(len(protocols))
    for case in train:
        assert case.truth is not None
        regret = dict(zip(case.truth.protocols, case.truth.regrets, strict=True))
        total += [regret.get(protocol, 1.0) for protocol in protocols]
    return tuple(protocols[index] for index in total.argsort(kind="stable"))


def _by_f1(train: Sequence[EvalCase], variant: str) -> tuple[Protocol, ...]:
    """Candidates by mean F1 against the training golds, best first; ties: fewer agents, then the name."""
    formulary = train[0].space.formulary
    names = [item.name for item in formulary.items]
    golds = [case.gold[variant] for case in train]
    truth = np.array([[name in gold.items for name in names] for gold in golds], float)
    if len(names) <= SUBSETS_UP_TO:
        sets = [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    else:
        # too many subsets: the golds themselves, and the most frequent drugs with the most frequent embolics
        frequency = dict(zip(names, truth.mean(0), strict=True))
        sides = [sorted((i.name for i in side), key=lambda n: (-frequency[n], n))
                 for side in (formulary.drugs, formulary.embolics)]  # fmt: skip
        sets = [gold.items for gold in dict.fromkeys(golds)]
        sets += [(*sides[0][:d], *sides[1][:e]) for d in range(1, 6) for e in range(5)]
    answers = np.array([[name in subset for name in names] for subset in sets], float)
    total = answers.sum(1)[:, None] + truth.sum(1)[None, :]
    f1 = np.where(total > 0, 2.0 * answers @ truth.T / np.maximum(total, 1.0), 1.0).mean(1)
    # rounded, so that equal means in another order of addition are ties
    order = sorted(range(len(sets)), key=lambda index: (-round(float(f1[index]), 9), len(sets[index]), sets[index]))
    return tuple(_protocol(sets[index], train[0]) for index in order)


def _protocol(names: Sequence[str], case: EvalCase) -> Protocol:
    formulary = case.space.formulary
    return Protocol(
        drugs=tuple(name for name in names if formulary.item(name).kind == "drug"),
        embolics=tuple(name for name in names if formulary.item(name).kind == "embolic"),
    )
