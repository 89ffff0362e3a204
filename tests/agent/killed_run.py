"""Runs a plan over fake tools in a process of its own; the tests kill it.

Arguments: case folder, run folder, log file, number of simulations before SIGKILL (0: never), seconds per simulation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import agent.services
from agent.cli import plan as cli
from agent.run import open_run, start_run
from agent.settings import PlannerSettings
from tests.agent.fake_tools import FakeWorld, fake_services


def main() -> None:
    case, folder, log = map(Path, sys.argv[1:4])
    world = FakeWorld(log, kill_after=int(sys.argv[4]) or None, delay=float(sys.argv[5]))
    agent.services.make_services = fake_services(world)
    new = not (folder / "run.json").exists()
    run = start_run(case, folder, PlannerSettings(actions="hcc_tace_seg")) if new else open_run(folder)
    print("started", flush=True)
    try:
        cli.execute(run, as_json=False)
    except cli.typer.Exit as stopped:
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    main()
