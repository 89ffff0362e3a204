from __future__ import annotations

import numpy as np
import pytest
import torch
from sksurv.linear_model import CoxPHSurvivalAnalysis

from models.networks.segmenter import Tissue
from models.training.breslow import breslow_survival
from models.training.losses import (
    cox_efron,
    denoising_loss,
    discrete_hazard_loss,
    gradient_difference,
    paired_effect_loss,
    region_weights,
    weighted_l1,
)
from models.training.segmenter import drawn_loss, found_shares, outline_loss, share_loss, true_shares


def brute_force_efron(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Efron's formula written out, one death time after the other."""
    total = 0.0
    for t in np.unique(time[event]):
        tied = event & (time == t)
        at_risk, dying, d = np.exp(risk[time >= t]).sum(), np.exp(risk[tied]).sum(), int(tied.sum())
        total += risk[tied].sum() - sum(np.log(at_risk - j / d * dying) for j in range(d))
    return -total / event.sum()


@pytest.mark.parametrize("levels", [3, 8, 10_000])
def test_efron_equals_the_formula_with_and_without_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    risk, time, event = rng.normal(size=60), rng.integers(1, levels + 1, 60).astype(float), rng.random(60) < 0.6
    ours = cox_efron(torch.tensor(risk), torch.tensor(time), torch.tensor(event))
    assert float(ours) == pytest.approx(brute_force_efron(risk, time, event), rel=1e-9)


def test_efron_optimum_equals_scikit_survival_on_tied_times() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2))
    time = np.ceil(-np.log(rng.uniform(size=200)) / np.exp(x @ [0.8, -0.5]) * 6)
    event = rng.random(200) < 0.7
    reference = CoxPHSurvivalAnalysis(ties="efron", tol=1e-12).fit(
        x, np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])
    )
    weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = cox_efron(torch.tensor(x) @ weight, torch.tensor(time), torch.tensor(event))
        loss.backward()
        return loss

    optimiser.step(closure)
    np.testing.assert_allclose(weight.detach().numpy(), reference.coef_, atol=1e-5)


def test_efron_ignores_a_common_shift_and_stays_finite_for_large_risks() -> None:
    risk = torch.tensor([0.1, 2.0, -1.0, 0.5])
    time, event = torch.tensor([3.0, 2.0, 2.0, 5.0]), torch.tensor([True, True, True, False])
    torch.testing.assert_close(cox_efron(risk, time, event), cox_efron(risk + 500.0, time, event), rtol=1e-4, atol=1e-5)


def test_efron_without_a_death_is_zero_with_zero_gradient() -> None:
    risk = torch.randn(4, requires_grad=True)
    loss = cox_efron(risk, torch.arange(4.0), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert risk.grad is not None
    assert not risk.grad.any()


def test_breslow_equals_scikit_survival() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 1))
    time, event = np.ceil(rng.exponential(10, 80)), rng.random(80) < 0.6
    outcome = np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])
    model = CoxPHSurvivalAnalysis(ties="breslow").fit(x, outcome)
    expected = model.predict_survival_function(np.zeros((1, 1)))[0]
    grid = expected.x
    np.testing.assert_allclose(breslow_survival(model.predict(x), time, event, grid), expected(grid), rtol=1e-9)


def test_survival_curve_without_covariates_is_nelson_aalen() -> None:
    # two die of four at risk at t=1, one of one at t=3
    curve = breslow_survival(
        np.zeros(4), np.array([1.0, 1.0, 2.0, 3.0]), np.array([1, 1, 0, 1], bool), np.array([0.5, 1, 3])
    )
    np.testing.assert_allclose(curve, np.exp([-0.0, -0.5, -1.5]))


def test_weighted_l1_counts_heavy_voxels_by_hand() -> None:
    target = torch.zeros(1, 1, 1, 1, 2)
    image, weight = torch.tensor([1.0, 3.0]).view_as(target), torch.tensor([1.0, 4.0]).view_as(target)
    assert float(weighted_l1(image, target, weight)) == pytest.approx((1 + 12) / 5)


def test_gradient_difference_sees_blur_but_not_offset() -> None:
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., 2:] = 1.0
    weight = torch.ones_like(target)
    assert float(gradient_difference(target + 0.3, target, weight)) == pytest.approx(0.0, abs=1e-6)
    assert float(gradient_difference(torch.full_like(target, 0.5), target, weight)) > 0.1


def test_denoising_loss_counts_each_sample_alike_however_small_its_tumour() -> None:
    region = torch.zeros(2, 1, 8, 8, 8)
    region[0, :, :1, :1, :1] = 1
    region[1] = 1
    target = torch.zeros(2, 3, 8, 8, 8)
    assert float(denoising_loss(target + 2.0, target, region, outside=0.0)) == pytest.approx(4.0)


def test_denoising_loss_counts_the_rest_by_its_weight() -> None:
    """Equation (2) by hand: errors of 1 and 3 in the tumour, 2 and 4 elsewhere, which counts a tenth."""
    region = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    error = torch.tensor([1.0, 3.0, 2.0, 4.0]).view(1, 1, 1, 1, 4)
    found = denoising_loss(error, torch.zeros_like(error), region, outside=0.1)
    assert float(found) == pytest.approx((1 + 9) / 2 + 0.1 * (4 + 16) / 2)


def test_paired_loss_only_sees_the_difference_between_protocols() -> None:
    region = torch.ones(4, 1, 4, 4, 4)
    target = torch.randn(4, 2, 4, 4, 4)
    common = torch.randn(2, 2, 4, 4, 4).repeat_interleave(2, dim=0)
    assert float(paired_effect_loss(target + common, target, region)) == pytest.approx(0.0, abs=1e-9)
    one_sided = target.clone()
    one_sided[0] += 1.0
    assert float(paired_effect_loss(one_sided, target, region)) == pytest.approx(0.25)  # half of 1, over two pairs


