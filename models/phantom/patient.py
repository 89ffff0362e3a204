"""A phantom patient: what the image shows, what the record says, and what neither does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np
import yaml

from models.clinical_record import ClinicalRecord
from models.formulary import ITEM_ORDER

FEATURES: Final = ("vascularity", "core", "infiltration", "capsule", "shunt", "texture", "size", "afp")


@lru_cache(maxsize=1)
def parameters() -> dict[str, Any]:
    """The cohort's parameters (`parameters.yaml`)."""
    table: dict[str, Any] = yaml.safe_load(
        files("models.phantom").joinpath("parameters.yaml").read_text(encoding="utf-8")
    )
    return table


@dataclass(frozen=True)
class Lesion:
    """One tumour: an ellipsoid with an irregular border. Lengths in mm in world coordinates (RAS)."""

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    seed: int
    response: float  # multiplies the log kill of this lesion

    @property
    def volume_ml(self) -> float:
        """Volume of the ellipsoid in ml."""
        a, b, c = self.radii_mm
        return float(4.0 / 3.0 * np.pi * a * b * c / 1000.0)


@dataclass(frozen=True)
class Patient:
    """One phantom patient.

    `traits` are the image-visible features in [0, 1]: vascularity, core, infiltration, capsule, shunt, texture.
    `hidden` holds a
    multiplier per item (in `ITEM_ORDER`) that nothing shows. `toxicity_sensitivity` multiplies the fixed toxicity term.
    """

    patient_id: str
    seed: int
    traits: dict[str, float]
    lesions: tuple[Lesion, ...]
    liver_scale: float
    record: ClinicalRecord
    hidden: tuple[float, ...]
    toxicity_sensitivity: float

    @property
    def tumour_ml(self) -> float:
        """Total tumour volume before treatment in ml."""
        return sum(lesion.volume_ml for lesion in self.lesions)

    @property
    def core_fraction(self) -> float:
        """Share of every lesion that is necrotic before treatment, in [0.02, 0.42]."""
        return 0.02 + 0.40 * self.traits["core"]

    @property
    def features(self) -> dict[str, float]:
        """Traits, size and AFP scaled to about -1..1, as the response model reads them."""
        out = {name: 2.0 * value - 1.0 for name, value in self.traits.items()}
        largest = max(max(lesion.radii_mm) for lesion in self.lesions)
        out["size"] = float(np.clip((np.log(largest) - np.log(22.0)) / 1.0, -1.5, 1.5))
        afp = self.record.afp_ng_ml
        out["afp"] = 0.0 if afp is None else float(np.clip((np.log10(afp) - 2.0) / 1.5, -1.2, 1.5))
        return out


# Liver of scale 1, mm: two overlapping lobes. The rendered organ adds a smooth deformation.
RIGHT_LOBE: Final = (np.array([48.0, 2.0, 0.0]), np.array([68.0, 66.0, 74.0]))
LEFT_LOBE: Final = (np.array([-22.0, 30.0, 22.0]), np.array([66.0, 36.0, 42.0]))


def _lesions(rng: np.random.Generator, scale: float, response_sd: float) -> tuple[Lesion, ...]:
    number = int(rng.choice([1, 1, 1, 2, 2, 3]))
    lesions: list[Lesion] = []
    for index in range(number):
        low, high = (8.0, 68.0) if index == 0 else (6.0, 18.0)
        radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        radii = radius * rng.uniform(0.85, 1.18, 3)
        for _ in range(200):
            lobe_centre, lobe_radii = RIGHT_LOBE if rng.random() < (0.7 if radius < 30 else 1.0) else LEFT_LOBE
            direction = rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            room = np.clip(1.0 - radius / (lobe_radii * scale), 0.0, 0.85)
            centre = (lobe_centre + direction * lobe_radii * room * rng.random() ** (1 / 3)) * scale
            gaps = [np.linalg.norm(centre - np.array(o.centre_mm)) - radius - max(o.radii_mm) for o in lesions]
            if all(gap > 8.0 for gap in gaps):
                seed = int(rng.integers(2**31))
                response = float(np.exp(rng.normal(0.0, response_sd)))
                lesions.append(Lesion(tuple(map(float, centre)), tuple(map(float, radii)), seed, response))  # type: ignore[arg-type]
                break
    return tuple(lesions)


def _record(rng: np.random.Generator, traits: dict[str, float], number: int, burden: float) -> ClinicalRecord:
    score = int(np.clip(5 + rng.poisson(0.7 + 0.4 * (burden > 0.25)), 5, 9))
    grades: tuple[Literal["none", "branch", "main"], ...] = ("none", "branch", "main")
    invasion = grades[int(rng.choice([0, 0, 0, 1]) if burden < 0.2 else rng.choice(3, p=[0.6, 0.35, 0.05]))]
    extra = max(score - 5, 0)
    return ClinicalRecord(
        age_years=float(np.round(np.clip(rng.normal(66, 9), 35, 88))),
        sex="male" if rng.random() < 0.7 else "female",
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
        afp_ng_ml=float(np.round(10 ** np.clip(rng.normal(2.0 + 0.6 * (traits["texture"] - 0.5), 1.1), 0.3, 5.5), 1)),
        ecog=int(rng.choice([0, 1, 2], p=[0.6, 0.35, 0.05])),
        ascites="none" if score < 7 else "mild",
        encephalopathy=0,
        child_pugh_score=score,
        child_pugh_class="A" if score <= 6 else "B",
        bclc="C" if invasion != "none" else ("B" if number > 1 or burden > 0.05 else "A"),
        cirrhosis=bool(rng.random() < 0.75),
        portal_vein_invasion=invasion,
        extrahepatic_spread=False,
        shunt="arterioportal" if traits["shunt"] > 0.6 and rng.random() < 0.7 else "none",
        tumour_number=number,
    )


def draw_patient(seed: int) -> Patient:
    """Draws one patient.

    Args:
        seed: Non-negative; the same seed gives the same patient, whatever else was drawn before.

    Returns:
        The patient, truth included.
    """
    rng = np.random.default_rng([20261120, seed])
    response = parameters()["response"]
    shunt = float(rng.beta(1.2, 1.2)) if rng.random() < 0.45 else float(rng.uniform(0.0, 0.25))
    traits = {
        "vascularity": float(rng.beta(1.3, 1.3)),
        "core": float(rng.beta(1.1, 1.3)),
        "infiltration": float(rng.beta(1.1, 1.2)),
        "capsule": float(rng.beta(0.9, 0.9)),
        "shunt": shunt,
        "texture": float(rng.beta(1.3, 1.3)),
    }
    scale = float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.14))
    lesions = _lesions(rng, scale, float(response["lesion_sd"]))
    burden = sum(lesion.volume_ml for lesion in lesions) / (1500.0 * scale**3)
    record = _record(rng, traits, len(lesions), burden)
    return Patient(
        patient_id=f"phantom-{seed:06d}",
        seed=seed,
        traits=traits,
        lesions=lesions,
        liver_scale=scale,
        record=record,
        hidden=tuple(float(v) for v in np.exp(rng.normal(0.0, response["hidden_sd"], len(ITEM_ORDER)))),
        toxicity_sensitivity=float(np.exp(rng.normal(0.0, parameters()["survival"]["toxicity_sd"]))),
    )
