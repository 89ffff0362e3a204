from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.contrast_phase import arterial_aorta_hu, phase_from_image, phase_from_labels, phase_from_liver
from models.volume import Volume, read_labels, read_nifti


def phantom(aorta_hu: float, *, spine: bool = True, shift_mm: float = 0.0) -> Volume:
    """A trunk of 240 x 180 x 150 mm at 3 mm with an aorta of 22 mm, a bright spine and noise."""
    rng = np.random.default_rng(5)
    shape = (90, 70, 50)
    x, y, z = (
        3.0 * (i - n / 2) for i, n in zip(np.meshgrid(*map(np.arange, shape), indexing="ij"), shape, strict=True)
    )
    data = np.where((x / 120) ** 2 + (y / 90) ** 2 < 1, 50.0, -1000.0)
    if spine:
        ring = np.hypot(x, y + 55)
        data[(ring < 20) & (np.abs((z % 30) - 15) > 3)] = 180
        data[(ring > 17) & (ring < 20)] = 600  # cortical bone: bright, thin
    data[np.hypot(x + 5 - shift_mm, y + 22) < 11] = aorta_hu
    data += ndimage.gaussian_filter(rng.normal(0, 60, shape), 0.8)
    return Volume(data.astype(np.int16), np.diag([3.0, 3.0, 3.0, 1.0]))


def test_a_bright_aorta_means_arterial() -> None:
    for hu in (280, 330, 420):
        assert phase_from_image(phantom(hu)) == "arterial"


@pytest.mark.parametrize(
    "volume", [phantom(150), phantom(50), phantom(120, spine=False)], ids=["portal", "plain", "late"]
)
def test_without_one_nothing_is_claimed(volume: Volume) -> None:
    assert phase_from_image(volume) == "unknown"


def test_a_bright_tube_at_the_flank_is_no_aorta() -> None:
    assert phase_from_image(phantom(330, shift_mm=90)) == "unknown"


@pytest.mark.parametrize(
    ("liver", "aorta", "phase"),
    [(70, 386, "arterial"), (120, 155, "portal"), (55, 45, "noncontrast"), (60, 150, "unknown"), (180, 250, "unknown")],
)
def test_labels_tell_the_phase(liver: int, aorta: int, phase: str) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:4], labels[6:] = 1, 4
    data = np.where(labels == 1, liver, aorta).astype(np.int16)
    assert phase_from_labels(Volume(data, np.eye(4)), labels) == phase
    assert phase_from_labels(Volume(data, np.eye(4)), np.where(labels == 4, 0, labels).astype(np.uint8)) == "unknown"


def test_a_bright_liver_means_portal_unless_the_aorta_is_arterial() -> None:
    liver = np.zeros(phantom(150).shape, bool)
    liver[30:40, 30:40, 20:30] = True
    for aorta, hu, phase in ((150, 110, "portal"), (150, 60, "unknown"), (330, 110, "arterial"), (330, 60, "arterial")):
        volume = phantom(aorta)
        volume.data[liver] = hu
        assert phase_from_liver(volume, liver) == phase
    assert phase_from_liver(phantom(150), np.zeros_like(liver)) == "unknown"
    assert arterial_aorta_hu(phantom(330)) == pytest.approx(330, abs=5)
    assert arterial_aorta_hu(phantom(150)) is None


def test_the_four_scans_of_the_real_patient(real_data: Path) -> None:
    folder = real_data / "hcc009-2.5mm"
    for name, phase in (("pre_arterial", "arterial"), ("post_arterial", "arterial")):
        assert phase_from_image(read_nifti(folder / f"{name}.nii.gz")) == phase
    for name in ("pre_portal", "post_portal"):
        assert phase_from_image(read_nifti(folder / f"{name}.nii.gz")) == "unknown"
    for name, phase in (("pre_arterial", "arterial"), ("pre_portal", "portal")):
        volume = read_nifti(folder / f"{name}.nii.gz")
        assert phase_from_labels(volume, read_labels(folder / "pre_labels.nii.gz", volume)) == phase
