from __future__ import annotations

from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from models.collection.clinical_table import parse_regimen, read_clinical_table, unit_of
from models.errors import RecordError, UnknownItemError
from models.protocol import Protocol
from tests.models.collection.synthetic_patient import write_table


def test_a_row_is_typed_with_its_units(tmp_path: Path) -> None:
    patient = read_clinical_table(write_table(tmp_path / "t.xlsx")).patients[0]
    assert patient.record.known() == {
        "age_years": 61.0, "sex": "female", "afp_ng_ml": 12.5, "ecog": 0, "child_pugh_class": "A", "bclc": "B",
        "cirrhosis": True, "portal_vein_invasion": "none", "extrahepatic_spread": False, "tumour_number": 1,
    }  # fmt: skip
    assert (patient.os_weeks, patient.death, patient.ttp_weeks, patient.progression) == (50.25, True, 10.5, False)
    assert (patient.interval_baseline_days, patient.interval_follow_up_weeks) == (-8, 7)
    assert patient.values["tumour_size_cm"] == 7.0
    assert patient.values["clip_score"] == 1
    assert patient.values["tnm"] == "IIIA"
    assert "differentiation" not in patient.values  # NOT STATED
    assert "smoking" not in patient.values  # empty
    assert (unit_of("tumour_size_cm"), unit_of("OS"), unit_of("afp_ng_ml")) == ("cm", "weeks", "ng/ml")
    assert patient.remarks == ()


def test_readers_keep_their_disagreement(tmp_path: Path) -> None:
    patient = read_clinical_table(write_table(tmp_path / "t.xlsx", {"1_EASL_BL": 900, "1_EASL": 4})).patients[0]
    assert patient.categories("RECIST") == ("PR", "SD")
    assert [(one.reader, one.before, one.after, one.unit) for one in patient.readings("RECIST")] == [
        (1, 66, 40, "mm"), (2, 60, 50, "mm"),
    ]  # fmt: skip
    assert patient.readings("mRECIST") == ()
    easl = patient.readings("EASL")[0]
    assert (easl.code, easl.category, easl.unit) == (4, None, "mm2")


def test_what_a_column_leaves_open_stays_unknown(tmp_path: Path) -> None:
    row = {"PS_bclc_0_0_1-2_1_3-4_3": 1, "tumor_nodul": "multinodular", "Portal Vein Thrombosis": 1, "Lymphnodes": None}
    record = read_clinical_table(write_table(tmp_path / "t.xlsx", row)).patients[0].record
    assert record.ecog is None
    assert record.tumour_number is None
    assert record.portal_vein_invasion is None
    assert record.extrahepatic_spread is None  # no distant metastasis, nodes not stated
    row = {"Metastasis": 0, "Lymphnodes": 1, "Portal Vein Thrombosis": 0, "Vascular invasion": 1}
    record = read_clinical_table(write_table(tmp_path / "u.xlsx", row)).patients[0].record
    assert record.extrahepatic_spread is True
    assert record.portal_vein_invasion is None  # some vessel is invaded


def test_na_is_absent_and_what_is_impossible_is_absent_and_remarked(tmp_path: Path) -> None:
    row = {
        "chemotherapy": "NA", "OS": "n/a", "AFP": "many", "age": 400, "CPS": "F", "Smoking": 3, "Tr_Size": -2,
        "1_RECIST_BL": "x", "1_RECIST": 7, "Interval_FU": -3.5,
    }  # fmt: skip
    patient = read_clinical_table(write_table(tmp_path / "t.xlsx", row)).patients[0]
    assert (patient.regimen_text, patient.regimen, patient.os_weeks) == (None, None, None)
    assert patient.record.afp_ng_ml is None
    assert patient.record.age_years is None
    assert patient.record.child_pugh_class is None
    assert "smoking" not in patient.values
    assert patient.interval_follow_up_weeks == -3.5  # kept as it stands
    assert patient.readings("RECIST")[0].before is None
    remarked = " ".join(patient.remarks)
    for what in ("AFP is 'many'", "age_years is not used", "CPS is 'F'", "Smoking is 3", "Tr_Size is -2",
                 "1_RECIST_BL is 'x'", "1_RECIST is 7", "Interval_FU is -3.5 weeks"):  # fmt: skip
        assert what in remarked, remarked
    assert "OS" not in remarked


