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
