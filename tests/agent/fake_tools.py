"""Fake registered tools: a scripted risk table in place of the world model, with the real tools' result types.

What was "simulated" is kept in a log file, so that a test sees across processes that nothing was simulated twice, and
can kill the process after a given number of simulations.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.guideline import GuidelinePolicy
from agent.nodes import Services
from agent.policy import Policy
from agent.search import parse_key
from agent.state import CaseFacts, Conditions
from models.case import ImageMeta, write_case
from models.clinical_record import ClinicalRecord
from models.clinical_survival import clinical_risk
from models.errors import TransientToolError
from models.formulary import Formulary
from models.scores import prognostic_scores
from models.toxicity import ToxicityPart
from models.volume import Volume
from tests.agent.scripted import ScriptedRisk, unit
from tools.describe_case import CaseDescription
from tools.measure_response import MeasureResponseResult, Response
from tools.rulebook import CheckRulesResult, Finding, ProtocolVerdict
from tools.segment import Segmentation, SegmentResult
from tools.simulate_tumor import Outcome, SimulateTumorResult
from tools.survival_risk import RiskEstimate, SurvivalRiskResult

Judge = Callable[[Sequence[str], bool], Mapping[str, str]]
RECORD = ClinicalRecord(afp_ng_ml=800.0, child_pugh_class="B", portal_vein_invasion="branch", tumour_number=2)
TIMES = tuple(float(t) for t in range(0, 61, 6))


def nothing_blocked(keys: Sequence[str], complete: bool) -> Mapping[str, str]:
    return {}


def outcome_id(key: str, seed: int) -> str:
    return "outcome-" + hashlib.sha256(f"{key}/{seed}".encode()).hexdigest()[:20]


class FakeTool:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.calls: list[dict[str, Any]] = []

    def call(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        return self.function(**arguments)


class FakeWorld:
    """Tools over a scripted risk; `log` holds one line per simulated outcome."""

    def __init__(
        self,
        log: Path,
        seed: int = 0,
        judge: Judge = nothing_blocked,
        patient_block: str | None = None,
        kill_after: int | None = None,
        fail_once: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.log = log
        self.risk = ScriptedRisk(seed, own_noise=0.3, shared_noise=1.0)
        self.judge = judge
        self.patient_block = patient_block
        self.kill_after = kill_after
        self.fail_once = fail_once
        self.delay = delay
        self.goes_on = threading.Event()
        """Unset: every simulation waits for it."""
        self.goes_on.set()
        self.weights_hash = "fakeweights"
        self.listener: Callable[[str, int, int], None] | None = None
        self.ids: dict[str, tuple[str, int]] = {}
        self.made = 0
        functions = (
            self.describe_case,
            self.check_rules,
            self.simulate_tumor,
            self.segment,
            self.survival_risk,
            self.measure_response,
        )
        self.tools = {f.__name__: FakeTool(f.__name__, f) for f in functions}

    def simulated(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def conditions(self) -> Conditions:
        return Conditions(
            weights_hash=self.weights_hash, preset="fake", precision="fp32", device="cpu", rules_hash="f" * 64
        )

    def listen(self, listener: Callable[[str, int, int], None] | None) -> None:
        self.listener = listener

    def describe_case(self, case_id: str) -> CaseDescription:
        return CaseDescription(
            case_id=case_id,
            origin="synthetic",
            origin_note="made for a test",
            content_hash="0" * 64,
            image="pre_arterial",
            phase="arterial",
            phases=("arterial",),
            shape=(24, 24, 24),
            spacing_mm=(2.0, 2.0, 2.0),
            lesion_count=1,
            lesion_ml=(12.0,),
            specks=0,
            largest_diameter_mm=31.0,
            tumour_ml=12.0,
            liver_ml=1400.0,
            aorta_hu=280.0,
            liver_hu=100.0,
            tumour_hu=140.0,
            contrast_hu=40.0,
            heterogeneity_hu=15.0,
            hypodense_fraction=0.05,
            record={},
            scores=prognostic_scores(ClinicalRecord(bclc="B"), 3.1, 1),
        )

    def check_rules(
        self,
        case_id: str,
        protocols: list[str],
        profile: str,
        strict: bool,
        stage: str,
        session: dict[str, Any] | None = None,
    ) -> CheckRulesResult:
        reasons = self.judge(protocols, stage == "complete")
        patient = ()
        if self.patient_block:
            patient = (finding("fake-patient", self.patient_block, "patient", stage),)
        verdicts = []
        for key in protocols:
            fired = (finding("fake-protocol", reasons[key], "protocol", stage),) if key in reasons else ()
            verdicts.append(ProtocolVerdict(protocol=key, allowed=not fired and not patient, findings=fired))
        return CheckRulesResult(
            case_id=case_id,
            profile=profile,
            strict=strict,
            stage=stage,
            rules_version="fake",
            rules_hash="f" * 64,
            patient_allowed=not patient,
            patient=patient,
            verdicts=tuple(verdicts),
        )

    def simulate_tumor(
        self,
        case_id: str,
        protocols: list[str],
        seeds: list[int],
        steps: int | None,
        last_comparison: bool,
    ) -> SimulateTumorResult:
        if self.fail_once:
            self.fail_once = False
            raise TransientToolError("The device ran out of memory.")
        there = set(self.simulated())
        outcomes, fresh, total = [], 0, len(protocols) * len(seeds)
        for key in protocols:
            for seed in seeds:
                name = outcome_id(key, seed)
                line = f"{key}\t{seed}"
                if line not in there:
                    with self.log.open("a") as file:
                        file.write(line + "\n")
                    fresh += 1
                    self.made += 1
                    time.sleep(self.delay)
                    assert self.goes_on.wait(120)
                    if self.kill_after is not None and self.made >= self.kill_after:
                        os.kill(os.getpid(), signal.SIGKILL)
                self.ids[name] = (key, seed)
                outcomes.append(
                    Outcome(outcome_id=name, protocol=key, seed=seed, steps=steps or 4, patches=1, cached=line in there)
                )
                if self.listener is not None:
                    self.listener("simulate_tumor", len(outcomes), total)
        return SimulateTumorResult(
            case_id=case_id,
            outcomes=tuple(outcomes),
            simulated=fresh,
            from_cache=total - fresh,
            seconds=0.0,
            weights_hash="fakeweights",
            origin="synthetic",
            how="1 patch at 1.5 mm",
        )

    def segment(self, outcome_ids: list[str]) -> SegmentResult:
        return SegmentResult(
            segmentations=tuple(
                Segmentation(
                    outcome_id=name,
                    segmentation_id=name.replace("outcome", "segmentation"),
                    liver_ml=1400.0,
                    viable_ml=4.0,
                    necrotic_ml=6.0,
                    oil_ml=2.0,
                    cached=False,
                )
                for name in outcome_ids
            ),
            segmented=len(outcome_ids),
            from_cache=0,
            weights_hash="fakeweights",
            origin="synthetic",
        )

    def lookup(self, segmentation_id: str) -> tuple[str, str, int]:
        """Outcome id, key, seed: also for outcomes of a process that is gone."""
        name = segmentation_id.replace("segmentation", "outcome")
        if name not in self.ids:
            for line in self.simulated():
                key, seed = line.split("\t")
                self.ids[outcome_id(key, int(seed))] = (key, int(seed))
        return (name, *self.ids[name])

    def survival_risk(self, case_id: str, segmentation_ids: list[str]) -> SurvivalRiskResult:
        estimates = []
        for segmentation_id in segmentation_ids:
            name, key, seed = self.lookup(segmentation_id)
            toxicity = round(sum(0.3 * unit("toxicity", drug) for drug in parse_key(key).drugs), 6)
            tumour = self.risk.value(key, seed)
            parts = tuple(
                ToxicityPart(item=drug, log_hazard=0.3 * unit("toxicity", drug), organ="heart", reasons=("scripted",))
                for drug in parse_key(key).drugs
            )
            estimates.append(
                RiskEstimate(
                    outcome_id=name,
                    segmentation_id=segmentation_id,
                    protocol=key,
                    seed=seed,
                    log_risk=tumour + toxicity,
                    tumour_log_risk=tumour,
                    toxicity_log_risk=toxicity,
                    toxicity_parts=parts,
                    not_evaluable=("bilirubin is not stated",),
                    median_survival_months=None,
                )
            )
        return SurvivalRiskResult(
            case_id=case_id,
            estimates=tuple(estimates),
            times_months=TIMES,
            baseline=tuple(0.97 ** (t / 2) for t in TIMES),
            baseline_n=100,
            baseline_origin="synthetic",
            weights_hash="fakeweights",
            origin="synthetic",
            clinical=clinical_risk(RECORD, 0.2),
        )

    def measure_response(self, case_id: str, segmentation_ids: list[str]) -> MeasureResponseResult:
        responses = []
        for segmentation_id in segmentation_ids:
            name, key, seed = self.lookup(segmentation_id)
            change = -100.0 * unit("change", key, seed)
            responses.append(
                Response(
                    outcome_id=name,
                    segmentation_id=segmentation_id,
                    protocol=key,
                    seed=seed,
                    tumour_before_ml=12.0,
                    viable_before_ml=11.0,
                    viable_ml=11.0 * (1 + change / 100),
                    necrotic_before_fraction=0.05,
                    necrotic_fraction=0.4,
                    oil_fraction=0.1,
                    longest_diameter_before_mm=31.0,
                    recist_before_mm=31.0,
                    recist_mm=30.0,
                    mrecist_before_mm=31.0,
                    mrecist_mm=31.0 * (1 + change / 100),
                    mrecist_change_percent=change,
                    mrecist_category="PR" if change <= -30 else "SD",
                    easl_before_mm2=700.0,
                    easl_mm2=700.0 * (1 + change / 100),
                    easl_change_percent=change,
                    easl_category="PR" if change <= -50 else "SD",
                    oil_confounded=False,
                    lesions=(),
                )
            )
        return MeasureResponseResult(
            case_id=case_id, responses=tuple(responses), sources=("scripted",), origin="synthetic"
        )


def finding(rule_id: str, message: str, scope: str, stage: str) -> Finding:
    return Finding(
        rule_id=rule_id,
        scope=scope,
        strength="block",
        status="fired",
        stage=stage,
        message=message,
        source="a test",
        confidence="B",
    )


def fake_services(
    world: FakeWorld, policy: Policy | None = None, actions: str = "hcc_tace_seg", command: str = "mewm plan case"
) -> Callable[..., Services]:
    """A services factory as `Run.execute` wants it."""

    def make(run: Any, facts: CaseFacts, stop: threading.Event) -> Services:
        embedded = GuidelinePolicy()
        return Services(
            tools=world.tools,
            policy=policy or embedded,
            fallback=embedded,
            formulary=Formulary.load(actions),
            case=lambda case_id: facts,
            conditions=world.conditions,
            publish=lambda plan: {"report": "report.html"},
            command=command,
            listen=world.listen,
            stop=stop,
        )

    return make


def make_case(folder: Path, case_id: str = "tiny") -> Path:
    """A case folder with a small CT: a ball of tumour in a ball of liver."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")) - 12
    radius = np.sqrt((grid**2).sum(axis=0))
    hu = np.where(radius < 10, 100, -900).astype(np.int16)
    labels = np.where(radius < 4, 2, np.where(radius < 10, 1, 0)).astype(np.uint8)
    hu[labels == 2] = 140
    volume = Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    image = ImageMeta("pre_arterial", "pre", "arterial")
    write_case(folder, case_id, "synthetic", "made for a test", {image: volume}, labels)
    return folder
