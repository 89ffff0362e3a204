"""The size and shape of a phantom's body and liver: what is needed to place tumours and to weigh organs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.phantom.field import FloatArray, Grid, smooth_field

# Liver and body of scale 1, mm (RAS, origin in the middle of the body).
_LOBES: Final = (
    ((52.0, 2.0, 0.0), (70.0, 68.0, 74.0)),  # right
    ((-22.0, 30.0, 22.0), (66.0, 36.0, 42.0)),  # left
    ((8.0, -16.0, 4.0), (24.0, 18.0, 30.0)),  # caudate
)
_BODY: Final = ((0.0, -5.0), (158.0, 117.0))
_BODY_EXPONENT = 2.3
WALL_MM = 24.0  # skin to the inside of the ribs, about
SPINE_MM: Final = ((0.0, -66.0), 23.0)
AORTA_MM: Final = ((-14.0, -38.0), 11.0)
_LATTICE_MM = 6.0


@dataclass(frozen=True)
class Shape:
    """Body and liver of one patient; lengths in mm.

    Attributes:
        body_scale: Half axes of the trunk over those of scale 1.
        lobes: Centre and half axes of right, left and caudate lobe.
        nodular: Height of the cirrhotic nodules on the liver's surface in units of depth; 0 is smooth.
        seed: Of the deformation.
    """

    body_scale: float
    lobes: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]
    nodular: float
    seed: int

    def skin_depth(self, grid: Grid) -> FloatArray:
        """Depth under the skin in mm, shape (X, Y, 1); negative outside the body."""
        (cx, cy), (a, b) = _BODY
        x = np.abs((grid.x - cx) / (a * self.body_scale))[:, None]
        y = np.abs((grid.y - cy) / (b * self.body_scale))[None, :]
        radius = (x**_BODY_EXPONENT + y**_BODY_EXPONENT) ** (1.0 / _BODY_EXPONENT)
        return np.asarray((1.0 - radius) * b * self.body_scale, np.float32)[:, :, None]

    def liver_depth(self, grid: Grid) -> FloatArray:
        """Signed depth in the liver: positive inside, about 1 at the lobes' centres."""
        inside = [1.0 - grid.distance(centre, radii) for centre, radii in self.lobes]
        depth = 0.08 * np.logaddexp.reduce(np.stack(inside) / np.float32(0.08), axis=0)
        depth += 0.06 * smooth_field(grid, self.seed + 1, 30.0)
        if self.nodular:
            depth += np.float32(self.nodular) * smooth_field(grid, self.seed + 2, 8.0)
        return np.asarray(depth, np.float32)

    def liver_ml(self, spheres: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]) -> float:
        """Volume of liver and tumours together in ml, counted on a coarse lattice.

        Args:
            spheres: Centre and half axes of every tumour, in mm.
        """
        grid = Grid(*(np.arange(-150.0, 151.0, _LATTICE_MM) for _ in range(3)))
        inside = (self.liver_depth(grid) > 0) & (self.skin_depth(grid) > WALL_MM * 0.5)
        for centre, radii in spheres:
            inside |= grid.distance(centre, radii) < 1.0
        return float(np.count_nonzero(inside)) * _LATTICE_MM**3 / 1000.0

    def holds(self, centre: npt.NDArray[np.float64], radii: npt.NDArray[np.float64]) -> bool:
        """Whether an ellipsoid lies inside the trunk and clear of spine and aorta."""
        reach = float(radii[:2].max())
        for (x, y), size in (SPINE_MM, AORTA_MM):
            if float(np.hypot(centre[0] - x, centre[1] - y)) < size + reach:
                return False
        turns = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
        rim = Grid(centre[0] + radii[0] * np.cos(turns), centre[1] + radii[1] * np.sin(turns), np.zeros(1))
        # the diagonal of the lattice: the rim's own points
        return bool(np.diagonal(self.skin_depth(rim)[:, :, 0]).min() > WALL_MM * 0.6)


def draw_shape(rng: np.random.Generator, body_scale: float, liver_scale: float, cirrhosis: bool, seed: int) -> Shape:
    """Draws body and liver; a cirrhotic liver has a smaller right lobe, a larger left and caudate lobe, and nodules."""
    lobes: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for (centre, radii), cirrhotic in zip(_LOBES, (0.94, 1.06, 1.2), strict=True):
        spread = (0.05, 0.05, 0.05) if not lobes else (0.16, 0.12, 0.12)
        size = np.array(radii) * liver_scale * np.exp(rng.normal(0.0, spread)) * (cirrhotic if cirrhosis else 1.0)
        place = np.array(centre) * body_scale + rng.normal(0.0, 3.0, 3)
        lobes.append((tuple(map(float, place)), tuple(map(float, size))))
    nodular = float(rng.uniform(0.012, 0.035)) if cirrhosis else 0.0
    return Shape(body_scale, tuple(lobes), nodular, seed)  # type: ignore[arg-type]
