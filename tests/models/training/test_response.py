from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.networks.response_head import ResponseHead
from models.networks.tumour_profile import PROFILE_SIZE
from models.training.response import ResponseData, shares_of, train_response, tumour_shares
from tests.models.training.conftest import FakePool


def head() -> ResponseHead:
    torch.manual_seed(1)
    return ResponseHead(latent_channels=4, reading="profile")


def data_of(pool: Any) -> ResponseData:
    patients = len(pool.pre)
    profiles = torch.randn(patients, PROFILE_SIZE, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(patients, 1, 1, 1, 1)
    return ResponseData(pool, tumour_shares(pool), profiles, empty, empty, torch.zeros(patients))


def test_shares_by_hand() -> None:
    labels = np.array([2, 2, 3, 4, 1, 0, 2, 2], np.uint8)
    tumour = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    np.testing.assert_allclose(shares_of(labels, tumour), [3 / 7, 1 / 7, 1 / 7, 2 / 7], atol=1e-6)
    np.testing.assert_allclose(shares_of(labels, np.zeros(8, bool)), [0, 0, 0, 1])


def test_the_head_learns_what_the_agents_do_and_is_loaded_the_second_time(pool: FakePool, tmp_path: Path) -> None:
    data = data_of(pool)
    network = head()
    train_response(network, data, 150, 0, tmp_path / "response.safetensors", "run")
    with torch.no_grad():
        told = data.recovered(network, pool.val)
    assert told["share_viable_r"] > 0.95
    assert 0.7 < told["share_viable_slope"] < 1.3
    again = head()
    stamp = (tmp_path / "response.safetensors").stat().st_mtime_ns
    train_response(again, data, 150, 0, tmp_path / "response.safetensors", "run")
    assert (tmp_path / "response.safetensors").stat().st_mtime_ns == stamp
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    train_response(head(), data, 1, 0, tmp_path / "response.safetensors", "another")
    assert (tmp_path / "response.safetensors").stat().st_mtime_ns != stamp


def test_training_is_reproducible_and_leaves_the_random_state(pool: FakePool, tmp_path: Path) -> None:
    data = data_of(pool)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    start = head().state_dict()
    for name in ("a", "b"):
        network = head()
        network.load_state_dict(start)
        torch.set_rng_state(before)
        train_response(network, data, 12, 4, tmp_path / f"{name}.safetensors", "run")
        assert torch.equal(torch.get_rng_state(), before)
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_further_protocols_of_a_synthetic_pool_are_learned_too(pool: FakePool, tmp_path: Path) -> None:
    """PVA plus Lipiodol vacates everything, which only the further protocols say."""
    patients = len(pool.pre)
    more: Any = replace(pool)
    more.more_actions = np.array(pool.actions)[:, [2]]
    more.more_shares = np.tile(np.array([0, 0, 0, 1.0], np.float32), (patients, 1, 1))
    data = data_of(more)
    assert data.action.shape[1] == data.shares.shape[1] == 5
    network = head()
    train_response(network, data, 150, 0, tmp_path / "response.safetensors", "run")
    with torch.no_grad():
        told = data.predict(network, pool.val)
    # half of what it saw of this protocol was rendered (nothing vacated), half was all vacated
    assert float(told[:, 2, 3].mean()) == pytest.approx(0.5, abs=0.2)
    assert float(told[:, 0, 3].mean()) < 0.1


def test_the_error_of_whole_patients_is_told_apart_from_that_of_protocols(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patients whose logits lie 0.4 above and 0.2 below the prediction, with protocols around that."""
    data = data_of(pool)
    patients = np.array([0, 1])
    around = np.linspace(-0.3, 0.3, data.shares.shape[1])
    viable = torch.from_numpy(1.0 / (1.0 + np.exp(-(np.array([[0.4], [-0.2]]) + around)))).float()
    data.shares[patients] = torch.stack([viable, *[(1.0 - viable) / 3.0] * 3], dim=2)
    half = torch.tensor([0.5, 0.2, 0.2, 0.1]).expand(2, data.shares.shape[1], 4)
    monkeypatch.setattr(data, "predict", lambda *_: half)
    assert data.recovered(head(), patients)["share_viable_error"] == pytest.approx(0.3, abs=1e-4)
