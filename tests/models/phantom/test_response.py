from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from models.formulary import ITEM_ORDER, Formulary
from models.phantom.cohort import all_protocols
from models.phantom.patient import draw_patient, parameters
from models.phantom.response import clinician_protocol, draw_survival, log_hazard, respond
from models.protocol import Dose, Protocol


def test_response_of_one_drug_by_hand() -> None:
    """Every feature at its middle, nothing hidden: the formula, written out for one drug and one embolic."""
    patient = draw_patient(3)
    neutral = replace(
        patient,
        traits=dict.fromkeys(patient.traits, 0.5) | {"shunt": 0.0},
        hidden=(1.0,) * len(ITEM_ORDER),
        lesions=(replace(patient.lesions[0], radii_mm=(22.0, 22.0, 22.0), response=1.0),),
        record=patient.record.model_copy(update={"afp_ng_ml": 100.0}),
    )
    out = respond(neutral, Protocol(drugs=("Cisplatin",), embolics=("KMG",)))
    # gain 0.62 x base 0.62 x (1 + 0.34) + 0.62 x 0.34
    assert out.lesions[0].viable_fraction == pytest.approx(np.exp(-(0.62 * 0.62 * 1.34 + 0.62 * 0.34)), rel=1e-6)
    assert out.lesions[0].oil_fraction == 0.0
    volume_ml = 4 / 3 * np.pi * 2.2**3
    assert out.viable_ml == pytest.approx((1 - 0.22) * volume_ml * out.lesions[0].viable_fraction, rel=1e-6)


def test_more_dose_kills_more_and_harms_more() -> None:
    for seed in range(8):
        patient = draw_patient(seed)
        doses = [(("Cisplatin", Dose(amount=mg, unit="mg")),) for mg in (20, 80)]
        protocols = [Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",), doses=dose) for dose in doses]
        low, high = (respond(patient, protocol) for protocol in protocols)
        assert high.viable_ml < low.viable_ml
        assert high.toxicity > low.toxicity


def test_an_open_shunt_washes_the_drug_away_and_glue_closes_it() -> None:
    patient = draw_patient(5)
    open_shunt = replace(patient, traits=patient.traits | {"shunt": 0.95})
    closed = replace(patient, traits=patient.traits | {"shunt": 0.0})
    oil = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol",))
    glue = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol", "NBCA"))
    assert respond(open_shunt, oil).viable_ml > respond(closed, oil).viable_ml
    gain_open = respond(open_shunt, oil).viable_ml / respond(open_shunt, glue).viable_ml
    gain_closed = respond(closed, oil).viable_ml / respond(closed, glue).viable_ml
    assert gain_open > gain_closed


def test_untreated_tumours_grow() -> None:
    out = respond(draw_patient(9), Protocol())
    assert all(lesion.viable_fraction == 1.0 and lesion.volume_ratio > 1.0 for lesion in out.lesions)


def test_survival_times_follow_the_stated_weibull() -> None:
    s = parameters()["survival"]
    time, event = draw_survival([0.4] * 20_000, np.random.default_rng(0))
    median = s["scale_months"] * (np.log(2) / np.exp(0.4)) ** (1 / s["shape"])
    short = s["censoring_months"][0]
    closed_form = 1 - np.exp(-np.exp(0.4) * (short / s["scale_months"]) ** s["shape"])
    assert float((event & (time < short)).mean()) == pytest.approx(closed_form, abs=0.012)
    assert median > short


def test_hazard_rises_with_tumour_left_and_toxicity() -> None:
    patient = draw_patient(4)
    assert log_hazard(patient, 50.0, 0.2) > log_hazard(patient, 5.0, 0.2)
    assert log_hazard(patient, 50.0, 0.6) > log_hazard(patient, 50.0, 0.2)


def test_the_best_protocol_differs_between_patients() -> None:
    """No protocol is best for more than 15 %, and the best constant loses at least 15 % of the range."""
    classes = {item.name: item.item_class for item in Formulary.load("policy").items}
    protocols = [
        p
        for p in all_protocols("policy", 2, 2)
        if all(
            classes[a] != classes[b] or classes[a] not in ("platinum", "anthracycline")
            for a, b in combinations(p.drugs, 2)
        )
    ]
    patients = [draw_patient(700_000 + i) for i in range(30)]
    risk = np.array([[respond(p, q).log_hazard for q in protocols] for p in patients])
    best = Counter(risk.argmin(1))
    assert max(best.values()) <= 0.15 * len(patients)
    spread = risk.max(1) - risk.min(1)
    regret = (risk - risk.min(1, keepdims=True)) / spread[:, None]
    assert regret.mean(0).min() >= 0.15


def test_the_clinician_gives_something_from_the_formulary() -> None:
    names = {item.name for item in Formulary.load("all").items}
    given = [clinician_protocol(draw_patient(seed)) for seed in range(60)]
    assert all(set(p.items) <= names and p.drugs and p.embolics for p in given)
    assert len(set(given)) > 3
