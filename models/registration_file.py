"""The registration of a case's follow-up, kept beside the case: `registration/<image>.json` and `.tfm`.

The transform is an ITK text file in LPS mm: any ITK program can apply it to the NIfTI files of the case.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.case import Case, Image
from models.errors import CaseError, MaskError
from models.itk_image import sitk
from models.registration import Registration, register
from models.registration_check import Report
from models.registration_pair import has_liver
from models.registration_settings import Settings, settings
from models.volume import LABEL_NAMES, Volume, load_exact_labels, same_grid

FOLDER = "registration"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _File(_Data):
    """An image of the pair and the hash that it had."""

    name: str
    sha256: str


class RegistrationFile(_Data):
    """Content of the JSON file beside the case."""

    schema_version: Literal[1] = 1
    case_id: str
    fixed: _File
    moving: _File
    transform: str
    transform_sha256: str
    maps: str = "points of the scan before treatment to points of the follow-up, LPS mm"
    settings: Settings
    library: str
    report: Report


def register_case(
    case: Case, follow_up: str | None = None, follow_up_labels: NDArray[np.uint8] | None = None
) -> tuple[Image, Registration]:
    """Register a follow-up image of a case to the image that is planned on, and keep the result beside the case.

    Args:
        case: a verified case.
        follow_up: name of the image; None takes the earliest follow-up in the phase of the planned image, else the
            earliest one.
        follow_up_labels: its labels on its own grid; None takes those of the case, where it has any.

    Returns:
        The follow-up image and its registration; `registration/<name>.json` and `.tfm` hold the same.

    Raises:
        CaseError: the case has no such follow-up, or its folder can't be written.
        VolumeError, MaskError: see `register`.
    """
    image = choose_follow_up(case, follow_up)
    labels = case.label_array() if case.labels is not None else None
    after = follow_up_labels if follow_up_labels is not None else case.follow_up_label_array(image.name)
    result = register(case.volume(), case.volume(image.name), labels, after)
    _write(case, image, result)
    return image, result


def choose_follow_up(case: Case, name: str | None = None) -> Image:
    """The follow-up of that name; without one the earliest in the phase of the planned image, else the earliest.

    Raises:
        CaseError: the case has no such follow-up.
    """
    found = case.follow_up()
    if name is not None:
        image = case.image(name)
        if image.role != "follow_up":
            raise CaseError(f"The image {name} of case {case.case_id} is from before treatment; choose a follow-up.")
        return image
    if not found:
        raise CaseError(f"The case {case.case_id} has no follow-up image; import one to register it.")
    phase = case.default_image().phase
    first = [image for image in found if image.day == found[0].day]
    return next((image for image in first if image.phase == phase), first[0])


def read_follow_up_labels(path: Path, like: Volume) -> NDArray[np.uint8]:
    """Labels of a follow-up; unlike those of a case they need no tumour, which the treatment may have cleared.

    Args:
        path: NIfTI on the grid of the follow-up, values of `models.volume.LABEL_NAMES`.
        like: the follow-up.

    Raises:
        MaskError: unreadable, on another grid, other values, or no liver.
    """
    labels, affine = load_exact_labels(path)
    if not same_grid(like.shape, like.affine, labels.shape, affine):
        raise MaskError(f"The labels {path} are not on the grid of the follow-up; give labels drawn on it.")
    if not np.isin(np.unique(labels), (0, *LABEL_NAMES)).all():
        known = ", ".join(f"{value} {name}" for value, name in LABEL_NAMES.items())
        raise MaskError(f"The labels {path} hold values that are not known; relabel the file as {known}.")
    if not has_liver(labels):
        raise MaskError(f"The labels {path} mark no liver (label 1), so they don't help to register; leave them out.")
    return labels


def _write(case: Case, image: Image, result: Registration) -> None:
    folder = case.path / FOLDER
    fixed = case.default_image()
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as partial:
            transform = Path(partial) / f"{image.name}.tfm"
            sitk.WriteTransform(result.transform, str(transform))
            content = RegistrationFile(
                case_id=case.case_id,
                fixed=_File(name=fixed.name, sha256=fixed.sha256),
                moving=_File(name=image.name, sha256=image.sha256),
                transform=transform.name,
                transform_sha256=hashlib.sha256(transform.read_bytes()).hexdigest(),
                settings=settings(),
                library=f"SimpleITK {sitk.Version_VersionString()}",
                report=result.report,
            )
            text = Path(partial) / f"{image.name}.json"
            text.write_text(content.model_dump_json(indent=2) + "\n", encoding="utf-8")
            # the JSON last: it is what says that there is a registration
            for file in (transform, text):
                os.replace(file, folder / file.name)  # noqa: PTH105
    except OSError as error:
        raise CaseError(f"The registration can't be written to {folder}: {error.strerror}.") from error


def load_registration(case: Case, follow_up: str | None = None) -> tuple[Image, Registration] | None:
    """What `register_case` kept, or None where the follow-up was never registered.

    Args:
        case: the case.
        follow_up: name of the image; None as in `register_case`.

    Raises:
        CaseError: the files are damaged, of another version, or of other images than the case holds now.
    """
    image = choose_follow_up(case, follow_up)
    path = case.path / FOLDER / f"{image.name}.json"
    again = f"register it again with: mewm case register {case.path}"
    try:
        found = RegistrationFile.model_validate_json(path.read_text(encoding="utf-8"))
        transform = path.parent / f"{image.name}.tfm"
        digest = hashlib.sha256(transform.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        if path.exists():
            raise CaseError(f"The registration {path} lacks its transform; {again}") from error
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CaseError(f"The registration {path} can't be read; {again}") from error
    fixed = case.default_image()
    if (found.fixed.sha256, found.moving.sha256) != (fixed.sha256, image.sha256) or digest != found.transform_sha256:
        raise CaseError(f"The registration {path} is of other images or its transform was changed; {again}")
    return image, Registration(sitk.ReadTransform(str(transform)), found.report)
