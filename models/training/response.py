"""Trains the response head alone, on numbers that were computed once: thousands of cheap steps, no scan, no denoiser.

Beside the protocols that were rendered, a synthetic pool may hold further protocols of every patient with the shares
that they lead to (`more_actions`, `more_shares`): the same patient under two dozen protocols says what the image
changes about each agent. Real patients have the one protocol that they were given.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.networks.response_head import SHARES, ResponseHead
from models.networks.segmenter import Tissue
from models.training.loop import learning_rate
from models.training.pool import Pool

FILE = "response.safetensors"
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.02, 50
PATIENTS, PROTOCOLS = 64, 8  # of a batch
VALIDATIONS = 10
LOGIT_RANGE = (0.02, 0.98)
FLIPS = ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))


def shares_of(labels: npt.NDArray[np.uint8], tumour: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """How the original tumour (S, S, S) was divided: (4,), `SHARES` summing to 1; all vacated without a tumour."""
    inside = labels[tumour]
    measured = [
        float((inside == tissue).mean()) if inside.size else 0.0
        for tissue in (Tissue.VIABLE, Tissue.NECROTIC, Tissue.OIL)
    ]
    return np.array([*measured, 1.0 - sum(measured)], dtype=np.float32)


def tumour_shares(pool: Pool) -> Tensor:
    """`shares_of` every patient's tumour after each protocol: (P, K, 4)."""
    patients, protocols = pool.post_labels.shape[:2]
    out = np.zeros((patients, protocols, len(SHARES)), dtype=np.float32)
    for patient in range(patients):
        tumour = np.asarray(pool.tumour_mask[patient]) > 0
        for protocol in range(protocols):
            out[patient, protocol] = shares_of(np.asarray(pool.post_labels[patient, protocol]), tumour)
    return torch.from_numpy(out)


def effect_slope(true: npt.NDArray[np.float64], simulated: npt.NDArray[np.float64]) -> tuple[float, float]:
    """How much of the *within-patient* effect of the protocol is recovered.

    Args:
        true: (patients, protocols) of a measure.
        simulated: the same measure on simulated scans.

    Returns:
        Slope of simulated on true deviations from the patient's mean (1 is full amplitude, 0 none), and their
        correlation.
    """
    x = (true - true.mean(1, keepdims=True)).ravel()
    y = (simulated - simulated.mean(1, keepdims=True)).ravel()
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    return (xy / xx if xx > 0 else 0.0), (float(xy / np.sqrt(xx * yy)) if xx * yy > 0 else 0.0)


class ResponseData:
    """Every training sample of the head: actions (P, M, 18, 3) and shares (P, M, 4), profiles, latents."""

    def __init__(
        self, pool: Pool, shares: Tensor, profiles: Tensor, pre: Tensor, mask: Tensor, spacing: Tensor, *,
        further: bool = True,
    ) -> None:  # fmt: skip
        """Join the rendered protocols with the further ones of a synthetic pool.

        Args:
            pool: patches.
            shares: (P, K, 4) from `tumour_shares`.
            profiles: (P, PROFILE_SIZE).
            pre: (P, C, s, s, s) latents before treatment.
            mask: (P, 1, s, s, s).
            spacing: (P,) log2(voxel edge in mm / 1.5).
            further: use the further protocols where the pool has them.
        """
        self.pool = pool
        self.rendered = shares.shape[1]
        self.action = torch.from_numpy(np.array(pool.actions, dtype=np.float32))
        self.shares = shares
        more, results = getattr(pool, "more_actions", None), getattr(pool, "more_shares", None)
        if further and more is not None and results is not None:
            self.action = torch.cat([self.action, torch.from_numpy(np.array(more, dtype=np.float32))], dim=1)
            # the truth's vacated share is below 0 where the tumour grew; measured inside its old extent there is none
            told = torch.from_numpy(np.array(results, dtype=np.float32)).clamp_min(0.0)
            self.shares = torch.cat([self.shares, told / told.sum(dim=2, keepdim=True)], dim=1)
        self.profiles, self.pre, self.mask, self.spacing = profiles, pre, mask, spacing

    def features(self, head: ResponseHead, patients: npt.NDArray[np.int64], flips: tuple[int, ...] = ()) -> Tensor:
        """What the head reads of some patients (N, width)."""
        if head.reading == "profile":  # spares the latents
            empty = self.spacing.new_zeros(len(patients), 1)
            return head.features(empty, empty, self.spacing[patients], self.profiles[patients])
        return head.features(
            self.pre[patients].float().flip(flips), self.mask[patients].float().flip(flips), self.spacing[patients],
            self.profiles[patients],
        )  # fmt: skip

    def predict(self, head: ResponseHead, patients: npt.NDArray[np.int64]) -> Tensor:
        """Shares (N, M, 4) of all protocols."""
        count = self.action.shape[1]
        features = self.features(head, patients).repeat_interleave(count, dim=0)
        logits = head(features, self.action[patients].flatten(0, 1))
        return torch.softmax(logits, dim=1).reshape(len(patients), count, len(SHARES))

    def recovered(self, head: ResponseHead, patients: npt.NDArray[np.int64]) -> dict[str, float]:
        """Within-patient effect recovery on unseen patients: slope and correlation of viable, necrotic and oil.

        `share_viable_error` is how far whole patients lie from what is predicted of them: the standard deviation over
        patients of the mean difference of the viable share's logit, shares clipped to 2 and 98 %.
        """
        predicted = self.predict(head, patients).double().numpy()
        true = self.shares[patients].double().numpy()
        out = {}
        for index, name in enumerate(SHARES[:3]):
            slope, r = effect_slope(true[:, :, index], predicted[:, :, index])
            out[f"share_{name}_slope"], out[f"share_{name}_r"] = slope, r
        seen = [np.clip(share[:, :, 0], *LOGIT_RANGE) for share in (true, predicted)]
        found, expected = (np.log(share / (1.0 - share)) for share in seen)
        out["share_viable_error"] = float((found - expected).mean(axis=1).std())
        return out


