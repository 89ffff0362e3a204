"""A made-up plan and a small made-up patient, realistic enough to lay the report out and exact enough to check it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.plan import (
    AssessedProtocol,
    Before,
    DoseShown,
    Estimate,
    Execution,
    Finalist,
    GoalReading,
    Origin,
    Plan,
    PolicyNote,
    Replica,
    Reproduction,
    ResponseSummary,
    RuleFinding,
    SurvivalCurve,
    ToxicityPart,
    TreeNode,
)
from models.clinical_record import ClinicalRecord
from models.clinical_survival import clinical_risk
from models.protocol import Protocol
from models.scores import prognostic_scores
from models.volume import Volume

SEEDS = tuple(range(8))
DRUGS = ("Cisplatin", "Doxorubicin", "Epirubicin", "Mitomycin", "Lobaplatin", "Raltitrexed")
EMBOLICS = ("Lipiodol", "Gelatin sponge", "Drug-eluting beads", "PVA")
CENTRE_MM, RADIUS_MM = (30.0, 8.0, -40.0), 24.0
SPACING = (2.0, 2.0, 4.0)
SHAPE = (120, 100, 28)


def sphere_case() -> tuple[Volume, NDArray[np.uint8]]:
    """A CT of an elliptic body with a liver and one spherical tumour at a known place, and its labels."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-119.0, -99.0, -95.0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    world = grid * np.array(SPACING) + affine[:3, 3]
    x, y, z = world[..., 0], world[..., 1], world[..., 2]
    rng = np.random.default_rng(7)
    body = (x / 112) ** 2 + (y / 88) ** 2 < 1
    liver = ((x - 38) / 62) ** 2 + ((y - 4) / 62) ** 2 + ((z + 40) / 52) ** 2 < 1
    tumour = np.sqrt((x - CENTRE_MM[0]) ** 2 + (y - CENTRE_MM[1]) ** 2 + (z - CENTRE_MM[2]) ** 2) < RADIUS_MM
    spine = (x / 20) ** 2 + ((y + 60) / 18) ** 2 < 1
    aorta = ((x + 10) / 11) ** 2 + ((y + 32) / 11) ** 2 < 1
    hu = np.full(SHAPE, -1000.0)
    hu[body] = -95.0
    inner = (x / 100) ** 2 + (y / 77) ** 2 < 1
    hu[inner] = 35.0
    hu[liver & inner] = 75.0
    hu[tumour] = 118.0
    hu[aorta] = 290.0
    hu[spine] = 360.0
    noise = rng.normal(0, 1, SHAPE)
    noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) * 6
    hu[body] += noise[body]
    labels = np.zeros(SHAPE, np.uint8)
    labels[liver & inner] = 1
    labels[tumour] = 2
    labels[aorta] = 4
    return Volume(np.round(hu).astype(np.int16), affine), labels


def simulated(volume: Volume, labels: NDArray[np.uint8], share: float) -> tuple[Volume, NDArray[np.uint8]]:
    """An outcome with a viable rest, necrosis and an oil deposit in the tumour, by planes through its middle."""
    tumour = labels == 2
    index = np.argwhere(tumour)
    along = index @ np.array([0.8, 0.6, 0.0])
    cut = np.quantile(along, share)
    oil = np.quantile(along, min(0.98, share + 0.45))
    out, segmentation = volume.data.copy(), np.where(labels == 1, 1, 0).astype(np.uint8)
    for (i, j, k), a in zip(index, along, strict=True):
        segmentation[i, j, k] = 2 if a < cut else 3 if a < oil else 4
        out[i, j, k] = (120, 30, 480)[segmentation[i, j, k] - 2]
    return Volume(out, volume.affine), segmentation


@dataclass
class MadeCase:
    """The part of `models.case.Case` that the report reads."""

    record: ClinicalRecord
    image: Volume
    labels: NDArray[np.uint8]


