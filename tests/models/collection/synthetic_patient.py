"""Small DICOM patients of the collection, as an archive's downloader writes them, and a clinical table for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import openpyxl
import pydicom
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray

from models.collection.clinical_table import _layout, _reading_columns
from models.dicom import find_series
from tests.models.synthetic_ct import trunk, write_series

SHAPE = (60, 52, 24)
SPACING = (5.0, 5.0, 6.0)  # mm; a voxel is 0.15 ml
CODES = {
    1: ("Liver", "10200004", "Liver"),
    2: ("Mass", "4147007", "Mass"),
    3: ("Portal vein", "32764006", "Portal vein"),
    4: ("Abdominal aorta", "7832008", "Abdominal aorta"),
    9: ("Necrosis", "6574001", "Necrosis"),
}


# What highdicom wants of a source image and `write_series` does not write.
_DEFAULTS = {
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyTime": "",
    "ReferringPhysicianName": "", "SliceThickness": SPACING[2], "StudyInstanceUID": "1.2.3.8",
    "FrameOfReferenceUID": "1.2.3.7",
}  # fmt: skip


def labels() -> NDArray[np.uint8]:
    """A liver box of 19 x 24 x 16 voxels, in it a tumour of 8 x 9 x 9 (97.2 ml) and a portal vein; `trunk`'s aorta."""
    found = np.zeros(SHAPE, np.uint8)
    found[34:53, 14:38, 4:20] = 1
    found[38:46, 20:29, 8:17] = 2
    found[48:51, 18:20, 6:16] = 3
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    found[(x - 0.5 * SHAPE[0]) ** 2 + (y - 0.32 * SHAPE[1]) ** 2 < 2.0**2] = 4
    return found


def abdomen(aorta_hu: int = 300, liver_hu: int = 60, tumour_hu: int = 45) -> NDArray[np.int16]:
    """(X, Y, Z) RAS HU of a trunk with these mean HU in its parts."""
    data = trunk(SHAPE, aorta_hu)
    marks = labels()
    data[marks == 1] = liver_hu
    data[marks == 2] = tumour_hu
    data[marks == 3] = liver_hu + 20
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    data[(x - 0.5 * SHAPE[0]) ** 2 + (y - 0.32 * SHAPE[1]) ** 2 < 3.0**2] = aorta_hu
    return data


def write_segmentation(
    path: Path,
    ct: Path,
    marks: NDArray[np.uint8],
    *,
    series: str = "1.2.3.9.1",
    description: str = "Segmentation",
    automatic: bool = False,
    values: Sequence[int] = (1, 2, 3, 4),
    only: Sequence[str] | None = None,
    kind: str = "BINARY",
    whole_liver: bool = False,
) -> None:
    """Write a segmentation object on a CT series with highdicom.

    Args:
        path: of the new file.
        ct: folder of the CT; with two phases in it, the first is taken.
        marks: (X, Y, Z) RAS labels on the grid of the CT.
        series: SeriesInstanceUID of the object.
        description: SeriesDescription.
        automatic: whether an algorithm made the segments.
        values: which labels become segments, in this order.
        only: SOPInstanceUIDs to take as sources; None takes the whole series.
        kind: BINARY, FRACTIONAL or LABELMAP.
        whole_liver: the liver's segment covers tumour and portal vein too.
    """
    slices = find_series(ct).series[0].slices
    chosen = [i for i, one in enumerate(slices) if only is None or one.sop_uid in only]
    sources = []
    for i in chosen:
        source = pydicom.dcmread(slices[i].path)
        for name, value in _DEFAULTS.items():
            if name not in source:
                setattr(source, name, value)
        source.PatientName = "DOE^JANE"
        sources.append(source)
    # RAS voxels to the (row, column) of the slices that `write_series` wrote
    planes = np.stack([marks[::-1, ::-1, i].T for i in chosen])
    inside = {value: planes == value for value in values}
    if whole_liver:
        inside[1] = np.isin(planes, (1, 2, 3))
    pixels = np.stack(list(inside.values()), axis=-1)
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=CODES[value][0],
            segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=CodedConcept(CODES[value][1], "SCT", CODES[value][2]),
            algorithm_type="AUTOMATIC" if automatic else "MANUAL",
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="net", family=CodedConcept("123109", "DCM", "Manual Processing"), version="1"
            )
            if automatic
            else None,
        )
        for number, value in enumerate(values, start=1)
    ]
    array: NDArray[Any] = pixels.astype(np.uint8) if kind != "FRACTIONAL" else pixels.astype(np.float32)
    seg = hd.seg.Segmentation(
        source_images=sources, pixel_array=array, segmentation_type=kind, segment_descriptions=descriptions,
        series_instance_uid=series, series_number=300, sop_instance_uid=f"{series}.1", instance_number=1,
        manufacturer="test", manufacturer_model_name="test", software_versions="1", device_serial_number="1",
        series_description=description,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)


