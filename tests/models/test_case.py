from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from models.case import Case, ImageMeta, safe_name, write_case
from models.clinical_record import ClinicalRecord
from models.errors import CaseError
from models.volume import Volume
from tests.models.synthetic_ct import labels_of, trunk

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
SHIFTED = AFFINE + np.array([[0, 0, 0, 7.0], *[[0] * 4] * 3])
CT, LABELS = Volume(trunk(), AFFINE), labels_of((48, 40, 24))
RECORD = ClinicalRecord(age_years=63.0, bclc="B")


def make(path: Path, images: dict[ImageMeta, Volume] | None = None, **options: object) -> Case:
    images = images or {ImageMeta("pre_arterial", "pre", "arterial"): CT}
    options = {"labels": LABELS, "record": RECORD, **options}
    return write_case(path, "case-1", "synthetic", "A test.", images, **options)  # type: ignore[arg-type]


def test_a_case_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = make(tmp_path / "c")
    case = Case.load(tmp_path / "c")
    assert case == written
    assert (case.case_id, case.origin, case.record) == ("case-1", "synthetic", RECORD)
    np.testing.assert_array_equal(case.volume().data, CT.data)
    np.testing.assert_allclose(case.volume("pre_arterial").affine, AFFINE)
    np.testing.assert_array_equal(case.label_array(), LABELS)
    assert case.images[0].sha256 == hashlib.sha256((case.path / "pre_arterial.nii.gz").read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_equal_content_is_equal_bytes_and_the_hash_sees_every_part(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    assert one.content_hash == two.content_hash
    for file in one.path.iterdir():
        assert file.read_bytes() == (two.path / file.name).read_bytes()
    other = Volume(CT.data + (np.indices(CT.shape).sum(0) == 60).astype(np.int16), AFFINE)
    changed = [
        make(tmp_path / "c", record=ClinicalRecord(age_years=64.0, bclc="B")),
        make(tmp_path / "d", labels=None),
        make(tmp_path / "e", {ImageMeta("pre_arterial", "pre", "arterial"): other}),
    ]
    assert len({one.content_hash, *(c.content_hash for c in changed)}) == 4


def test_labels_of_a_follow_up_come_back_and_are_hashed(tmp_path: Path) -> None:
    images = {ImageMeta("pre_arterial", "pre", "arterial"): CT, ImageMeta("follow_up", "follow_up", day=40): CT}
    plain = make(tmp_path / "a", images)
    assert plain.follow_up_label_array("follow_up") is None
    assert "follow_up_labels" not in (plain.path / "case.json").read_text(encoding="utf-8")  # old hashes stay
    after = np.where(LABELS == 2, 0, LABELS).astype(np.uint8)
    make(tmp_path / "b", images, follow_up_labels={"follow_up": after})
    case = Case.load(tmp_path / "b")
    np.testing.assert_array_equal(case.follow_up_label_array("follow_up"), after)
    np.testing.assert_array_equal(case.label_array(), LABELS)
    assert case.content_hash != plain.content_hash
    (case.path / "labels_follow_up.nii.gz").write_bytes(b"other")
    with pytest.raises(CaseError, match="changed since the case was made"):
        Case.load(case.path)
    for wrong in ({"pre_arterial": after}, {"follow_up": after[:-1]}, {"other": after}):
        with pytest.raises(CaseError, match="fit no follow-up image"):
            make(tmp_path / "c", images, follow_up_labels=wrong)
    with pytest.raises(CaseError, match="values 0 to 4"):
        make(tmp_path / "c", images, follow_up_labels={"follow_up": np.full_like(after, 7)})


def test_changed_missing_and_foreign_files_are_noticed(tmp_path: Path) -> None:
    case = make(tmp_path / "c")
    image = case.path / "pre_arterial.nii.gz"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CaseError, match="changed since the case was made"):
        Case.load(case.path)
    assert Case.load(case.path, verify=False).content_hash == case.content_hash
    image.unlink()
    with pytest.raises(CaseError, match=r"lacks .*pre_arterial\.nii\.gz"):
        Case.load(case.path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(schema_version=2), "schema version 2, this program reads 1"),
        (lambda c: c.pop("schema_version"), "schema version None"),
        (lambda c: c["images"][0].update(file="../other.nii.gz"), r"damaged case.json \(images.0.file"),
        (lambda c: c["images"][0].update(file="/etc/x.nii"), "damaged case.json"),
        (lambda c: c.update(patient="Jane"), r"damaged case.json \(patient"),
        (lambda c: c["record"].update(albumin_g_dl=38), "damaged case.json"),
        (lambda c: c["labels"].update(image="none"), "labels one that it lacks"),
        (lambda c: c["images"].append(c["images"][0]), "names its images twice"),
    ],
)
def test_a_case_file_that_does_not_fit_is_refused(tmp_path: Path, edit: object, message: str) -> None:
    make(tmp_path / "c")
    path = tmp_path / "c" / "case.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)  # type: ignore[operator]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CaseError, match=message):
        Case.load(tmp_path / "c")