@dataclass
class MadeWorkspace:
    """The part of `tools.workspace.Workspace` that the report uses."""

    made: MadeCase
    outcomes: dict[str, tuple[Volume, NDArray[np.uint8]]] = field(default_factory=dict)
    composed: list[str] = field(default_factory=list)

    def case(self, case_id: str) -> MadeCase:
        """The only case."""
        return self.made

    def image(self, case_id: str) -> tuple[Volume, NDArray[np.uint8]]:
        """Its CT and labels."""
        return self.made.image, self.made.labels

    def compose(self, outcome_id: str, *, workspace: object) -> tuple[Volume, NDArray[np.uint8]]:
        """Stands for `tools.compose_outcome`: a share of viable tumour that depends on the outcome."""
        self.composed.append(outcome_id)
        if outcome_id not in self.outcomes:
            share = 0.15 + 0.2 * (sum(map(ord, outcome_id)) % 4)
            self.outcomes[outcome_id] = simulated(self.made.image, self.made.labels, share)
        return self.outcomes[outcome_id]


def made_workspace() -> MadeWorkspace:
    """Workspace of the sphere patient with a short record."""
    volume, labels = sphere_case()
    record = ClinicalRecord(
        age_years=63, sex="male", bilirubin_mg_dl=1.1, albumin_g_dl=3.6, child_pugh_class="A", ecog=1
    )
    return MadeWorkspace(MadeCase(record, volume, labels))


def _estimate(values: list[float]) -> Estimate:
    array = np.array(values)
    se = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(mean=float(array.mean()), se=se, n=len(array))


def assessed(
    key: tuple[tuple[str, ...], tuple[str, ...]], level: float, n: int, rng: random.Random
) -> AssessedProtocol:
    """A protocol with replicas scattered around a level of the objective."""
    protocol = Protocol(drugs=key[0], embolics=key[1])
    toxicity = 0.05 * len(key[0]) + 0.02
    replicas = []
    for seed in SEEDS[:n]:
        objective = level + rng.gauss(0, 0.05)
        viable = 12.0 + 30 * (level + 1.2) + rng.gauss(0, 1.5)
        change = -100 * max(0.05, min(0.98, 0.72 - 0.5 * (level + 1.0))) + rng.gauss(0, 3)
        replicas.append(
            Replica(
                seed=seed,
                outcome_id=f"{protocol.key}#{seed}",
                segmentation_id=f"s-{protocol.key}#{seed}",
                objective=objective,
                log_risk=objective,
                tumour_log_risk=objective - toxicity,
                toxicity_log_risk=toxicity,
                median_survival_months=21.0 - 9 * objective,
                viable_ml=viable,
                necrotic_fraction=0.55,
                oil_fraction=0.21,
                mrecist_mm=48 * (1 + change / 100),
                mrecist_change_percent=change,
                mrecist_category="PR" if change < -30 else "SD",
                easl_mm2=1800 * (1 + change / 90),
                easl_change_percent=change * 1.1,
                easl_category="PR",
            )
        )

    def of(name: str) -> Estimate:
        return _estimate([getattr(r, name) for r in replicas])

    pr = sum(r.mrecist_category == "PR" for r in replicas)
    categories = {name: count for name, count in (("PR", pr), ("SD", len(replicas) - pr)) if count}
    return AssessedProtocol(
        protocol=protocol,
        key=protocol.key,
        objective=of("objective"),
        log_risk=of("log_risk"),
        tumour_log_risk=of("tumour_log_risk"),
        toxicity_log_risk=toxicity,
        toxicity_parts=tuple(ToxicityPart(item=d, value=0.05, reason="class base value") for d in key[0]),
        median_survival_months=21.0 - 9 * of("objective").mean,
        response=ResponseSummary(
            viable_ml=of("viable_ml"),
            necrotic_fraction=of("necrotic_fraction"),
            oil_fraction=of("oil_fraction"),
            mrecist_mm=of("mrecist_mm"),
            mrecist_change_percent=of("mrecist_change_percent"),
            mrecist_categories=categories,
            easl_mm2=of("easl_mm2"),
            easl_change_percent=of("easl_change_percent"),
            easl_categories={"PR": len(replicas)},
            oil_confounded=False,
        ),
        replicas=tuple(replicas),
        finalist=n == len(SEEDS),
        allowed=True,
        complete=bool(key[0] and key[1]),
        default_rank=1,
        rank=1,
    )


