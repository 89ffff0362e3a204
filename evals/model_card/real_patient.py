"""The one real patient, HCC_009: is the model sane on real CT? Development figures; one patient proves nothing.

Nothing was trained on this scan. What is measured: whether liver and mass are found without a mask, whether the
follow-up can be laid over the scan before treatment so that its Lipiodol lies in the mass, and what the simulation
under the protocol really given has in common with the follow-up. The scan stays where it is; figures computed from it
may be kept with the data's citation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined, Template
from scipy import ndimage
from scipy.stats import wasserstein_distance

from evals.model_card.collect import folder_of, write_json
from evals.model_card.render_card import number
from evals.model_card.targets import targets
from models.clinical_record import ClinicalRecord
from models.dicom import find_series
from models.dicom_stack import read_series
from models.engine import Device, Engine
from models.errors import InputError
from models.patch import crop, paste
from models.protocol import Protocol
from models.registration_settings import settings
from models.response import NECROTIC, OIL, VIABLE, criteria
from models.volume import Volume, read_labels, read_nifti, write_nifti

SCANS, MARKS = Path("dicom") / "HCC_009", Path("hcc009-native") / "pre_labels.nii.gz"
"""The arterial series before and after as downloaded, and the marks on the grid of the first."""
LIVER, MASS = 1, 2
GIVEN = Protocol(drugs=("Cisplatin", "Doxorubicin", "Mitomycin"), embolics=("Lipiodol",))
"""The clinical table names the drugs; the follow-up shows the oil."""
RECORD = ClinicalRecord(bclc="C", afp_ng_ml=209147.0)
SEEDS = tuple(range(4))
BATCH = 4
"""Of the engine: one simulation per seed of a mass that fits one patch, and no batch is filled up with copies."""
FORMAT = 4
"""Of the kept figures: raise it when what is measured changes."""
BIN_HU = 25.0
RANGE_HU = (-150.0, 600.0)
CITATION = (
    "HCC-TACE-Seg, The Cancer Imaging Archive, CC BY 4.0: Moawad et al. 2021 (doi:10.7937/TCIA.5FNA-0924), Morshid et "
    "al. 2019 (doi:10.1148/ryai.2019180021), Clark et al. 2013 (doi:10.1007/s10278-013-9622-7)"
)


@dataclass(frozen=True, eq=False)
class RealPair:
    """The patient's scans before and after on one grid, and the labels before."""

    before: Volume
    after: Volume
    labels: npt.NDArray[np.uint8]
    report: dict[str, Any]


def load_pair(data: Path, work: Path) -> RealPair:
    """Reads and registers the pair; the registered follow-up is kept in `work`.

    Args:
        data: The folder of the real data, as it was downloaded.
        work: For the registered follow-up; made if missing.

    Raises:
        InputError: the data is not there.
    """
    scans, marks = _inputs(data)
    folder = folder_of(work, _registered_from(data))
    found_series = find_series(scans).series
    before = read_series(found_series[0])
    labels = read_labels(marks, before)
    kept, report_file = folder / "post_registered.nii.gz", folder / "registration.json"
    if not (kept.exists() and report_file.exists()):
        from models.registration import register

        moving = read_series(found_series[1])
        found = register(before, moving, labels)
        write_nifti(found.apply(moving, before), kept)
        report_file.write_text(found.report.model_dump_json(indent=1), encoding="utf-8")
    report = json.loads(report_file.read_text(encoding="utf-8"))
    return RealPair(before, read_nifti(kept), labels, report)


def _inputs(data: Path) -> tuple[Path, Path]:
    scans, marks = data / SCANS, data / MARKS
    if absent := [str(path) for path in (scans, marks) if not path.exists()]:
        raise InputError(f"The real data is not in {data}: {', '.join(absent)} missing; give its folder.")
    return scans, marks