def write_patient(root: Path, patient: str = "HCC_901", *, idc: bool = False, segmented: bool = True) -> Path:
    """Write a patient with an arterial and a portal CT before treatment and an arterial one 49 days after.

    Args:
        root: folder of the download.
        patient: PatientID.
        idc: folders as idc-index writes them instead of those of the TCIA downloader.
        segmented: whether the experts' object, and an AI's on the follow-up, are there.

    Returns:
        The folder of the patient.
    """
    number = int(patient[-3:])
    base = root / "hcc_tace_seg" / patient if idc else root / patient
    first, second = ("1.2.8.1", "1.2.8.2") if idc else ("02-03-2001-NA-CT ABD-10001", "03-24-2001-NA-CT ABD-10002")
    common: dict[str, Any] = {"spacing": SPACING, "patient": patient, "name": "DOE^JANE", "removed": "YES"}
    scans = (
        (first, f"1.2.3.{number}.1", 1, "20010203", abdomen()),
        (first, f"1.2.3.{number}.2", 2, "20010203", abdomen(aorta_hu=150, liver_hu=110)),
        (second, f"1.2.3.{number}.3", 3, "20010324", abdomen(tumour_hu=20)),
    )
    folders = []
    for study, uid, series_number, date, data in scans:
        folder = base / study / (f"CT_{uid}" if idc else f"{series_number}.000000-LIVER-{series_number}")
        write_series(folder, data, series=uid, number=series_number, date=date, **common)
        folders.append(folder)
    if segmented:
        write_segmentation(base / first / "SEG_1" / "1-1.dcm", folders[0], labels(), series=f"1.2.3.{number}.9")
        write_segmentation(
            base / second / "SEG_2" / "1-1.dcm", folders[2], labels(), series=f"1.2.3.{number}.10",
            description="AIMI liver-tumor AI segmentation", automatic=True, values=(1, 2),
        )  # fmt: skip
    return base


TABLE_ROW: dict[str, object] = {
    "TCIA_ID": "HCC_901", "Interval_BL": -8, "Interval_FU": 7, "TTP": 10.5, "Death_1_StillAliveorLostToFU_0": 1,
    "Censored_0_progressed_1": 0, "OS": 50.25, "hepatitis": "HCV only", "age": 61, "agegp": "61-70", "Sex": 2,
    "Evidence_of_cirh": 1, "Pathology": "NOT STATED", "PS_bclc_0_0_1-2_1_3-4_3": 0, "CPS": "A", "Tr_Size": 7,
    "tumor_nodul": "uninodular", "Vascular invasion": 0, "Metastasis": 0, "Lymphnodes": 0,
    "Portal Vein Thrombosis": 0, "T_involvment": "< or = 50%", "AFP": 12.5, "AFP_group": "<400",
    "CLIP_Score": "Stage_1", "CLIP": "Stage_ 0-2", "Okuda": "Stage I", "TNM": "Stage-IIIA", "BCLC": "Stage-B",
    "chemotherapy": "Cisplatin, doxorubicin, Mitomycin-C",
    "1_RECIST_BL": 66, "1_RECIST_FU": 40, "1_RECIST": 2, "2_RECIST_BL": 60, "2_RECIST_FU": 50, "2_RECIST": 3,
}  # fmt: skip


def write_table(
    path: Path, *rows: dict[str, object], glossary: dict[str, str] | None = None, without: str = ""
) -> Path:
    """Write a clinical table; each row is laid over `TABLE_ROW`.

    Args:
        path: of the new file.
        rows: values by column; a patient without any is one empty dictionary.
        glossary: meanings that differ from the archive's.
        without: a column that is left out.
    """
    columns = [name for name in (*_layout().columns, *_reading_columns()) if name != without]
    book = openpyxl.Workbook()
    data = book.active
    data.title = "data table"
    data.append(columns)
    for row in rows or ({},):
        data.append([{**TABLE_ROW, **row}.get(name) for name in columns])
    sheet = book.create_sheet("glossary")
    for name, column in _layout().columns.items():
        sheet.append([name, (glossary or {}).get(name, f"the {name} ({column.glossary})")])
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path