def _curve(risk_mean: Estimate) -> SurvivalCurve:
    times = tuple(float(t) for t in range(1, 49))
    base = np.exp(-0.035 * np.array(times) ** 1.05)

    def at(risk: float) -> tuple[float, ...]:
        return tuple(float(v) for v in base ** np.exp(risk))

    low, high = risk_mean.interval or (risk_mean.mean, risk_mean.mean)
    return SurvivalCurve(times_months=times, survival=at(risk_mean.mean), lower=at(high), upper=at(low))


def _doses(protocol: Protocol) -> tuple[DoseShown, ...]:
    known = {"Cisplatin": (50.0, 100.0, "mg"), "Doxorubicin": (30.0, 75.0, "mg"), "Lipiodol": (1.5, 15.0, "ml")}
    out = []
    for item in protocol.items:
        low, high, unit = known.get(item, (None, None, None))
        out.append(
            DoseShown(
                item=item,
                kind="drug" if item in protocol.drugs else "embolic",
                item_class="oil" if item == "Lipiodol" else "anthracycline",
                low=low,
                high=high,
                unit=unit,
                text=f"{low:g} to {high:g} {unit} per session" if low and high else "no dose range in the formulary",
                sources=("label; de Baere et al., CVIR 2016 [B]",) if low else (),
            )
        )
    return tuple(out)


def _tree(rng: random.Random, levels: dict[str, float], wanted: set[str]) -> tuple[TreeNode, ...]:
    nodes = [
        TreeNode(
            node_id="n0", parent=None, phase="root", depth=0, protocol="- | -", added=None,
            objective=None, se=None, n=0, status="kept", reason="start",
        )
    ]  # fmt: skip
    beams: list[tuple[str, Protocol, float]] = [("n0", Protocol(), 0.35)]
    seen: set[tuple[str, int]] = set()
    for depth in range(1, 6):
        phase: Any = "drug" if depth <= 3 else "embolic"
        found: list[tuple[float, TreeNode, Protocol]] = []
        for parent, protocol, level in beams:
            options: list[str | None] = list(DRUGS if phase == "drug" else EMBOLICS)
            if depth not in (1, 4):
                options.append(None)
            for item in options:
                if item in protocol.items:
                    continue
                new = protocol if item is None else protocol.with_item(phase, item)
                status: Any = "pruned"
                score: float | None = (
                    max(rng.gauss(-0.04, 0.03) - 0.12 * depth, level - 0.12 + rng.gauss(0, 0.08)) if item else level
                )
                if set(new.items) <= wanted and len(new.items) == depth:
                    score = levels.get(new.key, -0.1 - 0.18 * depth)
                reason = "ranked below the best 5 of this depth"
                if (new.key, depth) in seen:
                    status, reason, score = "duplicate", "the same protocol was reached on another way", None
                elif item == "PVA" and "Doxorubicin" in new.drugs:
                    status, reason, score = "blocked", "E09: permanent particles with this drug", None
                seen.add((new.key, depth))
                node = TreeNode(
                    node_id=f"n{len(nodes) + len(found)}", parent=parent, phase=phase, depth=depth, protocol=new.key,
                    added=item, objective=score, se=None if score is None else 0.03, n=0 if score is None else 2,
                    status=status, reason=reason,
                )  # fmt: skip
                found.append((score if score is not None else 99.0, node, new))
        best = sorted((f for f in found if f[1].status == "pruned"), key=lambda f: f[0])[:5]
        kept = {f[1].node_id for f in best}
        for _, node, _ in found:
            update = {"status": "kept", "reason": "among the best 5 of this depth"} if node.node_id in kept else {}
            nodes.append(node.model_copy(update=update))
        beams = [(f[1].node_id, f[2], f[0]) for f in best]
    return tuple(nodes)


