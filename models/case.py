"""Case: a patient at one decision, as a folder: `case.json` beside NIfTI images and labels.

Every file is hashed in `case.json`, so a case that changed under a run is noticed. A case holds no date and no
identifier of the patient; time is days since the first study. A registered follow-up adds the folder `registration`
(`models.registration_file`), which is no part of the case.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.clinical_record import ClinicalRecord
from models.errors import CaseError, MewmError
from models.volume import (
    LABEL_NAMES,
    Volume,
    load_exact,
    load_exact_labels,
    read_grid,
    same_grid,
    write_label_nifti,
    write_nifti,
)

SCHEMA_VERSION = 1
"""Version of the folder's format; a case of another version is refused."""

Role = Literal["pre", "follow_up"]
Phase = Literal["arterial", "portal", "delayed", "noncontrast", "unknown"]
Origin = Literal["synthetic", "real"]

_CASE_FILE = "case.json"
_PREFERENCE: tuple[Phase, ...] = ("arterial", "portal", "delayed", "noncontrast", "unknown")
# File names come from a file that anybody may have written: they stay inside the folder.
_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.nii(\.gz)?$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ImageMeta:
    """What has to be known of an image to write it into a case.

    Attributes:
        name: unique in the case, such as ``pre_arterial``.
        role: before the treatment that is to be planned, or after it.
        phase: contrast phase.
        day: days since the first study of the case.
    """

    name: str
    role: Role = "pre"
    phase: Phase = "unknown"
    day: int = 0


class Image(BaseModel):
    """One CT of a case, as `case.json` lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name
    role: Role
    phase: Phase
    day: int = Field(ge=0)
    file: _FileName
    sha256: _Sha256
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


class Labels(BaseModel):
    """The label volume of a case and the image that it was drawn on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: _Name
    file: _FileName
    sha256: _Sha256


