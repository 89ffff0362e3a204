from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from agent.report import slices
from agent.report.slices import (
    LIVER_WINDOW,
    TUMOUR_STYLE,
    VIABLE_STYLE,
    choose_frame,
    draw_panel,
    make_panel,
    on_screen,
    outlines,
    panel_svg,
)
from tests.agent.report.made_plan import CENTRE_MM, RADIUS_MM, SHAPE, SPACING, simulated, sphere_case


def test_frame_holds_liver_and_tumour_and_the_widest_slice() -> None:
    volume, labels = sphere_case()
    frame = choose_frame(labels, volume.affine)
    organ = np.argwhere((labels >= 1) & (labels <= 3))
    assert frame.x[0] <= organ[:, 0].min()
    assert frame.x[1] > organ[:, 0].max()
    assert frame.y[0] <= organ[:, 1].min()
    assert frame.y[1] > organ[:, 1].max()
    areas = (labels == 2).sum(axis=(0, 1))
    assert areas[frame.widest] == areas.max()
    assert frame.widest in frame.key
    assert set(frame.key) <= set(frame.positions)
    assert all(areas[k] > 0 for k in frame.positions)
    # The middle of the sphere lies at z = -40 mm by construction.
    assert abs(frame.position_mm(frame.widest) - CENTRE_MM[2]) <= SPACING[2]


def test_every_large_lesion_is_shown() -> None:
    volume, labels = sphere_case()
    labels = labels.copy()
    labels[70:73, 60:63, 4:6] = 2  # a small lesion far below the big one
    frame = choose_frame(labels, volume.affine)
    assert {4, 5} & set(frame.positions)


def test_labels_without_tumour_are_refused() -> None:
    with pytest.raises(ValueError, match="no tumour"):
        choose_frame(np.ones((10, 10, 10), np.uint8), np.eye(4))


def test_screen_has_the_patients_right_on_the_left_and_anterior_on_top() -> None:
    plane = np.zeros((10, 8))
    plane[9, 7] = 1.0  # RAS: most right, most anterior
    assert on_screen(plane, (0, 10), (0, 8))[0, 0] == 1.0
    assert on_screen(plane, (0, 10), (0, 8)).shape == (8, 10)


def test_outline_lies_on_the_sphere() -> None:
    """The outline of a slice through a sphere is its circle, in mm, at the place where the sphere was put."""
    volume, labels = sphere_case()
    frame = choose_frame(labels, volume.affine)
    panel = make_panel("before", frame, frame.widest, volume.data, labels, None)
    (style, lines), *_ = panel.lines
    assert style is TUMOUR_STYLE
    assert len(lines) == 1
    # Screen x runs from the patient's right edge of the region: world x of a point is the region's high edge minus x.
    high_x = volume.affine[0, 3] + (frame.x[1] - 0.5) * SPACING[0]
    high_y = volume.affine[1, 3] + (frame.y[1] - 0.5) * SPACING[1]
    world = np.array([high_x, high_y]) - lines[0]
    offset = frame.position_mm(frame.widest) - CENTRE_MM[2]
    radius = np.sqrt(RADIUS_MM**2 - offset**2)
    distance = np.linalg.norm(world - np.array(CENTRE_MM[:2]), axis=1)
    assert np.abs(distance - radius).max() < SPACING[0]
    assert abs(distance.mean() - radius) < 0.5


def test_outline_of_one_voxel_and_of_a_mask_at_the_border() -> None:
    mask = np.zeros((5, 7), bool)
    mask[0, 6] = True
    (line,) = outlines(mask, (2.0, 3.0))
    assert np.allclose(line.mean(axis=0), [6.5 * 2.0, 0.5 * 3.0])
    assert outlines(np.zeros((4, 4), bool), (1.0, 1.0)) == []


def test_picture_has_the_outline_on_the_circle_and_nowhere_else() -> None:
    volume, labels = sphere_case()
    frame = choose_frame(labels, volume.affine)
    panel = make_panel("before", frame, frame.widest, volume.data, labels, None)
    image = np.asarray(draw_panel(panel, 600)).astype(int)
    # Yellow is the only colour in a grey picture: blue is far below red.
    marked = np.argwhere(image[:, :, 0] - image[:, :, 2] > 60)
    assert len(marked) > 200
    scale = 600 / frame.width_mm
    high = [volume.affine[a, 3] + ((frame.x, frame.y)[a][1] - 0.5) * SPACING[a] for a in (0, 1)]
    centre = np.array([(high[1] - CENTRE_MM[1]) * scale, (high[0] - CENTRE_MM[0]) * scale])
    radius = np.linalg.norm(marked - centre, axis=1) / scale
    assert np.abs(radius - RADIUS_MM).max() < SPACING[0] + 1.0


def test_viable_outline_is_drawn_after_and_only_after() -> None:
    volume, labels = sphere_case()
    after, segmentation = simulated(volume, labels, 0.3)
    frame = choose_frame(labels, volume.affine)
    before_svg = panel_svg(make_panel("before", frame, frame.widest, volume.data, labels, None))
    after_svg = panel_svg(make_panel("after", frame, frame.widest, after.data, labels, segmentation))
    for name in ("viable", "necrotic", "oil"):
        assert f"c-{name}" not in before_svg
        assert f"c-{name}" in after_svg
    panel = make_panel("after", frame, frame.widest, after.data, labels, segmentation)
    viable = next(lines for style, lines in panel.lines if style is VIABLE_STYLE)
    area = sum(_area(line) for line in viable)
    expected = (segmentation[:, :, frame.widest] == 2).sum() * SPACING[0] * SPACING[1]
    assert abs(area - expected) / expected < 0.06


def _area(line: np.ndarray) -> float:
    x, y = line[:, 0], line[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def test_embedded_picture_has_the_windowed_grey_values() -> None:
    volume, labels = sphere_case()
    frame = choose_frame(labels, volume.affine)
    svg = panel_svg(make_panel("before", frame, frame.widest, volume.data, labels, None))
    encoded = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    assert len(encoded) == 2  # the panel and its inset
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[0]))))
    plane = on_screen(volume.data[:, :, frame.widest], frame.x, frame.y)
    expected = np.clip((plane.astype(float) - LIVER_WINDOW.low) / (LIVER_WINDOW.high - LIVER_WINDOW.low), 0, 1) * 255
    assert abs(float(pixels.mean()) - float(expected.mean())) < 2.0
    assert 'viewBox="0 0 ' + f"{frame.width_mm:.2f} {frame.height_mm:.2f}" in svg


def test_scale_bar_is_as_long_as_it_says() -> None:
    volume, labels = sphere_case()
    frame = choose_frame(labels, volume.affine)
    svg = panel_svg(make_panel("before", frame, frame.widest, volume.data, labels, None))
    (label,) = re.findall(r">(\d+) mm</text>", svg)
    start, end = re.search(r'class="bar"[^>]*d="M([\d.]+) [\d.]+V[\d.]+H([\d.]+)', svg).groups()  # type: ignore[union-attr]
    assert float(end) - float(start) == pytest.approx(float(label), abs=0.011)
    assert SHAPE[0] * SPACING[0] > float(label)


def test_inset_avoids_the_tumour() -> None:
    tumour = np.zeros((100, 100), bool)
    tumour[5:50, 60:95] = True  # upper right of the screen
    assert slices._freest_corner(tumour) == (0, 0)
