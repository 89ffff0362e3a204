"""Visual Turing test (`mewm eval turing`): can a reader tell simulated from real scans after treatment?

`make` writes shuffled slices with a form for the readers, and apart from them the key. `score` reads filled forms.
As in the paper's Table 1, sensitivity is the share of real slices that were called real, and specificity the share of
simulated slices that were called simulated: the lower the specificity, the more simulated slices pass as real.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import binomtest

from agent.plan import read_plan
from agent.report.slices import LIVER_WINDOW, OIL_WINDOW, Window
from agent.run import open_run
from evals.slices import FIELD_MM, axial_png, tumour_centre
from evals.statistics import Interval, bootstrap_mean
from evals.study import read_form_rows, read_study_key, refuse_taken, write_study
from models.case import Case
from models.errors import CaseError, InputError, RunError
from models.volume import Volume, load_exact

Answer = Literal["real", "simulated"]
WINDOWS: dict[str, Window] = {"liver": LIVER_WINDOW, "oil": OIL_WINDOW}
COLUMNS = ("slice", "answer", "confidence")
SYNONYMS = {"real": "real", "r": "real", "simulated": "simulated", "s": "simulated", "synthetic": "simulated"}
LEVEL = 0.95


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyedSlice(_Model):
    """What a slice really is."""

    slice: str
    truth: Answer
    source: str = Field(description="who made it: the scanner, or the weights that simulated it")
    origin: str = Field(description="real patient or synthetic phantom")
    case_id: str


class Key(_Model):
    """Content of `key.json`; not for the readers."""

    format_version: Literal[1] = 1
    seed: int
    window: str
    slices: tuple[KeyedSlice, ...]


class Rate(_Model):
    """A share with its 95 % Wilson interval.

    Source:
        Wilson, J Am Stat Assoc 22 (1927) 209; Brown, Cai and DasGupta, Stat Sci 16 (2001) 101 recommend it for small n.
    """

    hits: int
    n: int
    share: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.share is None:
            return "no slice"
        return f"{100 * self.share:.1f} % [{100 * (self.low or 0):.1f}, {100 * (self.high or 0):.1f}], n = {self.n}"


class ReaderScore(_Model):
    """One reader. `by_source` is the specificity for each simulator, where there are several."""

    reader: str
    sensitivity: Rate
    specificity: Rate
    accuracy: Rate
    by_source: dict[str, Rate]
    unanswered: tuple[str, ...]


class TuringResult(_Model):
    """All readers, and the mean accuracy over them with a bootstrap interval over slices (2 readers or more)."""

    slices: int
    readers: tuple[ReaderScore, ...]
    mean_accuracy: Interval | None
    origins: dict[str, int] = Field(description="slices by origin of the case")


class _Shot(_Model):
    png: bytes
    truth: Answer
    source: str
    origin: str
    case_id: str


def make_turing(
    real: Sequence[Path], simulated: Sequence[Path], out: Path, *, each: int | None, seed: int, window: str = "liver"
) -> Key:
    """Write slices, forms and key.

    Every case gives one slice, through the widest part of its tumour: slices of one patient are not independent. A
    follow-up scan is shown at the place where the tumour was before treatment; scans that were moved against each other
    should be registered when the case is imported.

    Args:
        real: Case folders with a scan after treatment.
        simulated: Folders of finished plans; the chosen protocol's simulated scan is shown.
        out: New folder.
        each: Slices of either kind; None takes as many as both can give.
        seed: Of the choice and the order.
        window: ``liver`` or ``oil``.

    Raises:
        InputError: too few sources, an unknown window, or a folder that holds something already.
        CaseError: a case without a scan after treatment or without labels.
        RunError: a run without a simulated scan.
    """
    if window not in WINDOWS:
        raise InputError(f"There is no window '{window}'; use one of {', '.join(WINDOWS)}.")
    wanted = min(len(real), len(simulated)) if each is None else each
    if wanted < 1 or wanted > len(real) or wanted > len(simulated):
        raise InputError(
            f"{wanted} slices of either kind were asked for, but there are {len(real)} cases with a real scan after "
            f"treatment and {len(simulated)} plans: give more folders, or a smaller --each."
        )
    refuse_taken(out)
    rng = np.random.default_rng(seed)
    picked = [real[i] for i in sorted(rng.choice(len(real), wanted, replace=False))]
    shots = [_real_shot(path, WINDOWS[window]) for path in picked]
    picked = [simulated[i] for i in sorted(rng.choice(len(simulated), wanted, replace=False))]
    shots += [_simulated_shot(path, WINDOWS[window]) for path in picked]
    shots = [shots[i] for i in rng.permutation(len(shots))]
    width = max(3, len(str(len(shots))))
    names = [f"{number:0{width}d}" for number in range(1, len(shots) + 1)]
    entries = tuple(
        KeyedSlice(slice=name, **shot.model_dump(exclude={"png"})) for name, shot in zip(names, shots, strict=True)
    )
    key = Key(seed=seed, window=window, slices=entries)
    write_study(
        out, "turing", key, COLUMNS, names,
        {f"slices/{name}.png": shot.png for name, shot in zip(names, shots, strict=True)},
        slices=[(name, base64.b64encode(shot.png).decode()) for name, shot in zip(names, shots, strict=True)],
        window=WINDOWS[window], field_mm=FIELD_MM,
    )  # fmt: skip
    return key


def _real_shot(path: Path, window: Window) -> _Shot:
    case = Case.load(path)
    if not case.follow_up():
        raise CaseError(f"The case {path} has no scan after treatment: it can't give a real slice.")
    # the earliest follow-up; of its phases the arterial one, in which plans are made
    first = [image for image in case.follow_up() if image.day == case.follow_up()[0].day]
    image = next((i for i in first if i.phase == "arterial"), first[0])
    centre = tumour_centre(case.label_array(), case.volume().affine)
    png = _inside(case.volume(image.name), centre, window, path)
    return _Shot(png=png, truth="real", source="scanner", origin=case.origin, case_id=case.case_id)


def _simulated_shot(path: Path, window: Window) -> _Shot:
    run, plan = open_run(path), read_plan(path / "plan.json")
    file = plan.artifacts.get("simulated 1")
    # The name comes from a file: only what lies inside the run's own folder is read.
    volume = None if file is None else (path / file).resolve()
    if volume is None or path.resolve() not in volume.parents or not volume.is_file():
        raise RunError(f"The run {path} holds no simulated scan: plan the case again with `mewm plan`.")
    case = Case.load(run.record.case_path)
    centre = tumour_centre(case.label_array(), case.volume().affine)
    png = _inside(load_exact(volume), centre, window, path)
    return _Shot(
        png=png, truth="simulated", source=f"weights {plan.origin.weights_hash}", origin=case.origin,
        case_id=case.case_id,
    )  # fmt: skip


def _inside(volume: Volume, centre: NDArray[np.float64], window: Window, name: Path) -> bytes:
    voxel = (np.linalg.inv(volume.affine) @ np.append(centre, 1.0))[:3]
    if (voxel < -0.5).any() or (voxel > np.array(volume.shape) - 0.5).any():
        raise CaseError(f"The tumour's place lies outside the scan of {name}: register the scans when importing it.")
    return axial_png(volume, centre, window)


def read_key(path: Path) -> Key:
    """Read a key, given as file or as the folder that `make_turing` wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    return read_study_key(path, Key, "mewm eval turing make")


