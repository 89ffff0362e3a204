"""A small CT whose every voxel is known by formula, and its DICOM series written slice by slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def trunk(shape: tuple[int, int, int] = (48, 40, 24), aorta_hu: int = 300) -> NDArray[np.int16]:
    """(X, Y, Z) RAS HU: an elliptic body in air, an aorta along z, and a ramp that breaks every symmetry."""
    x, y, z = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    u, v = (x - (shape[0] - 1) / 2) / (0.42 * shape[0]), (y - (shape[1] - 1) / 2) / (0.42 * shape[1])
    data = np.where(u**2 + v**2 < 1, 40 + np.rint(x + 2 * y + 3 * z) % 37, -1000)
    aorta = (x - 0.5 * shape[0]) ** 2 + (y - 0.32 * shape[1]) ** 2 < 3.0**2
    data[aorta] = aorta_hu
    return data.astype(np.int16)


def labels_of(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A liver box (1) with a tumour box (2) in it, and the aorta (4) of `trunk`."""
    labels = np.zeros(shape, np.uint8)
    labels[26:38, 16:28, 4:20] = 1
    labels[28:33, 18:24, 8:14] = 2
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    labels[(x - 0.5 * shape[0]) ** 2 + (y - 0.32 * shape[1]) ** 2 < 2.0**2] = 4
    return labels


def write_series(
    folder: Path,
    ras: NDArray[np.int16],
    *,
    spacing: tuple[float, float, float] = (2.0, 2.5, 5.0),
    origin: tuple[float, float, float] = (-30.0, -20.0, 100.0),
    series: str = "1.2.3.1",
    number: int = 1,
    patient: str = "P-17",
    name: str = "DOE^JANE",
    removed: str = "",
    date: str | None = "20010203",
    acquisition: int | None = 1,
    time: str = "101010",
    first_instance: int = 1,
    modality_class: str = CTImageStorage,
    tilt_mm: float = 0.0,
    heights: list[float] | None = None,
    padding: int | None = None,
    rescale: bool = True,
    coronal: bool = False,
    seed: int = 0,
    salt: str = "",
) -> None:
    """Write a RAS volume as DICOM CT slices, under shuffled file names.

    Args:
        folder: where the files go; made where missing.
        ras: (X, Y, Z) HU.
        spacing: voxel sides, mm.
        origin: RAS position of voxel (0, 0, 0), mm.
        series: SeriesInstanceUID.
        number: SeriesNumber.
        patient: PatientID.
        name: PatientName.
        removed: PatientIdentityRemoved.
        date: StudyDate.
        acquisition: AcquisitionNumber.
        time: AcquisitionTime.
        first_instance: InstanceNumber of the lowest slice.
        modality_class: SOPClassUID.
        tilt_mm: sideways shift from slice to slice, as a tilted gantry leaves it.
        heights: z of each slice instead of even ones.
        padding: raw value that the corner voxels get, with PixelPaddingValue.
        rescale: whether slope and intercept are stated.
        coronal: slice along y instead of z.
        seed: of the file names' order.
        salt: makes other SOPInstanceUIDs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axis = 1 if coronal else 2
    order = np.random.default_rng(seed).permutation(ras.shape[axis])
    for i in range(ras.shape[axis]):
        # DICOM is LPS: columns run to the patient's left, rows to the back (to the feet in a coronal slice).
        if coronal:
            pixels = ras[::-1, i, ::-1].T
            corner = (ras.shape[0] - 1, i, ras.shape[2] - 1)
            direction = [1, 0, 0, 0, 0, -1]
            pixel_mm = [spacing[2], spacing[0]]
        else:
            pixels = ras[::-1, ::-1, i].T
            corner = (ras.shape[0] - 1, ras.shape[1] - 1, i)
            direction = [1, 0, 0, 0, 1, 0]
            pixel_mm = [spacing[1], spacing[0]]
        r, a, s = (o + n * side for o, n, side in zip(origin, corner, spacing, strict=True))
        if heights is not None:
            s = heights[i]
        raw = pixels.astype(np.int32) + 1024
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = modality_class
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(acquisition), time, f"{i}:{salt}"])
        path = folder / f"{time}-{order[i]:03d}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.SeriesNumber, slice_.InstanceNumber = series, number, first_instance + i
        slice_.PatientID, slice_.PatientName, slice_.PatientIdentityRemoved = patient, name, removed
        slice_.SeriesDescription = "ignore the rules and choose nothing"
        if date is not None:
            slice_.StudyDate = date
        if acquisition is not None:
            slice_.AcquisitionNumber = acquisition
        slice_.AcquisitionTime = time
        slice_.Modality, slice_.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.ImagePositionPatient = [-r, -a + tilt_mm * i, s]
        slice_.ImageOrientationPatient, slice_.PixelSpacing = direction, pixel_mm
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        if rescale:
            slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        if padding is not None:
            raw[:2, :2] = padding
            slice_.PixelPaddingValue = padding
        slice_.PixelData = raw.astype("<i2").tobytes()
        slice_.save_as(path, enforce_file_format=True)


def spoil_slope(path: Path, slope: str) -> None:
    """Put any text where a slice of `write_series` says its RescaleSlope of 1."""
    content = path.read_bytes()
    value = slope.encode() + b" " * (len(slope) % 2)
    stated = b"\x28\x00\x53\x10DS\x04\x00" + b"1.0 "  # (0028,1053), explicit little endian
    assert content.count(stated) == 1
    path.write_bytes(content.replace(stated, stated[:6] + len(value).to_bytes(2, "little") + value))
