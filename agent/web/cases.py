"""Cases: a person's cases with their thumbnails, and importing one from uploaded files.

An import is that of `mewm case import`: the same checks, the same sentences. Only the file's path in them becomes the
name that the person knows.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image as Picture
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from agent.report.slices import LIVER_WINDOW, choose_frame, draw_panel, grey, make_panel
from agent.web.access import Access, Owner, private_folder
from agent.web.uploads import (
    NIFTI,
    RECORD,
    ZIP,
    Upload,
    checked_nifti,
    checked_record,
    find_upload,
    fresh_folder,
    receive,
    unpack_dicom,
    upload_limits,
)
from agent.web.viewer import component_script
from agent.web.volumes import case_of
from models.case import Case, safe_name
from models.case_import import SeriesInfo, import_case, list_series
from models.errors import CaseError, InputError, MewmError, RunError

DEMO = "demo"
ROUTE = "/mewm/cases/"
_CALL_BYTES = 65536
_THUMBNAIL_PX = 240

MakeDemo = Callable[[Path], object]
"""Writes the demo case into a folder that does not exist yet."""


@dataclass(frozen=True)
class CaseRow:
    """One case in the list.

    Attributes:
        name: name of its folder, which opens it.
        case_id: what it calls itself.
        origin: "synthetic" or "real"; empty where it can't be read.
        about: phases and follow-up, in words.
        plannable: it has labels, so that a plan can be asked for.
        problem: why it can't be opened; empty for a case in order.
        thumbnail: where its picture is fetched.
    """

    name: str
    case_id: str
    origin: str
    about: str
    plannable: bool
    problem: str
    thumbnail: str


class ImportRequest(BaseModel):
    """What a browser asks to be imported: uploads by their ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    labels: str | None = None
    record: str | None = None
    series: str | None = Field(default=None, max_length=200)
    tumour_label: int = Field(default=2, ge=1, le=255)


@dataclass(frozen=True)
class Imported:
    """What came of an import: a case, or the series to choose from."""

    case: str | None = None
    series: tuple[SeriesInfo, ...] = ()


