"""Trains the segmenter on scans before and after treatment, on decoded ones, and on what the engine really shows it.

The engine shows the segmenter a composite: the scan before + feather * (decoded after - decoded before). Decoding blurs
thin structures, so a segmenter that had only seen sharp scans would miss them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder
from models.networks.preset import Preset
from models.networks.segmenter import Segmenter, Tissue
from models.patch import feather
from models.training.loop import Budget, Cadence, RunResult, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, crop_around, hu_to_unit, random_flips

VALIDATION_PATIENTS = 12
View = Literal["pre", "post", "decoded", "composite"]
VIEWS: tuple[View, ...] = ("pre", "post", "decoded", "composite")


def composite(before: Tensor, decoded_before: Tensor, decoded_after: Tensor, weight: Tensor) -> Tensor:
    """What the networks see of a simulated scan, all in [-1, 1]: exact outside the feather."""
    return (before + weight * (decoded_after - decoded_before)).clamp(-1.0, 1.0)


class SegmenterTask:
    """Dice + cross-entropy over the four views."""

    def __init__(self, pool: Pool, preset: Preset, autoencoder: Autoencoder) -> None:
        """Build the network from the global random state."""
        self.pool = pool
        self.preset = preset
        self.autoencoder = autoencoder
        self.training = preset.training.segmenter
        self.network = Segmenter(preset.segmenter)
        weight = torch.tensor([0.5, 1.0, 2.0, 2.0, 2.0])  # the tumour's classes are rare
        self.criterion = DiceCELoss(
            softmax=True, to_onehot_y=True, squared_pred=True, batch=True, weight=weight, smooth_dr=1e-6
        )

    def _view(
        self, patient: int, protocol: int, view: View, where: tuple[slice, slice, slice], noise: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One cube (X, Y, Z) in [-1, 1] and its classes. `noise` perturbs the latents, as imperfect sampling does."""
        pool, window = self.pool, self.preset.hu_window
        before = hu_to_unit(pool.pre[patient][where], window)
        labels_before = torch.from_numpy(np.array(pool.pre_labels[patient][where], dtype=np.int64))
        if view == "pre":
            return before, labels_before
        after = hu_to_unit(pool.post[patient, protocol][where], window)
        labels = torch.from_numpy(np.array(pool.post_labels[patient, protocol][where], dtype=np.int64))
        if view == "post":
            return after, labels
        with torch.no_grad():
            z = self.autoencoder.encode(torch.stack([before, after])[:, None])
            z[1] += noise * torch.randn(z[1].shape, generator=generator)
            decoded = self.autoencoder.decode(z)[:, 0]
        if view == "decoded":
            return decoded[1], labels
        spacing = float(pool.spacing_mm[patient])
        weight = torch.from_numpy(feather(np.asarray(pool.tumour_mask[patient][where]), np.diag([spacing] * 3 + [1.0])))
        return composite(before, decoded[0], decoded[1], weight), torch.where(weight >= 0.5, labels, labels_before)

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`."""
        cubes, classes = [], []
        for _ in range(self.training.batch):
            patient, protocol = int(rng.choice(self.pool.train)), int(rng.integers(self.pool.post.shape[1]))
            view = VIEWS[int(rng.integers(len(VIEWS)))]
            where = crop_around(np.asarray(self.pool.tumour_mask[patient]), self.training.crop, rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            noise = self.training.options["decoded_noise"] * float(rng.random())
            cube, labels = self._view(patient, protocol, view, where, noise, generator)
            flips = random_flips(rng)
            cubes.append(self._augment(cube, rng).flip(flips))
            classes.append(labels.flip(flips))
        logits = self.network(torch.stack(cubes)[:, None])
        loss: Tensor = self.criterion(logits, torch.stack(classes)[:, None])
        return loss, {}

    @staticmethod
    def _augment(cube: Tensor, rng: np.random.Generator) -> Tensor:
        """Another scanner: a little contrast, offset (up to about 15 HU) and noise."""
        scale, offset = 1.0 + 0.06 * rng.standard_normal(), 0.02 * rng.standard_normal()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = 0.02 * float(rng.random()) * torch.randn(cube.shape, generator=generator)
        return (cube * scale + offset + noise).clamp(-1.0, 1.0)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Dice per class and of the whole tumour, pooled over unseen patients, on true and on composite scans."""
        hits: dict[str, npt.NDArray[np.float64]] = {}
        edge = self.preset.size
        where = (slice(0, edge),) * 3
        for index, patient in enumerate(self.pool.val[:VALIDATION_PATIENTS]):
            for view in ("pre", "post", "composite"):
                cube, labels = self._view(int(patient), index % self.pool.post.shape[1], view, where, 0.0, None)
                predicted = network(cube[None, None]).argmax(1)[0]
                for name, mine, truth in [
                    *((tissue.name.lower(), predicted == tissue, labels == tissue) for tissue in Tissue if tissue),
                    ("tumour", predicted >= Tissue.VIABLE, labels >= Tissue.VIABLE),
                ]:
                    counts = np.array([2.0 * float((mine & truth).sum()), float(mine.sum() + truth.sum())])
                    hits[f"dice_{name}_{view}"] = hits.get(f"dice_{name}_{view}", np.zeros(2)) + counts
        return {name: float(both / total) if total else 0.0 for name, (both, total) in hits.items()}

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Composite scans, true classes, predicted classes (brighter: viable, necrotic, oil)."""
        where = (slice(0, self.preset.size),) * 3
        views = [
            self._view(int(p), i % self.pool.post.shape[1], "composite", where, 0.0, None)
            for i, p in enumerate(self.pool.val[:6])
        ]
        predicted = [network(cube[None, None]).argmax(1)[0] for cube, _ in views]
        return mosaic([
            [cube for cube, _ in views],
            [labels / 2.0 - 1.0 for _, labels in views],
            [labels / 2.0 - 1.0 for labels in predicted],
        ])  # fmt: skip


def train_segmenter(
    pool: Pool, preset: Preset, autoencoder: Autoencoder, out: Path, *, autoencoder_id: str, seed: int = 0,
    minutes: float | None = None, steps: int | None = None, resume: bool = False, cadence: Cadence | None = None,
    mixed_precision: bool | None = None, stop_after: int | None = None,
) -> RunResult:  # fmt: skip
    """Train in `out`; see `run_training`.

    Args:
        autoencoder: trained, decodes what the engine would show.
        autoencoder_id: of its weights.
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        seed: of weights and batches.
        minutes: budget; None takes the preset's.
        steps: overrides `minutes` and makes the run reproducible.
        resume: continue the run in `out`.
        cadence: how often things are written.
        mixed_precision: None asks the device.
        stop_after: see `run_training`.

    Raises:
        RunError: see `run_training`.
    """
    torch.manual_seed(seed)
    task = SegmenterTask(pool, preset, autoencoder.eval())
    return run_training(
        task, task.training, out, seed=seed, budget=Budget(minutes or task.training.minutes, steps),
        fingerprint=f"{preset.fingerprint('segmenter')} {pool.data_hash} {autoencoder_id} seed {seed}", resume=resume,
        cadence=cadence or Cadence(validate_every=0.25), mixed_precision=mixed_precision, stop_after=stop_after,
    )  # fmt: skip
