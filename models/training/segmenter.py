"""Trains the segmenter on scans before and after treatment, on decoded ones, and on what the engine really shows it.

The engine shows the segmenter a composite: the scan before + feather * (decoded after - decoded before). Decoding blurs
thin structures, so a segmenter that had only seen sharp scans would miss them. Beside each scan the network sees the
one before treatment and the tumour's mask, which is hidden in some samples so that tumours are found without it too.
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
from models.networks.segmenter import Segmenter, Tissue, segmenter_input
from models.patch import feather
from models.training.denoiser import effect_slope
from models.training.loop import Budget, Cadence, RunResult, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, crop_around, hu_to_unit, random_flips

VALIDATION_PATIENTS = 16
VALIDATION_PROTOCOLS = 4
View = Literal["pre", "post", "decoded", "composite"]
VIEWS: tuple[View, ...] = ("pre", "post", "decoded", "composite")


def composite(before: Tensor, decoded_before: Tensor, decoded_after: Tensor, weight: Tensor) -> Tensor:
    """What the networks see of a simulated scan, all in [-1, 1]: exact outside the feather."""
    return (before + weight * (decoded_after - decoded_before)).clamp(-1.0, 1.0)


def viable_share_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the viable share of the original tumour, the figure that the risk depends on.

    Args:
        logits: (N, 5, S, S, S).
        labels: (N, S, S, S) true classes.
        mask: (N, S, S, S) bool, tumour before treatment; a sample without any counts as no error.
    """
    inside = mask.float()
    size = inside.sum(dim=(1, 2, 3)).clamp_min(1.0)
    found = (torch.softmax(logits, dim=1)[:, Tissue.VIABLE] * inside).sum(dim=(1, 2, 3)) / size
    true = ((labels == Tissue.VIABLE).float() * inside).sum(dim=(1, 2, 3)) / size
    return (found - true).square().mean()


