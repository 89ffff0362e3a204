"""Trains the localiser on abdomens in coarse voxels, with and without tumours, before and after treatment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter, map_coordinates
from torch import Tensor, nn

from models.networks.localiser import Localiser, Region
from models.networks.preset import Preset
from models.training.loop import Budget, Cadence, RunResult, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, another_scanner, hu_to_unit

VALIDATION_PATIENTS = 64
CONTRAST_SHARE, MASS_SHARE, NEIGHBOUR_SHARE, SHORT_SHARE = 0.5, 0.4, 0.25, 0.4  # of the cubes
GRAIN_VOXELS = (0.7, 4.0)  # of unevenness
ORGANS_HU, LIVER_HU, TUMOUR_HU, SHIFT_HU = 6.0, (-30.0, 45.0), 30.0, 40.0
VESSELS, VESSEL_HU = 0.03, (40.0, 140.0)  # share of a tumour's voxels, and how much brighter
BRIGHT_HU, BRIGHTER = 150.0, (0.6, 2.5)  # what is above it is vessel, heart, kidney or bone; times what is above it
RADIUS_VOXELS, REACH, PUSHED = (3.0, 19.0), 2.0, (0.15, 0.9)
"""Of what grows: its radius, within how many radii its push is felt, and to how much of its radius what was there
shrinks (the less, the more is pushed aside)."""
BORDER_VOXELS = (0.3, 0.9)
MASS_HU, CORE_HU, CAPSULE_HU, NOISE_HU = (-60.0, 50.0), (0.0, 40.0), (-40.0, 60.0), 25.0
NEIGHBOUR_HU, NEAR_VOXELS = (0.0, 500.0), 6
AIR_HU = -150.0  # a mass does not grow into lungs or gas
SHORTEST = 0.5  # share of the cube that a short scan shows


def augmented(
    scan: Tensor, regions: Tensor, window: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A scan and its regions, changed in some of the ways below or in none."""
    if rng.random() < CONTRAST_SHARE:
        scan = other_contrast(scan, regions, window, rng)
    if rng.random() < NEIGHBOUR_SHARE:
        scan, regions = with_neighbour(scan, regions, window, rng)
    if rng.random() < MASS_SHARE:
        scan, regions = with_mass(scan, regions, window, rng)
    if rng.random() < SHORT_SHARE:
        scan, regions = cut_short(scan, regions, rng)
    return scan, regions


def other_contrast(scan: Tensor, regions: Tensor, window: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """A scan with another contrast of liver, tumour and vessels, whose tumours are of mixed density.

    Randomising what the phantom draws too alike, so that a network relies less on it (Billot et al. 2023,
    doi:10.1016/j.media.2023.102789). The sizes are the project's judgement, after HCC_009 (its mass is as dense as the
    liver beside it on the arterial scan, in patches, with bright arteries; its heart is brighter than the phantom's).

    Args:
        scan: (X, Y, Z) in [-1, 1].
        regions: (X, Y, Z) of `Region`.
        window: HU that -1 and 1 stand for.
        rng: draws the contrast.
    """
    hu = _to_hu(scan, window)
    hu = np.where(hu > BRIGHT_HU, BRIGHT_HU + (hu - BRIGHT_HU) * rng.uniform(*BRIGHTER), hu)
    hu += ORGANS_HU * rng.random() * _grain(scan.shape, rng)
    hu += rng.uniform(*LIVER_HU) * gaussian_filter((regions.numpy() == Region.LIVER).astype(np.float32), 0.6)
    inside = (
        TUMOUR_HU * rng.random() * _grain(scan.shape, rng)
        + SHIFT_HU * rng.uniform(-1.0, 1.0)
        + _vessels(scan.shape, rng)
    )
    return _to_unit(hu + np.where(regions.numpy() == Region.TUMOUR, inside, 0.0), window)


def with_mass(
    scan: Tensor, regions: Tensor, window: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A scan in whose liver a mass has grown, which pushes aside what was there; as it is where there is no liver.

    The phantom's tumours lie within the outline that the liver has without them. A real one may bulge out of it on any
    side, as HCC_009's does on the left.

    Args:
        scan: (X, Y, Z) in [-1, 1].
        regions: (X, Y, Z) of `Region`.
        window: HU that -1 and 1 stand for.
        rng: draws place, shape and looks.

    Returns:
        The scan and its regions.
    """
    organ = regions.numpy() >= Region.LIVER
    columns = np.flatnonzero(organ.any(axis=(1, 2)))
    if not columns.size:
        return scan, regions
    x = int(rng.choice(columns))  # by its column, so that the slender left lobe has its share
    hu, after, radii, radius = _pushed_aside(scan, regions, window, (x, *rng.choice(np.argwhere(organ[x]))), rng)
    mass = (radii < 1.0) & (hu > AIR_HU)
    liver = regions.numpy() == Region.LIVER
    beside = float(np.median(_to_hu(scan, window)[liver if liver.any() else organ]))
    border = gaussian_filter(mass.astype(np.float32), rng.uniform(*BORDER_VOXELS))
    hu += border * (_mass_hu(beside, radii, radius, rng) - hu)
    return _to_unit(hu, window), torch.from_numpy(np.where(mass, Region.TUMOUR, after))


def with_neighbour(
    scan: Tensor, regions: Tensor, window: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A scan with a round organ of any density against the liver, which is not liver: a heart or a full stomach.

    The phantom's heart hangs above the liver and its stomach is small. As it is where there is no liver.

    Args:
        scan: (X, Y, Z) in [-1, 1].
        regions: (X, Y, Z) of `Region`.
        window: HU that -1 and 1 stand for.
        rng: draws place, shape and looks.

    Returns:
        The scan and its regions.
    """
    organ = regions.numpy() >= Region.LIVER
    body = np.stack([binary_fill_holes(plane) for plane in np.moveaxis(scan.numpy() > -1.0, 2, 0)], axis=2)
    near = np.argwhere(body & binary_dilation(organ, iterations=NEAR_VOXELS) & ~organ)
    if not near.size:
        return scan, regions
    hu, after, radii, _ = _pushed_aside(scan, regions, window, rng.choice(near), rng)
    density = rng.uniform(*NEIGHBOUR_HU) + TUMOUR_HU * rng.random() * _grain(scan.shape, rng)
    border = gaussian_filter((radii < 1.0).astype(np.float32), rng.uniform(*BORDER_VOXELS))
    hu += border * (density - hu)
    return _to_unit(hu, window), torch.from_numpy(np.where(radii < 1.0, Region.OTHER, after))


def _pushed_aside(
    scan: Tensor, regions: Tensor, window: tuple[float, float], centre: Sequence[int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64], float]:
    """HU and regions after a lump has grown at a place, the distance from it in its radii, and its radius in voxels."""
    at = np.array(centre, dtype=np.float32)[:, None, None, None]
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_VOXELS))))
    axes = np.exp(rng.uniform(-0.25, 0.25, (3, 1, 1, 1))).astype(np.float32)
    away = (np.indices(scan.shape, dtype=np.float32) - at) / axes
    lumps = _grain(scan.shape, rng, max(1.5, radius * rng.uniform(0.2, 0.5)))
    radii = np.sqrt((away**2).sum(0)) / radius * (1.0 + rng.uniform(0.03, 0.2) * lumps)
    kept = rng.uniform(*PUSHED)
    before = np.where(radii < 1.0, kept * radii, kept + (radii - 1.0) * (REACH - kept) / (REACH - 1.0))
    came_from = at + away * axes * np.where(radii < REACH, before / np.maximum(radii, 1e-3), 1.0)
    hu: npt.NDArray[np.float64] = map_coordinates(_to_hu(scan, window), came_from, order=1, mode="nearest")
    return hu, map_coordinates(regions.numpy(), came_from, order=0, mode="nearest"), radii, radius


