"""Dataset `phantom`: unseen synthetic patients whose best protocol, and every protocol's true risk, are known.

Nothing is stored: the patients follow from a seed. The truth is computed here, from the phantom's response model, which
no tool, node or policy can import; the case folder that an agent reads holds scans, labels and record only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import count
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from evals.datasets.cards import render_card
from evals.datasets.eval_case import Dataset, EvalCase, FollowUp, LeftOut, SearchSpace, content_hash
from evals.regret import RiskTable, patient_blocked, true_risks
from models.clinical_record import ClinicalRecord
from models.errors import InputError
from models.phantom.cohort import write_phantom_case
from models.phantom.patient import Patient, draw_patient
from models.phantom.response import clinician_protocol, draw_survival, respond
from models.phantom.version import parameters
from models.protocol import Protocol
from models.toxicity import toxicity
from tools.rule_facts import CaseFacts, Facts
from tools.rulebook import Profile, rules_hash

VARIANT = "best"


class _Space(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    actions: str
    drug_horizon: int
    embolic_horizon: int
    profile: Profile


class Tier(BaseModel):
    """The spreads (log hazard) that a tier takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float | None = None
    below: float | None = None

    def holds(self, spread: float) -> bool:
        """Whether a case of this spread belongs to the tier."""
        return (self.at_least is None or spread >= self.at_least) and (self.below is None or spread < self.below)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    first_seed: int
    seed_stride: int
    default_cases: int
    training_first_seed: int
    training_cases: int
    space: _Space
    most_liver_percent: float = Field(gt=0, lt=70)
    tiers: dict[str, Tier]


@lru_cache(maxsize=1)
def settings() -> _Settings:
    """The content of `phantom.yaml`."""
    text = files("evals.datasets").joinpath("phantom.yaml").read_text(encoding="utf-8")
    return _Settings.model_validate(yaml.safe_load(text))


def phantom_space(strict: bool = False) -> SearchSpace:
    """The protocols that count as answers."""
    return SearchSpace(**settings().space.model_dump(), strict=strict)


class PhantomCase(EvalCase):
    """A synthetic patient with its truth. `patient` holds both: for the harness only."""

    def __init__(self, patient: Patient, tier: str | None = None, strict: bool = False) -> None:
        """Args: patient: truth included. tier: the tier it was drawn for. strict: see `SearchSpace`."""
        given = clinician_protocol(patient)
        super().__init__(patient.patient_id, patient.record, given, tier, "synthetic", phantom_space(strict))
        self.patient = patient

    @property
    def has_image(self) -> bool:
        """Always: its scans are rendered when they are asked for."""
        return True

    def write(self, folder: Path) -> Path:
        """See `EvalCase.write`. Rendering takes a second or two."""
        case = folder / self.case_id
        if not (case / "case.json").exists():
            write_phantom_case(self.patient, case)
        self._written = case
        return case

    @property
    def facts(self) -> Facts:
        """Facts of the patient as it was drawn: what the rules block depends on them as on the measured ones."""
        return Facts(
            record=self.record,
            case=CaseFacts(
                lesion_count=len(self.patient.lesions),
                largest_diameter_cm=max(max(lesion.radii_mm) for lesion in self.patient.lesions) / 5.0,
                tumour_liver_percent=nominal_liver_percent(self.patient),
            ),
        )

    @cached_property
    def truth(self) -> RiskTable:
        """True risk of every allowed protocol."""
        return true_risks(self.patient, self.allowed, self.given)

    @property
    def gold(self) -> Mapping[str, Protocol]:
        """The truly best allowed protocol."""
        return {VARIANT: self.truth.best}

    @property
    def survival(self) -> FollowUp:
        """Drawn as the cohort draws it, under the protocol that was given."""
        assert self.given is not None
        hazard = respond(self.patient, self.given).log_hazard
        months, died = draw_survival([hazard], np.random.default_rng([self.patient.seed, 23]))
        return FollowUp(float(months[0]), bool(died[0]))

    @property
    def spread(self) -> float:
        """Mean true log hazard of the allowed protocols minus that of the best: what a random choice loses."""
        return float(self.truth.log_hazard.mean() - self.truth.log_hazard.min())


def nominal_liver_percent(patient: Patient) -> float:
    """Share of the liver that the tumours take, of the volumes that the patient was drawn with."""
    return patient.liver_percent


