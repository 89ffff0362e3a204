from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.model_card.pictures import draw_pictures, draw_real_patient
from evals.model_card.real_patient import RealPair, describe_hu
from models.errors import InputError
from models.volume import Volume


def colours(path: Path) -> int:
    with Image.open(path) as image:
        return len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))


def test_a_patient_is_drawn_with_every_protocol_and_the_tissue_found(bundle: Path, tmp_path: Path) -> None:
    written = draw_pictures(tmp_path / "pictures", bundle, "cpu", patients=1)
    assert [path.name for path in written] == ["phantom-950000.png"]
    assert colours(written[0]) > 300  # greys of the scans and tints of tissue


def test_the_real_pair_is_drawn_beside_the_simulation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    before, after, simulated = (Volume(rng.integers(0, 300, (24, 20, 16), dtype=np.int16), affine) for _ in range(3))
    labels = np.ones(before.shape, np.uint8)
    labels[8:16, 6:14, 5:11] = 2
    hu = {"before": before, "after": after, "simulated_0": simulated}
    result = {"protocol": "A | B", "hu": {name: describe_hu(scan.data[labels == 2]) for name, scan in hu.items()}}
    path = draw_real_patient(tmp_path, RealPair(before, after, labels, {}), simulated, result)
    assert colours(path) > 100


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be written"):
        draw_pictures(tmp_path / "file" / "pictures", tmp_path)