class Shelf:
    """The cases of the people who use the page; the demo case stands on everybody's."""

    def __init__(self, make_demo: MakeDemo) -> None:
        """Args: make_demo: `models.phantom.cohort.write_demo_case`, or what a test takes for it."""
        self._make_demo = make_demo
        self._demo = threading.Lock()
        self._importing = threading.Lock()  # a CT in work takes memory: one at a time

    def prepare(self, folder: Path) -> Path:
        """The demo case below the work folder, from which each person gets a copy; made once, in a few seconds.

        Raises:
            MewmError: it can't be written.
        """
        template = folder / "demo"
        with self._demo:
            if not (template / "case.json").is_file():
                self._make_demo(template)
        return template

    def rows(self, owner: Owner) -> list[CaseRow]:
        """A person's cases, the demo first."""
        self._give_demo(owner)
        names = sorted(path.name for path in owner.cases.iterdir() if (path / "case.json").is_file())
        return [self._row(owner, name) for name in sorted(names, key=lambda name: (name != DEMO, name.lower()))]

    def import_upload(self, owner: Owner, asked: ImportRequest) -> Imported:
        """Make a case of uploads. They are removed, unless a series has to be chosen first.

        Raises:
            MewmError: the sentence of `mewm case import`, or a limit of uploads; nothing is left then.
        """
        uploads = [find_upload(owner, name) for name in (asked.image, asked.labels, asked.record) if name]
        done = True
        try:
            with self._importing:
                found = self._import(owner, asked)
            done = not found.series
            return found
        except MewmError as exc:
            raise type(exc)(_told(exc, uploads, owner)) from exc
        finally:
            if done:
                for upload in uploads:
                    upload.discard()

    def thumbnail(self, owner: Owner, name: str) -> bytes:
        """A PNG of the slice where the tumour is widest, its outline drawn; the middle slice without labels.

        Raises:
            MewmError: there is no such case, or it can't be read.
        """
        case = case_of(owner, name)
        kept = owner.viewer / f"thumbnail-{case.content_hash[:32]}.png"
        if kept.is_file():
            return kept.read_bytes()
        picture = _thumbnail(case)
        private_folder(owner.viewer)
        try:
            with tempfile.NamedTemporaryFile(dir=owner.viewer, prefix=".thumbnail-", delete=False) as file:
                file.write(picture)
            Path(file.name).replace(kept)
        except OSError as exc:
            raise RunError(
                f"The thumbnail can't be written ({exc.strerror}): free space on the server's disk."
            ) from exc
        return picture

    def _give_demo(self, owner: Owner) -> None:
        target = owner.cases / DEMO
        if (target / "case.json").is_file():
            return
        template = self.prepare(owner.folder.parent.parent)
        private_folder(owner.cases)
        with self._demo:
            if (target / "case.json").is_file():
                return
            try:
                partial = Path(tempfile.mkdtemp(prefix=".demo-", dir=owner.cases))
                try:
                    shutil.copytree(template, partial / DEMO)
                    (partial / DEMO).rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            except OSError as exc:
                raise RunError(f"The demo case can't be written ({exc.strerror}): free space on the disk.") from exc

    def _row(self, owner: Owner, name: str) -> CaseRow:
        try:
            case = Case.load(owner.cases / name, verify=False)
        except CaseError as exc:
            return CaseRow(name, name, "", "", False, _without_paths(str(exc), owner), "")
        phases = [image.phase for image in case.images if image.role == "pre"]
        words = ", ".join("CT" if phase == "unknown" else phase for phase in dict.fromkeys(phases))
        after = case.follow_up()
        about = words + (f"; follow-up day {after[0].day}" if after else "")
        picture = f"{ROUTE}thumbnail/{quote(name)}/{case.content_hash[:12]}.png"
        return CaseRow(name, case.case_id, case.origin, about, case.labels is not None, "", picture)

    def _import(self, owner: Owner, asked: ImportRequest) -> Imported:
        limits = upload_limits()
        if owner.cases.is_dir() and sum(1 for _ in owner.cases.iterdir()) >= limits.cases:
            raise InputError(f"There are {limits.cases} cases already, the most that one person can have.")
        image = find_upload(owner, asked.image)
        labels = find_upload(owner, asked.labels) if asked.labels else None
        record = find_upload(owner, asked.record) if asked.record else None
        for upload, kinds, what in ((image, NIFTI + ZIP, "CT"), (labels, NIFTI, "labels"), (record, RECORD, "record")):
            if upload is not None and not upload.name.endswith(kinds):
                raise InputError(f"{upload.name} can't be the {what}; that is a file of kind {', '.join(kinds)}.")
        if image.name.endswith(ZIP):
            src = image.folder / "dicom" / Path(image.name).stem
            src = src if src.is_dir() else unpack_dicom(image)
            if asked.series is None and len(infos := list_series(src)) > 1:
                return Imported(series=tuple(infos))
        else:
            src = checked_nifti(image)
        case = import_case(
            src, image.folder / "case", None if labels is None else checked_nifti(labels),
            None if record is None else checked_record(record), asked.series, None, asked.tumour_label,
        )  # fmt: skip
        private_folder(owner.cases)
        target = fresh_folder(owner.cases, safe_name(case.case_id))
        try:
            case.path.rename(target)
        except OSError as exc:
            raise RunError(f"The case can't be written ({exc.strerror}): free space on the server's disk.") from exc
        return Imported(case=target.name)


def _told(error: MewmError, uploads: list[Upload], owner: Owner) -> str:
    """The sentence with the names that the person knows in place of paths."""
    text = str(error)
    for upload in uploads:
        for path in (upload.folder / "dicom" / Path(upload.name).stem, upload.path):
            text = text.replace(str(path), upload.name)
    return _without_paths(text, owner)


def _without_paths(text: str, owner: Owner) -> str:
    for folder in (owner.incoming, owner.cases, owner.folder):
        text = text.replace(f"{folder}/", "").replace(str(folder), "")
    return text


