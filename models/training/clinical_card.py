"""The model card of the clinical survival model, in Markdown."""

from __future__ import annotations

from collections import Counter

from models.clinical_survival import MEANING, Interval, Variant
from models.training.clinical_survival import HORIZONS, OUTER, PENALTIES, REPEATS, RESAMPLES, ClinicalStudy


def clinical_card(study: ClinicalStudy) -> str:
    """The card: what the model is, what it was measured to do, what it is not."""
    model, full = study.model, study.model.variants[0]
    lines = [
        "# Clinical survival model",
        "",
        "A Cox model of what the clinical record states before treatment. It stands beside the image model, never",
        "enters the search, and is the same for every protocol of a patient. For research only.",
        "",
        f"Made by `{model.command}`. Coefficients: `clinical_survival.yaml` (text, no pickle).",
        "",
        "## Data",
        "",
        f"{model.data}.",
        "",
        f"- {study.patients} patients in the table, {full.n} with every variable, {full.deaths} deaths.",
        "- Nothing imputed.",
        "- Only coefficients and aggregate figures are kept here; no patient's row is.",
        "- The glossary does not say from which day overall survival is counted; age is that at diagnosis.",
        f"- SHA-256 of the table: `{model.table_sha256}`.",
        "",
        "## Method",
        "",
        "- Variables chosen before looking at any outcome: those of the published TACE scores that the table has.",
        f"- Ridge Cox (scikit-survival, Efron ties). {REPEATS} times {OUTER}-fold cross-validation. The penalty",
        f"  ({', '.join(f'{p:g}' for p in PENALTIES)}) is chosen inside each training part, by the c-index of inner",
        f"  folds. Of {len(study.penalties)} outer folds {_chosen(study.penalties)}. The model that is kept takes the",
        f"  most frequent one, {full.penalty:g}, on all patients, in every variant.",
        "- C-index (Harrell) over pairs inside an outer fold, none of which the model had seen; averaged over the",
        f"  repeats; 95% interval by {RESAMPLES} bootstrap samples of patients. 0.5 is a coin.",
        "",
        "## What it is worth",
        "",
        f"**Cross-validated c-index {_with_interval(full.c_index)}, n = {full.n}.** {_verdict(full.c_index)}",
        "Published external c-indices on these data are about 0.58 (0.55 to 0.59); near 0.75 would be a leak.",
        "",
        "| beside it, on the same patients and pairs | n | c-index of the score | of the model | model minus score |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.n} | {_with_interval(one.score)} | {_with_interval(one.model)} "
            f"| {_with_interval(one.difference)} |"
            for one in study.comparisons
        ),
        "",
        "Six-and-twelve needs a number of tumours, which the table gives for single tumours only. CLIP is a published",
        "score of nearly the same variables with fixed points. It was added to this table after the model was fixed,",
        "and did not change it.",
        _against_scores(study),
        "",
        "### Variants",
        "",
        "Used in this order, the first whose variables are all known. A variant that did not rank held-out patients",
        "better than a coin is kept for the record and never used: the answer is then `not evaluable`.",
        "",
        "| variant | variables | n | deaths | c-index | used |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one.name} | {', '.join(one.terms)} | {one.n} | {one.deaths} | {_with_interval(one.c_index)} "
            f"| {'yes' if one.informative else 'no'} |"
            for one in model.variants
        ),
        "",
        f"From the records of these {study.patients} patients as they are imported: "
        f"{', '.join(f'{name} {count}' for name, count in study.from_records)}.",
        "A record wants a number of tumours and the branch of an invaded vein; the table says multinodular and",
        "invaded, which a record can't hold. So who lacks these two tends to have more disease than a smaller variant",
        "says.",
        "",
        "### Coefficients of the full variant",
        "",
        *_coefficients(full),
    ]
    calibration = study.calibration
    lines += [
        "",
        "### Calibration (held-out predictions, averaged over the repeats)",
        "",
        f"Slope {_with_interval(calibration.slope)}; 1 is right, below 1 the predictions are too far apart.",
        "",
        "| months | mean predicted survival | Kaplan-Meier | Brier score | of Kaplan-Meier alone |",
        "|---|---|---|---|---|",
    ]
    rows = zip(
        HORIZONS, calibration.predicted, calibration.seen, calibration.brier, calibration.brier_mean, strict=True
    )
    lines += [f"| {h:g} | {p:.2f} | {s:.2f} | {b:.3f} | {m:.3f} |" for h, p, s, b, m in rows]
    lines += ["", f"| third by predicted risk | n | predicted at {HORIZONS[1]:g} months | seen |", "|---|---|---|---|"]
    for name, (n, predicted, seen) in zip(("lowest", "middle", "highest"), calibration.groups, strict=True):
        lines.append(f"| {name} | {n} | {predicted:.2f} | {seen:.2f} |")
    after = model.after_treatment
    lines += [
        "",
        "## With the response after treatment",
        "",
        "Apart from planning: time counts from the follow-up scan (landmark), and the share of the three readers who",
        "saw a complete or partial mRECIST response is a further variable. Patients without a reading or without the",
        "interval of the follow-up are left out. The interval is the table's; docs/hcc-tace-seg.md says where the",
        "scans have another.",
        "",
        f"- C-index {_with_interval(after.c_index)}, n = {after.n}, {after.deaths} deaths.",
        f"- The same patients without the response: {_with_interval(study.before_on_the_same)}.",
        f"- Gain: {_with_interval(study.response_gain)}.",
        "",
        *_coefficients(after),
        "",
        "## Limits",
        "",
        f"- One centre, 1997 to 2012, {study.patients} patients: intervals are wide, and an effect that scores of",
        "  thousands of patients show may be missing or turned here.",
        "- No albumin, bilirubin or INR in the table, so that liver function is the Child-Pugh class alone.",
        "- The median survival is that of this cohort and its time; it is no forecast for a patient.",
        "- Patients of the collection that are not in this table were not used.",
        "",
    ]
    return "\n".join(lines)


def _with_interval(one: Interval) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _verdict(one: Interval) -> str:
    if one.low > 0.5:
        return "The interval lies above a coin."
    return "The interval holds 0.5: on these patients it can't be told from a coin."


def _chosen(penalties: tuple[float, ...]) -> str:
    return ", ".join(f"{count} chose {penalty:g}" for penalty, count in sorted(Counter(penalties).items()))


def _against_scores(study: ClinicalStudy) -> str:
    better = [one.name for one in study.comparisons if one.difference.high < 0]
    worse = [one.name for one in study.comparisons if one.difference.low > 0]
    if not better and not worse:
        return "No difference to any of the scores can be told from chance."
    return f"Clearly better than the model: {', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}."


def _coefficients(variant: Variant) -> list[str]:
    rows = ["| variable | meaning | log hazard per unit | mean |", "|---|---|---|---|"]
    for name, term in variant.terms.items():
        rows.append(f"| {name} | {MEANING[name]} | {term.coefficient:+.3f} | {term.mean:.3f} |")
    return rows
