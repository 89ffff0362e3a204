"""Axial slices of a CT with outlines, as SVG figures that embed the grey values as PNG.

Every panel is drawn in millimetres: the SVG's user unit is 1 mm of the patient, so that outlines, scale bar and voxels
agree by construction at any size on screen or paper. The radiological convention holds: the patient's right is on the
viewer's left, anterior is on top. Volumes are RAS+ (`models.volume.read_nifti`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from markupsafe import escape
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

# Values of a case's labels and of a simulated segmentation (`tools.compose_outcome`).
LIVER, TUMOUR = 1, 2
VIABLE, NECROTIC, OIL = 2, 3, 4


@dataclass(frozen=True)
class Window:
    """Grey scale of a display: HU from `low` (black) to `high` (white)."""

    name: str
    low: float
    high: float

    @property
    def text(self) -> str:
        """The window as radiologists write it."""
        return f"W {self.high - self.low:.0f} / L {(self.high + self.low) / 2:.0f}"


LIVER_WINDOW = Window("liver window", -110.0, 250.0)
OIL_WINDOW = Window("Lipiodol window", 0.0, 900.0)


@dataclass(frozen=True)
class OutlineStyle:
    """How one class is outlined. The colours follow Okabe and Ito's set, which colour-blind readers can tell apart."""

    name: str
    css: str
    colour: str
    width_px: float
    dash: str


TUMOUR_STYLE = OutlineStyle("tumour before treatment", "tumour", "#F0E442", 1.4, "5 3")
VIABLE_STYLE = OutlineStyle("viable after", "viable", "#E69F00", 2.0, "")
NECROTIC_STYLE = OutlineStyle("necrotic after", "necrotic", "#56B4E9", 1.5, "")
OIL_STYLE = OutlineStyle("Lipiodol", "oil", "#E58CC0", 1.6, "")
STYLES: tuple[OutlineStyle, ...] = (TUMOUR_STYLE, VIABLE_STYLE, NECROTIC_STYLE, OIL_STYLE)
STYLE_OF_LABEL = {VIABLE: VIABLE_STYLE, NECROTIC: NECROTIC_STYLE, OIL: OIL_STYLE}


@dataclass(frozen=True)
class Frame:
    """What all panels of a report have in common: the region in voxels and the slices.

    `x` and `y` are half-open voxel ranges of the first two axes; `positions` are slice indices from the feet upwards
    and `key` those of them that are printed. The inset is the tumour's region, again in voxels, and `corner` says where
    it hides least of the tumour: right and bottom of the screen, as 0 or 1.
    """

    x: tuple[int, int]
    y: tuple[int, int]
    inset_x: tuple[int, int]
    inset_y: tuple[int, int]
    corner: tuple[int, int]
    positions: tuple[int, ...]
    key: tuple[int, ...]
    widest: int
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    depth: int

    @property
    def width_mm(self) -> float:
        """Width of a panel in mm."""
        return (self.x[1] - self.x[0]) * self.spacing_mm[0]

    @property
    def height_mm(self) -> float:
        """Height of a panel in mm."""
        return (self.y[1] - self.y[0]) * self.spacing_mm[1]

    def position_mm(self, index: int) -> float:
        """World coordinate towards the head, in mm, of the middle of a slice's region."""
        middle = np.array([(self.x[0] + self.x[1] - 1) / 2, (self.y[0] + self.y[1] - 1) / 2, index, 1.0])
        return float((self.affine @ middle)[2])


