"""A scripted language model for whole plans: valid answers that follow from what the request says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.nodes import Services
from agent.policy import Metered
from agent.services import make_policy
from agent.settings import PlannerSettings
from agent.state import CaseFacts, Conditions
from models.case import Case
from tests.agent.fake_tools import FakeWorld, fake_services
from tests.agent.loopback import Request, by_schema

TINY = PlannerSettings(
    actions="hcc_tace_seg", drug_horizon=1, embolic_horizon=1, replicas=1, screening_replicas=1, finalists=2,
    finalist_replicas=2,
)  # fmt: skip
"""A plan of five questions: observe, propose, refine, nominate a drug, nominate an embolic agent, explain."""
QUESTIONS = ("Observation", "Proposal", "Refinement", "Nomination", "Nomination", "Explanation")


def feature(name: str, value: str, basis: str, confidence: float = 0.9) -> dict[str, Any]:
    return {"name": name, "value": value, "basis": basis, "confidence": confidence}


def unknown(name: str) -> dict[str, Any]:
    return feature(name, "not evaluable", "not_evaluable", 0.0)


OBSERVATION: dict[str, Any] = {
    "features": [
        feature("size", "31 mm", "measured"),
        feature("number", "one lesion", "measured"),
        feature("location", "right lobe, segment 8", "image", 0.6),
        feature("enhancement", "hypervascular, 40 HU above liver", "measured"),
        unknown("necrosis"),
        feature("capsule", "partial capsule", "image", 0.5),
        unknown("portal_vein"),
        unknown("shunt"),
        feature("burden", "0.9 % of the liver", "measured"),
        unknown("liver_function"),
    ],
    "summary": "A hypervascular lesion of 31 mm in segment 8. Portal vein, shunt and liver function are not evaluable.",
}


def choices(*names: str) -> list[dict[str, str]]:
    return [{"item": name, "reason": "the tumour is hypervascular"} for name in names]


PROPOSAL: dict[str, Any] = {
    "drugs": choices("Doxorubicin", "Cisplatin"),
    "embolics": choices("Lipiodol", "Drug-eluting beads"),
    "reserve_drugs": choices("Mitomycin"),
    "reserve_embolics": [],
}


def data(request: Request, name: str) -> Any:
    """What stands fenced under a name in a request."""
    found = re.search(rf'<data name="{name}">\n(.*?)\n</data>', request.text, re.DOTALL)
    assert found is not None, f"no data named {name}"
    return json.loads(found[1])


def outside_fences(text: str) -> str:
    """The instructions of a request: what is not data."""
    return re.sub(r"<data name=.*?</data>", "", text, flags=re.DOTALL)


def refinement(request: Request) -> dict[str, Any]:
    """Keeps what is allowed and removes the rest by the rule that blocks it."""
    proposal, verdicts = data(request, "proposal"), {v["agent"]: v for v in data(request, "verdicts")}

    def kept(side: str) -> list[dict[str, str]]:
        return [c for c in proposal[side] if verdicts[c["item"]]["allowed"]]

    removed = [
        {"item": c["item"], "rule_id": verdicts[c["item"]]["rules"][0]["rule"], "reason": "a rule blocks it"}
        for side in ("drugs", "embolics")
        for c in proposal[side]
        if not verdicts[c["item"]]["allowed"]
    ]
    return {"drugs": kept("drugs"), "embolics": kept("embolics"), "removed": removed, "cautions": []}


def nomination(request: Request) -> dict[str, Any]:
    """Expands everything that is allowed."""
    beams = data(request, "search")["beams"]
    expand = [{"protocol": b["protocol"], "items": b["allowed"]} for b in beams if b["allowed"]]
    return {"expand": expand, "stop": not expand, "reason": "the simulations decide"}


def explanation(request: Request) -> dict[str, Any]:
    facts = data(request, "plan")
    chosen = facts["chosen"]
    return {
        "text": f"{chosen['protocol']} has the lowest objective of the finalists: {chosen['risk']:+.3f} over "
        f"{chosen['replicas']} replicas. The world model was trained on synthetic data; for research only."
    }


def answers(**instead: Any) -> dict[str, Any]:
    """Valid answers by schema; `instead` replaces some."""
    return {
        "Observation": OBSERVATION,
        "Proposal": PROPOSAL,
        "Refinement": refinement,
        "Nomination": nomination,
        "Explanation": explanation,
        **instead,
    }


def script(**instead: Any) -> Callable[[Request], Any]:
    """The script of a server that answers a whole plan."""
    return by_schema(answers(**instead))


def write_backends(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """A user's backend file."""
    path.write_text(json.dumps({"backends": entries}))  # JSON is YAML
    return path


def llm_services(world: FakeWorld, actions: str = "hcc_tace_seg") -> Callable[..., Services]:
    """Fake tools, and the policy that the run's settings name, made as a real run makes it."""
    fake = fake_services(world, actions=actions)

    def make(run: Any, facts: CaseFacts, stop: threading.Event) -> Services:
        policy = make_policy(run.record.settings, lambda _: Case.load(run.record.case_path))

        def conditions() -> Conditions:
            if isinstance(policy, Metered):
                policy.check_configured()
            return world.conditions()

        return replace(fake(run, facts, stop), policy=policy, command=run.command, conditions=conditions)

    return make