def _thumbnail(case: Case) -> bytes:
    volume = case.volume()
    labels = case.label_array() if case.labels is not None else None
    if labels is not None and (labels == 2).any():
        frame = choose_frame(labels, volume.affine, slices=3)
        panel = make_panel(case.case_id, frame, frame.widest, volume.data, labels, None)
        picture = draw_panel(panel, _THUMBNAIL_PX)
    else:
        plane = np.ascontiguousarray(volume.data[::-1, ::-1, volume.shape[2] // 2].T)
        x, y, _ = volume.spacing_mm
        height = max(1, round(_THUMBNAIL_PX * plane.shape[0] * y / (plane.shape[1] * x)))
        picture = Picture.fromarray(grey(plane, LIVER_WINDOW)).resize((_THUMBNAIL_PX, height))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def case_panel(value: dict[str, Any] | None = None, elem_id: str = "cases") -> gr.HTML:
    """The component: the list of cases, and where files are dropped. `select` fires with `case`, the folder's name."""
    return gr.HTML(
        value=value or {"rows": [], "opened": None, "limits": _told_limits()},
        html_template='<div class="mewm-cases-place"></div>',
        js_on_load=component_script("cases.js"),
        elem_id=elem_id,
        apply_default_css=False,
        padding=False,
    )


def panel_value(owner: Owner, shelf: Shelf, opened: str | None) -> dict[str, Any]:
    """Value of the panel.

    Args:
        owner: whose cases.
        shelf: the cases.
        opened: folder name of the case that is open.
    """
    return {"rows": [asdict(row) for row in shelf.rows(owner)], "opened": opened, "limits": _told_limits()}


def _told_limits() -> dict[str, Any]:
    limits = upload_limits()
    return {"upload_mib": limits.upload_mib, "kinds": [*NIFTI, *ZIP, *RECORD]}


def add_case_routes(app: FastAPI, access: Access, shelf: Shelf) -> None:
    """The routes of the panel; each serves the owner of the request alone."""

    @app.get(ROUTE + "list")
    def rows(request: Request) -> Response:
        return JSONResponse([asdict(row) for row in shelf.rows(access.owner(request))])

    @app.get(ROUTE + "thumbnail/{name}/{_version}.png")
    def thumbnail(request: Request, name: str, _version: str) -> Response:
        picture = shelf.thumbnail(access.owner(request), name)
        return Response(picture, media_type="image/png", headers={"cache-control": "private, max-age=31536000"})

    @app.post(ROUTE + "upload")
    async def upload(request: Request, name: str) -> Response:
        length = request.headers.get("content-length", "")
        known = int(length) if length.isdecimal() else None
        got = await receive(access.owner(request), name, request.stream(), known)
        return JSONResponse({"id": got.upload_id, "name": got.name})

    @app.delete(ROUTE + "upload/{upload_id}")
    def cancel(request: Request, upload_id: str) -> Response:
        find_upload(access.owner(request), upload_id).discard()
        return Response(status_code=204)

    @app.post(ROUTE + "import")
    async def import_(request: Request) -> Response:
        owner = access.owner(request)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _CALL_BYTES:
                raise InputError("The call is too long.")
        try:
            asked = ImportRequest.model_validate(json.loads(body))
        except (ValueError, ValidationError, RecursionError):
            raise InputError("The import was not asked for as the page asks; load the page again.") from None
        found = await run_in_threadpool(shelf.import_upload, owner, asked)
        if found.series:
            return JSONResponse({"choose": [_asked(info) for info in found.series]})
        return JSONResponse({"case": found.case})


def _asked(info: SeriesInfo) -> dict[str, Any]:
    return {
        "index": info.index, "phase": info.phase, "day": info.day, "slices": info.slices, "patient": info.patient,
        "spacing_mm": [round(side, 2) for side in info.spacing_mm], "part": info.part, "parts": info.parts,
        "problem": info.problem,
    }  # fmt: skip
