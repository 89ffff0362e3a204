"""What the paper printed, as reference lines beside our tables (`published.yaml`)."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedScore(_Data):
    """Means over test patients, in percent, as printed; no interval was given."""

    f1: float
    jaccard: float
    precision: float
    recall: float


class Cohort(_Data):
    """The data behind a column. `n_about`: test patients by our arithmetic, the paper does not say."""

    dataset: str
    n_about: int


class PublishedRow(_Data):
    """One method of the paper's Table 2 or 3."""

    method: str
    table: Literal[2, 3]
    in_house: PublishedScore
    public: PublishedScore


class Published(_Data):
    """The content of `published.yaml`."""

    label: str
    source: str
    cohorts: dict[Literal["in_house", "public"], Cohort]
    rows: tuple[PublishedRow, ...]

    def caption(self, cohort: Literal["in_house", "public"]) -> str:
        """What has to stand beside the figures of a cohort."""
        return f"{self.label}, {self.cohorts[cohort].dataset}, n about {self.cohorts[cohort].n_about}"


@lru_cache(maxsize=1)
def load_published() -> Published:
    """The published figures, checked against their schema."""
    text = files("evals").joinpath("published.yaml").read_text(encoding="utf-8")
    return Published.model_validate(yaml.safe_load(text))
