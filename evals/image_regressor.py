"""Direct image regressor: scan before treatment, record and protocol to risk in one network, simulating nothing.

It has the encoder of the survival network and the action vector, learns from the same pool, the same follow-up and the
same Cox loss through the same training loop. It answers whether simulating the scan after treatment is worth it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from sksurv.metrics import concordance_index_censored
from torch import Tensor, nn

from models.formulary import ITEM_ORDER
from models.networks.action import FEATURES, action_vector
from models.networks.preset import Preset
from models.networks.record_vector import RECORD_SIZE, record_vector
from models.networks.survival import SurvivalNet
from models.protocol import Protocol
from models.training.losses import cox_efron
from models.training.pool import Pool, hu_to_unit, random_flips
from models.training.survival import forget_fields

WIDTH = 96
VALIDATION_PATIENTS = 256
KNOWN = 3
"""Beside the image: log1p(tumour ml before), number of lesions, log2(spacing / 1.5 mm)."""


class ImageRegressor(nn.Module):
    """Log-risk of a protocol from the scan before treatment, without the toxicity term."""

    def __init__(self, preset: Preset) -> None:
        """Build with random weights; the encoder is the survival network's."""
        super().__init__()
        self.encoder = SurvivalNet(preset.survival).encoder
        dim = 8 * preset.survival.width
        self.image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 48), nn.GELU(), nn.Dropout(0.2))
        inputs = 48 + KNOWN + RECORD_SIZE + len(ITEM_ORDER) * FEATURES
        self.head = nn.Sequential(
            nn.Linear(inputs, WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH), nn.GELU(),
            nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def look(self, scan: Tensor) -> Tensor:
        """[CT in [-1, 1], tumour mask] (N, 2, S, S, S) -> features (N, 48)."""
        tokens = self.encoder(scan)
        features: Tensor = self.image(tokens.mean(dim=1))
        return features

    def forward(self, features: Tensor, known: Tensor, record: Tensor, action: Tensor) -> Tensor:
        """Log-risk.

        Args:
            features: (N, 48) from `look`.
            known: (N, 3), see `KNOWN`.
            record: (N, RECORD_SIZE).
            action: (N, 18, 3).

        Returns:
            (N,).
        """
        inputs = torch.cat([features.float(), known, record, action.flatten(1)], dim=1)
        risk: Tensor = self.head(inputs).squeeze(1)
        return risk.float()


class RegressorTask:
    """Cox over patients and protocols, with the fixed toxicity term as offset: as the survival network is trained."""

    def __init__(self, pool: Pool, preset: Preset) -> None:
        """Build the network from the global random state."""
        self.pool, self.preset, self.training = pool, preset, preset.training.survival
        self.network: nn.Module = ImageRegressor(preset)
        self.record = torch.from_numpy(np.stack([record_vector(record) for record in pool.records]))
        self.action = torch.from_numpy(np.array(pool.actions, dtype=np.float32))
        self.known = torch.from_numpy(np.array(pool.burden[:, 0, 1 : 1 + KNOWN], dtype=np.float32))
        self.offset = torch.from_numpy(np.array(pool.toxicity, dtype=np.float32))
        self.time = torch.from_numpy(np.array(pool.time_months, dtype=np.float32))
        self.event = torch.from_numpy(np.array(pool.event, dtype=bool))

    def _scan(self, patient: int) -> Tensor:
        tumour = torch.from_numpy((np.asarray(self.pool.tumour_mask[patient]) > 0).astype(np.float32))
        return torch.stack([hu_to_unit(self.pool.pre[patient], self.preset.hu_window), tumour])

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`. All protocols of `batch` patients form one risk set."""
        assert isinstance(self.network, ImageRegressor)
        count = self.action.shape[1]
        patients = rng.choice(self.pool.train, size=min(self.training.batch, self.pool.train.size), replace=False)
        features = self.network.look(torch.stack([self._scan(int(p)).flip(random_flips(rng)) for p in patients]))
        record = forget_fields(self.record[patients], rng).repeat_interleave(count, dim=0)
        risk = self.network(
            features.repeat_interleave(count, dim=0), self.known[patients].repeat_interleave(count, dim=0), record,
            self.action[patients].flatten(0, 1),
        )  # fmt: skip
        offset, time, event = (v[patients].flatten() for v in (self.offset, self.time, self.event))
        return cox_efron(risk + offset, time, event), {"spread": float(risk.detach().std())}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """c-index on unseen patients, beside the true hazard's, and the within-patient rank correlation with it."""
        assert isinstance(network, ImageRegressor)
        patients = self.pool.val[:VALIDATION_PATIENTS]
        count = self.action.shape[1]
        rows = []
        for patient in patients:
            features = network.look(self._scan(int(patient))[None]).expand(count, -1)
            known, record = (v[patient].expand(count, -1) for v in (self.known, self.record))
            rows.append(network(features, known, record, self.action[patient]) + self.offset[patient])
        total, true = torch.stack(rows).float().numpy(), np.asarray(self.pool.true_log_risk[patients])
        ranks = [
            float(spearmanr(mine, truth).statistic)
            for mine, truth in zip(total, true, strict=True)
            if np.ptp(mine) > 0 and np.ptp(truth) > 0
        ]
        event, time = self.event[patients].flatten().numpy(), self.time[patients].flatten().numpy()
        out = {"within_patient_rank": float(np.mean(ranks)) if ranks else 0.0}
        if event.any():
            out["c_index"] = float(concordance_index_censored(event, time, total.ravel())[0])
            out["c_index_true_hazard"] = float(concordance_index_censored(event, time, true.ravel())[0])
        return out

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:  # noqa: ARG002 (there is nothing to see)
        """An empty picture: the network draws nothing."""
        return np.full((8, 8), 255, dtype=np.uint8)


@torch.inference_mode()
def predict_risks(
    network: ImageRegressor, scan: Tensor, tumour_ml: float, lesions: int, spacing_mm: float,
    record: npt.NDArray[np.float32], protocols: list[Protocol],
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Log-risks of protocols for one patient, without toxicity, (P,).

    Args:
        network: Trained.
        scan: (2, S, S, S) CT before treatment in [-1, 1] and tumour mask.
        tumour_ml: Volume of all lesions.
        lesions: Their number.
        spacing_mm: Voxel size of the scan.
        record: From `record_vector`.
        protocols: To judge.
    """
    count = len(protocols)
    known = torch.tensor([math.log1p(tumour_ml), float(lesions), math.log2(spacing_mm / 1.5)]).expand(count, -1)
    action = torch.from_numpy(np.stack([action_vector(protocol) for protocol in protocols]))
    features = network.look(scan[None]).expand(count, -1)
    risks = network(features, known, torch.from_numpy(record).expand(count, -1), action)
    return np.asarray(risks.double().numpy(), np.float64)