def excluded(patient: Patient, strict: bool = False) -> str | None:
    """Why a patient is no case; None for a case."""
    if nominal_liver_percent(patient) > settings().most_liver_percent:
        return f"the tumour takes more than {settings().most_liver_percent:g} % of the liver"
    if patient_blocked(Facts(record=patient.record), phantom_space().profile, strict):
        return "the rules exclude the patient"
    return None


def draw_cases(first_seed: int, strict: bool = False) -> Iterator[PhantomCase | LeftOut]:
    """Cases and excluded patients from a seed on, without end."""
    for seed in count(first_seed):
        patient = draw_patient(seed)
        reason = excluded(patient, strict)
        yield PhantomCase(patient, strict=strict) if reason is None else LeftOut(patient.patient_id, reason)


@lru_cache(maxsize=2)
def training_cases(strict: bool = False) -> tuple[PhantomCase, ...]:
    """The patients that baselines learn from; none of them is ever scored.

    Args:
        strict: See `SearchSpace`; as of the cases that are scored.
    """
    wanted = settings().training_cases
    drawn = (case for case in draw_cases(settings().training_first_seed, strict) if isinstance(case, PhantomCase))
    return tuple(case for case, _ in zip(drawn, range(wanted), strict=False))


def load_phantom(seed: int = 0, limit: int | None = None, tier: str | None = None, strict: bool = False) -> Dataset:
    """Draw the evaluation set.

    Args:
        seed: Which patients; different seeds share none, up to `seed_stride` patients each.
        limit: Number of cases, at least 1; None is the default of `phantom.yaml`.
        tier: ``easy``, ``standard`` (None) or ``hard``.
        strict: See `SearchSpace`; gold and regret follow from what is allowed.

    Returns:
        The dataset. Tiers other than ``standard`` take about a second per patient looked at.

    Raises:
        InputError: An unknown tier, a negative seed, or no positive limit.
    """
    chosen = settings()
    name = tier or "standard"
    if name not in chosen.tiers:
        raise InputError(f"The phantom set has no tier {name!r}; choose one of {', '.join(chosen.tiers)}.")
    wanted = chosen.default_cases if limit is None else limit
    if wanted < 1 or seed < 0:
        raise InputError(f"The phantom set needs a limit of at least 1 and a seed of 0 or more; got {wanted}, {seed}.")
    cases: list[PhantomCase] = []
    left_out: list[LeftOut] = []
    rows = 0
    for case in draw_cases(chosen.first_seed + seed * chosen.seed_stride, strict):
        rows += 1
        if isinstance(case, LeftOut):
            left_out.append(case)
        elif chosen.tiers[name] == Tier() or chosen.tiers[name].holds(case.spread):
            case.tier = name
            cases.append(case)
        else:
            left_out.append(LeftOut(case.case_id, f"not in the tier {name}"))
        if len(cases) == wanted:
            break
    made_of = {
        "dataset": "phantom",
        "settings": chosen.model_dump(mode="json"),
        "parameters": parameters(),
        "toxicity": toxicity(Protocol(), ClinicalRecord()).version,
        "rules": rules_hash(),
        "formulary": phantom_space().formulary.content_hash,
        "tier": name,
        "cases": [case.case_id for case in cases],
        **({"strict": True} if strict else {}),
    }
    digest = content_hash(made_of)
    facts = {
        "version": chosen.version,
        "phantom_version": parameters()["version"],
        "content_hash": digest,
        "tier": name,
        "cases": len(cases),
        "rows": rows,
        "first": cases[0].case_id,
        "last": cases[-1].case_id,
        "easy": chosen.tiers["easy"].at_least,
        "hard": chosen.tiers["hard"].below,
        "percent": f"{chosen.most_liver_percent:g}",
        "training": chosen.training_cases,
        "training_first": chosen.training_first_seed,
    }
    return Dataset(
        name="phantom",
        version=f"{chosen.version} (phantom {parameters()['version']}, {name})",
        content_hash=digest,
        card=render_card("phantom", facts),
        cases=tuple(cases),
        variants=(VARIANT,),
        origin="synthetic",
        space=phantom_space(strict),
        rows=rows,
        left_out=tuple(left_out),
        pool=tuple(cases),
    )