class SegmenterTask:
    """Dice + cross-entropy over the four views + the error of the viable share of the original tumour."""

    def __init__(self, pool: Pool, preset: Preset, autoencoder: Autoencoder) -> None:
        """Build the network from the global random state."""
        self.pool = pool
        self.preset = preset
        self.autoencoder = autoencoder
        self.training = preset.training.segmenter
        self.network = Segmenter(preset.segmenter)
        # no extra weight for the tumour's classes: it made every doubtful voxel of vacated liver count as alive
        weight = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
        self.criterion = DiceCELoss(
            softmax=True, to_onehot_y=True, squared_pred=True, batch=True, weight=weight, smooth_dr=1e-6
        )

    def _view(
        self, patient: int, protocol: int, view: View, where: tuple[slice, slice, slice], noise: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """One cube (X, Y, Z) in [-1, 1], the same before treatment, and the classes of the first.

        `noise` perturbs the latents, as imperfect sampling does.
        """
        pool, window = self.pool, self.preset.hu_window
        before = hu_to_unit(pool.pre[patient][where], window)
        labels_before = torch.from_numpy(np.array(pool.pre_labels[patient][where], dtype=np.int64))
        if view == "pre":
            return before, before, labels_before
        after = hu_to_unit(pool.post[patient, protocol][where], window)
        labels = torch.from_numpy(np.array(pool.post_labels[patient, protocol][where], dtype=np.int64))
        if view == "post":
            return after, before, labels
        with torch.no_grad():
            z = self.autoencoder.encode(torch.stack([before, after])[:, None])
            z[1] += noise * torch.randn(z[1].shape, generator=generator)
            decoded = self.autoencoder.decode(z)[:, 0]
        if view == "decoded":
            return decoded[1], before, labels
        spacing = float(pool.spacing_mm[patient])
        weight = torch.from_numpy(feather(np.asarray(pool.tumour_mask[patient][where]), np.diag([spacing] * 3 + [1.0])))
        classes = torch.where(weight >= 0.5, labels, labels_before)
        return composite(before, decoded[0], decoded[1], weight), before, classes

    def _mask(self, patient: int, where: tuple[slice, slice, slice]) -> Tensor:
        """Tumour before treatment (X, Y, Z), bool."""
        return torch.from_numpy(np.asarray(self.pool.tumour_mask[patient][where]) > 0)

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`."""
        inputs, classes, masks = [], [], []
        for _ in range(self.training.batch):
            patient, protocol = int(rng.choice(self.pool.train)), int(rng.integers(self.pool.post.shape[1]))
            view = VIEWS[int(rng.integers(len(VIEWS)))]
            where = crop_around(np.asarray(self.pool.tumour_mask[patient]), self.training.crop, rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            noise = self.training.options["decoded_noise"] * float(rng.random())
            cube, before, labels = self._view(patient, protocol, view, where, noise, generator)
            mask = self._mask(patient, where)
            if rng.random() < self.training.options["mask_hidden"]:
                mask = torch.zeros_like(mask)
            flips = random_flips(rng)
            masks.append(self._mask(patient, where).flip(flips))
            scan = self._augment(cube, rng)
            # the engine segments the scan before treatment beside itself, to the bit; others are two scans
            beside = scan if view == "pre" else self._augment(before, rng)
            inputs.append(segmenter_input(scan, beside, mask).flip(flips))
            classes.append(labels.flip(flips))
        logits, labels = self.network(torch.stack(inputs)), torch.stack(classes)
        share = viable_share_loss(logits, labels, torch.stack(masks))
        loss: Tensor = self.criterion(logits, labels[:, None]) + self.training.options["share_weight"] * share
        return loss, {"share": float(share.detach())}

    @staticmethod
    def _augment(cube: Tensor, rng: np.random.Generator) -> Tensor:
        """Another scanner: a little contrast, offset (up to about 15 HU) and noise."""
        scale, offset = 1.0 + 0.06 * rng.standard_normal(), 0.02 * rng.standard_normal()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = 0.02 * float(rng.random()) * torch.randn(cube.shape, generator=generator)
        return (cube * scale + offset + noise).clamp(-1.0, 1.0)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on unseen patients, each under up to four protocols.

        Returns:
            dice_CLASS_VIEW: pooled, per class and of the whole tumour, before treatment (`pre`; `alone` with the mask
            hidden), on true scans after it (`post`) and on what the engine shows (`composite`).
            viable_slope_VIEW, viable_r_VIEW: how much of the within-patient effect of the protocol on the viable
            share of the original tumour is found, see `effect_slope`.
        """
        where = (slice(0, self.preset.size),) * 3
        protocols = min(VALIDATION_PROTOCOLS, self.pool.post.shape[1])
        hits: dict[str, npt.NDArray[np.float64]] = {}
        shares: dict[View, tuple[list[list[float]], list[list[float]]]] = {"post": ([], []), "composite": ([], [])}

        def count(name: str, predicted: Tensor, labels: Tensor) -> None:
            for tissue, mine, truth in [
                *((tissue.name.lower(), predicted == tissue, labels == tissue) for tissue in Tissue if tissue),
                ("tumour", predicted >= Tissue.VIABLE, labels >= Tissue.VIABLE),
            ]:
                counts = np.array([2.0 * float((mine & truth).sum()), float(mine.sum() + truth.sum())])
                hits[f"dice_{tissue}_{name}"] = hits.get(f"dice_{tissue}_{name}", np.zeros(2)) + counts

        for patient in (int(p) for p in self.pool.val[:VALIDATION_PATIENTS]):
            mask = self._mask(patient, where)
            cube, before, labels = self._view(patient, 0, "pre", where, 0.0, None)
            count("pre", _classes(network, cube, before, mask), labels)
            count("alone", _classes(network, cube, before, torch.zeros_like(mask)), labels)
            for view, (true, found) in shares.items():
                true.append([])
                found.append([])
                for protocol in range(protocols):
                    cube, before, labels = self._view(patient, protocol, view, where, 0.0, None)
                    predicted = _classes(network, cube, before, mask)
                    count(view, predicted, labels)
                    true[-1].append(_viable_share(labels, mask))
                    found[-1].append(_viable_share(predicted, mask))
        out = {name: float(both / total) if total else 0.0 for name, (both, total) in hits.items()}
        for view, (true, found) in shares.items():
            out[f"viable_slope_{view}"], out[f"viable_r_{view}"] = effect_slope(np.array(true), np.array(found))
        return out

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Scans before, composite scans, true classes, predicted classes (brighter: viable, necrotic, oil)."""
        where = (slice(0, self.preset.size),) * 3
        patients = [int(p) for p in self.pool.val[:6]]
        views = [
            self._view(p, i % self.pool.post.shape[1], "composite", where, 0.0, None) for i, p in enumerate(patients)
        ]
        predicted = [
            _classes(network, cube, before, self._mask(p, where))
            for p, (cube, before, _) in zip(patients, views, strict=True)
        ]
        return mosaic([
            [before for _, before, _ in views],
            [cube for cube, _, _ in views],
            [labels / 2.0 - 1.0 for _, _, labels in views],
            [labels / 2.0 - 1.0 for labels in predicted],
        ])  # fmt: skip


def _classes(network: nn.Module, cube: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Predicted classes (X, Y, Z) of one cube."""
    logits: Tensor = network(segmenter_input(cube, before, mask)[None])
    return logits.argmax(1)[0]


def _viable_share(classes: Tensor, mask: Tensor) -> float:
    """Share of the original tumour that is viable; 0 without a tumour."""
    inside = classes[mask]
    return float((inside == Tissue.VIABLE).float().mean()) if inside.numel() else 0.0


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
        cadence=cadence or Cadence(validate_every=0.5), mixed_precision=mixed_precision, stop_after=stop_after,
    )  # fmt: skip
