"""A scan before treatment and a follow-up of it that was moved and bent by a formula, with oil in the tumour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.volume import Volume

SHAPE, SPACING = (72, 60, 40), 4.0
LIVER, LIVER_RADII = np.array([35.0, 10.0, 0.0]), np.array([62.0, 55.0, 52.0])
TUMOUR, TUMOUR_RADIUS = np.array([50.0, 15.0, 5.0]), 24.0
OIL_RADIUS = 14.0
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """Takes a point of the follow-up to the same tissue before treatment, RAS mm."""

    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    degrees: float = 0.0
    bend_mm: float = 0.0

    def back(self, points: Points) -> Points:
        turned = Rotation.from_euler("zx", [self.degrees, 0.5 * self.degrees], degrees=True).apply(
            (points - np.array(self.shift)).reshape(-1, 3)
        )
        height = np.exp(-(((turned - LIVER) / 70.0) ** 2).sum(axis=1))
        turned = turned + self.bend_mm * height[:, None] * np.array([0.3, -0.4, 1.0])
        return turned.reshape(points.shape)


def grid(shape: tuple[int, ...] = SHAPE, origin: tuple[float, ...] = (-142.0, -118.0, -78.0)) -> Points:
    return np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1) * SPACING + np.array(origin)


def tissue(points: Points, seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """HU and labels at world points: body in air, spine, liver with vessels, tumour, other organs."""
    rng = np.random.default_rng(seed)

    def ellipsoid(centre: Points, radii: Points | float) -> NDArray[np.bool_]:
        return np.asarray((((points - centre) / radii) ** 2).sum(axis=-1) < 1)

    hu = np.full(points.shape[:-1], -1000.0)
    body = ellipsoid(np.zeros(3), np.array([130.0, 100.0, 400.0]))
    hu[body] = -80
    hu[ellipsoid(np.array([0.0, -70.0, 0.0]), np.array([18.0, 18.0, 400.0]))] = 400
    for _ in range(12):
        centre = np.array([rng.uniform(-100, -20), rng.uniform(-50, 60), rng.uniform(-70, 70)])
        hu[ellipsoid(centre, rng.uniform(12, 24, 3)) & body] = rng.uniform(0, 180)
    labels = np.zeros(hu.shape, np.uint8)
    liver = ellipsoid(LIVER, LIVER_RADII)
    hu[liver], labels[liver] = 100, 1
    for _ in range(30):  # vessels: without them the inside of a liver says nothing about motion
        spot = ellipsoid(LIVER + rng.uniform(-45, 45, 3), rng.uniform(5, 9))
        hu[spot & liver] = 190
    tumour = ellipsoid(TUMOUR, TUMOUR_RADIUS)
    hu[tumour], labels[tumour] = 60, 2
    return hu.astype(np.float32), labels


@dataclass(frozen=True, eq=False)
class ScanPair:
    """Both scans, their labels, and the points of the liver before treatment."""

    fixed: Volume
    moving: Volume
    fixed_labels: NDArray[np.uint8]
    moving_labels: NDArray[np.uint8]
    motion: Motion
    liver_points: Points


def make_pair(motion: Motion, seed: int = 0, table: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> ScanPair:
    """Noise differs between the scans; `table` moves the follow-up's frame as another table position does."""
    rng = np.random.default_rng(seed)
    before = grid()
    hu, labels = tissue(before)
    after = grid((76, 64, 46), (-150.0, -126.0, -90.0))
    back = motion.back(after)
    hu_after, labels_after = tissue(back)
    hu_after[((back - TUMOUR) ** 2).sum(axis=-1) < OIL_RADIUS**2] = 700
    affine, affine_after = np.diag([SPACING] * 3 + [1.0]), np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3], affine_after[:3, 3] = before[0, 0, 0], after[0, 0, 0] + np.array(table)
    scans = [
        Volume(np.rint(h + rng.normal(0, 8, h.shape)).astype(np.int16), a)
        for h, a in ((hu, affine), (hu_after, affine_after))
    ]
    return ScanPair(scans[0], scans[1], labels, labels_after, motion, before[labels > 0])


def errors_mm(pair: ScanPair, found: Points, table: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Points:
    """How far the tissue found for each liver point lies from that point, mm.

    Args:
        pair: the scans.
        found: (N, 3) points of the follow-up that a registration gives for `pair.liver_points`, RAS mm.
        table: as given to `make_pair`.
    """
    return np.asarray(np.linalg.norm(pair.motion.back(found - np.array(table)) - pair.liver_points, axis=1))
