"""The viewer and the case panel in Chromium, offline: what is drawn, linked, chosen and told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.deidentify import NEUTRAL_ID
from agent.web.viewer import NOTHING_OPEN, scene
from models.case import write_case
from models.engine import Engine
from tests.agent.web.browser import Browser, Person, needs_chromium
from tests.agent.web.small_page import SmallPage
from tests.agent.web.test_uploads import SHAPE, TEXT, nifti
from tests.models.synthetic_ct import trunk
from tests.tools.conftest import engine, model, phantom  # noqa: F401
from tools.registry import build_tools
from tools.workspace import Workspace

pytestmark = needs_chromium
PROTOCOL = "Doxorubicin | Lipiodol"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright")
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPage]:  # noqa: F811
    def open_workspace(folder: Path, artifacts: Path) -> Workspace:
        return Workspace({NEUTRAL_ID: folder}, artifacts, engine=engine)

    work = tmp_path_factory.mktemp("viewer") / "work"
    with SmallPage(work, open_workspace=open_workspace, right=f"simulated:{PROTOCOL}") as served:
        yield served


@pytest.fixture
def person(browser: Browser, page: SmallPage) -> Iterator[Person]:
    made = browser.person(page.url, 1280, 800)
    made.page.goto(page.url)
    made.page.wait_for_selector('#cases [data-case="demo"] button')
    yield made
    made.page.context.close()


def open_case(person: Person, name: str = "demo") -> None:
    person.page.click(f'#cases [data-case="{name}"] button')
    person.drawn("left")
    person.drawn("right")


def pixels(person: Person, side: str) -> np.ndarray:
    shot = person.page.locator(f"#viewer canvas[data-side={side}]").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=int)


def settled(person: Person, side: str, mode: str) -> None:
    person.page.wait_for_selector(f'#viewer canvas[data-side={side}][data-loaded="true"][data-mode="{mode}"]')


def test_before_a_case_is_open_a_sentence_stands_there(person: Person) -> None:
    assert person.page.locator("#viewer .mv-message").inner_text() == NOTHING_OPEN
    assert not person.page.locator("#viewer canvas").first.is_visible()
    assert person.faults == []


def test_two_pictures_are_drawn_and_linked(person: Person) -> None:
    open_case(person)
    page = person.page
    for side in ("left", "right"):
        assert pixels(person, side).std() > 15, "a picture, not a black box"
    where = page.locator("#viewer .mv-where")
    before = where.inner_text()
    page.focus("#viewer canvas[data-side=left]")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert where.inner_text() != before
    slices = [int(text.split()[0]) for text in (before, where.inner_text())]
    assert slices[1] - slices[0] == 2
    hu = page.locator("#viewer .mv-value").all_inner_texts()
    value = [int(text.replace("\u2212", "-").split()[0]) for text in hu]
    assert value[1] - value[0] == 10, "the portal phase is 10 HU brighter, at the same place"
    assert person.faults == []


def test_windows_views_and_outlines_change_the_picture_by_keyboard_too(person: Person) -> None:
    open_case(person)
    page = person.page
    first = pixels(person, "left")
    page.focus('#viewer button[data-key="wide"]')
    page.keyboard.press("Enter")
    wide = pixels(person, "left")
    assert np.abs(wide - first).mean() > 0.5
    page.keyboard.press("o")
    assert page.get_attribute('#viewer button[data-key="outlines"]', "aria-pressed") == "false"
    coloured = [
        int((picture.max(axis=2) - picture.min(axis=2) > 60).sum()) for picture in (wide, pixels(person, "left"))
    ]
    assert coloured[1] < coloured[0] / 2, "outlines are colour, a CT is grey"
    page.click('#viewer button[data-key="coronal"]')
    assert np.abs(pixels(person, "left") - wide).mean() > 0.5
    page.click('#viewer button[data-key="solid"]')
    assert page.locator("#viewer .mv-slice input").is_disabled()
    assert person.faults == []


def test_what_is_shown_can_be_saved(person: Person, tmp_path: Path) -> None:
    import nibabel as nib

    open_case(person)
    page = person.page
    with page.expect_download() as saved:
        page.click('#viewer button[data-key="screenshot"]')
    saved.value.save_as(tmp_path / "shot.png")
    assert np.asarray(Image.open(tmp_path / "shot.png").convert("L")).std() > 10
    page.click("#viewer .mv-download summary")
    with page.expect_download() as loaded:
        page.click("#viewer .mv-menu a >> nth=0")
    loaded.value.save_as(tmp_path / "ct.nii")
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "ct.nii").dataobj), trunk(SHAPE))
    assert person.faults == []


def test_a_simulated_ct_its_difference_and_spread(
    person: Person,
    page: SmallPage,
    engine: Engine,  # noqa: F811
) -> None:
    cookies = {cookie["name"]: cookie["value"] for cookie in person.page.context.cookies()}
    owner = page.access.owner_of(cookies[page.access.cookie])
    assert owner is not None
    volume, labels = phantom()
    from models.case import ImageMeta

    write_case(owner.cases / "two", "two", "synthetic", "two balls", {ImageMeta("pre"): volume}, labels)
    tools = build_tools(Workspace({NEUTRAL_ID: owner.cases / "two"}, owner.chats / "artifacts", engine=engine))
    told = tools["simulate_tumor"].call(case_id=NEUTRAL_ID, protocols=[PROTOCOL], seeds=[0, 1])
    tools["segment"].call(outcome_ids=[outcome.outcome_id for outcome in told.outcomes])
    person.page.reload()
    open_case(person, "two")
    browser_page = person.page
    assert browser_page.input_value('#viewer [data-side="right"] select') == f"simulated:{PROTOCOL}"
    pair = pixels(person, "right")
    for mode in ("difference", "spread"):
        browser_page.click(f'#viewer button[data-key="{mode}"]')
        settled(person, "right", mode)
        assert np.abs(pixels(person, "right") - pair).mean() > 0.2, mode
        assert "HU" in browser_page.locator("#viewer .mv-legend").inner_text()
    browser_page.select_option('#viewer [data-side="right"] select', "")
    browser_page.wait_for_selector('#viewer .mv[data-sides="1"]')
    assert person.faults == []


def test_a_picture_that_can_not_be_made_says_why_in_its_place(person: Person, page: SmallPage) -> None:
    cookies = {cookie["name"]: cookie["value"] for cookie in person.page.context.cookies()}
    owner = page.access.owner_of(cookies[page.access.cookie])
    assert owner is not None
    damaged = owner.cases / "demo" / "pre_portal.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    person.page.click('#cases [data-case="demo"] button')
    person.drawn("left")
    problem = person.page.locator('#viewer [data-side="right"] .problem')
    problem.wait_for(state="visible")
    assert "can't be read" in problem.inner_text()
    assert str(page.access.folder) not in problem.inner_text()
    person.page.select_option('#viewer [data-side="right"] select', "image:pre_arterial")
    person.drawn("right")
    assert not problem.is_visible()


def test_a_file_is_imported_by_the_page_and_opened(person: Person, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(nifti(trunk(SHAPE)))
    (tmp_path / "notes.nii.gz").write_bytes(TEXT)
    page = person.page
    page.set_input_files("#cases input[type=file]", tmp_path / "notes.nii.gz")
    page.click("#cases .mc-go")
    page.wait_for_selector("#cases .problem:visible")
    assert "notes.nii.gz" in page.locator("#cases .problem").inner_text()
    assert "not a gzip file" in page.locator("#cases .problem").inner_text()
    person.faults.clear()  # the refusal is an answer of status 422, which Chromium logs
    page.click("#cases .mc-buttons button >> text=Cancel")
    page.set_input_files("#cases input[type=file]", tmp_path / "scan.nii.gz")
    page.click("#cases .mc-go")
    page.wait_for_selector('#cases [data-case="scan"] [aria-current="true"]')
    person.drawn("left")
    assert person.faults == []


def test_without_an_owner_or_a_case_the_scene_is_a_sentence(tmp_path: Path) -> None:
    told: dict[str, Any] = scene(None, None, message="Reading the case.")
    assert (told["message"], told["sources"], told["left"]) == ("Reading the case.", [], None)
