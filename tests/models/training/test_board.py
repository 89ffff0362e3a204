from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.training.board import FOLDER, Board


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path)
    board.scalars(3, "train", {"loss": 0.5})
    board.scalars(7, "train", {"loss": 0.25})
    picture = np.zeros((4, 6), np.uint8)
    board.picture(7, picture)
    board.close()
    events = EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5), (7, 0.25)]
    assert [(event.step, event.height, event.width) for event in events.Images("samples")] == [(7, 4, 6)]


def test_what_was_written_after_the_checkpoint_is_taken_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last_step, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        board = Board(tmp_path, last_step)
        for step in steps:
            board.scalars(step, "train", {"loss": 10.0 * last_step + step})
        board.close()
        # the next call of a real run starts in another second: its file sorts behind this one
        for place, file in enumerate(sorted((tmp_path / FOLDER).iterdir())):
            file.rename(file.with_name(f"events.out.tfevents.{1_700_000_000 + place}.host.1.0"))
    events = EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]