def made_plan(**changes: Any) -> Plan:
    """A plan with three finalists, a tree of about 90 nodes, fired rules and missing inputs."""
    rng = random.Random(3)
    keys = [
        (("Cisplatin", "Doxorubicin", "Mitomycin"), ("Gelatin sponge", "Lipiodol")),
        (("Cisplatin", "Doxorubicin"), ("Lipiodol",)),
        (("Doxorubicin", "Raltitrexed"), ("Drug-eluting beads",)),
    ]
    finals = [assessed(key, level, 8, rng) for key, level in zip(keys, (-0.92, -0.88, -0.71), strict=True)]
    rest = [
        assessed(((a, b), (c,)), -0.6 + 0.06 * i, 2, rng)
        for i, (a, b, c) in enumerate(
            [
                ("Cisplatin", "Lobaplatin", "PVA"),
                ("Epirubicin", "Mitomycin", "Lipiodol"),
                ("Doxorubicin", "Mitomycin", "Lipiodol"),
                ("Cisplatin", "Raltitrexed", "Gelatin sponge"),
            ]
        )
    ]
    everything = sorted([*finals, *rest], key=lambda a: a.objective.mean)
    finals.sort(key=lambda a: a.objective.mean)
    finding = RuleFinding(
        rule_id="L01",
        strength="warn",
        status="fired",
        stage="complete",
        message="More than 15 ml of Lipiodol is above the label.",
        source="Lipiodol label",
        confidence="V",
        found=("dose.Lipiodol = 18",),
    )
    finalists = []
    for place, a in enumerate(finals, start=1):
        margin = None
        if place > 1:
            pairs = zip(a.replicas, finals[0].replicas, strict=True)
            margin = _estimate([r.objective - s.objective for r, s in pairs])
        finalists.append(
            Finalist(
                assessed=a,
                place=place,
                margin=margin,
                margin_interval=None if margin is None else (margin.mean - 0.05, margin.mean + 0.05),
                tied_with_chosen=place == 2,
                doses=_doses(a.protocol),
                findings=(finding.model_copy(update={"protocol": a.key, "rule_id": f"C0{place}"}),),
                survival=_curve(a.log_risk),
                not_evaluable=("cardiac toxicity: left ventricular ejection fraction is not in the record",),
            )
        )
    levels = {a.key: a.objective.mean for a in everything}
    values: dict[str, Any] = {
        "case_id": "demo-0007",
        "blocked": False,
        "blocked_by": (),
        "degraded": False,
        "degraded_reason": None,
        "stopped_early": None,
        "goal": GoalReading(
            text="spare the liver as far as possible",
            names=("spare_liver_function",),
            understood=True,
            weights={"tumour": 1.0, "toxicity": 2.0, "size": 0.0},
            note="Toxicity counts twice.",
            default_choice=finals[1].key,
            changed="With the default goal the same protocol would have been chosen.",
        ),
        "settings": {"strategy": "beam", "drugs": 6, "embolics": 4, "beams": 5, "replicas": 5, "steps": None},
        "session": {"technique": "deb_tace", "superselective": True, "prior_mitomycin_mg": 20.0},
        "before": Before(tumour_ml=57.9, viable_ml=55.1, longest_diameter_mm=48.0, mrecist_mm=48.0, easl_mm2=1809.0),
        "scores": prognostic_scores(
            ClinicalRecord(bilirubin_mg_dl=1.0, albumin_g_dl=4.0, afp_ng_ml=500.0, bclc="B", child_pugh_score=6), 4.8, 2
        ),
        "clinical": clinical_risk(
            ClinicalRecord(afp_ng_ml=800.0, child_pugh_class="B", portal_vein_invasion="branch", tumour_number=2), 0.2
        ),
        "observation": "One hypervascular lesion of 48 mm.\n\n- no portal vein invasion\n- no shunt seen",
        "proposals": (
            PolicyNote(item="Cisplatin", kind="drug", kept=True, reason="platinum backbone"),
            PolicyNote(item="NBCA", kind="embolic", kept=False, reason="for shunts only", rule_id="E07"),
        ),
        "chosen": finalists[0],
        "runners_up": tuple(finalists[1:]),
        "ties": (finals[1].key,),
        "margin": finalists[1].margin,
        "margin_interval": finalists[1].margin_interval,
        "confidence": 0.83,
        "confidence_note": "The interval of the margin includes zero, so the two best protocols can't be told apart.",
        "assessed": tuple(everything),
        "tree": _tree(rng, levels, set(finals[0].protocol.items)),
        "rules": (
            finding.model_copy(
                update={"rule_id": "P03", "message": "Child-Pugh A: no restriction.", "strength": "info"}
            ),
            finding.model_copy(
                update={
                    "rule_id": "P11",
                    "status": "not_evaluable",
                    "message": "Needs the ejection fraction.",
                    "strength": "block",
                }
            ),
            finding.model_copy(update={"rule_id": "E09", "strength": "block", "protocol": "Doxorubicin | PVA"}),
        ),
        "not_evaluable": ("ALBI grade needs bilirubin and albumin of the same day",),
        "not_modelled": ("catheter selectivity", "repeat sessions", "breathing between the scans"),
        "explanation": "It leaves the least viable tumour.\n\n- the lesion is hypervascular\n- liver function is kept",
        "origin": Origin(
            case_origin="synthetic",
            case_note="phantom cohort, seed 7",
            model_origin="synthetic",
            weights_hash="3f9c2ab4",
            policy="guideline",
            policy_is_llm=False,
            simulated_how="1 patch of 64 x 64 x 64 voxels at 1.5 mm",
            baseline_n=612,
            baseline_origin="synthetic",
        ),
        "reproduction": Reproduction(
            command="mewm plan cases/demo --seed 0",
            case_id="demo-0007",
            case_hash="9a" * 32,
            seed=0,
            seeds=SEEDS,
            device="cpu",
            precision="bf16",
            preset="small",
            rules_hash="7c" * 32,
            versions={"mewm": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.2"},
        ),
        "simulations": 214,
        "execution": Execution(
            created="2026-11-20T10:00:00+00:00",
            seconds=41.2,
            seconds_by_node={"simulate": 30.0},
            simulated=214,
            from_cache=12,
        ),
        "artifacts": {"trace": "trace.jsonl", "plan": "plan.json"},
    }
    return Plan(**{**values, **changes})


def blocked_plan(**changes: Any) -> Plan:
    """A plan in which every protocol is blocked."""
    finding = RuleFinding(
        rule_id="P01",
        strength="block",
        status="fired",
        stage="partial",
        message="Child-Pugh C: TACE is contraindicated.",
        source="EASL 2018",
        confidence="V",
    )
    return made_plan(
        **{
            "blocked": True,
            "blocked_by": (finding,),
            "chosen": None,
            "runners_up": (),
            "ties": (),
            "margin": None,
            "margin_interval": None,
            "confidence": None,
            "confidence_note": "",
            "assessed": (),
            "tree": (),
            "rules": (finding,),
            "explanation": "",
            "simulations": 0,
            **changes,
        }
    )


def write_plan_json(plan: Plan, folder: Path) -> Path:
    """`plan.json` in a folder."""
    path = folder / "plan.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    return path