def _region(
    mask: NDArray[np.bool_], margin_mm: float, least_mm: tuple[float, float], spacing: tuple[float, float, float]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Half-open voxel ranges along x and y around a mask (X, Y, Z), widened by a margin and to a least width."""
    found = np.argwhere(mask.any(axis=2))
    ranges: list[tuple[int, int]] = []
    for axis in (0, 1):
        margin, least = margin_mm / spacing[axis], least_mm[axis] / spacing[axis]
        low, high = float(found[:, axis].min()) - margin, float(found[:, axis].max()) + 1 + margin
        if high - low < least:
            middle = (low + high) / 2
            low, high = middle - least / 2, middle + least / 2
        ranges.append((max(0, int(np.floor(low))), min(mask.shape[axis], int(np.ceil(high)))))
    return ranges[0], ranges[1]


def choose_frame(labels: NDArray[np.uint8], affine: NDArray[np.float64], slices: int = 11) -> Frame:
    """Choose the region and the slices that all panels of a report share.

    The region is the liver with the tumour and 12 mm around it, at least 150 mm wide. Slices lie at equal shares of the
    tumour's volume, so that a large lesion gets more of them; the widest slice of each of the six largest lesions is
    always among them. Three are printed: the one with the largest tumour area, and those nearest to 20 % and 80 % of
    the volume.

    Args:
        labels: Label volume of the case (X, Y, Z), 1 liver, 2 tumour, 3 portal vein, 4 aorta.
        affine: (4, 4) voxel to world, RAS+, mm.
        slices: How many slices to aim at.

    Raises:
        ValueError: The labels hold no tumour (`models.volume.read_labels` refuses such a mask).
    """
    tumour = labels == TUMOUR
    if not tumour.any():
        raise ValueError("no tumour in the labels")
    size = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(size[0]), float(size[1]), float(size[2]))
    organ = (labels >= 1) & (labels <= 3)
    x, y = _region(organ, 12.0, (150.0, 112.0), spacing)
    areas = tumour.sum(axis=(0, 1))
    share = np.cumsum(areas) / areas.sum()
    widest = int(np.argmax(areas))

    def at(fraction: float) -> int:
        return int(np.searchsorted(share, fraction))

    chosen = {at(f) for f in np.linspace(0.02, 0.98, slices)} | {widest}
    lesions, count = ndimage.label(tumour, structure=np.ones((3, 3, 3)))
    if count > 1:
        volumes = np.bincount(lesions.ravel())[1:]
        for lesion in np.argsort(volumes)[::-1][:6] + 1:
            chosen.add(int(np.argmax((lesions == lesion).sum(axis=(0, 1)))))
    key = {at(0.2), widest, at(0.8)}
    chosen |= key
    inset_x, inset_y = _region(tumour, 8.0, (50.0, 50.0), spacing)
    return Frame(
        x=x,
        y=y,
        inset_x=(max(x[0], inset_x[0]), min(x[1], inset_x[1])),
        inset_y=(max(y[0], inset_y[0]), min(y[1], inset_y[1])),
        corner=_freest_corner(on_screen(tumour.any(axis=2), x, y)),
        positions=tuple(sorted(chosen)),
        key=tuple(sorted(key)),
        widest=widest,
        spacing_mm=spacing,
        affine=np.asarray(affine, dtype=np.float64),
        depth=int(labels.shape[2]),
    )


def _freest_corner(tumour: NDArray[np.generic]) -> tuple[int, int]:
    """The corner of the screen (right?, bottom?) that covers least of the tumour's shadow; upper right at a tie."""
    rows, columns = tumour.shape[0] * 2 // 5, tumour.shape[1] // 3
    corners = {(1, 0): (slice(0, rows), slice(-columns, None)), (0, 0): (slice(0, rows), slice(0, columns))}
    corners[(1, 1)] = (slice(-rows, None), slice(-columns, None))
    corners[(0, 1)] = (slice(-rows, None), slice(0, columns))
    return min(corners, key=lambda corner: int(np.count_nonzero(tumour[corners[corner]])))


def on_screen(plane: NDArray[np.generic], x: tuple[int, int], y: tuple[int, int]) -> NDArray[np.generic]:
    """Cut a region out of an axial plane (X, Y) as rows and columns of the screen: anterior up, right on the left."""
    return plane[x[0] : x[1], y[0] : y[1]][::-1, ::-1].T


def grey(plane: NDArray[np.generic], window: Window) -> NDArray[np.uint8]:
    """HU to 8-bit grey, clipped to the window."""
    scaled = (plane.astype(np.float32) - window.low) / (window.high - window.low)
    levels: NDArray[np.uint8] = np.round(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def outlines(mask: NDArray[np.bool_], spacing: tuple[float, float]) -> list[NDArray[np.float64]]:
    """Outlines of a mask in screen order, by marching squares at one half.

    Args:
        mask: (rows, columns).
        spacing: Column and row width in mm.

    Returns:
        Closed lines (N, 2) of x, y in mm from the upper left corner of the region. Corners are cut once (Chaikin),
        which moves no point by more than a quarter of a voxel.
    """
    if not mask.any():
        return []
    padded = np.pad(mask, 1).astype(np.float64)
    lines = contour_generator(z=padded, line_type="Separate").lines(0.5)
    out: list[NDArray[np.float64]] = []
    for line in lines:
        points = np.asarray(line, dtype=np.float64)[:-1]
        following = np.roll(points, -1, axis=0)
        smooth = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
        # The centre of padded column 1 is the centre of the first voxel: half a voxel from the corner.
        out.append((smooth - 0.5) * np.array(spacing))
    return out


def path_data(lines: Sequence[NDArray[np.float64]]) -> str:
    """SVG path data of closed lines, rounded to 0.05 mm or better."""
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "Z" for line in lines)


def png_base64(pixels: NDArray[np.uint8]) -> str:
    """A grey image (rows, columns) as a base64 PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _enlarged(pixels: NDArray[np.uint8], mm: tuple[float, float], per_mm: float) -> NDArray[np.uint8]:
    """Interpolated to about `per_mm` pixels per mm where the voxels are coarser, for display only."""
    columns = pixels.shape[1]
    wanted = (round(mm[0] * per_mm), round(mm[1] * per_mm))
    if wanted[0] <= columns * 1.2:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(wanted, Image.Resampling.BICUBIC), dtype=np.uint8)


@dataclass(frozen=True)
class Panel:
    """One slice of one volume, ready to draw: grey values and outlines in mm of the frame."""

    title: str
    frame: Frame
    index: int
    plane: NDArray[np.generic]
    lines: tuple[tuple[OutlineStyle, tuple[NDArray[np.float64], ...]], ...]

    @property
    def position(self) -> str:
        """Where the slice lies, for a reader."""
        z = self.frame.position_mm(self.index)
        return f"z {'−' if z < 0 else '+'}{abs(z):.1f} mm"


def make_panel(
    title: str,
    frame: Frame,
    index: int,
    data: NDArray[np.generic],
    case_labels: NDArray[np.uint8],
    segmentation: NDArray[np.uint8] | None,
) -> Panel:
    """Prepare one panel.

    Args:
        title: What the panel shows.
        frame: Shared region and slices.
        index: Slice index along the third axis.
        data: CT volume (X, Y, Z) in HU.
        case_labels: Labels before treatment, for the outline of the original tumour.
        segmentation: Labels after treatment (2 viable, 3 necrotic, 4 Lipiodol), or None before it.
    """
    flat = (frame.spacing_mm[0], frame.spacing_mm[1])
    before = on_screen(case_labels[:, :, index], frame.x, frame.y)
    # The tumour's old outline is drawn first: where it coincides with the new ones, these are what a reader looks for.
    lines: list[tuple[OutlineStyle, tuple[NDArray[np.float64], ...]]] = [
        (TUMOUR_STYLE, tuple(outlines(before == TUMOUR, flat)))
    ]
    if segmentation is not None:
        after = on_screen(segmentation[:, :, index], frame.x, frame.y)
        lines += [(style, tuple(outlines(after == label, flat))) for label, style in STYLE_OF_LABEL.items()]
    return Panel(title, frame, index, data[:, :, index], tuple(lines))


def _scale_bar_mm(width: float) -> int:
    """The largest of 20, 50, 100 mm that takes at most a third of the width."""
    return max((length for length in (20, 50, 100) if length <= width / 3), default=10)


def _mark(x: float, y: float, text: str, size: float, unit: float, more: str = "") -> str:
    """White text with a black rim, legible on bone and air alike."""
    return (
        f'<text class="mark" x="{x:.2f}" y="{y:.2f}" font-size="{size * unit:.2f}" '
        f'stroke-width="{2.4 * unit:.2f}" {more}>{text}</text>'
    )


def _marks(panel: Panel, unit: float) -> str:
    """R, L, the slice's position and the scale bar; `unit` is about one CSS pixel in mm."""
    width, height = panel.frame.width_mm, panel.frame.height_mm
    bar = _scale_bar_mm(width)
    x, y = width - bar - 8 * unit, height - 8 * unit
    line = f'd="M{x:.2f} {y - 4 * unit:.2f}V{y:.2f}H{x + bar:.2f}V{y - 4 * unit:.2f}"'
    return (
        _mark(6 * unit, height / 2, "R", 12, unit, 'dominant-baseline="central"')
        + _mark(width - 6 * unit, height / 2, "L", 12, unit, 'text-anchor="end" dominant-baseline="central"')
        + _mark(6 * unit, height - 8 * unit, panel.position, 10.5, unit)
        + f'<path class="bar" stroke="#000" stroke-width="{4 * unit:.2f}" {line}/>'
        + f'<path class="bar" stroke="#fff" stroke-width="{1.7 * unit:.2f}" {line}/>'
        + _mark(x + bar / 2, y - 6 * unit, f"{bar} mm", 10.5, unit, 'text-anchor="middle"')
    )


def panel_svg(panel: Panel) -> str:
    """The panel as SVG: liver window, outlines, marks, scale bar and the enlarged tumour in the Lipiodol window."""
    frame = panel.frame
    width, height = frame.width_mm, frame.height_mm
    unit = width / 292.0
    pixels = grey(on_screen(panel.plane, frame.x, frame.y), LIVER_WINDOW)
    image = png_base64(_enlarged(pixels, (width, height), 1.6))
    paths = "".join(
        f'<path class="outline c-{style.css}" data-lines="{len(lines)}" stroke="{style.colour}" '
        f'stroke-width="{style.width_px}" stroke-dasharray="{style.dash or "none"}" d="{path_data(lines)}"/>'
        for style, lines in panel.lines
        if lines
    )
    label = f"{panel.title}, axial slice {panel.index + 1} of {frame.depth}, {panel.position}"
    return (
        f'<svg class="ct" viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{escape(label)}">'
        f'<image href="{image}" width="{width:.2f}" height="{height:.2f}" preserveAspectRatio="none"/>'
        f"{paths}{_inset_svg(panel, unit)}{_marks(panel, unit)}</svg>"
    )


def _inset_svg(panel: Panel, unit: float) -> str:
    """The tumour's region in the Lipiodol window, in the freest corner, with the outline of the original tumour."""
    frame = panel.frame
    inner_width = (frame.inset_x[1] - frame.inset_x[0]) * frame.spacing_mm[0]
    inner_height = (frame.inset_y[1] - frame.inset_y[0]) * frame.spacing_mm[1]
    factor = min(frame.width_mm * 0.31 / inner_width, frame.height_mm * 0.36 / inner_height)
    width, height = inner_width * factor, inner_height * factor
    right, bottom = frame.corner
    x = frame.width_mm - width - 4 * unit if right else 4 * unit
    y = frame.height_mm - height - 36 * unit if bottom else 4 * unit
    pixels = grey(on_screen(panel.plane, frame.inset_x, frame.inset_y), OIL_WINDOW)
    image = png_base64(_enlarged(pixels, (inner_width, inner_height), 1.6 * factor))
    # Screen columns run from high x to low x, so the inset's corner is measured from the frame's high end.
    left = (frame.x[1] - frame.inset_x[1]) * frame.spacing_mm[0]
    top = (frame.y[1] - frame.inset_y[1]) * frame.spacing_mm[1]
    tumour = "".join(
        f'<path class="outline c-{style.css}" transform="translate({-left:.2f} {-top:.2f})" stroke="{style.colour}" '
        f'stroke-width="1" stroke-dasharray="3 2" d="{path_data(lines)}"/>'
        for style, lines in panel.lines
        if style is TUMOUR_STYLE and lines
    )
    return (
        f'<g class="inset"><svg x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'viewBox="0 0 {inner_width:.2f} {inner_height:.2f}"><rect width="100%" height="100%" fill="#000"/>'
        f'<image href="{image}" width="{inner_width:.2f}" height="{inner_height:.2f}" preserveAspectRatio="none"/>'
        f"{tumour}</svg>"
        f'<rect class="inset-frame" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
        + _mark(x + width if right else x, y + height + 11 * unit, OIL_WINDOW.name, 9, unit, _anchor(right))
        + "</g>"
    )


def _anchor(right: int) -> str:
    return f'text-anchor="{"end" if right else "start"}"'


def draw_panel(panel: Panel, width_px: int = 480) -> Image.Image:
    """The same panel as a colour image, for places that can't show SVG (a README, a terminal, a PDF of slides).

    Args:
        panel: From `make_panel`.
        width_px: Width of the picture; the height follows from the region in mm.
    """
    frame = panel.frame
    scale = width_px / frame.width_mm
    size = (width_px, round(frame.height_mm * scale))
    pixels = grey(on_screen(panel.plane, frame.x, frame.y), LIVER_WINDOW)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    fine = 3  # lines are drawn at three times the size: Pillow's lines have no anti-aliasing
    overlay = Image.new("RGBA", (size[0] * fine, size[1] * fine), (0, 0, 0, 0))
    pen = ImageDraw.Draw(overlay)
    for style, lines in panel.lines:
        for line in lines:
            points = [(float(px * scale * fine), float(py * scale * fine)) for px, py in np.vstack([line, line[:1]])]
            pen.line(points, fill=style.colour, width=round(style.width_px * fine), joint="curve")
    image.paste(small := overlay.resize(size, Image.Resampling.LANCZOS), (0, 0), small)
    return image
