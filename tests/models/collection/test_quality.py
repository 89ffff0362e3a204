from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from models.collection.clinical_table import TablePatient, read_clinical_table
from models.collection.quality import CaseQuality, Finding, ImageQuality, LabelQuality, judge, kept_tags, measure_labels
from models.collection.quality_page import read_case_quality, write_case_quality, write_collection_quality
from models.volume import Volume
from tests.models.collection.synthetic_patient import SPACING, abdomen, labels, write_table
from tests.models.synthetic_ct import write_series

AFFINE = np.diag([*SPACING, 1.0])


def row(folder: Path, **values: Any) -> TablePatient:
    return read_clinical_table(write_table(folder / "t.xlsx", values)).patients[0]


def image(name: str = "pre_arterial", **values: Any) -> ImageQuality:
    fields: dict[str, Any] = {
        "name": name, "role": "pre" if name.startswith("pre") else "follow_up", "phase": name.split("_")[-1], "day": 0,
        "phase_from": "", "slices": 24, "spacing_mm": SPACING, "aorta_hu": 300, "liver_hu": 60, "resampled": False,
        "two_phases": False, "labels_by": "", "tags": {},
    }  # fmt: skip
    return ImageQuality(**{**fields, **values})


def measured(**values: Any) -> LabelQuality:
    return measure_labels(Volume(abdomen(), AFFINE), labels()).model_copy(update=values)


PAIR = (image(), image("follow_up_arterial", day=49))


def test_measures_are_those_of_the_boxes() -> None:
    found = measured()
    assert found.tumour_ml == pytest.approx(8 * 9 * 9 * 0.15)
    assert found.portal_vein_ml == pytest.approx(3 * 2 * 10 * 0.15)
    assert found.organ_ml == pytest.approx(19 * 24 * 16 * 0.15)
    assert (found.liver_hu, found.tumour_hu, found.lesions, found.gas_share) == (60, 45, 1, 0)
    # the diagonal of the 40 x 45 mm section, from outer corner to outer corner, up to the angles that are tried
    assert found.longest_mm == pytest.approx(np.hypot(40, 45), rel=0.05)


def test_a_good_case_has_no_findings(tmp_path: Path) -> None:
    assert judge(PAIR, measured(), 49, row(tmp_path)) == []


@pytest.mark.parametrize(
    ("changed", "level", "text"),
    [
        ({"organ_ml": 300.0}, "keep_apart", "liver with its tumour is 300 ml, outside 500 to 7000"),
        ({"liver_hu": -40.0}, "keep_apart", "mean of the liver before treatment is -40 HU"),
        ({"tumour_hu": 900.0}, "keep_apart", "mean of the tumour before treatment is 900 HU"),
        ({"tumour_ml": 0.0, "longest_mm": 0.0}, "keep_apart", "mark no tumour"),
        ({"gas_share": 0.3}, "keep_apart", "30% of the labelled voxels are gas"),
        ({"longest_mm": 15.0}, "keep_apart", "15 mm long, 0.24 times the readers' median of 63 mm"),
        ({"longest_mm": 110.0}, "look_at", "110 mm long, 1.75 times the readers' median of 63 mm"),
    ],
)
def test_limits_of_the_labels(tmp_path: Path, changed: dict[str, float], level: str, text: str) -> None:
    found = judge(PAIR, measured(**changed), 49, row(tmp_path))
    assert [one.level for one in found] == [level]
    assert text in found[0].text


def test_what_else_is_looked_at(tmp_path: Path) -> None:
    def texts(*args: Any) -> str:
        found = judge(*args)
        assert all(one.level != "keep_apart" for one in found)
        return " ".join(one.text for one in found)

    good = row(tmp_path)
    assert "no labels before treatment" in texts(PAIR, None, 49, good)
    assert "one visit only" in texts(PAIR[:1], measured(), None, good)
    assert "45 days apart, the table says 7 weeks (49 days)" in texts(PAIR, measured(), 45, good)
    assert "No phase is known both" in texts((image(), image("follow_up_portal")), measured(), 49, good)
    assert "No image before treatment is in the arterial" in texts(
        (image("pre_portal"), image("follow_up_portal")), measured(), 49, good
    )
    assert "not in the clinical table" in texts(PAIR, measured(), 49, None)
    tags = {"LongitudinalTemporalOffsetFromEvent": 3.0, "LongitudinalTemporalEventType": "DIAGNOSIS"}
    assert "3 days from the diagnosis by their headers, -8 by the table" in texts(
        (image(tags=tags), PAIR[1]), measured(), 49, good
    )
    odd = texts(PAIR, measured(), 49, row(tmp_path, chemotherapy="NA", Interval_FU=-7))
    assert "49 days apart, the table says -7 weeks" in odd
    assert "names no regimen" in odd
    assert "a follow-up before the baseline" in odd


def test_only_listed_tags_pass(tmp_path: Path) -> None:
    write_series(tmp_path, abdomen(), spacing=SPACING)
    path = next(tmp_path.glob("*.dcm"))
    data = pydicom.dcmread(path)
    data.KVP, data.SliceThickness, data.ConvolutionKernel = 120, 6, "STANDARD"
    data.InstitutionName, data.ReconstructionDiameter = "St. Elsewhere", "380.5"
    data.save_as(path)
    settings = {"KVP": 120.0, "SliceThickness": 6.0, "ReconstructionDiameter": 380.5}
    assert kept_tags(path) == {**settings, "ConvolutionKernel": "STANDARD"}
    # free text is no kernel, and what is no number is no setting
    content = path.read_bytes()
    path.write_bytes(content.replace(b"STANDARD", b"Jane Doe").replace(b"380.5 ", b"380.x "))
    del settings["ReconstructionDiameter"]
    assert kept_tags(path) == settings


def test_pages_and_table(tmp_path: Path) -> None:
    bad = Finding(level="keep_apart", text="The labels <script>alert(1)</script> mark no tumour.")
    quality = CaseQuality(
        patient_id="HCC_901", case="kept_apart/HCC_901", content_hash="x", findings=(bad,), images=PAIR,
        before=measured(), readers_mm={1: 66.0, 3: 60.0}, follow_up_days=49, inputs="y",
    )  # fmt: skip
    good = quality.model_copy(update={"patient_id": "HCC_902", "findings": (), "case": "HCC_902"})
    assert (quality.passed, good.passed) == (False, True)
    for one in (quality, good):
        write_case_quality(tmp_path, one, b"png")
    assert read_case_quality(tmp_path, "HCC_901") == quality
    assert read_case_quality(tmp_path, "HCC_903") is None
    assert write_collection_quality(tmp_path) == [quality, good]
    page = (tmp_path / "quality" / "HCC_901.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "data:image/png;base64,cG5n" in page
    assert "reader 1: 66.0, reader 3: 60.0" in page
    assert "1 of 2 patients passed" in (tmp_path / "quality" / "index.html").read_text(encoding="utf-8")
    with (tmp_path / "quality" / "collection.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["verdict"] for line in lines] == ["kept apart", "passed"]
    assert (lines[0]["reader 1 mm"], lines[0]["reader 2 mm"], lines[0]["tumour ml"]) == ("66.0", "-", "97.2")
    assert lines[0]["reason"] == bad.text
