from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from models.case import Case, ImageMeta, write_case
from models.case_picture import LABEL_COLOURS, draw_case, write_case_picture
from models.errors import CaseError
from models.volume import Volume
from tests.models.synthetic_ct import labels_of, trunk

AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    images = {
        ImageMeta("pre_arterial", "pre", "arterial"): Volume(trunk(), AFFINE),
        ImageMeta("follow_up", "follow_up", "unknown", 30): Volume(trunk(), AFFINE),
    }
    return write_case(tmp_path / "c", "c-1", "synthetic", "A test.", images, labels_of((48, 40, 24)))


def pixels(png: bytes) -> NDArray[np.float32]:
    return np.array(matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3], dtype=np.float32)


def coloured(picture: NDArray[np.float32], colour: str) -> NDArray[np.bool_]:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.linalg.norm(picture - rgb, axis=-1) < 0.12


def test_labels_are_outlined_on_the_image_they_belong_to_and_on_no_other(case: Case) -> None:
    picture = pixels(draw_case(case))
    upper, lower = np.array_split(picture[60:], 2)  # below the legend
    assert coloured(upper, LABEL_COLOURS[2]).sum() > 50
    assert coloured(upper, LABEL_COLOURS[1]).sum() > 50
    assert coloured(lower[40:], LABEL_COLOURS[2]).sum() == 0


def test_the_right_side_of_the_patient_is_on_the_left(case: Case) -> None:
    """The tumour of the test labels lies to the right of the middle (x above the centre in RAS)."""
    labels = case.label_array()
    assert np.nonzero(labels == 2)[0].mean() > 24
    picture = pixels(draw_case(case))
    panel = picture[60 : picture.shape[0] // 2, : picture.shape[1] // 4]
    columns = np.nonzero(coloured(panel, LABEL_COLOURS[2]))[1]
    assert columns.mean() < panel.shape[1] / 2


def test_the_same_case_gives_the_same_picture(case: Case, tmp_path: Path) -> None:
    assert draw_case(case) == draw_case(case)
    assert write_case_picture(case, tmp_path / "a.png").read_bytes() == draw_case(case)
    with pytest.raises(CaseError, match="can't be written"):
        write_case_picture(case, tmp_path / "none" / "a.png")
