"""Plans on the real engine in a process of its own; a test kills it.

Arguments: log file, number of simulated outcomes before SIGKILL (0: never), folder of a weight bundle ("-": the shipped
one), then the arguments of `mewm`. The log gets one line per outcome that was simulated and stored.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import models.weights
from agent.cli.main import app
from tools.artifacts import Array, ArtifactKind, ArtifactStore, Value


def main() -> None:
    log, kill_after, weights = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if weights != "-":
        models.weights.DEFAULT_WEIGHTS = Path(weights)
    put, made = ArtifactStore.put, 0

    def logged(store: ArtifactStore, kind: ArtifactKind, key: Mapping[str, Value], arrays: Mapping[str, Array]) -> str:
        nonlocal made
        name = put(store, kind, key, arrays)
        if kind == "outcome":
            with log.open("a") as file:
                file.write(f"{name}\n")
            made += 1
            if made == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
        return name

    ArtifactStore.put = logged  # type: ignore[method-assign]
    app(sys.argv[4:])


if __name__ == "__main__":
    main()
