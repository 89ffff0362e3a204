"""A checkerboard of a registered pair: fields of the scan before treatment and of the follow-up in turn.

Where the scans lie over each other, edges run on from field to field.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.case import Case, Image
from models.errors import CaseError
from models.itk_image import sitk, warp
from models.registration import Registration
from models.registration_check import Fit
from models.volume import Volume, resample

_FIELD_MM = 30.0
_GRID_MM = 2.0
_WINDOW = (-110.0, 240.0)  # HU from black to white, as in `case_picture`
_BACKGROUND, _TEXT, _OUTLINE, _TINT = "#10151c", "#dfe6ee", "#ff6b5e", (1.0, 0.93, 0.78)
_PANEL = 3.4  # inches


def checkerboard(
    one: NDArray[np.float32], other: NDArray[np.float32], field: tuple[float, float]
) -> NDArray[np.float32]:
    """Two planes in turn, in fields of `field` pixels; the second one tinted so that the fields can be told apart.

    Args:
        one: (R, C) grey values from 0 to 1.
        other: (R, C) likewise.
        field: rows and columns of a field.

    Returns:
        (R, C, 3) colours from 0 to 1.
    """
    rows, columns = np.indices(one.shape)
    second = ((rows // field[0]) + (columns // field[1])) % 2 == 1
    grey = np.where(second, other, one)[..., None]
    return np.where(second[..., None], grey * np.array(_TINT), np.repeat(grey, 3, axis=2)).astype(np.float32)


def draw_registration(case: Case, image: Image, registration: Registration) -> bytes:
    """Draw the pair as scanned, after the rigid part and after the deformation.

    Args:
        case: the case; its planned image is the one before treatment.
        image: the follow-up.
        registration: of the two.

    Returns:
        A PNG: one row per stage, three axial sections through the tumour (through the middle where there are no
        labels) and a coronal one, with the outline of the tumour before treatment.
    """
    fixed = resample(case.volume(), _GRID_MM)
    moving = resample(case.volume(image.name), _GRID_MM)
    tumour = None
    if case.labels is not None:
        mask = Volume((case.label_array() == 2).astype(np.int16), case.volume().affine)
        tumour = warp(sitk.Transform(3, sitk.sitkIdentity), mask, fixed.shape, fixed.affine, order=0).data > 0
    seen = tumour if tumour is not None and tumour.any() else np.ones(fixed.shape, dtype=bool)
    levels = [int(np.quantile(np.nonzero(seen.any(axis=(0, 1)))[0], share)) for share in (0.8, 0.5, 0.2)]
    middle = int(np.median(np.nonzero(seen.any(axis=(0, 2)))[0]))
    report = registration.report
    stages: list[tuple[str, Fit, sitk.Transform]] = [
        ("as scanned", report.as_scanned, sitk.Transform(3, sitk.sitkIdentity)),
        ("rigid", report.rigid, sitk.CompositeTransform(registration.transform).GetNthTransform(0)),
        ("rigid and deformable", report.deformed, registration.transform),
    ]
    tall = _PANEL * max(fixed.shape[1], fixed.shape[2]) / fixed.shape[0]
    figure = Figure(figsize=(4 * _PANEL + 0.2, len(stages) * (tall + 0.35) + 0.6), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    width, height = figure.get_figwidth(), figure.get_figheight()
    verdict = "may be used" if report.usable else "NOT to be used"
    figure.text(0.012, 1 - 0.28 / height, f"Case {case.case_id}: {image.name}", color=_TEXT, fontsize=13, weight="bold")
    figure.text(
        0.012, 1 - 0.47 / height,
        f"checkerboard of {_FIELD_MM:g} mm, grey before treatment, tinted follow-up; {verdict}", color=_TEXT,
        fontsize=8,
    )  # fmt: skip
    for row, (name, fit, transform) in enumerate(stages):
        top = height - 0.6 - row * (tall + 0.35)
        figure.text(0.012, (top - 0.2) / height, f"{name}: {_told(fit)}", color=_TEXT, fontsize=9)
        after = warp(transform, moving, fixed.shape, fixed.affine)
        for column in range(4):
            axis, index = (2, levels[column]) if column < 3 else (1, middle)
            axes = figure.add_axes((
                (0.1 + column * _PANEL) / width, (top - 0.3 - tall) / height, (_PANEL - 0.08) / width, tall / height,
            ))  # fmt: skip
            _section(axes, fixed, after, tumour, axis, index)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor=_BACKGROUND, metadata={"Software": None})
    return buffer.getvalue()


def _told(fit: Fit) -> str:
    parts = [f"likeness {fit.similarity:.2f}"]
    if fit.oil_in_tumour_ml is not None:
        parts.append(f"oil inside the tumour {fit.oil_in_tumour_ml:.1f} ml")
    if fit.liver_dice is not None:
        parts.append(f"Dice of the livers {fit.liver_dice:.2f}")
    return ", ".join(parts)


def _section(
    axes: Axes, before: Volume, after: Volume, tumour: NDArray[np.bool_] | None, axis: int, index: int
) -> None:
    """One section, patient's right on the left and the front or head up."""
    low, high = _WINDOW
    planes = [np.clip((np.take(v.data, index, axis=axis).T - low) / (high - low), 0, 1) for v in (before, after)]
    field = _FIELD_MM / _GRID_MM
    axes.imshow(
        checkerboard(planes[0].astype(np.float32), planes[1].astype(np.float32), (field, field)), origin="lower"
    )
    if tumour is not None:
        cut = np.take(tumour, index, axis=axis).T
        if cut.any() and not cut.all():
            axes.contour(cut.astype(float), levels=[0.5], colors=[_OUTLINE], linewidths=0.8)
    axes.invert_xaxis()
    axes.set_axis_off()


def write_registration_picture(case: Case, image: Image, registration: Registration, path: Path) -> Path:
    """Write `draw_registration` to a file.

    Raises:
        CaseError: the file can't be written.
    """
    picture = draw_registration(case, image, registration)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(picture)
        partial.replace(path)
    except OSError as error:
        raise CaseError(f"The picture can't be written to {path}: {error.strerror}.") from error
    return path