def test_what_is_no_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "case.json").write_text("{", encoding="utf-8")
    for name, message in (("none", "not a case"), ("file", "not a case folder"), ("broken", "not JSON")):
        with pytest.raises(CaseError, match=message):
            Case.load(tmp_path / name)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "c")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CaseError, match="exists already"):
        make(tmp_path / "c")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(CaseError, match=r"can't be written to .*file/c"):
        make(tmp_path / "file" / "c")
    (tmp_path / "file").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.case.write_label_nifti", full)
    with pytest.raises(CaseError, match="No space left"):
        make(tmp_path / "d")
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_no_file_system_takes_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"can't be written to .*: File name too long\.$"):
        make(tmp_path / "new" / ("x" * 300))
    with pytest.raises(CaseError, match="can't be read: File name too long"):
        Case.load(tmp_path / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    moved = {ImageMeta("pre_a"): CT, ImageMeta("pre_b"): Volume(trunk(), SHIFTED)}
    with pytest.raises(CaseError, match="say which image"):
        make(tmp_path / "c", moved)
    assert make(tmp_path / "c", moved, labels_image="pre_b").default_image().name == "pre_b"
    with pytest.raises(CaseError, match="fit no image before treatment"):
        make(tmp_path / "d", {ImageMeta("post", "follow_up"): CT})
    with pytest.raises(CaseError, match="values 0 to 4"):
        make(tmp_path / "d", labels=np.full(CT.shape, 9, np.uint8))
    with pytest.raises(CaseError, match="images of different names"):
        make(tmp_path / "d", {ImageMeta("a", phase="portal"): CT, ImageMeta("a"): CT})
    with pytest.raises(CaseError, match="not allowed"):
        write_case(tmp_path / "d", "../x", "real", "", {ImageMeta("a"): CT})


class TestDefaultImage:
    portal = ImageMeta("p", "pre", "portal")
    arterial = ImageMeta("a", "pre", "arterial")
    plain = ImageMeta("n", "pre", "noncontrast")
    after = ImageMeta("f", "follow_up", "arterial", 33)

    def test_arterial_before_treatment_is_preferred(self, tmp_path: Path) -> None:
        images = {self.after: CT, self.plain: CT, self.portal: CT, self.arterial: CT}
        case = make(tmp_path / "c", images, labels=None)
        assert case.default_image().name == "a"
        assert [i.name for i in case.follow_up()] == ["f"]

    def test_portal_comes_next(self, tmp_path: Path) -> None:
        assert make(tmp_path / "c", {self.plain: CT, self.portal: CT}).default_image().name == "p"

    def test_labels_on_another_image_of_the_same_grid_serve_the_arterial_one(self, tmp_path: Path) -> None:
        case = make(tmp_path / "c", {self.portal: CT, self.arterial: CT}, labels_image="p")
        assert case.default_image().name == "a"
        assert case.image_note() == ""
        np.testing.assert_array_equal(case.label_array(), LABELS)

    def test_labels_on_another_grid_decide(self, tmp_path: Path) -> None:
        images = {self.portal: CT, self.arterial: Volume(trunk(), SHIFTED)}
        case = make(tmp_path / "c", images, labels_image="p")
        assert case.default_image().name == "p"
        left_out = "Planned on p (portal phase), because a (arterial phase) is on another grid than the labels."
        assert case.image_note() == left_out
        np.testing.assert_array_equal(case.volume().affine, AFFINE)

    def test_no_labels_and_no_such_image(self, tmp_path: Path) -> None:
        case = make(tmp_path / "c", labels=None)
        with pytest.raises(CaseError, match="has no labels"):
            case.label_array()
        with pytest.raises(CaseError, match="no image 'x'; it has pre_arterial"):
            case.volume("x")


def test_safe_names() -> None:
    assert safe_name("HCC_009") == "HCC_009"
    assert safe_name("../../a b\n/ü") == "a_b"
    assert safe_name("...") == "case"