class _CaseFile(BaseModel):
    """The content of `case.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    case_id: _Name
    origin: Origin
    origin_note: str
    images: tuple[Image, ...] = Field(min_length=1)
    labels: Labels | None = None
    follow_up_labels: tuple[Labels, ...] = ()
    record: ClinicalRecord


@dataclass(frozen=True)
class Case:
    """A patient at one decision. `content_hash` covers `case.json` and, through the hashes in it, every file."""

    case_id: str
    origin: Origin
    origin_note: str
    images: tuple[Image, ...]
    labels: Labels | None
    record: ClinicalRecord
    path: Path
    content_hash: str
    asked_of: str | None = None
    """Content hash of the case whose record was changed to ask "what if"; None for a case as it was made."""
    follow_up_labels: tuple[Labels, ...] = ()
    """Label volumes of follow-up images, each on the grid of its own image."""

    @property
    def image_key(self) -> str:
        """What simulations are kept under: the content hash as the case was made.

        A changed record leaves images and labels as they are, so what was simulated on them stays valid.
        """
        return self.asked_of or self.content_hash

    def with_changes(self, changes: Mapping[str, Any]) -> Case:
        """The same images with a changed clinical record, to ask "what if". The folder is not touched.

        Args:
            changes: values by the full names of the fields, in the units that those say; None makes a field unknown.

        Raises:
            RecordError: an unknown field or an impossible value.
        """
        record = ClinicalRecord.from_mapping({**self.record.model_dump(), **changes})
        if record == self.record:
            return self
        text = json.dumps(record.known(), sort_keys=True, ensure_ascii=False)
        changed = hashlib.sha256(f"{self.image_key}\n{text}".encode()).hexdigest()
        return replace(self, record=record, content_hash=changed, asked_of=self.image_key)

    @classmethod
    def load(cls, directory: Path | str, verify: bool = True) -> Case:
        """Open a case folder.

        Args:
            directory: the folder with `case.json`.
            verify: also compare every file with its hash.

        Raises:
            CaseError: no case there, another schema version, a damaged `case.json`, or a missing or changed file.
        """
        path = Path(directory)
        try:
            text = (path / _CASE_FILE).read_text(encoding="utf-8")
            content = json.loads(text)
        except FileNotFoundError as error:
            raise CaseError(f"{path} has no {_CASE_FILE}: not a case; make one with `mewm case import`.") from error
        except NotADirectoryError as error:
            raise CaseError(f"{path} is not a case folder; make one with `mewm case import`.") from error
        except OSError as error:
            raise CaseError(f"The case {path} can't be read: {error.strerror}.") from error
        except ValueError as error:  # not UTF-8, or not JSON
            raise CaseError(f"The case {path} has a damaged {_CASE_FILE} (not JSON); import it again.") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise CaseError(
                f"The case {path} has schema version {version}, this program reads {SCHEMA_VERSION}; import it again."
            )
        try:
            file = _CaseFile.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
            raise CaseError(f"The case {path} has a damaged {_CASE_FILE} ({what}); import it again.") from error
        names = [image.name for image in file.images]
        follow_ups = [image.name for image in file.images if image.role == "follow_up"]
        if (
            len(set(names)) < len(names)
            or (file.labels is not None and file.labels.image not in names)
            or any(entry.image not in follow_ups for entry in file.follow_up_labels)
        ):
            raise CaseError(f"The case {path} names its images twice or labels one that it lacks; import it again.")
        case = cls(
            case_id=file.case_id,
            origin=file.origin,
            origin_note=file.origin_note,
            images=file.images,
            labels=file.labels,
            record=file.record,
            path=path,
            content_hash=_content_hash(file),
            follow_up_labels=file.follow_up_labels,
        )
        if verify:
            case.verify()
        return case

    def verify(self) -> None:
        """Compare every file with the hash in `case.json`.

        Raises:
            CaseError: a file is missing, unreadable or changed.
        """
        for entry in (*self.images, *((self.labels,) if self.labels else ()), *self.follow_up_labels):
            path = self.path / entry.file
            try:
                actual = _sha256(path)
            except OSError as error:
                raise CaseError(f"The case lacks {path} ({error.strerror}); import it again.") from error
            if actual != entry.sha256:
                raise CaseError(f"{path} changed since the case was made (its hash differs); import it again.")

    def image(self, name: str) -> Image:
        """The image of that name.

        Raises:
            CaseError: the case has no such image.
        """
        for image in self.images:
            if image.name == name:
                return image
        names = ", ".join(image.name for image in self.images)
        raise CaseError(f"The case {self.case_id} has no image {name!r}; it has {names}.")

    def default_image(self) -> Image:
        """The image that is planned on: before treatment, arterial if there is one, on the grid of the labels.

        Where labels were drawn on another image, images on the same grid as that one are preferred, because the labels
        fit them; the labelled image itself is taken where its grid is the only one.

        Raises:
            CaseError: the case has no pre-treatment image.
        """
        candidates = [image for image in self.images if image.role == "pre"]
        if not candidates:
            raise CaseError(f"The case {self.case_id} has no image before treatment; import one.")
        if self.labels is not None:
            labelled = self.image(self.labels.image)
            if labelled.role == "pre":
                candidates = [image for image in candidates if self.shares_grid(image, labelled)]
        return min(candidates, key=lambda image: _PREFERENCE.index(image.phase))

    def image_note(self) -> str:
        """A sentence where `default_image` had to leave out a better phase for the labels' grid; else empty.

        Raises:
            CaseError: the case has no pre-treatment image.
        """
        chosen = self.default_image()
        first = min((i for i in self.images if i.role == "pre"), key=lambda image: _PREFERENCE.index(image.phase))
        if _PREFERENCE.index(first.phase) >= _PREFERENCE.index(chosen.phase):
            return ""
        return (
            f"Planned on {chosen.name} ({chosen.phase} phase), because {first.name} ({first.phase} phase) is on "
            "another grid than the labels."
        )

    def follow_up(self) -> tuple[Image, ...]:
        """Images after treatment, earliest first."""
        return tuple(sorted((i for i in self.images if i.role == "follow_up"), key=lambda image: image.day))

    def volume(self, name: str | None = None) -> Volume:
        """The CT of an image, exactly as it was imported; of the default image where no name is given.

        Raises:
            CaseError: no such image.
            VolumeError: its file can't be read.
        """
        image = self.image(name) if name is not None else self.default_image()
        return load_exact(self.path / image.file)

    def label_array(self) -> NDArray[np.uint8]:
        """(X, Y, Z) uint8 labels on the grid of the default image (values: `models.volume.LABEL_NAMES`).

        Raises:
            CaseError: the case has no labels, or they belong to another grid than the default image.
        """
        if self.labels is None:
            raise CaseError(
                f"The case {self.case_id} has no labels, so liver and tumour are not known; import it with --labels."
            )
        labels, affine = load_exact_labels(self.path / self.labels.file)
        image = self.default_image()
        shape, image_affine = read_grid(self.path / image.file)
        if not same_grid(shape, image_affine, labels.shape, affine):
            raise CaseError(f"The labels of case {self.case_id} do not fit its image {image.name}; import it again.")
        return labels

    def follow_up_label_array(self, name: str) -> NDArray[np.uint8] | None:
        """(X, Y, Z) uint8 labels on the grid of a follow-up image; None where the case has none for it."""
        for entry in self.follow_up_labels:
            if entry.image == name:
                return load_exact_labels(self.path / entry.file)[0]
        return None

    def shares_grid(self, one: Image, other: Image) -> bool:
        """Whether two images of the case have the same shape and position.

        Raises:
            VolumeError: a file can't be read.
        """
        if one.name == other.name:
            return True
        if one.shape != other.shape or not np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3):
            return False
        return same_grid(*read_grid(self.path / one.file), *read_grid(self.path / other.file))


def write_case(
    directory: Path | str,
    case_id: str,
    origin: Origin,
    origin_note: str,
    images: Mapping[ImageMeta, Volume],
    labels: NDArray[np.uint8] | None = None,
    record: ClinicalRecord | None = None,
    labels_image: str | None = None,
    follow_up_labels: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Case:
    """Write a case folder, complete or not at all. Equal content gives equal bytes.

    Args:
        directory: the new folder; it must not exist yet.
        case_id: letters, digits, dot, dash, underscore; see `safe_name`.
        origin: whether the images are of a patient or generated.
        origin_note: one sentence on where they come from.
        images: the volumes and what they are.
        labels: (X, Y, Z) uint8 on the grid of one pre-treatment image.
        record: clinical record; None is the empty one.
        labels_image: the image that the labels belong to; needed where several images could be meant.
        follow_up_labels: labels of follow-up images by the image's name, each on the grid of its image.

    Raises:
        CaseError: the folder exists or can't be written, or the parts do not fit together.
    """
    path = Path(directory)
    check_free(path, "case")
    if safe_name(case_id) != case_id:
        raise CaseError(f"The case id {case_id!r} has characters that are not allowed; use {safe_name(case_id)!r}.")
    metas = list(images)
    names = [meta.name for meta in metas]
    if not names or len(set(names)) < len(names):
        raise CaseError(f"A case needs images of different names, got: {', '.join(names) or 'none'}.")
    if labels is not None:
        labels_image = _labelled_image(images, labels, labels_image)
    after = {meta.name: volume for meta, volume in images.items() if meta.role == "follow_up"}
    for name, array in (follow_up_labels or {}).items():
        _check_labels(array)
        if name not in after or after[name].shape != array.shape:
            raise CaseError(f"The labels of shape {array.shape} fit no follow-up image {name!r}; give its own labels.")
    made: list[Path] = []
    try:
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        remove_empty(made)
        raise CaseError(f"The case can't be written to {path}: {error.strerror}.") from error
    try:
        entries = [_write_image(partial, meta, volume) for meta, volume in images.items()]
        label_entry = None
        if labels is not None and labels_image is not None:
            affine = next(volume.affine for meta, volume in images.items() if meta.name == labels_image)
            write_label_nifti(labels, affine, partial / "labels.nii.gz")
            label_entry = Labels(image=labels_image, file="labels.nii.gz", sha256=_sha256(partial / "labels.nii.gz"))
        more = []
        for name, array in sorted((follow_up_labels or {}).items()):
            target = partial / f"labels_{name}.nii.gz"
            write_label_nifti(array, after[name].affine, target)
            more.append(Labels(image=name, file=target.name, sha256=_sha256(target)))
        file = _CaseFile(
            schema_version=SCHEMA_VERSION, case_id=case_id, origin=origin, origin_note=origin_note,
            images=tuple(entries), labels=label_entry, follow_up_labels=tuple(more), record=record or ClinicalRecord(),
        )  # fmt: skip
        (partial / _CASE_FILE).write_text(_as_json(file), encoding="utf-8")
        partial.chmod(0o755)
        os.rename(partial, path)  # noqa: PTH104 (unlike Path.replace, fails on a folder that appeared meanwhile)
    except OSError as error:
        raise CaseError(f"The case can't be written to {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise CaseError(f"The case can't be written: {'.'.join(map(str, first['loc']))} {first['msg']}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)  # nothing, where the case stands in them
    return Case.load(path, verify=False)


def check_free(path: Path, what: str) -> None:
    """Refuse a place for a new folder where something is already.

    Args:
        path: the place.
        what: what is to be written there, for the sentence.

    Raises:
        CaseError: it is taken, or can't be looked at (a name that is too long, a parent without access).
    """
    try:
        path.lstat()  # unlike Path.exists, says in every version of Python why it can't tell
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CaseError(f"The {what} can't be written to {path}: {error.strerror}.") from error
    raise CaseError(f"{path} exists already; choose another folder for the {what} or remove it.")


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first; one that is not there, or not empty, is left as it is."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def safe_name(text: str) -> str:
    """A name that is safe as an id and a folder name (letters, digits, ``. - _``); ``case`` where none is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:100]
    return name or "case"


