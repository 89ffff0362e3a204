"""Evaluate: measures a bundle of weights on unseen synthetic patients and writes its card (`mewm evaluate-models`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from evals.model_card.blocks import BLOCKS, Row, Sizes, seeds_of, summarise
from evals.model_card.collect import Measure, collect, folder_of
from evals.model_card.render_card import render_card
from evals.model_card.scene import BATCH
from evals.model_card.targets import judge, targets
from models.engine import Device, Engine
from models.errors import InputError
from models.phantom.version import parameters, phantom_hash
from models.weights import DEFAULT_WEIGHTS, read_manifest

FORMAT = 9
"""Of the kept rows: raise it when what is measured on a patient changes."""
Progress = Callable[[str, int, int], None]
"""Called with (block, done, wanted)."""


@dataclass(frozen=True)
class BuildMeasure:
    """Loads the networks in the process that measures."""

    block: str
    weights: Path
    device: Device
    sizes: Sizes

    def __call__(self) -> Measure:
        """The measure of one patient of the block."""
        engine = Engine(self.device, self.weights, batch=BATCH)
        return partial(_measure_with, self.block, engine, self.sizes)


def _measure_with(block: str, engine: Engine, sizes: Sizes, seed: int) -> Row:
    return BLOCKS[block](seed, engine, sizes)


def evaluate_models(
    sizes: Sizes,
    out: Path | None,
    work: Path,
    *,
    weights: Path = DEFAULT_WEIGHTS,
    device: Device = "auto",
    workers: int = 1,
    progress: Progress | None = None,
    extra: Mapping[str, Any] | None = None,
    command: str = "mewm evaluate-models",
) -> dict[str, Any]:
    """Measure a bundle and write `model_card.json` and `MODEL_CARD.md`.

    Args:
        sizes: How much is measured.
        out: Folder of the card; None writes nothing.
        work: Folder of the patients' files; an interrupted evaluation goes on there. Results of other weights, another
            phantom or other sizes of a patient lie apart.
        weights: Folder of the bundle.
        device: Where the networks run.
        workers: Processes.
        progress: Called as patients are done.
        extra: Figures of other commands by group, as `planning`, `table`, `simulators`, `real_patient`.
        command: What reproduces the card.

    Returns:
        The content of `model_card.json`.

    Raises:
        WeightsError: weights missing or damaged.
        InputError: a result in `extra` is of other weights or of another phantom.
        RunError: `work` can't be written.
    """
    manifest = read_manifest(weights)
    engine = Engine(device, weights, batch=BATCH)
    _check_extra(extra or {}, engine)
    conditions = {
        "format": FORMAT, "weights": engine.weights_hash, "phantom": phantom_hash(), "device": engine.device,
        "precision": engine.precision, "batch": engine.batch,
        "sizes": sizes.model_dump(exclude={"patients", "survival_patients", "tumour_free"}),
    }  # fmt: skip
    folder = folder_of(work, conditions)
    rows: dict[str, list[Row]] = {}
    for block in BLOCKS:
        report = None if progress is None else partial(progress, block)
        build = BuildMeasure(block, weights, device, sizes)
        rows[block] = collect(folder / block, seeds_of(block, sizes), build, workers, report)
    card: dict[str, Any] = {
        "format": FORMAT,
        "weights": json.loads(manifest.model_dump_json()),
        "weights_hash": engine.weights_hash,
        "data": {
            "origin": "synthetic", "phantom_version": parameters()["version"], "phantom_hash": phantom_hash(),
            "seeds": {block: [seeds_of(block, sizes).start, seeds_of(block, sizes).stop - 1] for block in BLOCKS},
        },
        "sizes": sizes.model_dump(),
        "conditions": {"device": engine.device, "precision": engine.precision, "batch": engine.batch},
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        **summarise(rows, engine),
        # by which anybody can check in a minute that the card is reproduced
        "first_rows": {block: rows[block][0] for block in BLOCKS},
        **(extra or {}),
    }  # fmt: skip
    card["targets"] = {"source": targets().source, "rows": judge(card)}
    if out is not None:
        write_card(card, out)
    return card


def _check_extra(extra: Mapping[str, Any], engine: Engine) -> None:
    for group, content in extra.items():
        made_on = {"weights": engine.weights_hash, "phantom": phantom_hash()}
        for name, wanted in made_on.items():
            if content.get(name, wanted) != wanted:
                raise InputError(
                    f"The {group} result was measured with {name} {content[name]}, but the card is about {wanted}; run "
                    f"its command again, or leave --{group} out."
                )


def write_card(card: Mapping[str, Any], out: Path) -> None:
    """Write both files of the card."""
    (out / "model_card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(render_card(card), encoding="utf-8")
