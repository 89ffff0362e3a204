"""Trains the localiser on abdomens in coarse voxels, with and without tumours, before and after treatment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from models.networks.localiser import Localiser, Region
from models.networks.preset import Preset
from models.training.loop import RunOptions, RunResult, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, another_scanner, hu_to_unit

VALIDATION_PATIENTS = 64
UNEVEN_SHARE = 0.5  # of the cubes
GRAIN_VOXELS = (0.7, 4.0)  # of the unevenness
ORGANS_HU, TUMOUR_HU, SHIFT_HU = 6.0, 30.0, 20.0
VESSELS, VESSEL_HU = 0.03, (40.0, 140.0)  # share of a tumour's voxels, and how much brighter


def uneven(scan: Tensor, regions: Tensor, window: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """A scan whose organs are a little uneven and whose tumours are of mixed density, with vessels in some.

    Randomising what the phantom draws too alike, so that a network relies less on it (Billot et al. 2023,
    doi:10.1016/j.media.2023.102789). The sizes are the project's judgement, after HCC_009 (its mass is as dense as the
    liver beside it, in patches, with bright arteries).

    Args:
        scan: (X, Y, Z) in [-1, 1].
        regions: (X, Y, Z) of `Region`.
        window: HU that -1 and 1 stand for.
        rng: draws the unevenness.
    """
    tumour = regions.numpy() == Region.TUMOUR
    change = ORGANS_HU * rng.random() * _grain(scan.shape, rng)
    inside = TUMOUR_HU * rng.random() * _grain(scan.shape, rng) + SHIFT_HU * rng.uniform(-1.0, 1.0)
    if rng.random() < 0.5:
        inside += (rng.random(scan.shape) < VESSELS * rng.random()) * rng.uniform(*VESSEL_HU)
    change += np.where(tumour, inside, 0.0)
    return (scan + torch.from_numpy(change.astype(np.float32)) * (2.0 / (window[1] - window[0]))).clamp(-1.0, 1.0)


def _grain(shape: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    field = gaussian_filter(rng.standard_normal(shape), rng.uniform(*GRAIN_VOXELS), mode="wrap")
    out: npt.NDArray[np.float64] = field / field.std()
    return out


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
            if rng.random() < UNEVEN_SHARE:
                cube = uneven(cube, labels, self.preset.hu_window, rng)
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


def train_localiser(pool: Pool, preset: Preset, out: Path, options: RunOptions, device: str = "cpu") -> RunResult:
    """Train in `out`; see `run_training`.

    Args:
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        options: seed, budget and so on.
        device: "cpu" or "cuda".

    Raises:
        RunError: see `run_training`.
    """
    torch.manual_seed(options.seed)
    task = LocaliserTask(pool, preset, device)
    return run_training(
        task, task.training, out, options, validate_every=0.25,
        fingerprint=f"{preset.fingerprint('localiser')} {pool.data_hash} seed {options.seed}",
    )  # fmt: skip
