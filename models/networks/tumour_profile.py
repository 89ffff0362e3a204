"""Tumour profile: what the scan before treatment shows of the tumour, measured at full resolution as plain numbers.

The response head reads them beside nothing else. Read from the latents alone, at a quarter of the resolution, it missed
borders and texture. Everything is computed once per patch, with fixed formulas: no weights, no randomness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]

PROFILE_SIZE = 79
WINDOW_HU = (-175.0, 600.0)
SOFT_TISSUE_HU = (20.0, 250.0)
LOW_HU = (25.0, 35.0, 45.0, 55.0, 65.0, 80.0)  # dead tissue lies below, living tissue above, noise in between
DEAD_HU = 50.0
DEPTHS_MM = ((0.0, 2.5), (2.5, 5.0), (5.0, 9.0), (9.0, 15.0), (15.0, 80.0))
RINGS_MM = ((0.0, 2.5), (2.5, 5.0), (5.0, 9.0), (9.0, 14.0))
RIMS_MM = ((0.0, 1.5), (1.5, 3.0), (3.0, 4.5), (4.5, 7.0))
FEW_VOXELS = 8


def tumour_profile(hu: Array, tumour: Array, spacing_mm: float) -> npt.NDArray[np.float32]:
    """Numbers of order one about the tumour and the liver around it.

    Args:
        hu: (S, S, S) HU before treatment.
        tumour: (S, S, S) bool, the tumour.
        spacing_mm: edge of a voxel.

    Returns:
        (79,) float32: size, enhancement against the liver around, its distribution, dead core, layers by depth,
        unevenness at three scales, the liver's halo, the sharpness of the border, shape. All zero without a tumour.
    """
    if not tumour.any():
        return np.zeros(PROFILE_SIZE, dtype=np.float32)
    values = np.clip(hu.astype(np.float32), *WINDOW_HU)
    smooth = ndimage.gaussian_filter(values, max(0.5, 1.5 / spacing_mm))
    coarse = ndimage.gaussian_filter(values, max(1.0, 4.0 / spacing_mm))
    inside = ndimage.distance_transform_edt(tumour) * spacing_mm
    outside = ndimage.distance_transform_edt(~tumour) * spacing_mm
    soft = (smooth > SOFT_TISSUE_HU[0]) & (smooth < SOFT_TISSUE_HU[1])
    far = (outside > 12.0) & (outside < 35.0) & soft
    liver = float(np.median(smooth[far])) if far.any() else 80.0
    deepest = max(float(inside.max()), 1e-6)
    low = (smooth < DEAD_HU) & tumour
    alive = tumour & ~ndimage.binary_dilation(low)
    if alive.sum() < 20:
        alive = tumour
    core = alive & (inside > 3.5)
    if core.sum() < 20:
        core = alive
    out: list[float] = [
        float(np.log(tumour.sum() * spacing_mm**3 / 1000.0)) - 3.0, float(np.log2(spacing_mm / 1.5)),
        (liver - 80.0) / 40.0, deepest / 20.0,
    ]  # fmt: skip
    levels = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
    out += list((np.quantile(smooth[tumour], levels) - liver) / 40.0)
    out += [float((smooth[tumour] < limit).mean()) for limit in LOW_HU]
    for near, deep in DEPTHS_MM:
        out += _layer(smooth, alive & (inside > near) & (inside <= deep), liver)
    depth = inside / deepest
    for near, deep in ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
        layer = tumour & (depth > near) & (depth <= deep)
        out += [*_layer(smooth, layer, liver)[:2], _mean(low, layer)]
    out += list((np.quantile(smooth[core], (0.1, 0.25, 0.5, 0.75, 0.9)) - liver) / 40.0)
    out += [
        float(coarse[core].std()) / 15.0,
        *_unevenness(values, smooth, coarse, core),
        *(_unevenness(values, smooth, coarse, far) if far.any() else (0.0, 0.0)),
    ]
    for near, wide in RINGS_MM:
        ring = (outside > near) & (outside <= wide) & soft
        if ring.sum() > FEW_VOXELS:
            excess = smooth[ring] - liver
            out += [float(excess.mean()) / 30.0, float(np.quantile(excess, 0.9)) / 30.0, float(excess.std()) / 20.0]
        else:
            out += [0.0, 0.0, 0.0]
    slope = ndimage.gaussian_gradient_magnitude(values, max(0.5, 1.0 / spacing_mm)) / spacing_mm
    reach = max(2.5, 1.05 * spacing_mm)
    border = (tumour & (inside <= reach)) | (~tumour & (outside <= reach))
    out += [float(slope[border].mean()) / 10.0, float(np.quantile(slope[border], 0.9)) / 10.0]
    for near, deep in RIMS_MM:
        rim = tumour & (inside > near) & (inside <= deep)
        out.append(float(values[rim].mean() - liver) / 40.0 if rim.any() else 0.0)
    surface = float((tumour & (inside <= 1.01 * spacing_mm)).sum())
    out += [
        surface / (float(tumour.sum()) ** (2.0 / 3.0) * 4.836),  # 4.836 is a ball's surface for its volume
        float(min(ndimage.label(tumour)[1], 4)),
        float(ndimage.binary_opening(tumour, iterations=2).sum() / tumour.sum()),
        min(ndimage.label(low)[1], 10) / 5.0,
        _mean(inside, low) / deepest,
    ]
    return np.array(out, dtype=np.float32)


def _mean(values: Array, where: Array) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def _layer(smooth: Array, where: Array, liver: float) -> tuple[float, float, float]:
    """Mean and spread of a layer against the liver, and whether there is one."""
    if where.sum() < FEW_VOXELS:
        return 0.0, 0.0, 0.0
    return float(smooth[where].mean() - liver) / 40.0, float(smooth[where].std()) / 20.0, 1.0


def _unevenness(values: Array, smooth: Array, coarse: Array, where: Array) -> tuple[float, float]:
    """Spread of what is finer than the coarse scale and of what is finer than the smooth one (mostly noise)."""
    return float((smooth - coarse)[where].std()) / 10.0, float((values - smooth)[where].std()) / 15.0
