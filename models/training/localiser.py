"""Trains the localiser on abdomens in coarse voxels, with and without tumours, before and after treatment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from models.networks.localiser import Localiser, Region
from models.networks.preset import Preset
from models.training.loop import Budget, Cadence, RunResult, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, another_scanner, hu_to_unit

VALIDATION_PATIENTS = 64


class LocaliserTask:
    """Dice + cross-entropy on random cubes. Nothing is mirrored: the liver lies on the right."""

    def __init__(self, pool: Pool, preset: Preset, device: str = "cpu") -> None:
        """Build the network from the global random state."""
        self.pool, self.preset, self.device = pool, preset, device
        self.training = preset.training.localiser
        self.network = Localiser(preset.localiser).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.criterion = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, smooth_dr=1e-5)

    def _cube(self, patient: int, start: npt.NDArray[np.int64], edge: int) -> tuple[Tensor, Tensor]:
        """A cube (X, Y, Z) in [-1, 1] and its regions."""
        where = tuple(slice(int(at), int(at) + edge) for at in start)
        tissue = torch.from_numpy(np.array(self.pool.wide_labels[patient][where], dtype=np.int64))
        return hu_to_unit(self.pool.wide[patient][where], self.preset.hu_window), tissue.clamp_max(Region.TUMOUR)

    def _middle(self, patient: int) -> tuple[Tensor, Tensor]:
        size = self.pool.wide.shape[1]
        edge = min(self.training.crop, size)
        return self._cube(patient, np.full(3, (size - edge) // 2), edge)

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`."""
        scans, regions = [], []
        size = self.pool.wide.shape[1]
        edge = min(self.training.crop, size)
        for _ in range(self.training.batch):
            start = rng.integers(0, size - edge + 1, size=3)
            cube, labels = self._cube(int(rng.choice(self.pool.train)), start, edge)
            scans.extend(another_scanner([cube], rng))
            regions.append(labels)
        seen = torch.stack(scans)[:, None].to(self.device, memory_format=torch.channels_last_3d)
        loss: Tensor = self.criterion(self.network(seen), torch.stack(regions)[:, None].to(self.device))
        return loss, {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on unseen patients, a cube from the middle of each abdomen.

        Returns:
            dice_liver (with what lies in it), dice_tumour: pooled. false_tumour: share of the cubes without a tumour
            in which some voxel is called one.
        """
        hits, false = {"liver": np.zeros(2), "tumour": np.zeros(2)}, []
        for patient in (int(p) for p in self.pool.val[:VALIDATION_PATIENTS]):
            cube, labels = self._middle(patient)
            found = self._found(network, cube)
            for name, least in (("liver", Region.LIVER), ("tumour", Region.TUMOUR)):
                mine, true = found >= least, labels >= least
                hits[name] += [2.0 * float((mine & true).sum()), float(mine.sum() + true.sum())]
            if not (labels == Region.TUMOUR).any():
                false.append(bool((found == Region.TUMOUR).any()))
        out = {f"dice_{name}": float(both / total) if total else 0.0 for name, (both, total) in hits.items()}
        return {**out, "false_tumour": float(np.mean(false)) if false else 0.0}

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Scans, true regions, found regions."""
        cubes = [self._middle(int(p)) for p in self.pool.val[:6]]
        return mosaic([
            [cube for cube, _ in cubes],
            [labels - 1.0 for _, labels in cubes],
            [self._found(network, cube) - 1.0 for cube, _ in cubes],
        ])  # fmt: skip

    def _found(self, network: nn.Module, cube: Tensor) -> Tensor:
        logits: Tensor = network(cube[None, None].to(self.device))
        return logits.argmax(1)[0].cpu()


def train_localiser(
    pool: Pool, preset: Preset, out: Path, *, seed: int = 0, minutes: float | None = None, steps: int | None = None,
    resume: bool = False, cadence: Cadence | None = None, mixed_precision: bool | None = None,
    stop_after: int | None = None, device: str = "cpu",
) -> RunResult:  # fmt: skip
    """Train in `out`; see `run_training`.

    Args:
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
        device: "cpu" or "cuda".

    Raises:
        RunError: see `run_training`.
    """
    torch.manual_seed(seed)
    task = LocaliserTask(pool, preset, device)
    return run_training(
        task, task.training, out, seed=seed, budget=Budget(minutes or task.training.minutes, steps),
        fingerprint=f"{preset.fingerprint('localiser')} {pool.data_hash} seed {seed}", resume=resume,
        cadence=cadence or Cadence(validate_every=0.25), mixed_precision=mixed_precision, stop_after=stop_after,
    )  # fmt: skip