def _registered_from(data: Path) -> dict[str, Any]:
    """What the registration depends on; the input files by name and size, since reading them takes so long."""
    scans, marks = _inputs(data)
    files_read = [marks, *sorted(path for path in scans.rglob("*") if path.is_file())]
    return {
        "registration": settings().model_dump(mode="json"),
        "inputs": [[path.relative_to(data).as_posix(), path.stat().st_size] for path in files_read],
    }


def _conditions(data: Path, engine: Engine) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "format": FORMAT, "weights": engine.weights_hash, "device": engine.device, "precision": engine.precision,
        "batch": engine.batch, "steps": engine.steps, **_registered_from(data),
    }  # fmt: skip


def measure_real_patient(
    data: Path, work: Path, weights: Path, device: Device = "auto", pictures: Path | None = None
) -> dict[str, Any]:
    """All development figures of HCC_009. They are kept: the same weights on the same files are measured once.

    Args:
        data: The folder of the real data.
        work: For the registered follow-up and the figures.
        weights: Folder of the bundle.
        device: Where the networks run.
        pictures: Draws the pair and histograms there; they show a real scan and are not for the repository.

    Raises:
        InputError: the data is not there.
        RunError: `work` can't be written.
    """
    engine = Engine(device, weights, batch=BATCH)
    kept = folder_of(work, _conditions(data, engine)) / "figures.json"
    if not kept.exists():
        write_json(kept, _measure(engine, load_pair(data, work)))
    result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    result["wanted"] = targets().real_patient.model_dump(mode="json")
    result["met"] = verdicts(result)
    result["words"] = words(result)
    result["markdown"] = _template().render(real=result).strip() + "\n"
    if pictures is not None:
        from evals.model_card.pictures import draw_real_patient

        pair = load_pair(data, work)
        draw_real_patient(pictures, pair, simulate_given(engine, pair, SEEDS[:1])[SEEDS[0]], result)
    return result


