"""A small evaluation in a process of its own that a test can kill: FOLDER LOGS KILL_AFTER [DELAY]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from evals.runner import run_evaluation
from evals.solver import PlannerAgent, shared
from models.errors import RunStopped
from tests.agent.fake_tools import FakeWorld, fake_services
from tests.evals.fake_dataset import SETTINGS, dataset, spec
from tests.evals.test_runner import baselines


def main(folder: str, logs: str, kill_after: str, delay: str = "0") -> int:
    """Kills itself after so many simulations over all cases; 0 never."""
    left = [int(kill_after)]
    root = Path(logs)
    root.mkdir(parents=True, exist_ok=True)

    class Mortal(FakeWorld):
        def simulate_tumor(self, **arguments):  # type: ignore[no-untyped-def]
            result = super().simulate_tumor(**arguments)
            left[0] -= len(result.outcomes)
            if int(kill_after) and left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    def make(run, facts, stop):  # type: ignore[no-untyped-def]
        world = Mortal(root / f"{facts.case_id}.log", delay=float(delay))
        return fake_services(world)(run, facts, stop)

    data = dataset(4)
    try:
        run_evaluation(Path(folder), spec(data), data, PlannerAgent(SETTINGS, shared(make)), baselines)
    except (RunStopped, KeyboardInterrupt):
        sys.stderr.write(f"Stopped; go on with: mewm eval resume {folder}\n")
        return RunStopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
