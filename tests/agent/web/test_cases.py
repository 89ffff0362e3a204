"""The list of cases and imports through the page's own routes, over real HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.web.access import Owner
from models.case import Case
from models.case_import import import_case
from models.errors import VolumeError
from tests.agent.web.small_page import SmallPage
from tests.agent.web.test_uploads import SHAPE, TEXT, folder_zip, nifti
from tests.models.synthetic_ct import labels_of, trunk, write_series


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPage]:
    with SmallPage(tmp_path_factory.mktemp("cases") / "work") as served:
        yield served


class Visitor:
    """A browser, and the folder of the person behind it."""

    def __init__(self, page: SmallPage) -> None:
        self.client = page.browser()
        owner = page.access.owner_of(self.client.cookies[page.access.cookie])
        assert owner is not None
        self.owner: Owner = owner

    def send(self, name: str, content: bytes) -> str:
        answer = self.client.post("/mewm/cases/upload", params={"name": name}, content=content)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def ask(self, **asked: object) -> tuple[int, dict[str, object]]:
        answer = self.client.post("/mewm/cases/import", json=asked)
        return answer.status_code, answer.json()

    def rows(self) -> dict[str, dict[str, object]]:
        return {row["name"]: row for row in self.client.get("/mewm/cases/list").json()}


def test_the_demo_case_is_always_there_with_its_picture(page: SmallPage) -> None:
    visitor = Visitor(page)
    row = visitor.rows()["demo"]
    assert (row["origin"], row["about"], row["plannable"]) == ("synthetic", "arterial, portal", True)
    answer = visitor.client.get(str(row["thumbnail"]))
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content))
    assert np.asarray(picture.convert("L")).std() > 10
    for path in (visitor.owner.cases / "demo").iterdir():
        path.unlink()
    (visitor.owner.cases / "demo").rmdir()
    assert "demo" in visitor.rows()


def test_a_nifti_with_labels_becomes_a_case(page: SmallPage) -> None:
    visitor = Visitor(page)
    image, labels = visitor.send("scan.nii.gz", nifti(trunk(SHAPE))), visitor.send("l.nii.gz", nifti(labels_of(SHAPE)))
    assert visitor.ask(image=image, labels=labels) == (200, {"case": "scan"})
    assert visitor.rows()["scan"]["plannable"] is True
    np.testing.assert_array_equal(Case.load(visitor.owner.cases / "scan").volume().data, trunk(SHAPE))
    assert not list(visitor.owner.incoming.iterdir())


def test_a_study_with_several_series_asks_which(page: SmallPage, tmp_path: Path) -> None:
    visitor = Visitor(page)
    folder = tmp_path / "HCC_900"
    write_series(folder / "a" / "1", trunk(SHAPE), removed="YES")
    write_series(folder / "b" / "2", trunk(SHAPE, 310), series="1.2.3.2", date="20010308", time="111111", removed="YES")
    upload = visitor.send("HCC_900.zip", folder_zip(folder))
    status, told = visitor.ask(image=upload)
    assert status == 200
    assert [(one["index"], one["day"], one["slices"]) for one in told["choose"]] == [(1, 0, 32), (2, 33, 32)]  # type: ignore[attr-defined]
    assert visitor.ask(image=upload, series="1,2") == (200, {"case": "HCC_900"})
    case = Case.load(visitor.owner.cases / "HCC_900")
    assert [image.role for image in case.images] == ["pre", "follow_up"]
    assert visitor.rows()["HCC_900"]["about"] == "arterial; follow-up day 33"
    assert not list(visitor.owner.incoming.iterdir())


def test_a_choice_that_names_no_series(page: SmallPage, tmp_path: Path) -> None:
    visitor = Visitor(page)
    write_series(tmp_path / "x" / "a" / "b", trunk(SHAPE), removed="YES")
    status, told = visitor.ask(image=visitor.send("x.zip", folder_zip(tmp_path / "x")), series="7")
    assert status == 422
    assert "'7' is none of the 1 series" in str(told["error"])
    assert str(visitor.owner.folder) not in str(told["error"])
    assert not list(visitor.owner.incoming.iterdir())


def test_the_sentence_is_that_of_the_command_line(page: SmallPage, tmp_path: Path) -> None:
    visitor = Visitor(page)
    (tmp_path / "ct.nii").write_bytes(TEXT)
    with pytest.raises(VolumeError) as told:
        import_case(tmp_path / "ct.nii", tmp_path / "out")
    status, answer = visitor.ask(image=visitor.send("ct.nii", TEXT))
    assert status == 422
    assert answer["error"] == str(told.value).replace(f"{tmp_path}/", "")
    assert sorted(path.name for path in visitor.owner.folder.iterdir()) == ["incoming"]


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"image": 7}, {"image": "x", "folder": "/etc"}, {"image": "x", "tumour_label": 0},
        {"image": "0" * 32}, {"image": "../../cases"}, {"image": "x", "series": "1" * 300},
    ],
)  # fmt: skip
def test_odd_calls_are_refused_in_a_sentence(asked: dict[str, object], page: SmallPage) -> None:
    status, told = Visitor(page).ask(**asked)
    assert status == 422
    assert str(told["error"]).endswith((".", "again."))


def test_roles_that_do_not_fit_are_refused(page: SmallPage) -> None:
    visitor = Visitor(page)
    image, record = visitor.send("ct.nii.gz", nifti(trunk(SHAPE))), visitor.send("r.yaml", b"albumin: 38 g/L")
    status, told = visitor.ask(image=record, labels=image)
    assert (status, "can't be the CT" in str(told["error"])) == (422, True)
    assert not list(visitor.owner.incoming.iterdir())


def test_a_damaged_case_is_shown_with_its_problem(page: SmallPage) -> None:
    visitor = Visitor(page)
    visitor.rows()
    broken = visitor.owner.cases / "broken"
    broken.mkdir()
    (broken / "case.json").write_text("{", encoding="utf-8")
    row = visitor.rows()["broken"]
    assert "damaged case.json" in str(row["problem"])
    assert str(page.access.folder) not in str(row["problem"])
    assert "demo" in visitor.rows()
