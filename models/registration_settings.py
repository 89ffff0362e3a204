"""How a follow-up is registered and when the result may be used: the content of `registration.yaml`."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Data):
    """One search, from coarse to fine."""

    shrink: tuple[int, ...]
    smooth_mm: tuple[float, ...]
    iterations: int


class Rigid(Stage):
    """Powell's search; steps in mm of the movement that a parameter causes."""

    step_mm: float
    step_tolerance: float
    value_tolerance: float


class Deformable(Stage):
    """B-spline with one control point per `grid_mm`."""

    grid_mm: float


class Method(_Data):
    """How the search is done; see `registration.yaml`."""

    working_mm: float
    window_hu: tuple[float, float]
    region_margin_mm: float
    body_hu: float
    coarse_mm: float
    coarse_overlap: float
    histogram_bins: int
    sampled_share: float
    seed: int
    rigid: Rigid
    deformable: Deformable


class Accept(_Data):
    """When a result may be used; see `registration.yaml`."""

    oil_hu: float
    min_liver_dice: float
    min_similarity: float
    min_seen_share: float
    min_oil_ml: float
    oil_margin_mm: float
    min_oil_in_tumour_share: float
    max_folding_share: float
    max_deformation_p95_mm: float
    max_rotation_degrees: float


class Settings(_Data):
    """Content of `registration.yaml`."""

    method: Method
    accept: Accept


@cache
def settings() -> Settings:
    """The method and the limits of `registration.yaml`."""
    text = resources.files("models").joinpath("registration.yaml").read_text(encoding="utf-8")
    return Settings.model_validate(yaml.safe_load(text))