def read_form(path: Path, key: Key) -> dict[str, Answer]:
    """The answers of one reader: slice -> answer; slices without an answer are left out.

    Raises:
        InputError: not a form, an unknown slice, a slice twice, or an answer that is neither real nor simulated.
    """
    known = {entry.slice for entry in key.slices}
    answers: dict[str, Answer] = {}
    for number, row in enumerate(read_form_rows(path), start=2):
        if row.get("slice") is None or row.get("answer") is None:
            raise InputError(f"The form {path} needs the columns slice and answer; line {number} lacks one.")
        # a spreadsheet turns 001 into 1
        name = row["slice"].strip().zfill(len(key.slices[0].slice))
        if name not in known:
            raise InputError(f"The form {path} names slice '{row['slice']}' in line {number}; the key has no such one.")
        given = row["answer"].strip().lower()
        if not given:
            continue
        if given not in SYNONYMS:
            raise InputError(f"The form {path} says '{row['answer']}' in line {number}; write real or simulated.")
        if name in answers:
            raise InputError(f"The form {path} answers slice {name} twice (line {number}).")
        answers[name] = "real" if SYNONYMS[given] == "real" else "simulated"
    if not answers:
        raise InputError(f"The form {path} holds no answer: fill in real or simulated for every slice.")
    return answers


