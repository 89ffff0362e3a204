"""A picture of the Morpho-Gaussian attenuation for the documentation: one phantom tumour at levels 1 to 4."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from models.networks.attenuation import LEVELS, attenuate, attenuated_mask
from models.phantom.patient import draw_patient
from models.phantom.render import render
from models.training.pictures import mosaic
from models.training.pool import hu_to_unit

WINDOW = (-60.0, 200.0)
SIZE, ENLARGED = 64, 3


def draw_attenuation(seed: int) -> Image.Image:
    """Above: the scan before treatment and what the denoiser sees at levels 1 to 4; below: mask and m'_0."""
    patient = draw_patient(seed)
    lesion = patient.lesions[0]
    spacing = 3.2 * max(lesion.radii_mm) / SIZE
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(lesion.centre_mm) - spacing * (SIZE - 1) / 2.0
    scan = render(patient, affine, (SIZE,) * 3, scan_seed=0)
    before = hu_to_unit(np.rint(scan.hu), WINDOW)
    mask = torch.from_numpy(scan.tumour).float()
    rows = [
        [before, *(attenuate(before, mask, level) for level in LEVELS)],
        [mask * 2.0 - 1.0, *(attenuated_mask(mask, level) * 2.0 - 1.0 for level in LEVELS)],
    ]
    picture = Image.fromarray(mosaic(rows))
    return picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST)
