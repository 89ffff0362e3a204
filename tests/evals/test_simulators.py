"""The hand-made simulators do what they say, stay inside the mask, and ignore the protocol."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from evals import simulators
from evals.simulators import (
    DEPTH_BINS,
    Cells,
    MeanChange,
    NoChange,
    Texture,
    Training,
    WorldModelSimulator,
    depth_bins,
    hand_made,
    training,
)
from models.clinical_record import ClinicalRecord
from models.engine import Engine, Prepared
from models.protocol import Protocol
from models.response import NECROTIC, OIL, VIABLE
from models.weights import init_world_model
from tests.models.test_engine import phantom, tiny_preset

JOBS = [
    (Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)), 0),
    (Protocol(drugs=("Mitomycin", "Epirubicin"), embolics=("PVA",)), 0),
    (Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",)), 1),
]
KNOWN = Training(
    change=np.linspace(-10, -80, DEPTH_BINS), dead=np.array([0.4]), oily=np.array([0.1]), volume_ratio=np.array([0.8]),
    hu={VIABLE: 150.0, NECROTIC: 30.0, OIL: 500.0}, grain={VIABLE: 10.0, NECROTIC: 5.0, OIL: 90.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu", model=init_world_model(tiny_preset(), seed=3), precision="fp32", batch=4)


@pytest.fixture(scope="module")
def prepared(engine: Engine) -> Prepared:
    volume, labels = phantom()
    return engine.prepare(volume, labels, ClinicalRecord(age_years=60), "ball")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "training", lambda: KNOWN)


@pytest.mark.parametrize("kind", [NoChange, MeanChange, Texture, Cells])
def test_protocols_do_not_matter_seeds_do_and_nothing_lies_outside(kind, engine: Engine, prepared: Prepared) -> None:
    (_, first), (_, second), (_, third) = kind(engine).differences(prepared, JOBS)
    np.testing.assert_array_equal(first, second)
    assert np.array_equal(first, third) == (kind in (NoChange, MeanChange))
    assert not first[~prepared.support].any()
    assert first.dtype == np.int16
    scans = kind(engine).scans(prepared, JOBS[:1])
    before = np.rint(np.clip(prepared.pre, -1024, 3071))
    np.testing.assert_array_equal(scans[0][~prepared.support], before[~prepared.support])


def test_no_change_is_the_scan_before(engine: Engine, prepared: Prepared) -> None:
    (scan,) = NoChange(engine).scans(prepared, JOBS[:1])
    np.testing.assert_array_equal(scan, np.rint(prepared.pre))


def test_the_mean_change_goes_with_depth(engine: Engine, prepared: Prepared) -> None:
    ((_, change),) = MeanChange(engine).differences(prepared, JOBS[:1])
    tumour = prepared.numbers[0] > 0
    depth = ndimage.distance_transform_edt(tumour)
    deepest = np.unravel_index(depth.argmax(), depth.shape)
    assert change[0][deepest] == -80
    border = tumour & ~ndimage.binary_erosion(tumour)
    assert -40 < change[0][border].mean() < -5
    bins = depth_bins(tumour)
    assert bins.max() == DEPTH_BINS - 1
    assert bins[~tumour].max() == 0


def test_texture_kills_and_oils_the_share_that_was_drawn(engine: Engine, prepared: Prepared) -> None:
    tumour = prepared.numbers[0] > 0
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.4, 1.0):
        found = simulators._top_share(rng.random(tumour.shape), tumour, share)
        assert not (found & ~tumour).any()
        assert found.sum() == pytest.approx(share * tumour.sum(), abs=2)
    ((_, change),) = Texture(engine).differences(prepared, JOBS[:1])
    after = (prepared.pre[0] + change[0])[tumour]
    # the blur moves HU between neighbours and keeps their sum: 60 % at 150, 30 % at 30, 10 % at 500
    assert after.mean() == pytest.approx(0.6 * 150 + 0.3 * 30 + 0.1 * 500, abs=15)
    assert after.max() > 200
    assert after.min() < 90


def test_death_spreads_from_the_core_in_one_piece_until_the_share_is_reached(engine: Engine) -> None:
    grid = np.ogrid[:24, :24, :24]
    tumour = sum((g - 12) ** 2 for g in grid) <= 8**2
    rng = np.random.default_rng(0)
    dead = Cells(engine).spread(tumour, 0.3, rng)
    assert dead.sum() == round(0.3 * tumour.sum())
    assert not (dead & ~tumour).any()
    assert dead[12, 12, 12]
    assert ndimage.label(dead)[1] == 1
    assert not Cells(engine).spread(tumour, 0.0, rng).any()
    whole = Cells(engine).spread(tumour, 1.0, rng)
    assert whole.sum() > 0.98 * tumour.sum()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.4])
def test_the_border_shrinks_or_grows_to_the_volume_that_was_drawn(engine: Engine, ratio: float) -> None:
    grid = np.ogrid[:24, :24, :24]
    tumour = sum((g - 12) ** 2 for g in grid) <= 7**2
    body = Cells(engine).regrown(tumour, ratio, np.random.default_rng(1))
    assert body.sum() == round(ratio * tumour.sum())
    assert ((body & ~tumour).any(), (tumour & ~body).any()) == (ratio > 1, ratio < 1)


def test_the_world_model_is_the_engine_itself(engine: Engine, prepared: Prepared) -> None:
    scans = WorldModelSimulator(engine).scans(prepared, JOBS[:2])
    for mine, theirs in zip(scans, engine.simulate(prepared, JOBS[:2]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_they_know_is_measured_on_training_patients() -> None:
    found = training(patients=4, first_seed=700_000)
    assert found.change.shape == (DEPTH_BINS,)
    assert len(found.dead) == len(found.oily) == len(found.volume_ratio) > 0
    assert (found.oily <= found.dead).all()
    assert 0 < found.dead.mean() < 1
    assert found.hu[NECROTIC] < found.hu[VIABLE]


def test_all_have_names_of_their_own(engine: Engine) -> None:
    names = [one.name for one in hand_made(engine)]
    assert len(set(names)) == 4