@pytest.mark.parametrize(
    ("text", "drugs", "embolics"),
    [
        ("Cisplatin, doxorubicin, Mitomycin-C", ("Cisplatin", "Doxorubicin", "Mitomycin"), ()),
        ("Cisplatin, Mitomycin-C", ("Cisplatin", "Mitomycin"), ()),
        ("Cisplastin", ("Cisplatin",), ()),
        ("doxorubicin  LC beads", ("Doxorubicin",), ("Drug-eluting beads",)),
        ("Doxorubicin LC Beads, Cisplastin", ("Cisplatin", "Doxorubicin"), ("Drug-eluting beads",)),
    ],
)
def test_regimens(text: str, drugs: tuple[str, ...], embolics: tuple[str, ...]) -> None:
    assert parse_regimen(text) == Protocol(drugs=drugs, embolics=embolics)


def test_an_unknown_regimen_is_kept_as_text(tmp_path: Path) -> None:
    with pytest.raises(UnknownItemError):
        parse_regimen("Cisplatin, moonshine")
    patient = read_clinical_table(write_table(tmp_path / "t.xlsx", {"chemotherapy": "moonshine"})).patients[0]
    assert (patient.regimen_text, patient.regimen) == ("moonshine", None)
    assert "'moonshine' is not a known drug" in patient.remarks[0]


def test_a_table_that_means_something_else_is_refused(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(RecordError, match=message):
            read_clinical_table(path)

    refused(tmp_path / "none.xlsx", "can't be read: No such file")
    (tmp_path / "text.xlsx").write_text("TCIA_ID", encoding="utf-8")
    refused(tmp_path / "text.xlsx", "not a readable XLSX")
    refused(
        write_table(tmp_path / "a.xlsx", glossary={"OS": "overall survival (months)"}), "does not say 'weeks' for OS"
    )
    refused(write_table(tmp_path / "b.xlsx", without="AFP"), "lacks 1 of .* columns .*'AFP'")
    refused(write_table(tmp_path / "c.xlsx", {}, {}), "Row 3 .* gives HCC_901 a second time")
    refused(write_table(tmp_path / "d.xlsx", {"TCIA_ID": None}), "Row 2 .* no patient in TCIA_ID")
    book = openpyxl.Workbook()
    book.save(tmp_path / "e.xlsx")
    refused(tmp_path / "e.xlsx", "no sheet 'data table' .*found: Sheet")


def test_the_real_table(real_data: Path) -> None:
    table = read_clinical_table(real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx")
    assert len(table.patients) == 70
    assert [one.patient_id for one in table.patients if one.remarks] == []
    assert Counter(str(one.regimen) for one in table.patients) == {
        "Cisplatin + Doxorubicin + Mitomycin | -": 35, "Doxorubicin | Drug-eluting beads": 19, "None": 13,
        "Cisplatin + Mitomycin | -": 2, "Cisplatin | -": 1,
    }  # fmt: skip
    patient = table.patient("HCC_009")
    assert patient is not None
    assert (patient.record.bclc, patient.record.afp_ng_ml) == ("C", 209147)
    assert patient.os_weeks == pytest.approx(20.43, abs=0.005)
    assert [(one.before, one.after) for one in patient.readings("mRECIST")] == [(150.7, 66.7), (127, 74), (150, 123)]
    assert patient.categories("mRECIST") == ("PR", "PR", "SD")
    assert patient.interval_follow_up_weeks == pytest.approx(33 / 7, abs=0.005)
    assert table.patient("HCC_001") is None


def test_the_real_categories_are_those_of_the_published_thresholds(real_data: Path) -> None:
    table = read_clinical_table(real_data / "clinical" / "HCC-TACE-Seg_clinical_data-V2.dev.xlsx")
    seen = 0
    for patient in table.patients:
        for one in (*patient.readings("RECIST"), *patient.readings("mRECIST")):
            assert one.before is not None
            assert one.after is not None
            change = (one.after - one.before) / one.before
            by_rule = "CR" if one.after == 0 else "PR" if change <= -0.3 else "PD" if change >= 0.2 else "SD"
            assert one.category == by_rule, (patient.patient_id, one)
            seen += 1
    assert seen == 390
