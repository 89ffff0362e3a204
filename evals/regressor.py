"""Direct regressor: image features, record and protocol to risk in one step, without simulating anything.

It answers what the world model is for: whether the detour over a simulated image gains anything over a small network on
engineered features of the scan before treatment. It learns from phantom patients under random protocols, as many
labelled pairs as a training pool of the shipped size holds, and is kept in memory only.

Two kinds of labels, both rows of the table:

- ``survival``: a drawn survival time and whether death was seen, Cox loss; what the survival network learns from.
- ``true_risk``: the true log hazard itself; nobody has that, so this row is a reference, no competitor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evals.datasets.eval_case import EvalCase
from evals.datasets.phantom import PhantomCase, draw_cases, settings
from evals.image_features import MARGIN_MM, image_features, tumour_box
from models.case import Case
from models.formulary import ITEM_ORDER
from models.networks.record_vector import record_vector
from models.phantom.cohort import CASE_SHAPE, CASE_SPACING_MM, case_affine
from models.phantom.patient import Patient
from models.phantom.render import render
from models.phantom.response import draw_survival, respond
from models.protocol import Protocol
from models.toxicity import toxicity
from models.training.losses import cox_efron

Labels = Literal["survival", "true_risk"]
Array = npt.NDArray[np.float64]

PATIENTS = 400
PROTOCOLS = 30
"""400 x 30 = 12,000 pairs: as many as a training pool of 3,000 patients with 4 protocols each."""
VALIDATION = 0.15
"""Share of the training patients on which the epoch is chosen."""
EPOCHS, BATCH, WIDTH, DROPOUT = 60, 512, 64, 0.2
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05


@dataclass(frozen=True)
class _Pairs:
    """Training data: `inputs` (N, F), true log hazard (N,), drawn months (N,), death seen (N,); patient by patient."""

    inputs: Array
    log_hazard: Array
    months: Array
    event: npt.NDArray[np.bool_]
    patient: npt.NDArray[np.int64]


class DirectRegressor:
    """A fitted regressor.

    Args:
        labels: What it learns from.
        patients: Training patients, other ones than any that is scored.
        protocols: Random protocols for each.
        seed: Of initial weights, order and dropout.
        epochs: Most passes; the one that is best on held-out training patients is kept.
    """

    def __init__(
        self, labels: Labels, patients: int = PATIENTS, protocols: int = PROTOCOLS, seed: int = 0, epochs: int = EPOCHS
    ) -> None:
        """Render, fit. About a minute on one core."""
        pairs = _training_pairs(patients, protocols)
        self._mean, spread = pairs.inputs.mean(0), pairs.inputs.std(0)
        self._scale = np.where(spread > 0, spread, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _fit(self._scaled(pairs.inputs), pairs, labels, epochs)

    def _scaled(self, inputs: Array) -> torch.Tensor:
        return torch.from_numpy(((inputs - self._mean) / self._scale).astype(np.float32))

    def risks(self, case: EvalCase, protocols: Sequence[Protocol]) -> Array:
        """Predicted log-risk of protocols for a case with an image, (P,); only differences within a case mean anything.

        Raises:
            ValueError: The case has no image.
        """
        tumour, liver = case.summary.tumour_ml, case.summary.liver_ml
        harm = [toxicity(protocol, case.record, tumour, liver).log_hazard for protocol in protocols]
        inputs = _inputs(case_features(case), record_vector(case.record), protocols, harm)
        with torch.inference_mode():
            return np.asarray(self._network(self._scaled(inputs))[:, 0].numpy(), np.float64)


def case_features(case: EvalCase) -> Array:
    """`image_features` of a case folder's default image."""
    with case.opened() as folder:
        stored = Case.load(folder, verify=False)
        volume, labels = stored.volume(), stored.label_array()
    box = tumour_box(labels, volume.affine)
    return image_features(volume.data[box], labels[box], volume.affine)


def patient_features(patient: Patient) -> Array:
    """`image_features` of a phantom patient: the written case's grid, rendered only around the tumour."""
    affine, spacing = case_affine(), np.array(CASE_SPACING_MM)
    centres = np.array([lesion.centre_mm for lesion in patient.lesions])
    # a border may bulge by a third of the radius
    reach = np.array([lesion.radii_mm for lesion in patient.lesions]) * 1.35 + MARGIN_MM
    low = np.clip(np.floor(((centres - reach).min(0) - affine[:3, 3]) / spacing), 0, None).astype(int)
    high = np.minimum(np.ceil(((centres + reach).max(0) - affine[:3, 3]) / spacing), CASE_SHAPE).astype(int)
    affine[:3, 3] += low * spacing
    x, y, z = (int(n) for n in high - low)
    scan = render(patient, affine, (x, y, z))
    box = tumour_box(scan.organs, affine)
    return image_features(np.rint(scan.hu[box]), scan.organs[box], affine)


def _inputs(
    image: Array, record: npt.NDArray[np.float32], protocols: Sequence[Protocol], harm: Sequence[float]
) -> Array:
    items = np.array([[name in protocol.items for name in ITEM_ORDER] for protocol in protocols], float)
    patient = np.broadcast_to(np.concatenate([image, record]), (len(protocols), image.size + record.size))
    return np.concatenate([patient, np.asarray(harm)[:, None], items], axis=1)


@lru_cache(maxsize=2)
def _training_pairs(patients: int, protocols: int) -> _Pairs:
    rng = np.random.default_rng(settings().training_first_seed)
    drawn = (case for case in draw_cases(settings().training_first_seed) if isinstance(case, PhantomCase))
    inputs: list[Array] = []
    hazards: list[float] = []
    for case in islice(drawn, patients):
        patient, space = case.patient, case.space.protocols
        chosen = [space[index] for index in rng.choice(len(space), protocols, replace=False)]
        liver_ml = patient.liver_ml
        harm = [toxicity(protocol, patient.record, patient.tumour_ml, liver_ml).log_hazard for protocol in chosen]
        inputs.append(_inputs(patient_features(patient), record_vector(patient.record), chosen, harm))
        hazards += [respond(patient, protocol).log_hazard for protocol in chosen]
    months, event = draw_survival(hazards, rng)
    patient_of = np.repeat(np.arange(len(inputs)), protocols)
    return _Pairs(np.concatenate(inputs), np.array(hazards), months, event, patient_of)


def _fit(inputs: torch.Tensor, pairs: _Pairs, labels: Labels, epochs: int) -> nn.Module:
    network = nn.Sequential(
        nn.Linear(inputs.shape[1], WIDTH), nn.SiLU(), nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    wanted = torch.from_numpy((pairs.log_hazard - pairs.log_hazard.mean()).astype(np.float32))
    months, event = torch.from_numpy(pairs.months.astype(np.float32)), torch.from_numpy(pairs.event)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        risk = network(inputs[rows])[:, 0]
        if labels == "survival":
            return cox_efron(risk, months[rows], event[rows])
        return torch.square(risk - wanted[rows]).mean()

    held_out = pairs.patient >= (1.0 - VALIDATION) * (pairs.patient.max() + 1)
    train, check = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~held_out, held_out))
    best, kept = float("inf"), network.state_dict()
    for _ in range(epochs):
        network.train()
        for rows in torch.split(train[torch.randperm(len(train))], BATCH):
            optimiser.zero_grad()
            loss_of(rows).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        network.eval()
        with torch.no_grad():
            now = float(loss_of(check))
        if now < best:
            best, kept = now, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return network.eval()