def _check_labels(labels: NDArray[np.uint8]) -> None:
    if labels.dtype != np.uint8 or not np.isin(np.unique(labels), (0, *LABEL_NAMES)).all():
        raise CaseError("Labels are uint8 with the values 0 to 4 (1 liver, 2 tumour, 3 portal vein, 4 aorta).")


def _labelled_image(images: Mapping[ImageMeta, Volume], labels: NDArray[np.uint8], name: str | None) -> str:
    _check_labels(labels)
    fitting = [meta for meta, volume in images.items() if meta.role == "pre" and volume.shape == labels.shape]
    if name is not None:
        fitting = [meta for meta in fitting if meta.name == name]
    if not fitting:
        raise CaseError(f"The labels of shape {labels.shape} fit no image before treatment; give labels drawn on one.")
    affines = [images[meta].affine for meta in fitting]
    if not all(same_grid(labels.shape, affines[0], labels.shape, affine) for affine in affines):
        raise CaseError("The labels could belong to images on different grids; say which image they were drawn on.")
    return min(fitting, key=lambda meta: _PREFERENCE.index(meta.phase)).name


def _write_image(folder: Path, meta: ImageMeta, volume: Volume) -> Image:
    if safe_name(meta.name) != meta.name or meta.name == "labels" or meta.name.startswith("labels_"):
        raise CaseError(f"The image name {meta.name!r} is not allowed; use letters, digits, dash and underscore.")
    file = f"{meta.name}.nii.gz"
    try:
        write_nifti(volume, folder / file)
    except MewmError as error:
        raise CaseError(f"The case can't be written: {error}") from error
    x, y, z = (round(side, 6) for side in volume.spacing_mm)
    return Image(
        name=meta.name, role=meta.role, phase=meta.phase, day=meta.day, file=file, sha256=_sha256(folder / file),
        shape=volume.shape, spacing_mm=(x, y, z),
    )  # fmt: skip


def _plain(file: _CaseFile) -> dict[str, Any]:
    # What is not there stays out, so that a new field does not change the hashes of old cases.
    absent = set() if file.follow_up_labels else {"follow_up_labels"}
    content = file.model_dump(mode="json", exclude={"record"} | absent)
    content["record"] = file.record.known()  # unknown fields stay out, so that new fields do not change old hashes
    return content


def _as_json(file: _CaseFile) -> str:
    return json.dumps(_plain(file), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _content_hash(file: _CaseFile) -> str:
    return hashlib.sha256(_as_json(file).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
