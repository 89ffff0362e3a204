from __future__ import annotations

import numpy as np
import pytest

from models.phantom.field import Grid, smooth_field
from models.phantom.patient import Patient, draw_patient
from models.phantom.render import LIVER, NECROTIC, OIL, VIABLE, render
from models.phantom.response import respond
from models.protocol import Protocol

WITH_OIL = Protocol(drugs=("Mitomycin", "Oxaliplatin"), embolics=("Gelatin sponge", "Lipiodol"))
WITHOUT_OIL = Protocol(drugs=("Mitomycin", "Oxaliplatin"), embolics=("Gelatin sponge",))


def affine_around(patient: Patient, spacing: float, size: int) -> np.ndarray:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(patient.lesions[0].centre_mm) - spacing * (size - 1) / 2
    return affine


@pytest.fixture(scope="module", params=[21, 22, 23])
def patient(request: pytest.FixtureRequest) -> Patient:
    return draw_patient(request.param)


def test_a_field_has_the_same_value_at_the_same_place_on_two_grids() -> None:
    coarse = Grid.from_affine(np.diag([4.0, 4.0, 4.0, 1.0]), (8, 8, 8))
    fine = Grid.from_affine(np.diag([2.0, 2.0, 2.0, 1.0]), (15, 15, 15))
    np.testing.assert_allclose(smooth_field(fine, 3, 9.0)[::2, ::2, ::2], smooth_field(coarse, 3, 9.0), atol=1e-5)


def test_a_field_has_mean_zero_and_unit_variance() -> None:
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] = -160.0
    grid = Grid.from_affine(affine, (64, 64, 64))
    values = np.stack([smooth_field(grid, seed, 9.0) for seed in range(4)])
    assert abs(float(values.mean())) < 0.05
    assert 0.85 < float(values.std()) < 1.15


def test_an_oblique_grid_is_refused() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.1
    with pytest.raises(ValueError, match="axis-aligned"):
        Grid.from_affine(affine, (2, 2, 2))


def test_the_drawn_viable_volume_is_the_true_one(patient: Patient) -> None:
    """Counted voxels against the response model's ml, on a grid that holds every lesion."""
    spacing = 2.0
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (-130.0, -110.0, -110.0)
    shape = (145, 110, 110)
    response = respond(patient, WITH_OIL)
    scan = render(patient, affine, shape, response=response, scan_seed=1)
    drawn_ml = float((scan.tissue == VIABLE).sum()) * spacing**3 / 1000
    assert drawn_ml == pytest.approx(response.viable_ml, rel=0.35, abs=1.5)
    dead = np.isin(scan.tissue, (NECROTIC, OIL)).sum()
    assert (scan.tissue == OIL).sum() / dead > 0.04


def test_oil_is_bright_and_only_there_when_it_was_given(patient: Patient) -> None:
    affine = affine_around(patient, 2.0, 48)
    shape = (48, 48, 48)
    oil = render(patient, affine, shape, response=respond(patient, WITH_OIL), scan_seed=1)
    dry = render(patient, affine, shape, response=respond(patient, WITHOUT_OIL), scan_seed=1)
    assert not (dry.tissue == OIL).any()
    assert float(np.median(oil.hu[oil.tissue == OIL])) > 250
    assert float(np.mean(dry.hu[dry.tissue == NECROTIC])) == pytest.approx(29, abs=25)


def test_before_treatment_the_necrotic_share_is_the_core_fraction(patient: Patient) -> None:
    scan = render(patient, affine_around(patient, 2.0, 72), (72, 72, 72))
    inside = np.isin(scan.tissue, (VIABLE, NECROTIC)) & scan.tumour
    share = float((scan.tissue[inside] == NECROTIC).mean())
    assert share == pytest.approx(patient.core_fraction, abs=0.08)
    assert (scan.tissue == LIVER).any()


def test_the_same_seed_gives_the_same_scan_and_another_phase_another(patient: Patient) -> None:
    affine = affine_around(patient, 3.0, 24)
    one, two = (render(patient, affine, (24, 24, 24)) for _ in range(2))
    np.testing.assert_array_equal(one.hu, two.hu)
    portal = render(patient, affine, (24, 24, 24), phase="portal")
    assert not np.array_equal(one.hu, portal.hu)
    np.testing.assert_array_equal(one.tumour, portal.tumour)
