from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.phantom.anatomy import render_anatomy
from models.phantom.contrast import draw_contrast
from models.phantom.field import Grid, smooth_field
from models.phantom.lesion import REACH, lesion_depth
from models.phantom.patient import Patient, draw_patient
from models.phantom.render import LIVER, NECROTIC, OIL, VIABLE, Scan, render
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
    values = np.stack([smooth_field(grid, seed, 9.0) for seed in range(8)])
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
    assert drawn_ml == pytest.approx(response.viable_ml, rel=0.12, abs=0.6)
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
    assert share == pytest.approx(patient.core_fraction, abs=0.05)
    assert (scan.tissue == LIVER).any()


def test_the_same_seed_gives_the_same_scan_and_another_phase_another(patient: Patient) -> None:
    affine = affine_around(patient, 3.0, 24)
    one, two = (render(patient, affine, (24, 24, 24)) for _ in range(2))
    np.testing.assert_array_equal(one.hu, two.hu)
    portal = render(patient, affine, (24, 24, 24), phase="portal")
    assert not np.array_equal(one.hu, portal.hu)
    np.testing.assert_array_equal(one.tumour, portal.tumour)


def test_an_irregular_lesion_has_the_volume_of_its_ellipsoid() -> None:
    for seed in range(30):
        drawn = draw_patient(seed)
        lesion = drawn.lesions[0]
        reach = REACH * max(lesion.radii_mm)
        axes = [np.linspace(c - reach, c + reach, 60) for c in lesion.centre_mm]
        count = int((lesion_depth(drawn, lesion, Grid(*axes)) > 0).sum())
        assert count * (2 * reach / 59) ** 3 / 1000 == pytest.approx(lesion.volume_ml, rel=0.02)


def test_the_labelled_liver_is_the_liver_of_the_record(patient: Patient) -> None:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-160.0, -130.0, -120.0)
    organs = render(patient, affine, (80, 62, 60)).organs
    liver_ml = float(np.isin(organs, (1, 2)).sum()) * 0.064
    assert liver_ml == pytest.approx(patient.liver_ml, rel=0.08)
    measured = 100 * float((organs == 2).sum()) * 0.064 / liver_ml
    assert measured == pytest.approx(patient.record.tumour_liver_fraction_percent, rel=0.12, abs=0.2)


def test_contrast_follows_the_phase_and_the_vascularity(patient: Patient) -> None:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-160.0, -130.0, -120.0)

    def mean(scan: Scan, label: int) -> float:
        return float(np.median(scan.hu[scan.organs == label]))

    early, late = (render(patient, affine, (80, 62, 60), phase=phase) for phase in ("arterial", "portal"))
    assert mean(early, 4) > 200 > mean(late, 4) > 110
    assert mean(late, 1) > mean(early, 1) + 20
    assert 25 < mean(early, 1) < 110
    rich, poor = (
        draw_contrast(replace(patient, traits=patient.traits | {"vascularity": v}), "arterial", 0) for v in (0.95, 0.05)
    )
    assert rich.tumour_hu > rich.hu["liver"] + 20
    assert poor.tumour_hu < poor.hu["liver"] + 10


def test_a_liver_without_tumour_has_none(patient: Patient) -> None:
    scan = render(patient, affine_around(patient, 3.0, 32), (32, 32, 32), with_tumour=False)
    assert not scan.tumour.any()
    assert set(np.unique(scan.tissue)) <= {0, 1}


def test_anatomy_rendered_before_gives_the_same_scan(patient: Patient) -> None:
    affine = affine_around(patient, 3.0, 24)
    anatomy = render_anatomy(patient, Grid.from_affine(affine, (24, 24, 24)))
    one, two = (render(patient, affine, (24, 24, 24), anatomy=known) for known in (None, anatomy))
    np.testing.assert_array_equal(one.hu, two.hu)


def test_a_thrombus_fills_the_portal_vein_where_the_record_states_one() -> None:
    drawn = next(p for p in map(draw_patient, range(200)) if p.record.portal_vein_invasion == "main")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-160.0, -130.0, -120.0)
    free = replace(drawn, record=drawn.record.model_copy(update={"portal_vein_invasion": "none"}))
    with_clot, without = (render(p, affine, (80, 62, 60), phase="portal") for p in (drawn, free))
    vein = without.organs == 3
    assert (with_clot.organs == 3).sum() > vein.sum()
    assert float(with_clot.hu[vein].mean()) < float(without.hu[vein].mean()) - 8