def train_response(head: ResponseHead, data: ResponseData, steps: int, seed: int, path: Path, run: str) -> None:
    """Train the head in place; keeps what is best on the validation patients, in `path`.

    Args:
        head: with random weights.
        data: what it learns from.
        steps: of AdamW.
        seed: of the batches and of the dropout.
        path: written when done; a later call with the same `run` loads it.
        run: fingerprint of data, preset and seed.
    """
    if path.exists():
        tensors = load_file(path)
        told = "".join(chr(int(value)) for value in tensors.pop("run").tolist())
        if told == run:
            head.load_state_dict(tensors)
            return
    train = np.asarray(data.pool.train)
    if head.reading == "profile":
        head.set_profile_statistics(data.profiles[train])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        best = _steps(head, data, train, steps, np.random.default_rng([seed, 3]))
    head.load_state_dict(best)
    head.zero_grad(set_to_none=True)  # the last gradient would count in the norm that the denoiser's are clipped to
    head.eval()
    stamp = torch.tensor([ord(letter) for letter in run], dtype=torch.int32)
    temporary = path.with_suffix(".tmp")
    save_file({**{name: value.contiguous() for name, value in best.items()}, "run": stamp}, temporary)
    temporary.replace(path)


def _steps(
    head: ResponseHead, data: ResponseData, train: npt.NDArray[np.int64], steps: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    total = data.action.shape[1]
    lowest, best = float("inf"), copy.deepcopy(head.state_dict())
    val = np.asarray(data.pool.val)
    head.train()
    for step in track(range(steps), description="response head"):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, step, WARMUP, step / steps)
        patients = rng.choice(train, size=min(PATIENTS, train.size), replace=False)
        count = min(PROTOCOLS, total)
        columns = np.stack([rng.choice(total, size=count, replace=False) for _ in patients])
        rows = patients[:, None]
        flips = FLIPS[int(rng.integers(len(FLIPS)))]
        features = data.features(head, patients, flips).repeat_interleave(count, dim=0)
        logits = head(features, data.action[rows, columns].flatten(0, 1))
        wanted = data.shares[rows, columns].flatten(0, 1)
        loss = -(wanted * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if val.size and ((step + 1) % max(1, steps // VALIDATIONS) == 0 or step + 1 == steps):
            head.eval()
            with torch.no_grad():
                error = float((data.predict(head, val) - data.shares[val]).square().mean())
            head.train()
            if error < lowest:
                lowest, best = error, copy.deepcopy(head.state_dict())
    return best if val.size else copy.deepcopy(head.state_dict())
