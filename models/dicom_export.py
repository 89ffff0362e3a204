"""DICOM export: a case's CT, its labels, and simulated scans with their tissue, as one study without identifiers.

A case holds no date and no identifier, so that the study gets generated UIDs, the case id for a name, and no dates.
What was simulated says so in every place where a viewer or a program may look: series description, image type,
derivation, comment, and the attribute Synthetic Data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from models.case import Case, Image, check_free
from models.errors import CaseError, InputError, VolumeError
from models.volume import Volume, same_grid

RESEARCH = "For research only."
_TEXT_LIMIT = 64  # characters of a DICOM long string
_MAX_SHEAR = 1e-4
_LPS = np.diag([-1.0, -1.0, 1.0])


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Code(_Data):
    code: str
    scheme: str
    meaning: str


class _Segment(_Code):
    label: str
    category: str


class _Window(_Data):
    centre: float
    width: float


class _Words(_Data):
    categories: dict[str, _Code]
    labels: dict[int, _Segment]
    tissue: dict[int, _Segment]
    window: _Window


@cache
def _words() -> _Words:
    text = resources.files("models").joinpath("dicom_export.yaml").read_text(encoding="utf-8")
    return _Words.model_validate(yaml.safe_load(text))


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """One simulated scan of a plan.

    Attributes:
        name: of its folder, such as ``simulated_1``.
        volume: HU on the grid of the case's planned image.
        tissue: (X, Y, Z) uint8: 1 liver, 2 viable, 3 necrotic, 4 Lipiodol.
        protocol: what was simulated.
        weights_hash: of the networks.
        trained_on: the origin of what they were trained on.
    """

    name: str
    volume: Volume
    tissue: NDArray[np.uint8]
    protocol: str
    weights_hash: str
    trained_on: str


@dataclass(frozen=True)
class _About:
    """What a series is."""

    name: str
    number: int
    description: str
    image_type: tuple[str, ...]
    synthetic: bool
    derivation: str
    sources: tuple[pydicom.Dataset, ...] = ()


def export_case(
    case: Case, out: Path, simulated: Sequence[SimulatedScan] = (), progress: Callable[[str], None] | None = None
) -> tuple[Path, ...]:
    """Write the planned image of a case, its labels and simulated scans to a new folder, complete or not at all.

    Args:
        case: a verified case.
        out: the new folder: a sub-folder of slices for each CT, a file for each segmentation object.
        simulated: scans of a plan on this case.
        progress: called with the name of what is written next.

    Returns:
        The folders and files, in `out`.

    Raises:
        CaseError: `out` exists or can't be written, or there is nothing but air to mark.
        VolumeError: a sheared grid, or a simulated scan on another grid than the planned image.
        InputError: highdicom is not installed.
    """
    check_free(out, "export")
    tell = progress or (lambda _: None)
    image = case.default_image()
    volume = case.volume(image.name)
    for scan in simulated:
        if not same_grid(volume.shape, volume.affine, scan.volume.shape, scan.volume.affine):
            raise VolumeError(
                f"The simulated scan {scan.name} is not on the grid of {image.name}; plan the case again."
            )
    written: list[str] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise CaseError(f"The export can't be written to {out}: {error.strerror}.") from error
    try:
        tell(image.name)
        slices = _write_ct(case, volume, _about_case(case, image), partial / image.name)
        written.append(image.name)
        if case.labels is not None:
            tell("labels")
            # Who drew them is not kept with a case, so they are neither called manual nor given a maker.
            maker = ("not recorded: labels as they stand in the case", "1", "SEMIAUTOMATIC")
            _write_segmentation(
                slices, case.label_array(), _words().labels, partial / "labels.dcm", 100, "Labels of the case", maker
            )
            written.append("labels.dcm")
        for number, scan in enumerate(simulated, start=1):
            tell(scan.name)
            after = _write_ct(case, scan.volume, _about_simulated(scan, 10 + number, slices), partial / scan.name)
            file = f"{scan.name}_tissue.dcm"
            maker = ("MeWM segmenter", scan.weights_hash, "AUTOMATIC")
            description = f"SIMULATED tissue, not acquired: {scan.protocol}"
            _write_segmentation(
                after, scan.tissue, _words().tissue, partial / file, 100 + number, description, maker, synthetic=True
            )
            written += [scan.name, file]
        partial.chmod(0o755)
        os.rename(partial, out)  # noqa: PTH104 (unlike Path.replace, fails on a folder that appeared meanwhile)
    except OSError as error:
        raise CaseError(f"The export can't be written to {out}: {error.strerror}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(out / name for name in written)


def _about_case(case: Case, image: Image) -> _About:
    synthetic = case.origin == "synthetic"
    phase = "" if image.phase == "unknown" else f", {image.phase} phase"
    return _About(
        name=image.name,
        number=1,
        description=f"SYNTHETIC phantom{phase}, not acquired" if synthetic else f"CT before treatment{phase}",
        image_type=("DERIVED", "SECONDARY", "AXIAL", *(("SYNTHETIC",) if synthetic else ())),
        synthetic=synthetic,
        derivation=f"Copy of an image of a MeWM case, identifiers and dates left out. {RESEARCH}",
    )


def _about_simulated(scan: SimulatedScan, number: int, sources: Sequence[pydicom.Dataset]) -> _About:
    return _About(
        name=scan.name,
        number=number,
        description=f"SIMULATED, not acquired: {scan.protocol}",
        image_type=("DERIVED", "SECONDARY", "AXIAL", "SIMULATED"),
        synthetic=True,
        derivation=(
            f"SIMULATED CT after treatment, not an observation. Protocol: {scan.protocol}. Made from the scan before "
            f"treatment by MeWM, weights {scan.weights_hash}, trained on {scan.trained_on} data. {RESEARCH}"
        ),
        sources=tuple(sources),
    )


def _uid(*words: str) -> str:
    """A UID that follows from words: equal content has equal UIDs."""
    return str(generate_uid(entropy_srcs=["mewm", *words]))


def _write_ct(case: Case, volume: Volume, about: _About, folder: Path) -> list[pydicom.Dataset]:
    """Write one CT series, a file per slice from the feet upwards, and return its datasets."""
    axes = volume.affine[:3, :3]
    sides = np.linalg.norm(axes, axis=0)
    directions = axes / sides
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MAX_SHEAR:
        raise VolumeError(f"The grid of {about.name} is sheared, which DICOM slices can't state; resample it first.")
    # DICOM reads rows to the patient's left and columns to the back: both in-plane axes are turned.
    planes = np.rint(volume.data[::-1, ::-1]).astype("<i2")
    corner = axes @ np.array([volume.shape[0] - 1, volume.shape[1] - 1, 0]) + volume.affine[:3, 3]
    content = hashlib.sha256(np.ascontiguousarray(planes).tobytes()).hexdigest()
    series = _uid(case.content_hash, about.name, content)
    orientation = [format_number_as_ds(float(v)) for v in (-(_LPS @ directions[:, :2])).T.ravel()]
    folder.mkdir()
    written = []
    for k in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = _uid(series, str(k))
        path = folder / f"{k + 1:04d}.dcm"
        one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        _describe(one, case, about, series)
        one.InstanceNumber = k + 1
        position = _LPS @ (corner + k * axes[:, 2])
        one.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
        one.ImageOrientationPatient = orientation
        one.PixelSpacing = [format_number_as_ds(float(sides[1])), format_number_as_ds(float(sides[0]))]
        one.SliceThickness = one.SpacingBetweenSlices = format_number_as_ds(float(sides[2]))
        pixels = planes[:, :, k].T
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
        one.WindowCenter, one.WindowWidth = _words().window.centre, _words().window.width
        if about.sources:
            source = pydicom.Dataset()
            source.ReferencedSOPClassUID = about.sources[k].SOPClassUID
            source.ReferencedSOPInstanceUID = about.sources[k].SOPInstanceUID
            one.SourceImageSequence = [source]
        one.PixelData = np.ascontiguousarray(pixels).tobytes()
        one.save_as(path, enforce_file_format=True)
        written.append(one)
    return written


def _describe(one: pydicom.Dataset, case: Case, about: _About, series: str) -> None:
    """What every slice of a series says of patient, study and series."""
    one.PatientID = case.case_id[:_TEXT_LIMIT]
    one.PatientName = f"{case.case_id[: _TEXT_LIMIT - 1]}^"  # a family name alone
    one.PatientBirthDate = one.PatientSex = ""
    one.PatientIdentityRemoved = "YES"
    one.DeidentificationMethod = "MeWM case: no identifiers and no dates are kept"
    one.StudyInstanceUID = _uid(case.content_hash, "study")
    one.StudyDate = one.StudyTime = one.StudyID = one.AccessionNumber = one.ReferringPhysicianName = ""
    one.StudyDescription = f"MeWM case {case.case_id}. {RESEARCH}"[:_TEXT_LIMIT]
    one.FrameOfReferenceUID = _uid(case.content_hash, "frame of reference")
    one.PositionReferenceIndicator = ""
    one.Modality, one.SeriesInstanceUID, one.SeriesNumber = "CT", series, about.number
    one.SeriesDescription = about.description[:_TEXT_LIMIT]
    one.Manufacturer, one.ManufacturerModelName, one.SoftwareVersions = "MeWM", "mewm", _version()
    one.ImageType = list(about.image_type)
    one.DerivationDescription = about.derivation[:1024]
    one.ImageComments = about.derivation[:1024]
    one.SyntheticData = "YES" if about.synthetic else "NO"
    one.AcquisitionNumber = one.KVP = None


def _version() -> str:
    return metadata.version("mewm")


def _write_segmentation(
    slices: Sequence[pydicom.Dataset], labels: NDArray[np.uint8], words: Mapping[int, _Segment], path: Path,
    number: int, description: str, maker: tuple[str, str, str], synthetic: bool = False,
) -> None:  # fmt: skip
    """Write one segmentation object on the slices of a CT.

    Args:
        slices: the CT, from the feet upwards.
        labels: (X, Y, Z) uint8 on the grid of the CT's volume.
        words: what each value means; values without a meaning are background.
        path: of the file.
        number: of the series.
        description: of the series.
        maker: name, version and DICOM type of what made the segments.
        synthetic: whether it was drawn on a simulated scan.
    """
    try:
        from highdicom import AlgorithmIdentificationSequence
        from highdicom.seg import Segmentation as SegmentationFile
        from highdicom.seg import SegmentationTypeValues, SegmentDescription
        from highdicom.sr.coding import CodedConcept
    except ImportError as error:
        raise InputError("Writing segmentation objects needs highdicom: pip install 'mewm[collection]'.") from error

    def concept(code: _Code) -> Any:
        return CodedConcept(code.code, code.scheme, code.meaning)

    present = [value for value in words if (labels == value).any()]
    if not present:
        raise CaseError(f"There is nothing to mark in {path.name}: no voxel has a label.")
    name, version, kind = maker
    family = CodedConcept("123109", "DCM", "Manual Processing")
    if kind == "AUTOMATIC":
        family = CodedConcept("123110", "DCM", "Artificial Intelligence")
    algorithm = AlgorithmIdentificationSequence(name=name[:_TEXT_LIMIT], family=family, version=version[:_TEXT_LIMIT])
    segments = [
        SegmentDescription(
            segment_number=place,
            segment_label=words[value].label,
            segmented_property_category=concept(_words().categories[words[value].category]),
            segmented_property_type=concept(words[value]),
            algorithm_type=kind,
            algorithm_identification=algorithm,
        )
        for place, value in enumerate(present, start=1)
    ]
    renumber = np.zeros(256, dtype=np.uint8)
    renumber[present] = np.arange(1, len(present) + 1)
    # (slices, rows, columns), turned as in `_write_ct`
    frames = np.ascontiguousarray(renumber[labels[::-1, ::-1]].transpose(2, 1, 0))
    series = _uid(slices[0].SeriesInstanceUID, path.name, hashlib.sha256(frames.tobytes()).hexdigest())
    made = SegmentationFile(
        source_images=list(slices),
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=series,
        series_number=number,
        sop_instance_uid=_uid(series, "object"),
        instance_number=1,
        manufacturer="MeWM",
        manufacturer_model_name="mewm",
        software_versions=_version(),
        device_serial_number="none",
        content_label="MEWM",
        content_description=description[:_TEXT_LIMIT],
        series_description=description[:_TEXT_LIMIT],
    )
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = slices[0].DeidentificationMethod
    made.SyntheticData = "YES" if synthetic or slices[0].SyntheticData == "YES" else "NO"
    made.save_as(path, enforce_file_format=True)