def rate(hits: int, n: int) -> Rate:
    """A share with its Wilson interval; without a share where n is 0."""
    if n == 0:
        return Rate(hits=0, n=0, share=None, low=None, high=None)
    interval = binomtest(hits, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return Rate(hits=hits, n=n, share=hits / n, low=float(interval.low), high=float(interval.high))


def score_turing(key: Key, forms: dict[str, dict[str, Answer]], seed: int = 0) -> TuringResult:
    """Sensitivity, specificity and accuracy of every reader.

    Args:
        key: What the slices are.
        forms: Answers by reader.
        seed: Of the bootstrap.

    Raises:
        InputError: no form.
    """
    if not forms:
        raise InputError("No filled form was given: mewm eval turing score KEY FORM...")
    return TuringResult(
        slices=len(key.slices),
        readers=tuple(_reader(name, answers, key) for name, answers in forms.items()),
        mean_accuracy=_mean_accuracy(key, list(forms.values()), seed),
        origins={o: sum(e.origin == o for e in key.slices) for o in sorted({e.origin for e in key.slices})},
    )


def _reader(name: str, answers: dict[str, Answer], key: Key) -> ReaderScore:
    right = {e.slice: answers[e.slice] == e.truth for e in key.slices if e.slice in answers}
    real = [right[e.slice] for e in key.slices if e.slice in right and e.truth == "real"]
    simulated = [right[e.slice] for e in key.slices if e.slice in right and e.truth == "simulated"]
    sources = sorted({e.source for e in key.slices if e.truth == "simulated"})
    by_source = {}
    for source in sources if len(sources) > 1 else ():
        mine = [right[e.slice] for e in key.slices if e.slice in right and e.source == source]
        by_source[source] = rate(sum(mine), len(mine))
    return ReaderScore(
        reader=name,
        sensitivity=rate(sum(real), len(real)),
        specificity=rate(sum(simulated), len(simulated)),
        accuracy=rate(sum(right.values()), len(right)),
        by_source=by_source,
        unanswered=tuple(e.slice for e in key.slices if e.slice not in right),
    )


def _mean_accuracy(key: Key, forms: Sequence[dict[str, Answer]], seed: int) -> Interval | None:
    """Mean over readers, resampled over slices: readers of the same slices are not independent of each other."""
    shares = []
    for entry in key.slices:
        given = [answers[entry.slice] == entry.truth for answers in forms if entry.slice in answers]
        if given:
            shares.append(sum(given) / len(given))
    return bootstrap_mean(shares, seed=seed) if len(forms) > 1 and len(shares) > 1 else None


def turing_markdown(result: TuringResult) -> str:
    """The result as a Markdown table beside the paper's wording."""
    lines = [
        "# Visual Turing test",
        "",
        f"{result.slices} slices ({', '.join(f'{n} of {o} cases' for o, n in result.origins.items())}). Sensitivity: "
        "real slices called real. Specificity: simulated slices called simulated; lower means more simulated slices "
        "pass as real. 95 % Wilson intervals.",
        "",
        "| reader | sensitivity | specificity | accuracy | not answered |",
        "|---|---|---|---|---|",
    ]
    for reader in result.readers:
        cells = (reader.reader, reader.sensitivity, reader.specificity, reader.accuracy, len(reader.unanswered))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines += [f"| {reader.reader}, {source} | | {found} | | |" for source, found in reader.by_source.items()]
    if result.mean_accuracy is not None:
        m = result.mean_accuracy
        lines += ["", f"Mean accuracy over readers: {100 * m.mean:.1f} % [{100 * m.low:.1f}, {100 * m.high:.1f}] "
                  f"(bootstrap over {m.n} slices)."]  # fmt: skip
    return "\n".join(lines) + "\n"