def test_region_has_full_weight_inside_half_around_none_far_away() -> None:
    mask = torch.zeros(1, 1, 8, 8, 8)
    mask[..., 4, 4, 4] = 1.0
    weight = region_weights(mask)
    assert float(weight[..., 4, 4, 4]) == 1.0
    assert float(weight[..., 4, 4, 5]) == 0.5
    assert float(weight[..., 0, 0, 0]) == 0.0


def test_share_loss_is_the_squared_error_of_the_share_inside_the_mask() -> None:
    logits = torch.full((2, 5, 2, 2, 2), -30.0)
    logits[:, Tissue.VIABLE, 0] = 30.0  # both samples: half of the cube is viable for sure
    logits[:, Tissue.LIVER, 1] = 30.0
    labels = torch.full((2, 2, 2, 2), int(Tissue.LIVER))
    labels[0, 0, 0] = Tissue.VIABLE  # a quarter of the cube, half of the first mask
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[0, 0] = True  # found 1, true 1/2

    def loss() -> float:
        return share_loss(found_shares(logits, mask, 1.0), true_shares(labels, mask)).item()

    assert loss() == pytest.approx(0.5 * 0.25)  # no mask, no error
    mask[1] = True  # found 1/2, true 0
    assert loss() == pytest.approx(0.5 * (0.25 + 0.25))


def test_sharpness_counts_the_most_likely_class_and_dead_tissue_counts_half() -> None:
    logits = torch.zeros(1, 5, 1, 1, 2)
    logits[0, Tissue.NECROTIC, 0, 0, 0] = 1.0
    logits[0, Tissue.OIL, 0, 0, 1] = 1.0
    mask = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    torch.testing.assert_close(found_shares(logits, mask, 50.0), torch.tensor([[0.0, 0.5, 0.5]]))
    soft = np.e / (np.e + 4)  # of the class that leads by 1, beside four others
    assert found_shares(logits, mask, 1.0)[0, 1].item() == pytest.approx((soft + 1 / (np.e + 4)) / 2)
    none = torch.zeros(1, 3)
    assert share_loss(none, torch.tensor([[0.2, 0.0, 0.0]])).item() == pytest.approx(0.04)
    assert share_loss(none, torch.tensor([[0.0, 0.2, 0.2]])).item() == pytest.approx(0.04)


def test_outline_loss_counts_scans_alike_and_asks_for_no_tissue() -> None:
    """One of two voxels of a small tumour found, and all of a large one, as another tissue: 1 - Dice by hand."""
    labels = torch.ones(2, 4, 4, 4, dtype=torch.int64)
    labels[0, 0, 0, :2] = int(Tissue.NECROTIC)
    labels[1, 2:] = int(Tissue.OIL)
    found = torch.ones(2, 4, 4, 4, dtype=torch.int64)
    found[0, 0, 0, 0] = int(Tissue.VIABLE)
    found[1, 2:] = int(Tissue.VIABLE)
    logits = 50.0 * torch.nn.functional.one_hot(found, len(Tissue)).movedim(-1, 1).float()
    small = 1 - (2 * 1 + 1) / (1 + 2 + 1)  # one voxel is added above and below
    assert outline_loss(logits, labels).item() == pytest.approx(small / 2)
    assert outline_loss(logits[1:], labels[1:]).item() == pytest.approx(0.0, abs=1e-6)


def test_drawn_loss_by_hand() -> None:
    meant = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.0, 0.0]])
    found = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]])  # right on average, no difference between the two
    assert drawn_loss(found, meant).item() == pytest.approx(0.04 + 0.16)
    assert drawn_loss(meant, meant).item() == 0.0


def test_discrete_hazard_by_hand_and_censored_patients_are_not_dead() -> None:
    logits = torch.zeros(3, 2)  # half die in each interval
    time, event = torch.tensor([3.0, 8.0, 20.0]), torch.tensor([True, False, True])
    # death in the first; censored in the second, having survived the first; outlived both
    expected = np.log(2.0) * (1 + 1 + 2) / 3
    assert float(discrete_hazard_loss(logits, time, event, (6.0, 12.0))) == pytest.approx(expected)
    surer = torch.tensor([[0.0, 0.0], [-9.0, 9.0], [0.0, 0.0]])  # the censored one dies later, it says
    less = float(discrete_hazard_loss(surer, time, event, (6.0, 12.0)))
    assert less == pytest.approx(np.log(2.0) * (1 + 2) / 3, abs=1e-3)  # it costs nothing


def test_discrete_hazard_is_best_at_the_life_table() -> None:
    rng = np.random.default_rng(3)
    time, event = rng.exponential(12, 500), rng.random(500) < 0.7
    edges = (4.0, 9.0, 20.0)
    logits = torch.zeros(1, 3, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=80)
    months, died = torch.tensor(time, dtype=torch.float32), torch.tensor(event)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = discrete_hazard_loss(logits.expand(500, -1), months, died, edges)
        loss.backward()
        return loss

    optimiser.step(closure)
    for place, (start, end) in enumerate(zip((0.0, *edges), edges, strict=False)):
        deaths = int((event & (time >= start) & (time < end)).sum())
        table = deaths / (deaths + int((time >= end).sum()))
        assert torch.sigmoid(logits[0, place]).item() == pytest.approx(table, abs=2e-3)
