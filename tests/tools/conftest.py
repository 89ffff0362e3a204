"""A case with known lesions and an untrained world model whose segmenter reads tissue from HU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.engine import Engine
from models.networks.preset import Preset
from models.volume import Volume
from models.weights import SurvivalBaseline, WorldModel, init_world_model
from tools.workspace import Workspace

LIVER_HU, TUMOUR_HU, NECROTIC_HU, OIL_HU = 100, 160, 30, 400
SPACING = (1.5, 1.5, 2.5)
SHAPE = (120, 90, 48)
LESIONS = (((34, 45, 24), 21.0), ((98, 45, 24), 12.0))  # voxel centre, radius in mm; 96 mm apart: two patches


class ThresholdSegmenter(nn.Module):
    """Truth by construction: below 65 HU necrotic, 130 to 300 viable, above that oil, liver between."""

    def forward(self, x: Tensor) -> Tensor:
        hu = (x[:, 0] + 1) * 387.5 - 175
        classes = torch.where(hu < 65, 3, torch.where(hu < 130, 1, torch.where(hu < 300, 2, 4)))
        return nn.functional.one_hot(classes, 5).movedim(-1, 1).float()


def tiny_preset() -> Preset:
    """The small preset's geometry at half its resolution with slimmer networks."""
    small = Preset.load("small").model_dump()
    small.update(name="tiny", size=64, spacing_mm=1.5)
    small["autoencoder"].update(channels=(4, 8), res_layers=1)
    small["denoiser"].update(channels=(32, 32), attention=(False, False), steps=2)
    small["segmenter"].update(filters=(4, 8, 8))
    small["localiser"].update(filters=(4, 8, 8))
    small["survival"].update(width=4, heads=2)
    return Preset.model_validate(small)


@pytest.fixture(scope="session")
def model() -> WorldModel:
    baseline = SurvivalBaseline(
        times_months=(0, 6, 12, 24, 48), survival=(1.0, 0.9, 0.7, 0.4, 0.1), n=120, data_origin="synthetic"
    )
    made = init_world_model(tiny_preset(), seed=5)
    return dataclasses.replace(made, segmenter=ThresholdSegmenter(), baseline=baseline)


def phantom() -> tuple[Volume, NDArray[np.uint8]]:
    """Two balls of 160 HU in a liver of 100 HU, with an aorta and air around."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-90.0, -60.0, 10.0)
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:116, 4:86] = 1
    labels[10:14, 8:12] = 4
    labels[20:23, 8:12] = 3
    for centre, radius in LESIONS:
        squared = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, SPACING, strict=True))
        labels[squared <= radius**2] = 2
    hu = np.choose(labels, [-1000, LIVER_HU, TUMOUR_HU, 180, 350])
    return Volume(hu.astype(np.int16), affine), labels


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume, labels = phantom()
    folder = tmp_path_factory.mktemp("cases") / "two"
    record = ClinicalRecord(age_years=61, child_pugh_class="A", bilirubin_mg_dl=0.9)
    images = {ImageMeta("pre_arterial", phase="arterial"): volume}
    write_case(folder, "two", "synthetic", "two balls", images, labels, record)
    return folder


@pytest.fixture(scope="session")
def engine(model: WorldModel) -> Engine:
    return Engine("cpu", model=model, precision="fp32", batch=4)


@pytest.fixture
def make_workspace(case_folder: Path, engine: Engine, tmp_path: Path) -> Callable[[], Workspace]:
    """A new workspace, as a new process would have it, over the same artifacts."""
    return lambda: Workspace({"two": case_folder}, tmp_path / "artifacts", engine=engine)


@pytest.fixture
def workspace(make_workspace: Callable[[], Workspace]) -> Workspace:
    return make_workspace()
