"""Smooth random fields that can be evaluated on any axis-aligned grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """An axis-aligned grid of points in world mm (RAS)."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    z: npt.NDArray[np.float64]

    @classmethod
    def from_affine(cls, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> Grid:
        """The voxel centres of an image.

        Args:
            affine: 4 x 4 voxel to world, diagonal rotation part with positive steps (RAS, axis aligned).
            shape: Voxels per axis.

        Raises:
            ValueError: The affine is oblique or mirrored.
        """
        if np.count_nonzero(affine[:3, :3]) != 3 or np.any(np.diag(affine)[:3] <= 0):
            raise ValueError("a phantom is rendered on an axis-aligned RAS grid only")
        return cls(*(affine[a, a] * np.arange(shape[a]) + affine[a, 3] for a in range(3)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Points per axis."""
        return (self.x.size, self.y.size, self.z.size)

    def shifted(self, offset_mm: npt.NDArray[np.float64]) -> Grid:
        """The grid moved by an offset in mm."""
        return Grid(self.x + offset_mm[0], self.y + offset_mm[1], self.z + offset_mm[2])

    def box(self, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[slice, slice, slice]:
        """The index range of the points between two corners in mm; empty slices where there are none."""
        bounds = zip((self.x, self.y, self.z), np.asarray(low, float), np.asarray(high, float), strict=True)
        x, y, z = (slice(int(np.searchsorted(a, b)), int(np.searchsorted(a, c, "right"))) for a, b, c in bounds)
        return x, y, z

    def cut(self, box: tuple[slice, slice, slice]) -> Grid:
        """The part of the grid inside an index range."""
        return Grid(self.x[box[0]], self.y[box[1]], self.z[box[2]])

    def distance(self, centre: npt.ArrayLike, radii: npt.ArrayLike) -> FloatArray:
        """Normalised distance from an ellipsoid's centre: 1 on its surface."""
        c, r = np.broadcast_to(np.asarray(centre, float), 3), np.broadcast_to(np.asarray(radii, float), 3)
        squares = [((axis - c[i]) / r[i]) ** 2 for i, axis in enumerate((self.x, self.y, self.z))]
        total = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
        return np.asarray(np.sqrt(total.astype(np.float32)), np.float32)


def _spline_weights(axis: npt.NDArray[np.float64], step: float, knots: int) -> FloatArray:
    position = axis / step
    base = np.floor(position).astype(int)
    t = position - base
    cubic = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    weights = np.zeros((axis.size, knots), np.float32)
    rows = np.arange(axis.size)
    for k in range(4):
        weights[rows, (base - 1 + k) % knots] += cubic[k]
    return weights


KNOTS = 20


def smooth_field(grid: Grid, seed: int, scale_mm: float) -> FloatArray:
    """A Gaussian-like random field of mean 0 and variance about 1, the same in world space on every grid.

    White noise on a lattice that repeats every `KNOTS` steps, interpolated with cubic B-splines. The lattice is small,
    so that a field needs milliseconds; over the few centimetres that a texture is looked at, the repetition can't be
    seen.

    Args:
        grid: Where to evaluate it.
        seed: The field's identity.
        scale_mm: Lattice step in mm; features are about twice as large.

    Returns:
        Float32 array of the grid's shape.
    """
    rng = np.random.default_rng([seed, 3])
    lattice = rng.standard_normal((KNOTS, KNOTS, KNOTS), dtype=np.float32)
    offset = rng.uniform(0.0, KNOTS * scale_mm, 3)
    axes = (grid.x, grid.y, grid.z)
    wx, wy, wz = (_spline_weights(axes[i] + offset[i], scale_mm, KNOTS) for i in range(3))
    out = np.tensordot(wx, lattice, axes=(1, 0))
    out = np.tensordot(wy, out, axes=(1, 1)).transpose(1, 0, 2)
    out = np.tensordot(out, wz, axes=(2, 1))
    # the mean of sum(w^2) of a cubic B-spline is 151/315 per axis
    return np.asarray(out / np.float32((151.0 / 315.0) ** 1.5), np.float32)
