"""The pictures of a case that a vision-language model is shown: axial slices through the tumour, plain and outlined.

For the arterial and the portal image (the default one where neither is there) the slices are the widest one of each of
the largest lesions, filled up with the slices at 80 and 20 % of the tumour's volume. Every slice comes twice: as it is,
and with the tumour's outline. Both are in the liver window and carry R and L (the patient's right is on the left of the
picture) and a scale bar. A picture holds pixels only: no name, no date, no header text, no file name.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from agent.report.slices import LIVER_WINDOW, TUMOUR, Frame, choose_frame, draw_panel, make_panel
from models.case import Case, Image
from models.volume import Volume

PHASES = ("arterial", "portal")
SLICES = 3
"""Slices of each phase; with two phases and two copies, twelve pictures."""
WIDTH_PX = 512
"""Width of a picture. GPT-4o and its like cut images into tiles of 512 pixels; smaller ones lose the lesions."""


@dataclass(frozen=True)
class Picture:
    """One PNG and what it shows in words. `name` is free of anything from the case."""

    name: str
    caption: str
    png: bytes


def case_pictures(case: Case) -> tuple[Picture, ...]:
    """The pictures of a case, in the order in which they are sent: by phase, from head to feet, plain then outlined.

    Raises:
        CaseError: the case has no labels or no image before treatment.
        VolumeError: an image can't be read.
    """
    labels = case.label_array()
    default = case.default_image()
    affine = case.volume(default.name).affine
    pictures: list[Picture] = []
    for image in _images(case, default):
        volume = case.volume(image.name)
        same = case.shares_grid(image, default)
        fitted = labels if same else carried(labels, affine, volume)
        if (fitted == TUMOUR).any():  # a phase that does not reach the tumour shows nothing of it
            pictures += _of_image(volume, fitted, image.phase, same)
    return tuple(pictures)


def _images(case: Case, default: Image) -> list[Image]:
    """One image of each phase: the one on the grid of the labels where there are several."""
    before = [image for image in case.images if image.role == "pre"]
    found = []
    for phase in PHASES:
        of_phase = [image for image in before if image.phase == phase]
        if of_phase:
            found.append(min(of_phase, key=lambda image: (not case.shares_grid(image, default), image.name)))
    return found or [default]


def carried(labels: NDArray[np.uint8], affine: NDArray[np.float64], onto: Volume) -> NDArray[np.uint8]:
    """Labels on the grid of another image of the same examination, by position (nearest voxel).

    Args:
        labels: (X, Y, Z).
        affine: (4, 4) voxel to world of the labels, mm.
        onto: The image.
    """
    matrix = np.linalg.inv(affine) @ onto.affine
    out: NDArray[np.uint8] = ndimage.affine_transform(
        labels, matrix[:3, :3], matrix[:3, 3], output_shape=onto.shape, order=0, mode="constant", cval=0
    )
    return out


def chosen_slices(labels: NDArray[np.uint8], most: int) -> tuple[int, ...]:
    """Indices of the slices to show, from head to feet.

    The widest slice of each lesion, largest lesion first, then the slices at 80 and 20 % of the tumour's volume.

    Args:
        labels: (X, Y, Z) with a tumour.
        most: How many.
    """
    tumour = labels == TUMOUR
    lesions, count = ndimage.label(tumour, structure=np.ones((3, 3, 3)))
    volumes = np.bincount(lesions.ravel())[1:]
    by_size = sorted(range(1, count + 1), key=lambda lesion: (-volumes[lesion - 1], lesion))
    order = [int(np.argmax((lesions == lesion).sum(axis=(0, 1)))) for lesion in by_size[:most]]
    share = np.cumsum(tumour.sum(axis=(0, 1))) / tumour.sum()
    order += [int(np.searchsorted(share, fraction)) for fraction in (0.8, 0.2)]
    return tuple(sorted(list(dict.fromkeys(order))[:most], reverse=True))


def _of_image(volume: Volume, labels: NDArray[np.uint8], phase: str, same_grid: bool) -> list[Picture]:
    frame = choose_frame(labels, volume.affine)
    indices = chosen_slices(labels, SLICES)
    outlined = "the same slice with the tumour's outline in yellow"
    if not same_grid:
        outlined += ", carried over by position from another phase, so it may be off by a breath"
    pictures = []
    for number, index in enumerate(indices, start=1):
        above_mm = (index - frame.widest) * frame.spacing_mm[2]
        what = (
            f"{phase} phase, axial slice {number} of {len(indices)}, {_where(above_mm)}; liver window "
            f"({LIVER_WINDOW.text} HU); the patient's right is on the left of the picture; scale bar "
            f"{_bar_mm(frame)} mm"
        )
        panel = make_panel(phase, frame, index, volume.data, labels, None)
        plain = draw_panel(replace(panel, lines=()), WIDTH_PX).convert("L")
        pictures.append(Picture(f"{phase}-{number}-plain", f"{what}; nothing drawn on the tissue", _png(plain, frame)))
        drawn = draw_panel(panel, WIDTH_PX)
        pictures.append(Picture(f"{phase}-{number}-outlined", f"{what}; {outlined}", _png(drawn, frame)))
    return pictures


def _where(above_mm: float) -> str:
    if round(above_mm) == 0:
        return "through the largest section of the tumour"
    return f"{abs(above_mm):.0f} mm towards the {'head' if above_mm > 0 else 'feet'} from the largest section"


def _bar_mm(frame: Frame) -> int:
    return 50 if frame.width_mm >= 150 else 20


def _png(picture: Pillow.Image, frame: Frame) -> bytes:
    """The picture with R, L and the scale bar, as a PNG without any text chunk."""
    white: int | tuple[int, int, int] = 255 if picture.mode == "L" else (255, 255, 255)
    black: int | tuple[int, int, int] = 0 if picture.mode == "L" else (0, 0, 0)
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    font = ImageFont.load_default(size=18)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        pen.text((x, y), text, fill=white, font=font, anchor=anchor, stroke_width=2, stroke_fill=black)

    write(8, height / 2, "R", "lm")
    write(width - 8, height / 2, "L", "rm")
    bar_px = _bar_mm(frame) * width / frame.width_mm
    left, y = width - 12 - bar_px, height - 12
    for thickness, colour in ((6, black), (2, white)):
        pen.line([(left, y), (left + bar_px, y)], fill=colour, width=thickness)
    write(left + bar_px / 2, y - 8, f"{_bar_mm(frame)} mm", "mb")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
