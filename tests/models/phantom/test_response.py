from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.formulary import ITEM_ORDER, Formulary
from models.phantom.patient import Lesion, Patient, draw_patient
from models.phantom.pool import true_shares
from models.phantom.response import clinician_protocol, draw_survival, log_hazard, respond
from models.phantom.version import parameters
from models.protocol import Dose, Protocol
from models.toxicity import toxicity


def neutral_patient(radius_mm: float = 26.0) -> Patient:
    """Every feature at its middle, one lesion, nothing hidden."""
    patient = draw_patient(3)
    lesion = Lesion((50.0, 0.0, 0.0), (radius_mm,) * 3, seed=5, response=1.0)
    return replace(
        patient,
        traits=dict.fromkeys(patient.traits, 0.5) | {"shunt": 0.0},
        hidden=(1.0,) * len(ITEM_ORDER),
        lesions=(lesion,),
        shrinkage=0.0,
        record=patient.record.model_copy(update={"afp_ng_ml": 100.0}),
    )


def test_response_of_one_drug_by_hand() -> None:
    """The formula of docs/phantom.md, written out for one drug and one embolic in a patient without features."""
    patient = neutral_patient()
    out = respond(patient, Protocol(drugs=("Cisplatin",), embolics=("KMG",)))
    # a shunt of 0 is a feature of -1, which none of the two reads; gain 0.78 x base 0.60 x (1 + 0.34) + 0.62 x 0.36
    survivors = (np.exp(-(0.78 * 0.60 * 1.34 + 0.62 * 0.36)) - 0.05) / 0.95
    (lesion,) = out.lesions
    assert lesion.viable_fraction == pytest.approx(survivors, rel=1e-9)
    assert lesion.oil_fraction == 0.0
    growth = 1 + 0.55 * max(survivors - 0.4, 0.0) / 0.6
    living = 0.78 * survivors * growth
    assert lesion.living_share == pytest.approx(living)
    # 31 % of what died is resorbed; half as much of the old core, in proportion to what died
    killed, core = 0.78 * (1 - survivors), 0.22
    assert lesion.volume_ratio == pytest.approx(living + killed * 0.69 + core * (1 - 0.5 * 0.31 * (1 - survivors)))
    assert out.viable_ml == pytest.approx(living * 4 / 3 * np.pi * 2.6**3)


def test_parts_of_a_treated_tumour_add_up() -> None:
    for seed in range(12):
        patient = draw_patient(seed)
        response = respond(patient, Protocol(drugs=("Mitomycin",), embolics=("Lipiodol", "PVA")))
        shares = true_shares(patient, response)
        assert shares.sum() == pytest.approx(1.0)
        assert (shares[:3] >= 0).all()
        assert shares[0] == pytest.approx(response.viable_ml / patient.tumour_ml)
        assert all(0 <= out.core_share <= out.volume_ratio - out.living_share + 1e-9 for out in response.lesions)


def test_large_tumours_respond_less_and_the_strongest_treatment_leaves_none_of_a_small_one() -> None:
    strong = Protocol(drugs=("Cisplatin", "Epirubicin", "Mitomycin"), embolics=("Lipiodol", "PVA"))
    left = [respond(neutral_patient(r), strong).lesions[0].viable_fraction for r in (8.0, 26.0, 70.0)]
    assert left == sorted(left)
    assert left[0] == 0.0
    assert left[2] > left[1] > 0.0


def test_the_truth_and_the_planner_see_the_same_share_of_the_liver() -> None:
    """The toxicity term reads the share that the record states; a planner's measured volumes change nothing."""
    protocol = Protocol(drugs=("Mitomycin",), embolics=("Lipiodol", "PVA"))
    for seed in range(20):
        patient = draw_patient(seed)
        measured = toxicity(protocol, patient.record, 1.2 * patient.tumour_ml, 0.9 * patient.liver_ml)
        assert measured.log_hazard == respond(patient, protocol).toxicity
        assert patient.record.tumour_liver_fraction_percent == pytest.approx(patient.liver_percent, abs=0.06)


@pytest.mark.parametrize("name", ITEM_ORDER)
def test_every_agent_kills(name: str) -> None:
    """Adding an agent never leaves more tumour, and leaves clearly less in the mean (true effect of every agent)."""
    formulary = Formulary.load("all")
    changes = []
    for seed in range(30):
        patient = draw_patient(seed)
        if formulary.item(name).kind == "drug":
            base = Protocol(drugs=("Cisplatin" if name != "Cisplatin" else "Mitomycin",), embolics=("Gelatin sponge",))
            more = base.model_copy(update={"drugs": (*base.drugs, name)})
        else:
            base = Protocol(drugs=("Doxorubicin",), embolics=("PVA" if name != "PVA" else "KMG",))
            more = base.model_copy(update={"embolics": (*base.embolics, name)})
        one, other = (respond(patient, p).viable_ml / patient.tumour_ml for p in (base, more))
        assert other <= one + 1e-12
        changes.append(one - other)
    assert np.mean(changes) > 0.02


@pytest.mark.parametrize(
    ("trait", "better", "worse"),
    [
        ("vascularity", "Doxorubicin", "Oxaliplatin"),
        ("core", "Mitomycin", "Pirarubicin"),
        ("infiltration", "Cisplatin", "Doxorubicin"),
        ("capsule", "Idarubicin", "Lobaplatin"),
        ("texture", "Pirarubicin", "Epirubicin"),
    ],
)
def test_what_the_image_shows_turns_the_order_of_two_drugs(trait: str, better: str, worse: str) -> None:
    def left(drug: str, value: float) -> float:
        patient = neutral_patient()
        patient = replace(patient, traits=patient.traits | {trait: value})
        return respond(patient, Protocol(drugs=(drug,), embolics=("Gelatin sponge",))).lesions[0].viable_fraction

    assert left(better, 0.95) < left(worse, 0.95)
    assert left(better, 0.05) > left(worse, 0.05)


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
    assert all(lesion.viable_fraction == pytest.approx(1.0) and lesion.volume_ratio > 1.1 for lesion in out.lesions)


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


def test_the_clinician_gives_something_from_the_formulary() -> None:
    names = {item.name for item in Formulary.load("all").items}
    given = [clinician_protocol(draw_patient(seed)) for seed in range(60)]
    assert all(set(p.items) <= names and p.drugs and p.embolics for p in given)
    assert len(set(given)) > 3


def test_the_clinician_is_confounded_by_severity() -> None:
    """More drugs go to larger tumours and fewer to the frail, though nobody looked at what would work."""
    patients = [draw_patient(seed) for seed in range(300)]
    drugs = np.array([len(clinician_protocol(p).drugs) for p in patients])
    burden = np.array([p.tumour_ml for p in patients])
    large = burden > np.median(burden)
    assert drugs[large].mean() > drugs[~large].mean() + 0.1
    changed = []
    for patient in patients:
        well, ill = (
            replace(
                patient, record=patient.record.model_copy(update={"child_pugh_score": score, "child_pugh_class": c})
            )
            for score, c in ((5, "A"), (8, "B"))
        )
        changed.append(len(clinician_protocol(ill).drugs) - len(clinician_protocol(well).drugs))
    assert max(changed) == 0
    assert np.mean(changed) < -0.2
