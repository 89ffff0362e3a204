from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import InputError
from models.training.loop import FINAL
from models.training.parts import absent_for_simulations, choose_device


@pytest.mark.parametrize(("rank", "gpu"), [(None, 0), ("0", 0), ("1", 1), ("3", 1)])
def test_every_process_of_torchrun_takes_a_gpu_of_its_own(
    rank: str | None, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    assert taken == [gpu, gpu]
    assert choose_device("cpu") == "cpu"


def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    for name in ("cuda", "tpu"):
        with pytest.raises(InputError, match=name):
            choose_device(name)


def test_what_is_not_trained_yet_is_named(tmp_path: Path) -> None:
    assert absent_for_simulations("autoencoder", tmp_path) == absent_for_simulations("denoiser", tmp_path) == ()
    assert absent_for_simulations("survival", tmp_path) == ("denoiser", "segmenter")
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser" / FINAL).touch()
    assert absent_for_simulations("segmenter", tmp_path) == ()
    assert absent_for_simulations("survival", tmp_path) == ("segmenter",)
