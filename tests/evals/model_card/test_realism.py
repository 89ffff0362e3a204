"""Likeness of scans against closed forms and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from scipy import ndimage

from evals.model_card.realism import (
    FEWEST_FOR_FRECHET,
    KERNEL,
    encoder_features,
    frechet,
    masked_ssim,
    summarise_realism,
)
from models.engine import Engine
from models.weights import init_world_model
from tests.models.test_engine import tiny_preset


def cube(seed: int, size: int = 16) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(100, 60, (1, size, size, size)), 1).astype(
        np.float32
    )


def test_ssim_over_everything_is_monais_metric():
    one, other = cube(0), cube(1)
    metric = SSIMMetric(spatial_dims=3, data_range=700.0, win_size=KERNEL)
    expected = float(metric(torch.from_numpy(one)[:, None], torch.from_numpy(other)[:, None]))
    found = masked_ssim(one, other, np.ones(one.shape, bool), 700.0)
    assert found == pytest.approx(expected, abs=1e-5)
    assert masked_ssim(one, one, np.ones(one.shape, bool), 700.0) == pytest.approx(1.0)


def test_ssim_looks_inside_the_mask_only():
    one = cube(0)
    other = one.copy()
    other[:, :, :, 11:] += 300.0
    mask = np.zeros(one.shape, bool)
    mask[:, :, :, :6] = True  # windows reach three voxels further
    assert masked_ssim(one, other, mask, 700.0) == pytest.approx(1.0)
    assert masked_ssim(one, other, ~mask, 700.0) < 0.9


def test_frechet_of_two_gaussians_by_their_closed_form():
    """Independent features: |difference of means|^2 + sum of (difference of standard deviations)^2."""
    rng = np.random.default_rng(0)
    n = 40_000
    one = rng.normal([0.0, 1.0, -2.0], [1.0, 2.0, 0.5], (n, 3))
    other = rng.normal([1.0, 1.0, 0.0], [1.5, 1.0, 0.5], (n, 3))
    assert frechet(one, other) == pytest.approx(1.0 + 4.0 + 0.25 + 1.0, rel=0.02)
    assert frechet(one, one) == pytest.approx(0.0, abs=1e-4)


def test_frechet_of_few_scans_is_no_number():
    few = np.random.default_rng(0).normal(0, 1, (FEWEST_FOR_FRECHET - 1, 3))
    assert np.isnan(frechet(few, few))
    row = {"ssim": 0.5, "wasserstein_hu": 3.0, "mae_hu": 2.0, "features": [0.0, 1.0], "true_features": [1.0, 0.0]}
    found = summarise_realism([row] * 4)
    assert found["frechet_own_encoder"]["value"] is None
    assert found["ssim"]["value"] == 0.5


def test_frechet_has_no_interval_since_resamples_lie_above_it():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (60, 5)), rng.normal(0, 1, (60, 5))
    row = {"ssim": 0.5, "wasserstein_hu": 3.0, "mae_hu": 2.0}
    found = summarise_realism(
        [{**row, "features": x.tolist(), "true_features": y.tolist()} for x, y in zip(one, other, strict=True)]
    )["frechet_own_encoder"]
    assert found == {"value": pytest.approx(frechet(one, other)), "low": None, "high": None, "n": 60}
    drawn = [frechet(one[index], other[index]) for index in rng.integers(0, 60, (200, 60))]
    assert np.quantile(drawn, 0.025) > found["value"]


def test_features_see_the_tumour_and_nothing_else():
    engine = Engine("cpu", model=init_world_model(tiny_preset(), seed=3), precision="fp32", batch=2)
    scans = np.stack([cube(0, 32)[0], cube(0, 32)[0]])
    mask = np.zeros(scans.shape, bool)
    mask[:, 8:16, 8:16, 8:16] = True
    scans[1, 26:] = -100.0  # far from the tumour
    near, far = encoder_features(engine, scans, mask)
    channels = engine.model.preset.autoencoder.latent_channels
    assert near.shape == (5 * channels,)
    np.testing.assert_allclose(near[: 2 * channels], far[: 2 * channels], rtol=0.02, atol=0.02)
    scans[1, 8:16, 8:16, 8:16] = 500.0
    changed = encoder_features(engine, scans, mask)[1]
    assert np.abs(changed - near).max() > 0.01
    # by hand: the weighted mean of the first channel
    latent = engine.model.autoencoder.encode(
        (torch.from_numpy(np.clip(scans[:1], -175, 600)).float()[:, None] + 175) / 387.5 - 1
    )
    inside = latent[0, :, 2:4, 2:4, 2:4].flatten(1).mean(1).detach().numpy()
    np.testing.assert_allclose(near[:channels], inside, atol=2e-2)
