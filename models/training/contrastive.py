"""Combo-contrastive learning, equation (3) of the paper, on estimates that carry a gradient.

Anchor: a patient under a protocol. Positive: another patient under the same set of agents. Negatives: the anchor's
patient under other agents, with the same noise and time. The paper's code sampled whole images without gradient and
added a constant to the loss; here one denoising step gives an estimate of the clean latent, and what it changed inside
the tumour is compared.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.pool import Pool

TEMPERATURE = 0.07  # delta of equation (3), the value of the paper's code


def combo_contrastive_loss(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float = TEMPERATURE, paper: bool = False
) -> Tensor:
    """Equation (3): cosine similarities, softmax over positive and negatives.

    Args:
        anchor: (N, D).
        positive: (N, D).
        negatives: (N, M, D).
        temperature: delta.
        paper: leave the positive out of the denominator, as the paper writes it (then the loss has no lower bound).

    Returns:
        Scalar, mean over anchors.
    """
    near = F.cosine_similarity(anchor, positive, dim=1) / temperature
    far = F.cosine_similarity(anchor[:, None], negatives, dim=2) / temperature
    others = far if paper else torch.cat([near[:, None], far], dim=1)
    return (torch.logsumexp(others, dim=1) - near).mean()


def change_inside(estimate: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """What a treatment changed: mean and spread of the latent difference inside the tumour, (N, 2 C).

    Args:
        estimate: (N, C, s, s, s) estimated latent after treatment.
        before: (N, C, s, s, s) latent before.
        mask: (N, 1, s, s, s) share of tumour per cell.
    """
    change = estimate - before
    total = mask.sum(dim=(2, 3, 4)).clamp_min(1e-3)
    mean = (change * mask).sum(dim=(2, 3, 4)) / total
    spread = ((change - mean[:, :, None, None, None]).square() * mask).sum(dim=(2, 3, 4)) / total
    return torch.cat([mean, (spread + 1e-4).sqrt()], dim=1)


class Combos:
    """The training samples by their set of agents."""

    def __init__(self, pool: Pool) -> None:
        """Only sets that at least two training patients were given can make a positive pair."""
        found: dict[frozenset[str], list[tuple[int, int]]] = defaultdict(list)
        for patient in (int(p) for p in pool.train):
            for index, protocol in enumerate(pool.protocols[patient]):
                found[frozenset(protocol.items)].append((patient, index))
        self.classes = [
            np.array(rows) for _, rows in sorted(found.items(), key=lambda pair: sorted(pair[0]))
            if len({patient for patient, _ in rows}) > 1
        ]  # fmt: skip
        self.sets = [[frozenset(protocol.items) for protocol in row] for row in pool.protocols]

    def draw(self, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Two (patient, protocol) of different patients with the same agents, every set alike likely; None if none."""
        if not self.classes:
            return None
        rows = self.classes[int(rng.integers(len(self.classes)))]
        first = rows[int(rng.integers(len(rows)))]
        others = rows[rows[:, 0] != first[0]]
        second = others[int(rng.integers(len(others)))]
        return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))

    def other(self, patient: int, protocol: int, rng: np.random.Generator) -> int:
        """Another protocol of the patient, one with other agents where there is one."""
        count = len(self.sets[patient])
        choices: npt.NDArray[np.int64] = np.array(
            [k for k in range(count) if self.sets[patient][k] != self.sets[patient][protocol]]
        )
        if not choices.size:
            choices = np.array([k for k in range(count) if k != protocol])
        return int(rng.choice(choices))