def verdicts(figures: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each figure that is wanted of this patient is reached, by its name on the card."""
    wanted, found = targets().real_patient, figures["segmentation"]
    low, high = wanted.oil_ml
    return {
        "Dice of the mass": found["mass_dice"] >= wanted.mass_dice,
        "Dice of the liver": found["liver_dice"] >= wanted.liver_dice,
        "Lipiodol after registration": (
            low - wanted.oil_margin_ml <= figures["oil"]["real_ml"] <= high + wanted.oil_margin_ml
        ),
    }


def _measure(engine: Engine, pair: RealPair) -> dict[str, Any]:
    mass = pair.labels == MASS
    voxel = pair.before.voxel_ml
    found = engine.segment_volume(pair.before)
    found_after = engine.segment_volume(pair.after)
    simulated = simulate_given(engine, pair)
    oil_ml = float((pair.after.data[mass] > criteria().oil_hu).sum()) * voxel
    scans = {
        "before": pair.before.data[mass], "after": pair.after.data[mass],
        **{f"simulated_{seed}": scan.data[mass] for seed, scan in simulated.items()},
    }  # fmt: skip
    first = scans[f"simulated_{SEEDS[0]}"]
    return {
        "patient": "HCC_009",
        "citation": CITATION,
        "protocol": GIVEN.key,
        "segmentation": {
            "mass_dice": dice(found == MASS, mass),
            "liver_dice": dice(found == LIVER, pair.labels == LIVER),
            "organ_dice": dice(found >= LIVER, np.isin(pair.labels, (1, 2, 3))),
            "mass_ml": float((found == MASS).sum()) * voxel,
            "true_mass_ml": float(mass.sum()) * voxel,
            "after_organ_dice": dice(found_after >= LIVER, np.isin(pair.labels, (1, 2, 3))),
            "after_mass_dice": dice(found_after == MASS, mass),
            "whole_organ_as_mass_dice": dice(np.isin(pair.labels, (LIVER, MASS)), mass),
        },
        "oil": {
            "real_ml": oil_ml,
            "simulated_ml": [
                float((scan.data[mass] > criteria().oil_hu).sum()) * voxel for scan in simulated.values()
            ],
        },
        "registration": {"problems": pair.report.get("problems", [])},
        "hu": {name: describe_hu(values) for name, values in scans.items()},
        "wasserstein_hu": {
            "simulated_to_after": float(wasserstein_distance(_clipped(first), _clipped(scans["after"]))),
            "before_to_after": float(wasserstein_distance(_clipped(scans["before"]), _clipped(scans["after"]))),
        },
        "oil_place": oil_place(pair, simulated[SEEDS[0]], mass),
        "tissue": simulated_tissue(engine, pair),
    }  # fmt: skip


def simulate_given(engine: Engine, pair: RealPair, seeds: Sequence[int] = SEEDS) -> dict[int, Volume]:
    """The full CT after the protocol really given, per seed."""
    prepared = engine.prepare(pair.before, pair.labels, RECORD)
    jobs = [(GIVEN, seed) for seed in seeds]
    changes = dict(engine.simulate_differences(prepared, jobs))
    window = engine.model.preset.hu_window
    inside = prepared.lesions.index > 0
    return {
        seed: paste(
            pair.before, inside, prepared.patches, list(changes[index]), lesions=prepared.lesions, window=window
        )
        for index, seed in enumerate(seeds)
    }  # fmt: skip


def simulated_tissue(engine: Engine, pair: RealPair) -> dict[str, dict[str, float]]:
    """Shares of the original mass by the assistant model: on the real follow-up and on a simulated one."""
    prepared = engine.prepare(pair.before, pair.labels, RECORD)
    mask = prepared.numbers > 0
    simulated = engine.simulate(prepared, [(GIVEN, SEEDS[0])])[0]
    real = np.stack([crop(pair.after, patch) for patch in prepared.patches])
    out = {}
    for name, scan in (("simulated", simulated), ("real", real)):
        found = engine.segment_near(prepared, [scan])[0][mask]
        shares = {"viable": VIABLE, "necrotic": NECROTIC, "oil": OIL}
        out[name] = {label: float((found == tissue).mean()) for label, tissue in shares.items()}
    return out


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Dice of two masks on the same grid; 0 where both are empty, since something is there to be found."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else 0.0


def describe_hu(values: npt.NDArray[np.generic]) -> dict[str, Any]:
    """Mean, quantiles and a histogram of HU in the mass (bins of 25 HU, ends open)."""
    hu = np.asarray(values, np.float64)
    edges = np.arange(RANGE_HU[0], RANGE_HU[1] + BIN_HU, BIN_HU)
    counts, _ = np.histogram(np.clip(hu, edges[0], edges[-1] - 1e-6), edges)
    low, quarter, median, upper, high = np.quantile(hu, (0.05, 0.25, 0.5, 0.75, 0.95))
    return {
        "mean": float(hu.mean()), "p05": float(low), "p25": float(quarter), "p50": float(median),
        "p75": float(upper), "p95": float(high), "sd": float(hu.std()),
        "histogram": (counts / hu.size).round(4).tolist(), "edges": [float(edges[0]), float(edges[-1]), BIN_HU],
    }  # fmt: skip


def oil_place(pair: RealPair, simulated: Volume, mass: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """Where the oil lies and in how many clumps: relative depth in the mass (0 border, 1 deepest), parts above 1 ml.

    Where there is no oil, depth and brightness are None.
    """
    depth = ndimage.distance_transform_edt(mass, sampling=pair.before.spacing_mm)
    depth = depth / max(float(depth.max()), 1e-6)
    out: dict[str, float | None] = {}
    for name, scan in (("real", pair.after), ("simulated", simulated)):
        oil = mass & (scan.data > criteria().oil_hu)
        parts, _ = ndimage.label(oil, structure=np.ones((3, 3, 3), bool))
        sizes = np.bincount(parts.ravel())[1:] * pair.before.voxel_ml
        out[f"{name}_depth"] = float(depth[oil].mean()) if oil.any() else None
        out[f"{name}_clumps"] = float((sizes >= 1.0).sum())
        out[f"{name}_top_hu"] = float(np.quantile(scan.data[oil], 0.95)) if oil.any() else None
    return out


def words(result: dict[str, Any]) -> list[str]:
    """What is wrong with the simulation, in sentences made from the figures; of the first seed unless they say more."""
    oil, hu, place = result["oil"], result["hu"], result["oil_place"]
    simulated = float(np.mean(oil["simulated_ml"]))
    out, over = [], f"simulated (mean of {len(SEEDS)} seeds)"
    share = simulated / oil["real_ml"] if oil["real_ml"] else float("nan")
    if 0.8 <= share <= 1.25:
        out.append(f"The amount of oil is right: {simulated:.0f} ml {over}, {oil['real_ml']:.0f} ml real.")
    else:
        verdict = "too little" if share < 1 else "too much"
        out.append(f"There is {verdict} oil: {simulated:.0f} ml {over} against {oil['real_ml']:.0f} ml real.")
    one, other = hu[f"simulated_{SEEDS[0]}"], hu["after"]
    median = float(np.mean([hu[f"simulated_{seed}"]["p50"] for seed in SEEDS]))
    difference = median - other["p50"]
    verdict = "about right" if abs(difference) < 10 else "too bright" if difference > 0 else "too dark"
    out.append(
        f"The mass as a whole, oil included, is {verdict}: median {median:.0f} HU {over}, "
        f"{other['p50']:.0f} HU real ({hu['before']['p50']:.0f} before)."
    )
    mine, real = one["p75"] - one["p25"], other["p75"] - other["p25"]
    if mine < 0.7 * real:
        out.append(f"The simulated mass is too even: its middle half spans {mine:.0f} HU, the real one {real:.0f}.")
    if place["simulated_depth"] is not None and place["real_depth"] is not None:
        gap = place["simulated_depth"] - place["real_depth"]
        where = (
            "as deep as" if abs(gap) < 0.1 else "nearer to the middle than" if gap > 0 else "nearer to the border than"
        )
        out.append(
            f"The simulated oil lies {where} the real one (relative depth {place['simulated_depth']:.2f} and "
            f"{place['real_depth']:.2f}), in {place['simulated_clumps']:.0f} clumps above 1 ml against "
            f"{place['real_clumps']:.0f}."
        )
    if place["real_top_hu"] is not None and place["real_top_hu"] > RANGE_HU[1]:
        out.append(
            f"Real oil reaches {place['real_top_hu']:.0f} HU (95 % quantile); the networks see at most "
            f"{RANGE_HU[1]:.0f} HU, so that its brightness can't be right above that."
        )
    seen, drawn = result["tissue"]["real"], result["tissue"]["simulated"]
    gap = drawn["viable"] - seen["viable"]
    verdict = "about as much" if abs(gap) < 0.1 else "more" if gap > 0 else "less"
    out.append(
        f"In the simulation {verdict} of the mass lives: {drawn['viable']:.2f} predicted, {seen['viable']:.2f} found "
        f"in the real follow-up; necrotic {drawn['necrotic']:.2f} and {seen['necrotic']:.2f}."
    )
    least, most = min(oil["simulated_ml"]), max(oil["simulated_ml"])
    out.append(f"One protocol leaves {least:.0f} to {most:.0f} ml of oil, as the seed has it.")
    mine, before = (result["wasserstein_hu"][name] for name in ("simulated_to_after", "before_to_after"))
    out.append(
        f"In its HU the simulation is {'nearer to' if mine < before else 'no nearer to'} the real follow-up than the "
        f"scan before treatment: Wasserstein distance {mine:.0f} against {before:.0f} HU."
    )
    return out


def _clipped(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.clip(np.asarray(values, np.float64), -175.0, 600.0)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["num"] = number
    text = files("evals.model_card").joinpath("real_patient.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text)
