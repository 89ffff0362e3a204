"""A picture of a case: every image in axial and coronal section through the tumour, with the outlines of the labels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import ndimage

from models.case import Case, Image
from models.errors import CaseError
from models.volume import LABEL_NAMES, Volume

LABEL_COLOURS: dict[int, str] = {1: "#4fc38a", 2: "#ff6b5e", 3: "#5aa7ff", 4: "#ffc94d"}
"""Outline colour of each label value, readable on grey and told apart by colour-blind eyes through the legend order."""

_WINDOW = (-110.0, 240.0)  # HU shown from black to white: the usual abdominal window (level 65, width 350)
_BACKGROUND = "#10151c"
_TEXT = "#dfe6ee"
_BODY_HU = -300  # between fat and lung
_AXIAL_SLICES = 3
_PANEL_WIDTH, _TITLE, _HEAD = 3.1, 0.34, 0.66  # inches


@dataclass(frozen=True)
class _Box:
    """The part of an image that is drawn: voxel ranges across and front to back, all slices."""

    x: tuple[int, int]
    y: tuple[int, int]
    slices: int
    spacing: tuple[float, float, float]

    @property
    def height_share(self) -> float:
        """Height of an axial section over its width."""
        return (self.y[1] - self.y[0]) * self.spacing[1] / ((self.x[1] - self.x[0]) * self.spacing[0])

    @property
    def depth_share(self) -> float:
        """Height of a coronal section over its width."""
        return self.slices * self.spacing[2] / ((self.x[1] - self.x[0]) * self.spacing[0])


def draw_case(case: Case) -> bytes:
    """Draw all images of a case, one row each.

    Args:
        case: a verified case.

    Returns:
        A PNG: per image three axial sections through the tumour (through the middle where there are no labels) and a
        coronal one, in the abdominal window, patient's right on the left as radiologists look at it.
    """
    labels = case.label_array() if case.labels is not None else None
    labelled = case.default_image() if labels is not None else None
    rows = []
    for image in case.images:
        volume = case.volume(image.name)
        fits = labelled is not None and image.role == "pre" and case.shares_grid(image, labelled)
        shown = labels if fits else case.follow_up_label_array(image.name)
        rows.append((image, volume, shown, _body(volume)))
    heights = [_PANEL_WIDTH * max(box.height_share, box.depth_share) for _, _, _, box in rows]
    total = sum(heights) + _TITLE * len(rows) + _HEAD
    figure = Figure(figsize=(_PANEL_WIDTH * (_AXIAL_SLICES + 1) + 0.3, total), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    top = total - _HEAD
    for (image, volume, shown, box), height in zip(rows, heights, strict=True):
        top -= _TITLE
        figure.text(0.012, (top + 0.08) / total, _title(image), color=_TEXT, fontsize=9)
        for column in range(_AXIAL_SLICES + 1):
            axes = figure.add_axes((
                (0.13 + column * _PANEL_WIDTH) / figure.get_figwidth(), (top - height) / total,
                (_PANEL_WIDTH - 0.08) / figure.get_figwidth(), height / total,
            ))  # fmt: skip
            if column < _AXIAL_SLICES:
                _section(axes, volume, shown, box, 2, _sections(volume, shown)[column])
            else:
                _section(axes, volume, shown, box, 1, _centre(volume, shown)[1])
        top -= height
    figure.text(
        0.012, 1 - 0.28 / figure.get_figheight(), f"Case {case.case_id}", color=_TEXT, fontsize=13, weight="bold"
    )
    figure.text(
        0.012, 1 - 0.47 / figure.get_figheight(), f"{case.origin} images, window {_WINDOW[0]:g} to {_WINDOW[1]:g} HU, "
        "patient's right on the left", color=_TEXT, fontsize=8, alpha=0.8,
    )  # fmt: skip
    drawn = [shown for _, _, shown, _ in rows if shown is not None]
    if drawn:
        present = [value for value in LABEL_NAMES if any((one == value).any() for one in drawn)]
        lines = [Line2D([], [], color=LABEL_COLOURS[value], lw=2, label=LABEL_NAMES[value]) for value in present]
        figure.legend(
            handles=lines, loc="upper right", ncols=len(lines), frameon=False, labelcolor=_TEXT, fontsize=9,
            bbox_to_anchor=(0.995, 1 - 0.1 / figure.get_figheight()),
        )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=_BACKGROUND, metadata={"Software": None})
    return buffer.getvalue()


def write_case_picture(case: Case, path: Path | str) -> Path:
    """Write `draw_case` to a file.

    Raises:
        CaseError: the file can't be written.
    """
    path = Path(path)
    picture = draw_case(case)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise CaseError(f"The picture can't be written to {path}: {error.strerror}.") from error
    return path


def _title(image: Image) -> str:
    x, y, z = image.spacing_mm
    when = "before treatment" if image.role == "pre" else f"follow-up, day {image.day}"
    return f"{image.name}: {when}, {image.phase} phase, {x:.3g} x {y:.3g} x {z:.3g} mm"


def _body(volume: Volume) -> _Box:
    """Where the body is, without the table and the air around it."""
    step = [max(1, round(4.0 / side)) for side in volume.spacing_mm]
    solid = ndimage.binary_opening(volume.data[:: step[0], :: step[1], :: step[2]] > _BODY_HU, iterations=2)
    parts, n = ndimage.label(solid)
    if n == 0:
        return _Box((0, volume.shape[0]), (0, volume.shape[1]), volume.shape[2], volume.spacing_mm)
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    found = ndimage.find_objects(parts)[largest - 1]
    (x0, x1), (y0, y1) = [
        (max(0, (found[i].start - 3) * step[i]), min(volume.shape[i], (found[i].stop + 3) * step[i])) for i in (0, 1)
    ]
    return _Box((x0, x1), (y0, y1), volume.shape[2], volume.spacing_mm)


def _centre(volume: Volume, labels: NDArray[np.uint8] | None) -> tuple[int, int, int]:
    """Voxel through which the sections go: the middle of the tumour, or of the image."""
    if labels is None or not (labels == 2).any():
        x, y, z = (n // 2 for n in volume.shape)
        return x, y, z
    x, y, z = (int(np.median(i)) for i in np.nonzero(labels == 2))
    return x, y, z


def _sections(volume: Volume, labels: NDArray[np.uint8] | None) -> list[int]:
    """Three axial positions, from the head downwards: at 20, 50 and 80 % of the tumour, or of the image."""
    z = np.arange(volume.shape[2])
    if labels is not None and (labels == 2).any():
        z = np.nonzero((labels == 2).any(axis=(0, 1)))[0]
    return [int(np.quantile(z, share)) for share in (0.8, 0.5, 0.2)]


def _section(axes: Axes, volume: Volume, labels: NDArray[np.uint8] | None, box: _Box, axis: int, index: int) -> None:
    """Draw one section; RAS data is turned so that the patient's right is on the left and the front or head is up."""
    across, up = [i for i in range(3) if i != axis]
    window: list[slice | int] = [slice(*box.x), slice(*box.y), slice(None)]
    window[axis] = index
    plane = volume.data[tuple(window)].T
    extent = (0.0, plane.shape[1] * volume.spacing_mm[across], 0.0, plane.shape[0] * volume.spacing_mm[up])
    low, high = _WINDOW
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="bilinear")
    if labels is not None:
        cut = labels[tuple(window)].T
        for value in LABEL_NAMES:
            # The outline of the liver runs around what lies in it: tumour and portal vein.
            inside = np.isin(cut, (1, 2, 3)) if value == 1 else cut == value
            if inside.any() and not inside.all():
                axes.contour(
                    inside.astype(float), levels=[0.5], colors=[LABEL_COLOURS[value]], linewidths=0.9,
                    origin="lower", extent=extent,
                )  # fmt: skip
    axes.invert_xaxis()  # x runs to the patient's right, which is drawn on the left
    axes.set_axis_off()
