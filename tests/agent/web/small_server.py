"""The workbench on a small untrained bundle and small cases: real tools, tables and pictures in seconds.

python -m tests.agent.web.small_server WORK_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import models.weights
from agent.cli import serve
from agent.settings import PlannerSettings
from models.weights import PARTS, init_world_model, save_world_model
from tests.agent.fake_chat import RECORD
from tests.agent.fake_tools import make_case
from tests.tools.conftest import tiny_preset

SETTINGS = PlannerSettings(
    actions="hcc_tace_seg", drugs=2, embolics=1, drug_horizon=1, embolic_horizon=1, beams=2, replicas=1,
    screening_replicas=1, finalists=2, finalist_replicas=2, budget=24, steps=1, device="cpu",
    approve_actions=True, approve_plan=True,
)  # fmt: skip


def write_small(folder: Path, name: str = "demo") -> None:
    """A small case with a clinical record."""
    make_case(folder, name)
    content = json.loads((folder / "case.json").read_text())
    content["record"] = RECORD.known()
    (folder / "case.json").write_text(json.dumps(content))


def main(work: Path) -> None:
    """Serve until terminated."""
    weights = work / "weights"
    model = init_world_model(tiny_preset(), seed=5)
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, weights, origin="untrained", provenance={"command": "a test"})
    models.weights.DEFAULT_WEIGHTS = weights
    serve.write_demo = write_small
    app = serve.workbench(work / "served", None, SETTINGS, serve.LOOPBACK)
    listening = serve.listen("127.0.0.1", 0)
    print(f"http://localhost:{listening.getsockname()[1]}", flush=True)
    serve.run(app, listening)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
