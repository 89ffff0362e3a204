from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.protocol import Protocol
from models.training.contrastive import Combos, change_inside, combo_contrastive_loss

X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_equation_3_by_hand() -> None:
    """Anchor and positive at 60 degrees (cosine 1/2), one negative at 90 (0), temperature 1/2."""
    positive = torch.tensor([[0.5, math.sqrt(0.75)]])
    loss = combo_contrastive_loss(X, positive, Y[:, None], temperature=0.5)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 1.0)), abs=1e-6)
    paper = combo_contrastive_loss(X, positive, Y[:, None], temperature=0.5, paper=True)
    assert float(paper) == pytest.approx(-math.log(math.e / 1.0), abs=1e-6)


def test_it_falls_when_alike_is_near_and_different_is_far_and_has_a_gradient() -> None:
    good = combo_contrastive_loss(X, X, Y[:, None])
    bad = combo_contrastive_loss(X, Y, X[:, None])
    assert float(good) < 1e-5 < float(bad)
    anchor = torch.tensor([[1.0, 0.3]], requires_grad=True)
    combo_contrastive_loss(anchor, X, Y[:, None], temperature=0.5).backward()
    assert anchor.grad is not None
    assert float(anchor.grad[0, 1]) > 0  # a step against it turns towards the positive


def test_change_inside_ignores_what_lies_outside() -> None:
    before, mask = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    mask[..., :2] = 1.0
    after = before.clone()
    after[:, 0, ..., :2] = 3.0
    after[..., 2:] = 99.0
    told = change_inside(after, before, mask)
    torch.testing.assert_close(told[0], torch.tensor([3.0, 0.0, 0.01, 0.01]), rtol=1e-3, atol=1e-4)


def pool() -> Any:
    common, rare = Protocol(drugs=("Cisplatin",)), Protocol(drugs=("Mitomycin",), embolics=("PVA",))
    alone = [Protocol(drugs=("Doxorubicin",), embolics=(e,)) for e in ("PVA", "KMG", "NBCA", "Lipiodol")]
    rows = [[common, alone[0]], [common, alone[1]], [common, rare], [rare, alone[2]], [common, alone[3]]]
    return SimpleNamespace(protocols=rows, train=np.arange(5))


def test_positives_share_the_agents_of_another_patient_and_every_set_is_alike_likely() -> None:
    data = pool()
    combos = Combos(data)
    assert len(combos.classes) == 2
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        pair = combos.draw(rng)
        assert pair is not None
        (a, j), (b, k) = pair
        assert a != b
        assert data.protocols[a][j].items == data.protocols[b][k].items
        drawn.append(len(data.protocols[a][j].items))
    assert np.mean(np.array(drawn) == 2) == pytest.approx(0.5, abs=0.1)  # the rare one too


def test_negatives_are_the_same_patient_under_other_agents() -> None:
    data = pool()
    data.protocols[0] = [data.protocols[0][0], data.protocols[0][0], data.protocols[0][1]]
    combos = Combos(data)
    assert {combos.other(0, 0, np.random.default_rng(seed)) for seed in range(20)} == {2}


def test_a_pool_without_a_repeated_set_has_no_pairs() -> None:
    data = pool()
    data.train = np.array([0])
    assert Combos(data).draw(np.random.default_rng(0)) is None
