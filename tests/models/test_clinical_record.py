from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.clinical_record import ClinicalRecord
from models.errors import RecordError


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        # Converted by hand from molar masses: bilirubin 584.66 g/mol, creatinine 113.12 g/mol.
        ({"bilirubin": "51.3 µmol/L"}, "bilirubin_mg_dl", 51.3e-6 * 584.66 * 1e3 / 10),
        ({"creatinine": "100 umol/l"}, "creatinine_mg_dl", 100e-6 * 113.12 * 1e3 / 10),
        ({"albumin": "38 g/L"}, "albumin_g_dl", 3.8),
        ({"albumin": {"value": 3.8, "unit": "g/dL"}}, "albumin_g_dl", 3.8),
        ({"platelets": "150 ×10^9/L"}, "platelets_10e9_l", 150),
        ({"platelets": "150000 /uL"}, "platelets_10e9_l", 150),
        ({"wbc": "4.2 G/L"}, "wbc_10e9_l", 4.2),
        ({"crp": "12 mg/L"}, "crp_mg_dl", 1.2),
        ({"afp": "2.5 ug/mL"}, "afp_ng_ml", 2500),
        ({"height": "1.75 m"}, "height_cm", 175),
        ({"lvef": "55%"}, "lvef_percent", 55),
        ({"inr": 1.2}, "inr", 1.2),
        ({"bilirubin_mg_dl": 1.2}, "bilirubin_mg_dl", 1.2),
    ],
)
def test_units(text: dict[str, object], field: str, expected: float) -> None:
    assert getattr(ClinicalRecord.from_mapping(text), field) == pytest.approx(expected, rel=2e-3)


def test_conversions_land_exactly_on_rule_thresholds() -> None:
    record = ClinicalRecord.from_mapping(
        {"creatinine": "176.8 umol/L", "bilirubin": "34.2 umol/L", "albumin": "35 g/L", "wbc": "3000 /uL"}
    )
    assert (record.creatinine_mg_dl, record.bilirubin_mg_dl, record.albumin_g_dl, record.wbc_10e9_l) == (2, 2, 3.5, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"bilirubin": 1.2}, "bilirubin is 1.2 without a unit; write it with one of mg/dL, mg/l, umol/l"),
        ({"bilirubin": "1.2"}, "without a unit"),
        ({"bilirubin": "1.2 mmol/L"}, "'mmol/L', which is not known for it; use mg/dL"),
        ({"bilirubin": "1,2 mg/dL"}, "not a number with a unit"),
        ({"afp": ">400 ng/mL"}, "not a number with a unit"),
        ({"afp": "NA"}, "leave the field out"),
        ({"albumin": "3.8 g/L"}, "Albumin is 0.38 g/dL, outside"),
        ({"albumin": "38 g/dL"}, "Albumin is 38 g/dL, outside"),
        ({"bilirubin_mg_dl": "20 umol/L"}, "use the name 'bilirubin'"),
        ({"bilirubin": "1 mg/dL", "bilirubin_mg_dl": 1}, "twice"),
        ({"bilrubin": "1 mg/dL"}, "no field 'bilrubin'; near it are bilirubin"),
        ({"albumin": {"value": 38}}, "needs exactly `value` and `unit`"),
        ({"ecog": 7}, "ecog is 7"),
        ({"cirrhosis": "yes"}, "cirrhosis is 'yes'"),
        (
            {"ascites": False},
            r"ascites is False \(YAML reads an unquoted yes, no, on or off so\): input should be 'none'",
        ),
        ({"sex": "M"}, "sex is 'M'"),
        ({"child_pugh_class": "A", "child_pugh_score": 8}, "class A means 5 to 6 points"),
        ({"prior_tace_sessions": 1, "prior_tace_without_response": 2}, "more than the 1 sessions"),
        ({"inr": float("nan")}, "inr"),
        ({"age": True}, "not a number"),
    ],
)
def test_what_can_not_be_meant_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        ClinicalRecord.from_mapping(data)


def test_absent_stays_absent(tmp_path: Path) -> None:
    assert ClinicalRecord.from_mapping({"albumin": None}).known() == {}
    path = tmp_path / "empty.yaml"
    path.write_text("", encoding="utf-8")
    assert ClinicalRecord.load(path) == ClinicalRecord()
    assert all(value is None for value in ClinicalRecord().model_dump().values())


def test_yaml_and_json_give_the_same_record(tmp_path: Path) -> None:
    content = {"age": "63 years", "bclc": 0, "ascites": "none", "platelets": "90 10^9/L", "cirrhosis": True}
    (tmp_path / "r.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "age: 63 years\nbclc: 0\nascites: none\nplatelets: 90 10^9/L\ncirrhosis: yes\n", encoding="utf-8"
    )
    record = ClinicalRecord.load(tmp_path / "r.yaml")
    assert record == ClinicalRecord.load(tmp_path / "r.json")
    assert record.bclc == "0"
    rows = record.to_display()
    assert ("Platelets", "90", "10^9/L") in rows
    assert ("Cirrhosis", "yes", "") in rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.yaml", "bilirubin: 1 mg/dL\nbilirubin: 2 mg/dL\n", "stands twice"),
        ("r.yaml", "- 1\n- 2\n", "not a mapping"),
        ("r.yaml", "a: [1\n", r"not valid YAML or JSON: expected ',' or '\]', but got '<stream end>' \(line 2\)\.$"),
        ("r.yaml", "age: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("r.yaml", "date: 2020-02-30\n", "day is out of range"),
        ("r.yaml", "cirrhosis: !!bool 7\n", "not valid YAML"),
        ("r.yaml", "age: !!timestamp 7\n", "not valid YAML"),
        ("r.yaml", "[" * 5000, "not valid YAML"),
        ("r.yaml", "date: 2020-02-03\n", "no field 'date'"),
        ("r.yaml", f"age: {'9' * 400}\n", "no possible number"),
        ("r.yaml", f"age_years: {'9' * 400}\n", "no possible number"),
        ("r.txt", "age: 63 years\n", "neither YAML nor JSON"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=message):
        ClinicalRecord.load(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="can't be read"):
        ClinicalRecord.load(tmp_path / "none.yaml")


def test_limits_hold_for_records_made_in_code_too() -> None:
    with pytest.raises(ValidationError, match="Albumin is 38"):
        ClinicalRecord(albumin_g_dl=38.0)
