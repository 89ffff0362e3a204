"""The real collection and the phantom cohort in the same aggregate figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sksurv.nonparametric import kaplan_meier_estimator

from models.collection.clinical_table import TablePatient, read_clinical_table
from models.errors import VolumeError
from models.phantom.diameters import true_diameters
from models.phantom.patient import draw_patient
from models.phantom.render import render
from models.phantom.response import clinician_protocol, draw_survival, respond
from models.protocol import Protocol
from models.response import criteria
from models.volume import read_labels, read_nifti

Figures = dict[str, Any]
FIRST_SEED: Final = 600_000
WEEKS_PER_MONTH: Final = 4.345
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_DIED = (0.1, 0.25, 0.5, 0.75, 0.9)
_LABELS = {1: "liver", 2: "tumour", 3: "portal vein", 4: "aorta"}


def _quantiles(values: Sequence[float]) -> Figures:
    return {"n": len(values), "quantiles": [float(v) for v in np.quantile(values, _LEVELS)]}


def _share(flags: Sequence[bool]) -> Figures:
    return {"n": len(flags), "share": float(np.mean(flags))}


def _survival(months: Sequence[float], died: Sequence[bool]) -> Figures:
    """Kaplan-Meier times by which 10 / 25 / 50 / 75 / 90 % have died; shorter where the follow-up ends before."""
    time, alive = kaplan_meier_estimator(np.array(died, bool), np.array(months, float))
    dead = 1.0 - alive + 1e-9  # a product of fractions: half may come out as a hair less
    reached = [float(time[np.argmax(dead >= d)]) for d in _DIED if (dead >= d).any()]
    return {"n": len(months), "quantiles": reached}


def regimen_of(protocol: Protocol | None) -> str | None:
    """``beads`` or ``conventional``; None where the regimen is not known or is neither."""
    if protocol is None:
        return None
    if "Drug-eluting beads" in protocol.embolics:
        return "beads"
    # the table names the drugs of conventional TACE only: its oil is understood
    return "conventional"


def _change(patient: TablePatient, criterion: Any) -> float | None:
    """Median of the readers' changes in percent."""
    found = [
        100.0 * (r.after / r.before - 1.0) for r in patient.readings(criterion) if r.before and r.after is not None
    ]
    return float(np.median(found)) if found else None


def _baseline(patient: TablePatient) -> float | None:
    found = [r.before for r in patient.readings("RECIST") if r.before]
    return float(np.median(found)) if found else None


def real_cohort(table: Path) -> Figures:
    """Aggregate figures of HCC-TACE-Seg's clinical table.

    Raises:
        RecordError: The table can't be read.
    """
    rows = read_clinical_table(table).patients

    def known(values: Sequence[Any]) -> list[Any]:
        return [v for v in values if v is not None]

    quantiles: Figures = {}
    for criterion in ("RECIST", "mRECIST"):
        quantiles[f"{criterion} change, all (%)"] = _quantiles(known([_change(p, criterion) for p in rows]))
        for regimen in ("conventional", "beads"):
            chosen = [p for p in rows if regimen_of(p.regimen) == regimen]
            name = f"{criterion} change, {regimen} (%)"
            quantiles[name] = _quantiles(known([_change(p, criterion) for p in chosen]))
    quantiles["sum of diameters before (mm)"] = _quantiles(known([_baseline(p) for p in rows]))
    quantiles["AFP (ng/ml)"] = _quantiles(known([p.record.afp_ng_ml for p in rows]))
    quantiles["age (years)"] = _quantiles(known([p.record.age_years for p in rows]))
    followed = [p for p in rows if p.os_weeks is not None and p.death is not None]
    quantiles["survival (months)"] = _survival(
        [float(p.os_weeks or 0) / WEEKS_PER_MONTH for p in followed], [bool(p.death) for p in followed]
    )
    shares = {
        "one tumour": _share([v == "uninodular" for v in known([p.values.get("nodularity") for p in rows])]),
        "vascular invasion": _share(known([p.values.get("vascular_invasion") for p in rows])),
        "more than half of the liver": _share(
            [v == "above 50%" for v in known([p.values.get("liver_involvement") for p in rows])]
        ),
        "Child-Pugh A": _share([v == "A" for v in known([p.record.child_pugh_class for p in rows])]),
        **{
            f"BCLC {stage}": _share([v == stage for v in known([p.record.bclc for p in rows])])
            for stage in ("A", "B", "C", "D")
        },
        "cirrhosis": _share(known([p.record.cirrhosis for p in rows])),
        "male": _share([v == "male" for v in known([p.record.sex for p in rows])]),
        "AFP from 400 ng/ml on": _share([v >= 400 for v in known([p.record.afp_ng_ml for p in rows])]),
        "beads, of known regimens": _share([r == "beads" for r in known([regimen_of(p.regimen) for p in rows])]),
    }
    return {"n": len(rows), "quantiles": quantiles, "shares": shares}


