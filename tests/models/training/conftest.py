from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from models.clinical_record import ClinicalRecord
from models.networks.action import action_vector
from models.networks.preset import Preset
from models.protocol import Protocol

SIZE = 32
PROTOCOLS = (
    Protocol(drugs=("Cisplatin",)),
    Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)),
    Protocol(drugs=("Doxorubicin",), embolics=("Lipiodol", "PVA")),
    Protocol(drugs=("Doxorubicin",), embolics=("PVA",)),
)


@dataclass
class FakePool:
    """The layout of a pool with balls for tumours: Lipiodol makes the middle bright, PVA makes the rest dark."""

    pre: Any
    pre_labels: Any
    tumour_mask: Any
    post: Any
    post_labels: Any
    actions: Any
    protocols: Any
    spacing_mm: Any
    wide: Any
    wide_labels: Any
    burden: Any
    records: Any
    toxicity: Any
    true_log_risk: Any
    time_months: Any
    event: Any
    train: Any
    val: Any
    test: Any
    data_hash: str = "fake"


def make_pool(patients: int = 16, seed: int = 0) -> FakePool:
    rng = np.random.default_rng(seed)
    k = len(PROTOCOLS)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1)
    pre = np.empty((patients, SIZE, SIZE, SIZE), np.int16)
    pre_labels = np.ones(pre.shape, np.uint8)
    mask = np.zeros(pre.shape, np.uint8)
    post = np.empty((patients, k, SIZE, SIZE, SIZE), np.int16)
    post_labels = np.ones(post.shape, np.uint8)
    viable = np.empty((patients, k))
    for p in range(patients):
        radius = rng.uniform(5, 9)
        distance = np.linalg.norm(grid - rng.uniform(13, 19, 3), axis=-1)
        tumour = distance < radius
        mask[p] = tumour
        pre_labels[p][tumour] = 2
        pre[p] = np.where(tumour, 160, 90) + rng.normal(0, 8, tumour.shape)
        for j, protocol in enumerate(PROTOCOLS):
            hu = np.where(tumour, 160.0, 90.0)
            if "PVA" in protocol.embolics:
                hu[tumour] = 30
                post_labels[p, j][tumour] = 3
            else:
                post_labels[p, j][tumour] = 2
            if "Lipiodol" in protocol.embolics:
                hu[distance < 0.6 * radius] = 480
                post_labels[p, j][distance < 0.6 * radius] = 4
            post[p, j] = hu + rng.normal(0, 8, tumour.shape)
            viable[p, j] = (post_labels[p, j] == 2).sum() * 1.5**3 / 1000
    burden = np.zeros((patients, k, 4), np.float32)
    burden[..., 0] = np.log1p(viable)
    burden[..., 1] = np.log1p(mask.sum((1, 2, 3)) * 1.5**3 / 1000)[:, None]
    burden[..., 2] = 1
    child_pugh = rng.integers(5, 9, patients)
    risk = 0.8 * burden[..., 0] + 0.4 * (child_pugh[:, None] - 5)
    time = -np.log(rng.uniform(1e-6, 1, risk.shape)) / np.exp(risk) * 30
    return FakePool(
        pre=pre, pre_labels=pre_labels, tumour_mask=mask, post=post, post_labels=post_labels,
        wide=pre, wide_labels=pre_labels,
        actions=np.tile(np.stack([action_vector(q) for q in PROTOCOLS]), (patients, 1, 1, 1)),
        protocols=[list(PROTOCOLS)] * patients, spacing_mm=np.full(patients, 1.5, np.float32), burden=burden,
        records=[ClinicalRecord(child_pugh_score=int(c)) for c in child_pugh],
        toxicity=np.zeros((patients, k), np.float32),
        true_log_risk=risk, time_months=np.minimum(time, 60).astype(np.float32), event=time < 60,
        train=np.arange(patients - 4), val=np.arange(patients - 4, patients - 2),
        test=np.arange(patients - 2, patients),
    )  # fmt: skip


def shrink(preset: Preset) -> Preset:
    """The shipped preset with tiny networks on 32^3 cubes."""
    small = preset.model_dump()
    small["size"] = SIZE
    small["autoencoder"] |= {"channels": (16, 16), "res_layers": 1, "codes": 32}
    small["denoiser"] |= {
        "channels": (16, 16), "attention": (False, False), "head_channels": 16, "norm_groups": 8, "concept_dim": 8,
        "text_dim": 8, "action_dim": 8, "steps": 2,
    }  # fmt: skip
    small["segmenter"] |= {"filters": (4, 8, 8)}
    small["localiser"] |= {"filters": (4, 8, 8)}
    small["survival"] |= {"width": 4, "heads": 2, "depth": 1}
    for part in small["training"].values():
        part |= {"batch": 2, "crop": 16, "warmup_steps": 2}
    small["training"]["denoiser"]["batch"] = 4
    small["training"]["denoiser"]["options"] |= {"response_steps": 30, "attenuation_share": 0.5}
    small["training"]["autoencoder"]["options"] |= {"critic_from": 0.2, "adversarial_from": 0.3}
    small["training"]["survival"]["options"] |= {"simulated_patients": 4}
    small["training"]["survival"]["batch"] = 4
    return Preset.model_validate(small)


@pytest.fixture(scope="session")
def pool() -> FakePool:
    return make_pool()


@pytest.fixture(scope="session")
def tiny() -> Preset:
    return shrink(Preset.load("small"))
