"""The phantom's data card: the cohort beside the real collection, how hard it is, and what its scans show.

Only aggregate figures are written, never a patient's row. Where the real table or scans are not given, the real column
is that of the shipped card, computed from them once.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import cross_val_predict

from evals.image_features import image_features
from evals.phantom_hardness import measure_hardness
from evals.phantom_real import FIRST_SEED, phantom_cohort, phantom_hu, real_cohort, real_hu
from models.errors import InputError
from models.phantom.patient import TRAITS, draw_patient
from models.phantom.render import render
from models.phantom.version import parameters, phantom_hash

Figures = dict[str, Any]
CITATION: Final = (
    "Real figures: HCC-TACE-Seg, The Cancer Imaging Archive, CC BY 4.0 (Moawad et al. 2021, "
    "doi:10.7937/TCIA.5FNA-0924; Morshid et al. 2019, doi:10.1148/ryai.2019180021; Clark et al. 2013, "
    "doi:10.1007/s10278-013-9622-7): aggregates over 70 of its 105 patients, and the scans of HCC_009. The cohort's "
    "parameters were set after these same figures, so that their agreement is a fit and no test; docs/phantom.md says "
    "where there is none."
)
_SIZE = 64
_VISIBLE_SEED = 500_000


def measure_visibility(n: int, tick: Callable[[], None] = lambda: None) -> Figures:
    """How much of every trait simple measures of the arterial scan tell: R2 of a cross-validated random forest.

    Args:
        n: Patients, at least 20.
        tick: Called after every patient.
    """
    seen, truth = [], []
    for seed in range(_VISIBLE_SEED, _VISIBLE_SEED + n):
        patient = draw_patient(seed)
        lesion = patient.lesions[0]
        spacing = max(1.5, 2.6 * max(lesion.radii_mm) / _SIZE)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = np.array(lesion.centre_mm) - spacing * (_SIZE - 1) / 2
        scan = render(patient, affine, (_SIZE,) * 3)
        seen.append(image_features(scan.hu, scan.organs, affine))
        truth.append([patient.traits[name] for name in TRAITS])
        tick()
    measured, traits = np.array(seen), np.array(truth)
    out: Figures = {"n": n}
    for column, name in enumerate(TRAITS):
        forest = RandomForestRegressor(200, min_samples_leaf=3, random_state=0)
        guess = cross_val_predict(forest, measured, traits[:, column], cv=5)
        out[name] = float(1.0 - ((guess - traits[:, column]) ** 2).mean() / traits[:, column].var())
    return out


def measure_card(
    n: int, hardness_n: int, scans_n: int, table: Path | None, scans: Path | None, command: str,
    tick: Callable[[str], None] = lambda _: None,
) -> Figures:  # fmt: skip
    """Every figure of the card.

    Args:
        n: Phantom patients of the distributions, at least 40.
        hardness_n: Phantom patients of the hardness figures, at least 20.
        scans_n: Phantom patients whose scans are rendered, at least 20.
        table: Clinical table of HCC-TACE-Seg; None takes the real figures of the shipped card.
        scans: Folder with HCC_009's `pre_arterial.nii.gz`, `pre_portal.nii.gz`, `post_arterial.nii.gz` and
            `pre_labels.nii.gz`; None takes those of the shipped card.
        command: That is being run, for the card.
        tick: Called with the name of the part after every patient.

    Raises:
        InputError: A number is too small.
        RecordError: The table can't be read.
        VolumeError: A scan can't be read.
    """
    if n < 40 or hardness_n < 20 or scans_n < 20:
        raise InputError(
            f"The card needs --n 40, --hardness-n 20 and --scans-n 20 or more; got {n}, {hardness_n} and {scans_n}."
        )
    shipped = None if table and scans else read_shipped()
    return {
        "version": parameters()["version"],
        "phantom_hash": phantom_hash(),
        "command": command,
        "seeds": {"distributions": FIRST_SEED, "visibility": _VISIBLE_SEED},
        "real": real_cohort(table) if table else shipped["real"] if shipped else None,
        "phantom": phantom_cohort(n, lambda: tick("patients")),
        "real_hu": real_hu(scans) if scans else shipped["real_hu"] if shipped else None,
        "phantom_hu": phantom_hu(scans_n, lambda: tick("scans")),
        "hardness": measure_hardness(hardness_n, lambda: tick("hardness")),
        "visibility": measure_visibility(scans_n, lambda: tick("visibility")),
    }


def read_shipped() -> Figures | None:
    """The figures of the shipped card; None before there is one."""
    path = files("models.phantom").joinpath("data_card.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_card(figures: Figures, out: Path) -> None:
    """Writes DATA_CARD.md, data_card.json, data_card.html and distributions.png.

    Raises:
        InputError: The folder can't be written.
    """
    picture = _picture(figures)
    page = _page(figures, picture)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "DATA_CARD.md").write_text(_markdown(figures), encoding="utf-8")
        (out / "distributions.png").write_bytes(picture)
        (out / "data_card.html").write_text(page, encoding="utf-8")
        (out / "data_card.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The card can't be written to {out}: {error.strerror}; choose another --out.") from error


def _quantiles(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else " / ".join(f"{v:.4g}" for v in row["quantiles"]) + f" (n = {row['n']})"


def _share(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{100 * row['share']:.0f} % (n = {row['n']})"


def _pairs(figures: Figures, kind: str) -> list[tuple[str, str, str]]:
    show = _quantiles if kind == "quantiles" else _share
    real = figures["real"] or {kind: {}}
    return [(name, show(real[kind].get(name)), show(row)) for name, row in figures["phantom"][kind].items()]


def _hu_rows(figures: Figures) -> list[tuple[str, str, str]]:
    real = figures["real_hu"] or {}
    return [
        (name, f"{real[name]:.4g}" if name in real else "-", " / ".join(f"{v:.4g}" for v in row))
        for name, row in figures["phantom_hu"]["quantiles"].items()
    ]


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _hard_rows(figures: Figures) -> list[tuple[str, str]]:
    hard = figures["hardness"]
    first = hard["most_frequent_best"][0]
    constant = hard["best_constant"]
    return [
        ("protocols compared", f"{hard['protocols']} (1 to 3 drugs, 1 to 2 embolics, usual doses)"),
        ("different protocols that are best for somebody", f"{hard['different_best']} among {hard['n']} patients"),
        ("most frequent best protocol (at most 15 %)", f"{100 * first[1]:.1f} %: {first[0]}"),
        ("best constant (at least 0.15)", f"{_interval(constant)}: {constant['protocol']}"),
        ("best constant, chosen on one half and scored on the other", _interval(hard["best_constant_held_out"])),
        ("oracle with the record but not the image (at least 0.08)", _interval(hard["record_only"])),
        ("oracle with record and image, without what is hidden", _interval(hard["image_and_record"])),
        ("the protocol really given", _interval(hard["clinician"])),
        ("random protocol", _interval(hard["random"])),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]  # a protocol's key holds a bar
    return [*lines, *(f"| {' | '.join(row)} |" for row in cells), ""]


_HEAD = ("", "real", "phantom")
_EXPLAIN = {
    "quantiles": "Quantiles 5 / 25 / 50 / 75 / 95 %. Changes are the median of three readers on the real side and a "
    "perfect reader on the phantom's; real readers differ by 7 (RECIST) and 13 (mRECIST) points of percent (median "
    "SD). Survival: Kaplan-Meier times by which 10 / 25 / 50 / 75 / 90 % have died; missing where fewer have.",
    "hu": "HU of one real patient (HCC_009, medians; scans resampled to 2.5 mm and smoothed) beside the cohort's "
    "5 / 50 / 95 % of patients' medians, rendered at 2.5 mm.",
    "hardness": "Regret is the loss in true log hazard against the patient's best protocol, as a share of worst minus "
    "best; means with 95 % bootstrap intervals by patient. The record-only oracle knows the whole response model and "
    "the record, and averages over the tumours of patients with a similar record. All patients whom no rule excludes "
    "count.",
    "visibility": "R2 of a cross-validated random forest on eleven simple measures of the arterial scan: what the "
    "image tells overlaps and is noisy.",
}


def _markdown(figures: Figures) -> str:
    lines = [
        f"# Data card: phantom cohort, version {figures['version']}",
        "",
        "**Synthetic. No figure on it says anything about patients.** Made by "
        f"`{figures['command']}`; hash of the phantom `{figures['phantom_hash']}`. See docs/phantom.md for the model.",
        "",
        CITATION,
        "",
        "## Real and phantom distributions",
        "",
        _EXPLAIN["quantiles"],
        "",
        *_table(_HEAD, _pairs(figures, "quantiles")),
        *_table(_HEAD, _pairs(figures, "shares")),
        "## HU",
        "",
        _EXPLAIN["hu"] + f" n = {figures['phantom_hu']['n']} phantoms.",
        "",
        *_table(_HEAD, _hu_rows(figures)),
        "## How hard it is",
        "",
        _EXPLAIN["hardness"] + f" n = {figures['hardness']['n']}.",
        "",
        *_table(("", "figure"), _hard_rows(figures)),
        *(f"- {name}: {'met' if met else 'MISSED'}" for name, met in figures["hardness"]["met"].items()),
        "",
        "Best protocols, most frequent first: "
        + "; ".join(f"{key} {100 * share:.1f} %" for key, share in figures["hardness"]["most_frequent_best"])
        + ".",
        "",
        "## What the scans show",
        "",
        _EXPLAIN["visibility"] + f" n = {figures['visibility']['n']}.",
        "",
        *_table(("trait", "R2"), [(name, f"{figures['visibility'][name]:.2f}") for name in TRAITS]),
    ]
    return "\n".join(lines)


def _picture(figures: Figures) -> bytes:
    """Quantile bars side by side, and the distribution of best protocols."""
    from matplotlib.figure import Figure

    names = list(figures["phantom"]["quantiles"])
    columns = 4
    rows = -(-(len(names) + 1) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).ravel()
    sides: dict[str, tuple[Any, str]] = {
        "real": ((figures["real"] or {"quantiles": {}})["quantiles"], "#b5651d"),
        "phantom": (figures["phantom"]["quantiles"], "#1f6f8b"),
    }
    for axis, name in zip(axes, names, strict=False):
        for place, (side, colour) in enumerate(sides.values()):
            if (row := side.get(name)) is None:
                continue
            q = row["quantiles"]
            axis.plot([min(q), max(q)], [place, place], color=colour, lw=2)
            if len(q) == 5:
                axis.plot([q[1], q[3]], [place, place], color=colour, lw=9, solid_capstyle="butt")
                axis.plot(q[2], place, "|", color="white", ms=12, mew=2)
        axis.set_yticks([0, 1], list(sides))
        axis.set_ylim(-0.6, 1.6)
        axis.set_title(name, fontsize=9)
    best = axes[len(names)]
    shares = [100 * share for _, share in figures["hardness"]["most_frequent_best"]]
    best.bar(range(1, len(shares) + 1), shares, color="#1f6f8b")
    best.axhline(15, color="#b22222", lw=1)
    best.set_title("ten most frequent best protocols (%), limit 15 %", fontsize=9)
    for axis in axes[len(names) + 1 :]:
        axis.axis("off")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return stream.getvalue()


def _page(figures: Figures, picture: bytes) -> str:
    template = files("evals.report").joinpath("phantom_card.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        figures=figures, citation=CITATION, explain=_EXPLAIN, picture=base64.b64encode(picture).decode(), traits=TRAITS,
        tables=[_pairs(figures, "quantiles"), _pairs(figures, "shares")], hu=_hu_rows(figures),
        hard=_hard_rows(figures),
    )  # fmt: skip