def phantom_cohort(n: int, tick: Callable[[], None] = lambda: None) -> Figures:
    """The same figures of `n` phantom patients under the protocol really given, and what only the phantom tells.

    Args:
        n: Patients, from `FIRST_SEED` on.
        tick: Called after every patient.
    """
    patients, given, diameters, hazards, viable = [], [], [], [], []
    for seed in range(FIRST_SEED, FIRST_SEED + n):
        patient = draw_patient(seed)
        protocol = clinician_protocol(patient)
        response = respond(patient, protocol)
        patients.append(patient)
        given.append(regimen_of(protocol))
        diameters.append(true_diameters(patient, response))
        hazards.append(response.log_hazard)
        viable.append(100.0 * response.viable_ml / patient.tumour_ml)
        tick()
    months, died = draw_survival(hazards, np.random.default_rng([FIRST_SEED, n]))
    quantiles: Figures = {}
    for criterion in ("RECIST", "mRECIST"):
        changes = [getattr(d, f"{criterion.lower()}_change") for d in diameters]
        quantiles[f"{criterion} change, all (%)"] = _quantiles(changes)
        for regimen in ("conventional", "beads"):
            chosen = [c for c, r in zip(changes, given, strict=True) if r == regimen]
            quantiles[f"{criterion} change, {regimen} (%)"] = _quantiles(chosen)
    records = [p.record for p in patients]
    quantiles["sum of diameters before (mm)"] = _quantiles([d.recist_before for d in diameters])
    quantiles["AFP (ng/ml)"] = _quantiles([r.afp_ng_ml or 0.0 for r in records])
    quantiles["age (years)"] = _quantiles([r.age_years or 0.0 for r in records])
    quantiles["survival (months)"] = _survival([float(m) for m in months], [bool(d) for d in died])
    quantiles["tumour volume (ml)"] = _quantiles([p.tumour_ml for p in patients])
    quantiles["liver with tumours (ml)"] = _quantiles([p.liver_ml for p in patients])
    quantiles["living at the follow-up (% of the tumour before)"] = _quantiles(viable)
    shares = {
        "one tumour": _share([r.tumour_number == 1 for r in records]),
        "vascular invasion": _share([r.portal_vein_invasion != "none" for r in records]),
        "more than half of the liver": _share([p.liver_percent > 50 for p in patients]),
        "Child-Pugh A": _share([r.child_pugh_class == "A" for r in records]),
        **{f"BCLC {stage}": _share([r.bclc == stage for r in records]) for stage in ("A", "B", "C", "D")},
        "cirrhosis": _share([bool(r.cirrhosis) for r in records]),
        "male": _share([r.sex == "male" for r in records]),
        "AFP from 400 ng/ml on": _share([(r.afp_ng_ml or 0) >= 400 for r in records]),
        "beads, of known regimens": _share([r == "beads" for r in given]),
    }
    return {"n": n, "quantiles": quantiles, "shares": shares}


def _medians(hu: npt.NDArray[Any], labels: npt.NDArray[Any], phase: str) -> dict[str, float]:
    return {
        f"{name}, {phase}": float(np.median(hu[labels == label]))
        for label, name in _LABELS.items()
        if np.count_nonzero(labels == label) >= 20
    }


def _oil(hu: npt.NDArray[Any], tumour: npt.NDArray[np.bool_]) -> dict[str, float]:
    bright = hu[tumour & (hu > criteria().oil_hu)]
    if bright.size < 20:
        return {}
    return {f"oil, {level} % of its voxels below": float(np.percentile(bright, level)) for level in (50, 75, 95)}


def real_hu(scans: Path) -> dict[str, float]:
    """HU of HCC_009: medians by tissue and phase, and of what is above 200 HU in the mass after treatment.

    Args:
        scans: Folder of the four NIfTI files; grids before and after are compared as they lie.

    Raises:
        VolumeError: A file is missing, unreadable, or lies on another grid than the labels.
    """
    before = {phase: read_nifti(scans / f"pre_{phase}.nii.gz") for phase in ("arterial", "portal")}
    labels = read_labels(scans / "pre_labels.nii.gz", before["arterial"])
    out: dict[str, float] = {}
    for phase, volume in before.items():
        if volume.shape != labels.shape:
            raise VolumeError(f"{scans}: pre_{phase} and pre_labels differ in shape; give the files of one resampling.")
        out |= _medians(volume.data, labels, phase)
    after = read_nifti(scans / "post_arterial.nii.gz").data
    x, y, z = (min(a, b) for a, b in zip(after.shape, labels.shape, strict=True))
    return out | _oil(after[:x, :y, :z], labels[:x, :y, :z] == 2)


def phantom_hu(n: int, tick: Callable[[], None] = lambda: None) -> Figures:
    """The same figures of `n` phantoms (5 / 50 / 95 % over patients), rendered whole at 2.5 mm.

    Args:
        n: Patients.
        tick: Called after every patient.
    """
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = (-150.0, -120.0, -105.0)
    shape = (120, 88, 84)
    found: dict[str, list[float]] = {}
    triple = Protocol(drugs=("Cisplatin", "Doxorubicin", "Mitomycin"), embolics=("Gelatin sponge", "Lipiodol"))
    for seed in range(FIRST_SEED, FIRST_SEED + n):
        patient = draw_patient(seed)
        row: dict[str, float] = {}
        for phase in ("arterial", "portal"):
            scan = render(patient, affine, shape, phase=phase)
            row |= _medians(scan.hu, scan.organs, phase)
        after = render(patient, affine, shape, response=respond(patient, triple), scan_seed=1)
        for name, value in (row | _oil(after.hu, after.tumour)).items():
            found.setdefault(name, []).append(value)
        tick()
    return {"n": n, "quantiles": {k: [float(q) for q in np.quantile(v, (0.05, 0.5, 0.95))] for k, v in found.items()}}
