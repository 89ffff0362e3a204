from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from evals import regressor
from evals.baselines import Regressor
from evals.datasets.phantom import PhantomCase, draw_cases
from evals.image_features import NAMES, image_features, tumour_box
from evals.regressor import DirectRegressor, case_features, patient_features
from models.phantom.patient import draw_patient
from models.phantom.response import respond
from models.toxicity import toxicity

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def ball(radius_mm: float, contrast: float = 30.0, core: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A ball of tumour in liver of 80 HU, with a dead core of 20 HU, and a little noise."""
    grid = np.stack(np.meshgrid(*[2.0 * (np.arange(60) - 29.5)] * 3, indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    hu = np.where(distance < radius_mm, 80.0 + contrast, 80.0)
    hu[distance < core * radius_mm] = 20.0
    labels = np.where(distance < radius_mm, 2, 1).astype(np.uint8)
    return hu + np.random.default_rng(0).normal(0, 3, hu.shape), labels


def feature(name: str, hu: np.ndarray, labels: np.ndarray) -> float:
    return float(image_features(hu, labels, AFFINE)[NAMES.index(name)])


def test_features_measure_what_their_names_say() -> None:
    """Against the ball's own figures: volume, diameter, contrast, dead share (radius share cubed)."""
    hu, labels = ball(24.0, contrast=36.0)
    assert len(image_features(hu, labels, AFFINE)) == len(NAMES)
    volume_ml = 4 / 3 * np.pi * 2.4**3
    assert feature("log tumour volume", hu, labels) + 3.0 == pytest.approx(np.log(volume_ml), abs=0.03)
    assert np.exp(feature("log diameter of the largest lesion", hu, labels) + 3.8) == pytest.approx(48.0, rel=0.03)
    assert 40.0 * feature("contrast of the living part", hu, labels) == pytest.approx(36.0, abs=1.5)
    assert feature("hypodense share", hu, labels) == 0.0
    dead, dead_labels = ball(24.0, contrast=36.0, core=0.7)
    assert feature("hypodense share", dead, dead_labels) / 2.0 == pytest.approx(0.7**3, abs=0.08)
    assert 40.0 * feature("contrast of the living part", dead, dead_labels) == pytest.approx(36.0, abs=8.0)
    pale, pale_labels = ball(24.0, contrast=-20.0)
    assert 40.0 * feature("contrast against liver", pale, pale_labels) == pytest.approx(-20.0, abs=1.5)
    assert feature("number of lesions", hu, labels) == -0.5
    box = tumour_box(labels, AFFINE)
    cropped = image_features(hu[box], labels[box], AFFINE)
    assert cropped == pytest.approx(image_features(hu, labels, AFFINE), abs=0.02)


def test_a_written_case_has_the_features_of_the_patient_as_rendered_for_training(tmp_path) -> None:
    """Two scans of one patient differ by noise: less than a tenth of the spread between patients."""
    drawn = (case for case in draw_cases(845_000) if isinstance(case, PhantomCase))
    cases = list(islice(drawn, 12))
    features = np.array([patient_features(case.patient) for case in cases])
    spread = features.std(0)
    cases[0].write(tmp_path)
    difference = np.abs(case_features(cases[0]) - features[0])
    assert np.median(difference / spread) < 0.1
    assert (difference < 0.5 * spread).all()


@pytest.fixture(scope="module")
def fitted() -> Iterator[DirectRegressor]:
    yield DirectRegressor("true_risk", patients=100, protocols=30, epochs=40)
    regressor._training_pairs.cache_clear()


def test_it_learns_what_protocols_do_to_patients_that_it_has_not_seen(fitted, monkeypatch) -> None:
    """Rank correlation with the true risk over protocols, within unseen patients: beyond the toxicity it is told."""
    monkeypatch.setattr(regressor, "case_features", lambda c: patient_features(c.patient))
    rng = np.random.default_rng(0)
    drawn = (case for case in draw_cases(846_000) if isinstance(case, PhantomCase))
    found, told = [], []
    for case in islice(drawn, 12):
        liver_ml = case.patient.liver_ml
        case.__dict__["summary"] = SimpleNamespace(tumour_ml=case.patient.tumour_ml, liver_ml=liver_ml)
        protocols = [case.space.protocols[i] for i in rng.choice(len(case.space.protocols), 120, replace=False)]
        true = [respond(case.patient, protocol).log_hazard for protocol in protocols]
        harm = [toxicity(p, case.record, case.patient.tumour_ml, liver_ml).log_hazard for p in protocols]
        found.append(spearmanr(fitted.risks(case, protocols), true).statistic)
        told.append(spearmanr(harm, true).statistic)
    assert np.mean(found) > 0.4
    assert np.mean(found) > np.mean(told) + 0.1


def test_it_is_fitted_the_same_way_twice_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    small = [DirectRegressor("survival", patients=8, protocols=6, seed=seed, epochs=2) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    one, again, other = ([p.clone() for p in r._network.parameters()] for r in small)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    regressor._training_pairs.cache_clear()


def test_the_baseline_takes_the_lowest_predicted_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        def __init__(self, labels, seed):
            pass

        def risks(self, case, protocols):
            return np.array([float("Mitomycin | PVA" not in p.key) for p in protocols])

    monkeypatch.setattr("evals.baselines.DirectRegressor", Fixed)
    case = PhantomCase(draw_patient(1_000_001))
    answer = Regressor("survival").propose(case)
    assert answer is not None
    assert answer.key == "Mitomycin | PVA"
    assert Regressor("true_risk").name == "regressor_told"