def _mass_hu(
    beside: float, radii: npt.NDArray[np.float64], radius: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """HU of a mass in a liver of `beside` HU: patchy, with a dead core, a capsule or vessels in some."""
    shape = radii.shape
    out = beside + rng.uniform(*MASS_HU) + TUMOUR_HU * rng.random() * _grain(shape, rng)
    if rng.random() < 0.4:
        dead = _grain(shape, rng, max(1.0, 0.3 * radius)) - 0.8 * radii > rng.uniform(-0.3, 1.0)
        out = np.where(dead, rng.uniform(*CORE_HU), out)
    if rng.random() < 0.3:
        out += np.where(radii > 1.0 - 1.2 / radius, rng.uniform(*CAPSULE_HU), 0.0)
    noise = gaussian_filter(rng.standard_normal(shape), rng.uniform(*BORDER_VOXELS))
    result: npt.NDArray[np.float64] = out + _vessels(shape, rng) + NOISE_HU * rng.random() * noise
    return result


def cut_short(scan: Tensor, regions: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A scan that stops within the cube: its last slices go on to the edge, as `segment_whole` continues short scans.

    Args:
        scan: (X, Y, Z).
        regions: (X, Y, Z).
        rng: draws where it begins and ends.
    """
    size = scan.shape[2]
    seen = int(rng.integers(round(SHORTEST * size), size + 1))
    first = int(rng.integers(0, size - seen + 1))
    index = torch.arange(size).clamp(first, first + seen - 1)
    return scan[..., index], regions[..., index]


def _to_hu(scan: Tensor, window: tuple[float, float]) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = (scan.double().numpy() + 1.0) * (0.5 * (window[1] - window[0])) + window[0]
    return out


def _to_unit(hu: npt.NDArray[np.float64], window: tuple[float, float]) -> Tensor:
    unit = torch.from_numpy((hu - window[0]) * (2.0 / (window[1] - window[0])) - 1.0)
    return unit.float().clamp(-1.0, 1.0)


def _vessels(shape: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """HU of bright arteries, in half of the cases."""
    if rng.random() < 0.5:
        return np.zeros(shape)
    return np.where(rng.random(shape) < VESSELS * rng.random(), rng.uniform(*VESSEL_HU), 0.0)


def _grain(shape: Sequence[int], rng: np.random.Generator, voxels: float | None = None) -> npt.NDArray[np.float64]:
    """A smooth random field of mean 0 and spread 1."""
    sigma = rng.uniform(*GRAIN_VOXELS) if voxels is None else voxels
    field = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
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
            cube, labels = augmented(cube, labels, self.preset.hu_window, rng)
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
