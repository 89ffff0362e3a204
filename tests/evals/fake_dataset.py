"""A small dataset with known gold and known truth, for tests of the runner: no phantom, no network."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.settings import PlannerSettings
from agent.trace import content_hash
from evals.datasets import Dataset, EvalCase, SearchSpace
from evals.regret import RiskTable
from evals.results import Answer, Limits, RunSpec, Usage
from evals.solver import CaseJob
from models.clinical_record import ClinicalRecord
from models.protocol import Protocol
from tests.agent.fake_tools import make_case
from tests.agent.scripted import unit

SPACE = SearchSpace("hcc_tace_seg")
SETTINGS = PlannerSettings(actions="hcc_tace_seg", beams=2, replicas=2, finalists=2, finalist_replicas=2)


class FakeCase(EvalCase):
    """Gold is the best of a scripted truth; `image` decides whether it can be planned."""

    def __init__(self, case_id: str, image: bool = True, record: ClinicalRecord | None = None) -> None:
        super().__init__(case_id, record or ClinicalRecord(), None, None, "synthetic", SPACE)
        self.image = image

    @property
    def gold(self) -> Mapping[str, Protocol]:
        best = self.truth.best
        return {"best": best, "with_oil": best.with_item("embolic", "Lipiodol")}

    @property
    def truth(self) -> RiskTable:
        risk = [sum(unit(self.case_id, item) - 0.5 for item in p.items) for p in self.allowed]
        return RiskTable(self.allowed, np.array(risk), given_log_hazard=0.0)

    @property
    def has_image(self) -> bool:
        return self.image

    def write(self, folder: Path) -> Path | None:
        if not self.image:
            return None
        if not (folder / self.case_id / "case.json").exists():
            make_case(folder / self.case_id, self.case_id)
        return folder / self.case_id


def dataset(n: int = 4, image: bool = True) -> Dataset:
    cases = tuple(FakeCase(f"case-{index}", image) for index in range(1, n + 1))
    return Dataset(
        name="fake", version="1", content_hash=content_hash([c.case_id for c in cases]), card="# Fake\n", cases=cases,
        variants=("best", "with_oil"), origin="synthetic", space=SPACE, rows=n, pool=cases,
    )  # fmt: skip


def spec(data: Dataset, /, **changes: object) -> RunSpec:
    values: dict[str, object] = {
        "created": "2026-01-01T00:00:00+00:00", "dataset": data.name, "dataset_version": data.version,
        "dataset_hash": data.content_hash, "data_origin": data.origin,
        "actions": data.space.actions, "rows": data.rows, "no_image": 0, "seed": 0, "limit": None, "tier": None,
        "data": None, "clinical": None, "stage": "plan", "backend": "guideline", "prompts": None, "prompts_hash": None,
        "epochs": 1, "settings": SETTINGS, "limits": Limits(), "conditions": {"weights": "none"},
    }  # fmt: skip
    return RunSpec.model_validate(values | changes)


class Says:
    """An agent that gives each case a fixed protocol; counts how often it was asked."""

    def __init__(self, protocols: Protocol | Mapping[str, Protocol | None] | None) -> None:
        self.protocols = protocols
        self.asked: list[tuple[str, int]] = []
        self.lock = threading.Lock()

    def __call__(self, job: CaseJob) -> Answer:
        with self.lock:
            self.asked.append((job.case.case_id, job.epoch))
        said = self.protocols.get(job.case.case_id) if isinstance(self.protocols, Mapping) else self.protocols
        return Answer(
            case_id=job.case.case_id, epoch=job.epoch, status="answered" if said else "blocked", protocol=said,
            why=None if said else "nothing was said", usage=Usage(seconds=1.0, requests=1),
        )  # fmt: skip


def protocol(drugs: Sequence[str], embolics: Sequence[str]) -> Protocol:
    return Protocol(drugs=tuple(drugs), embolics=tuple(embolics))
