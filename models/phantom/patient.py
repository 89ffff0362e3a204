"""A phantom patient: what the image shows, what the record says, and what neither does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.clinical_record import ClinicalRecord
from models.formulary import ITEM_ORDER
from models.phantom.shape import Shape, draw_shape
from models.phantom.version import parameters

FEATURES: Final = ("vascularity", "core", "infiltration", "capsule", "shunt", "texture", "size", "afp")
TRAITS: Final = FEATURES[:6]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lesion:
    """One tumour: an ellipsoid with an irregular border. Lengths in mm in world coordinates (RAS).

    `response` multiplies the log kill of this lesion. A `satellite` is a small one close to the largest, that grows
    fast where it lives.
    """

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    seed: int
    response: float
    satellite: bool = False

    @property
    def volume_ml(self) -> float:
        """Volume of the ellipsoid in ml."""
        a, b, c = self.radii_mm
        return float(4.0 / 3.0 * np.pi * a * b * c / 1000.0)

    @property
    def size(self) -> float:
        """Log of the largest radius over 26 mm, in [-1.5, 1.5]."""
        return float(np.clip(np.log(max(self.radii_mm) / 26.0), -1.5, 1.5))


@dataclass(frozen=True)
class Patient:
    """One phantom patient.

    `traits` are the image-visible features in [0, 1]: vascularity, core, infiltration, capsule, shunt, texture.
    `hidden` holds a multiplier per item (in `ITEM_ORDER`) that nothing shows. `toxicity_sensitivity` multiplies the
    fixed toxicity term; `shrinkage` is added to the share of dead tissue that goes.
    """

    patient_id: str
    seed: int
    traits: dict[str, float]
    lesions: tuple[Lesion, ...]
    shape: Shape
    liver_ml: float
    record: ClinicalRecord
    hidden: tuple[float, ...]
    toxicity_sensitivity: float
    shrinkage: float

    @property
    def tumour_ml(self) -> float:
        """Total tumour volume before treatment in ml."""
        return sum(lesion.volume_ml for lesion in self.lesions)

    @property
    def liver_percent(self) -> float:
        """Share of the liver (tumours included) that the tumours take, in percent."""
        return 100.0 * self.tumour_ml / self.liver_ml

    @property
    def core_fraction(self) -> float:
        """Share of every lesion that is necrotic before treatment, in [0.02, 0.42]."""
        return 0.02 + 0.40 * self.traits["core"]

    @cached_property
    def features(self) -> dict[str, float]:
        """Traits, size and AFP scaled to about -1..1, as the response model reads them."""
        out = {name: 2.0 * value - 1.0 for name, value in self.traits.items()}
        out["size"] = max(lesion.size for lesion in self.lesions)
        afp = self.record.afp_ng_ml
        out["afp"] = 0.0 if afp is None else float(np.clip((np.log10(afp) - 2.0) / 1.5, -1.2, 1.5))
        return out


def _radius(rng: np.random.Generator, row: dict[str, Any]) -> float:
    return float(np.clip(row["median"] * np.exp(rng.normal(0.0, row["log_sd"])), *row["limits"]))


def _place(
    rng: np.random.Generator, shape: Shape, radii: Vector, others: list[Lesion], exophytic: bool
) -> Vector | None:
    """A centre where the lesion fits: in a lobe, clear of the others; None where none was found."""
    reach = parameters()["cohort"]["exophytic"]["reach"]
    for _ in range(60):
        lobe = 0 if rng.random() < (0.5 if exophytic else 0.7) else 1
        centre, room = np.array(shape.lobes[lobe][0]), np.array(shape.lobes[lobe][1])
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        if exophytic:
            direction[1] = abs(direction[1])  # forwards: behind are ribs and spine
            share = np.full(3, rng.uniform(*reach))
        else:
            share = np.clip(1.0 - radii / room, 0.0, 0.85) * rng.random() ** (1 / 3)
        place = centre + direction * room * share
        gaps = [np.linalg.norm(place - np.array(o.centre_mm)) - radii.max() - max(o.radii_mm) for o in others]
        if all(gap > 8.0 for gap in gaps) and shape.holds(place, radii):
            return np.asarray(place)
    return None


def _lesions(rng: np.random.Generator, shape: Shape, infiltration: float) -> tuple[Lesion, ...]:
    table, sd = parameters()["cohort"], float(parameters()["response"]["lesion_sd"])
    numbers = table["number"]
    number = int(rng.choice(list(numbers), p=list(numbers.values())))
    lesions: list[Lesion] = []

    def add(centre: Vector, radii: Vector, factor: float = 1.0, satellite: bool = False) -> None:
        response = factor * float(np.exp(rng.normal(0.0, sd)))
        seed = int(rng.integers(2**31))
        lesions.append(Lesion(tuple(map(float, centre)), tuple(map(float, radii)), seed, response, satellite))  # type: ignore[arg-type]

    for index in range(number):
        radius = _radius(rng, table["further_radius_mm" if index else "largest_radius_mm"])
        radii = radius * rng.uniform(0.85, 1.18, 3)
        bulges = table["exophytic"]
        exophytic = radius > bulges["above_radius_mm"] and rng.random() < bulges["share"]
        while (centre := _place(rng, shape, radii, lesions, exophytic)) is None:
            radii = radii * 0.92  # until it fits: a small body has no room for the largest
        add(centre, radii)
    rule = table["satellite"]
    if number < 3 and infiltration > rule["above_infiltration"] and rng.random() < rule["share"]:
        radii = rng.uniform(*rule["radius_mm"]) * rng.uniform(0.9, 1.1, 3)
        first = lesions[0]
        for _ in range(20):
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            far = np.array(first.radii_mm) + radii.max() + rng.uniform(*rule["gap_mm"])
            centre = np.array(first.centre_mm) + direction * far
            clear = all(np.linalg.norm(centre - np.array(o.centre_mm)) > 10.0 + max(o.radii_mm) for o in lesions[1:])
            if clear and shape.holds(centre, radii):
                add(centre, radii, rule["response"], satellite=True)
                break
    return tuple(lesions)


def _record(
    rng: np.random.Generator, traits: dict[str, float], number: int, percent: float, cirrhosis: bool
) -> ClinicalRecord:
    table = parameters()["cohort"]
    score = int(np.clip(5 + rng.poisson(0.40 + 0.28 * cirrhosis + 0.4 * (percent > 25)), 5, 9))
    grades: tuple[Literal["none", "branch", "main"], ...] = ("none", "branch", "main")
    chances = [0.90, 0.08, 0.02] if percent < 12 else [0.68, 0.25, 0.07]
    invasion = grades[int(rng.choice(3, p=chances))]
    ecog = int(rng.choice(list(table["ecog"]), p=list(table["ecog"].values())))
    extra = max(score - 5, 0)
    afp = table["afp_log10"]
    afp_log10 = np.clip(rng.normal(afp["mean"] + afp["texture"] * (traits["texture"] - 0.5), afp["sd"]), *afp["limits"])
    return ClinicalRecord(
        age_years=float(np.round(np.clip(rng.normal(*table["age_years"]), 35, 90))),
        sex="male" if rng.random() < table["male"] else "female",
        height_cm=float(np.round(rng.normal(170, 8))),
        weight_kg=float(np.round(np.clip(rng.normal(74, 12), 45, 120))),
        bilirubin_mg_dl=float(np.round(np.exp(rng.normal(-0.25 + 0.28 * extra, 0.3)), 2)),
        albumin_g_dl=float(np.round(np.clip(rng.normal(4.0 - 0.25 * extra, 0.3), 2.2, 5.0), 2)),
        inr=float(np.round(np.clip(rng.normal(1.08 + 0.05 * extra, 0.08), 0.9, 1.65), 2)),
        creatinine_mg_dl=float(np.round(np.clip(np.exp(rng.normal(-0.05, 0.25)), 0.5, 1.9), 2)),
        creatinine_clearance_ml_min=float(np.round(np.clip(rng.normal(78, 22), 32, 130))),
        platelets_10e9_l=float(np.round(np.clip(np.exp(rng.normal(4.95 - 0.08 * extra, 0.4)), 52, 450))),
        wbc_10e9_l=float(np.round(np.clip(rng.normal(6.0, 1.5), 3.1, 12), 1)),
        neutrophils_10e9_l=float(np.round(np.clip(rng.normal(3.8, 1.0), 1.6, 9), 1)),
        lvef_percent=float(np.round(np.clip(rng.normal(60, 6), 42, 72))),
        afp_ng_ml=float(np.round(10**afp_log10, 1)),
        ecog=ecog,
        ascites="mild" if score >= 7 and rng.random() < table["ascites"] else "none",
        encephalopathy=0,
        child_pugh_score=score,
        child_pugh_class="A" if score <= 6 else "B",
        bclc="C" if invasion != "none" or ecog > 0 else ("B" if number > 1 else "A"),
        cirrhosis=cirrhosis,
        portal_vein_invasion=invasion,
        extrahepatic_spread=False,
        shunt="arterioportal" if traits["shunt"] > 0.6 and rng.random() < 0.6 else "none",
        tumour_number=number,
        tumour_liver_fraction_percent=float(np.round(percent, 1)),
    )


def draw_patient(seed: int) -> Patient:
    """Draws one patient.

    Args:
        seed: Non-negative; the same seed gives the same patient, whatever else was drawn before.

    Returns:
        The patient, truth included. The share of the liver that the tumours take is stated in the record, so that the
        toxicity term is the same number for the truth and for whoever plans.
    """
    rng = np.random.default_rng([20261121, seed])
    table, response = parameters()["cohort"], parameters()["response"]
    open_shunt = rng.random() < table["shunt"]["share"]
    traits = {name: float(rng.beta(*ab)) for name, ab in table["traits"].items()}
    traits["shunt"] = float(
        rng.beta(*table["shunt"]["beta"]) if open_shunt else rng.uniform(0.0, table["shunt"]["otherwise_below"])
    )
    traits = {name: traits[name] for name in TRAITS}
    cirrhosis = bool(rng.random() < table["cirrhosis"])
    liver = table["liver_scale"]
    scale = float(np.clip(rng.normal(liver["mean"], liver["sd"]), *liver["limits"]))
    body_scale = float(rng.uniform(*table["body_scale"]["limits"]))
    shape = draw_shape(rng, body_scale, scale, cirrhosis, seed)
    lesions = _lesions(rng, shape, traits["infiltration"])
    liver_ml = shape.liver_ml([(np.array(o.centre_mm), np.array(o.radii_mm)) for o in lesions])
    percent = 100.0 * sum(lesion.volume_ml for lesion in lesions) / liver_ml
    record = _record(rng, traits, len(lesions), percent, cirrhosis)
    return Patient(
        patient_id=f"phantom-{seed:06d}",
        seed=seed,
        traits=traits,
        lesions=lesions,
        shape=shape,
        liver_ml=liver_ml,
        record=record,
        hidden=tuple(float(v) for v in np.exp(rng.normal(0.0, response["hidden_sd"], len(ITEM_ORDER)))),
        toxicity_sensitivity=float(np.exp(rng.normal(0.0, parameters()["survival"]["toxicity_sd"]))),
        shrinkage=float(rng.normal(0.0, response["shrinkage"]["sd"])),
    )
