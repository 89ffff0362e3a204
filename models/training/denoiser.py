"""Trains the denoiser on latents: rectified flow, the same patient and noise under two protocols in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.action import HashedTextEncoder, text_vector
from models.networks.autoencoder import Autoencoder
from models.networks.denoiser import Denoiser, sample
from models.networks.preset import Preset
from models.networks.response_head import SHARES
from models.networks.segmenter import Tissue
from models.training.latents import Latents, compute_latents
from models.training.loop import Budget, Cadence, RunResult, run_training
from models.training.losses import flow_loss, paired_effect_loss, region_weights
from models.training.pictures import mosaic
from models.training.pool import Pool, hu_to_unit

VALIDATION_PATIENTS = 12
OIL_HU = 200.0  # above this inside the original tumour counts as Lipiodol
LOW_HU = 60.0  # below this inside the original tumour counts as dead tissue without contrast
UNIFORM_SHARE = (
    0.25  # share of times drawn uniformly: the first Euler step starts at t = 0, which logit-normal rarely draws
)


def draw_times(rng: np.random.Generator, count: int) -> Tensor:
    """Times in (0, 1): logit-normal (Esser et al. 2024), a quarter uniform."""
    logit = 1.0 / (1.0 + np.exp(-rng.standard_normal(count)))
    times = np.where(rng.random(count) < UNIFORM_SHARE, rng.random(count), logit)
    return torch.from_numpy(times.astype(np.float32))


def effect_slope(true: npt.NDArray[np.float64], simulated: npt.NDArray[np.float64]) -> tuple[float, float]:
    """How much of the *within-patient* effect of the protocol is recovered.

    Args:
        true: (patients, protocols) of a measure.
        simulated: the same measure on simulated scans.

    Returns:
        Slope of simulated on true deviations from the patient's mean (1 is full amplitude, 0 none), and their
        correlation.
    """
    x = (true - true.mean(1, keepdims=True)).ravel()
    y = (simulated - simulated.mean(1, keepdims=True)).ravel()
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    return (xy / xx if xx > 0 else 0.0), (float(xy / np.sqrt(xx * yy)) if xx * yy > 0 else 0.0)


def tumour_shares(pool: Pool) -> Tensor:
    """How each original tumour was divided after each protocol: (P, K, 4), `SHARES` summing to 1."""
    patients, protocols = pool.post_labels.shape[:2]
    out = np.zeros((patients, protocols, len(SHARES)), dtype=np.float32)
    for patient in range(patients):
        inside = np.asarray(pool.tumour_mask[patient]) > 0
        for protocol in range(protocols):
            labels = np.asarray(pool.post_labels[patient, protocol])[inside]
            measured = [float((labels == tissue).mean()) for tissue in (Tissue.VIABLE, Tissue.NECROTIC, Tissue.OIL)]
            out[patient, protocol] = [*measured, 1.0 - sum(measured)]
    return torch.from_numpy(out)


class DenoiserTask:
    """Flow loss in and around the tumour + paired difference between two protocols + the response head's loss."""

    def __init__(self, pool: Pool, preset: Preset, latents: Latents, autoencoder: Autoencoder) -> None:
        """Build the network from the global random state."""
        self.pool = pool
        self.preset = preset
        self.latents = latents
        self.autoencoder = autoencoder
        self.training = preset.training.denoiser
        self.options = self.training.options
        self.network = Denoiser(preset.denoiser, preset.autoencoder.latent_channels)
        encoder = HashedTextEncoder(preset.denoiser.text_dim)
        self.text = torch.from_numpy(np.stack([[text_vector(p, encoder) for p in row] for row in pool.protocols]))
        self.action = torch.from_numpy(np.array(pool.actions, dtype=np.float32))
        self.shares = tumour_shares(pool)
        self.log2_spacing = torch.log2(torch.from_numpy(np.array(pool.spacing_mm, dtype=np.float32)) / 1.5)

    def _latents(self, which: str, *index: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.asarray(getattr(self.latents, which)[tuple(index)], dtype=np.float32))

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`. Samples 2i and 2i+1 are one patient under two protocols."""
        pairs = max(1, self.training.batch // 2)
        patients = np.repeat(rng.choice(self.pool.train, size=pairs), 2)
        protocols = np.concatenate([rng.choice(self.pool.post.shape[1], size=2, replace=False) for _ in range(pairs)])
        z_pre, mask = self._latents("pre", patients), self._latents("mask", patients)
        z_post = self._latents("post", patients, protocols)
        seed = int(rng.integers(2**62))
        noise = torch.randn(pairs, *z_post.shape[1:], generator=torch.Generator().manual_seed(seed)).repeat_interleave(
            2, dim=0
        )
        t = draw_times(rng, pairs).repeat_interleave(2)
        keep = torch.from_numpy(rng.random(pairs) >= self.options["action_dropout"]).repeat_interleave(2)
        along = t[:, None, None, None, None]
        z_t = (1.0 - along) * noise + along * z_post
        target = z_post - noise
        velocity = self.network(
            z_t, t, z_pre, mask, self.action[patients, protocols], self.text[patients, protocols],
            self.log2_spacing[patients], self._given_shares(patients, protocols, rng), keep=keep,
        )  # fmt: skip
        region = region_weights(mask)
        flow = flow_loss(velocity, target, region, self.options["outside_weight"])
        # where the action is hidden both velocities are equal and the paired term is a constant without gradient
        effect = paired_effect_loss(velocity, target, region)
        response = self._response_loss(rng)
        total = flow + self.options["effect_weight"] * effect + self.options["response_weight"] * response
        return total, {
            "flow": float(flow.detach()),
            "effect": float(effect.detach()),
            "response": float(response.detach()),
        }

    def _given_shares(
        self, patients: npt.NDArray[np.int64], protocols: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> Tensor:
        """The measured shares with a little noise: in sampling they are predictions."""
        true = self.shares[patients, protocols]
        noise = self.options["share_noise"] * torch.from_numpy(rng.standard_normal(true.shape)).float()
        noisy = (true + noise).clamp_min(0.0)
        return noisy / noisy.sum(dim=1, keepdim=True)

    def _response_loss(self, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of predicted and measured shares, over all protocols of some patients."""
        count = self.pool.post.shape[1]
        size = min(int(self.options["response_batch"]), self.pool.train.size)
        patients = rng.choice(self.pool.train, size=size, replace=False)
        z_pre, mask = self._latents("pre", patients), self._latents("mask", patients)
        flips = tuple(axis for axis in (2, 3, 4) if rng.random() < 0.5)
        features = self.network.response.features(z_pre.flip(flips), mask.flip(flips), self.log2_spacing[patients])
        logits = self.network.response(
            features.repeat_interleave(count, dim=0).float(), self.action[patients].flatten(0, 1)
        )
        wanted = self.shares[patients].flatten(0, 1)
        return -(wanted * torch.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()

    def _simulate(self, network: Denoiser, patient: int, guidance: float) -> Tensor:
        """Decoded samples for all protocols of a patient under one noise, in HU (K, S, S, S)."""
        count = self.pool.post.shape[1]
        rows = np.full(count, patient)
        noise = torch.randn(1, *self.latents.pre.shape[1:], generator=torch.Generator().manual_seed(patient))
        z = sample(
            network, noise.expand(count, -1, -1, -1, -1), self._latents("pre", rows), self._latents("mask", rows),
            self.action[rows, np.arange(count)], self.text[rows, np.arange(count)], self.log2_spacing[rows],
            guidance=guidance,
        )  # fmt: skip
        low, high = self.preset.hu_window
        return (self.autoencoder.decode(z)[:, 0] + 1.0) * 0.5 * (high - low) + low

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Effect recovery within unseen patients (slope, correlation): Lipiodol, low-HU share, mean HU."""
        assert isinstance(network, Denoiser)
        measures: dict[str, list[list[list[float]]]] = {"oil": [[], []], "low": [[], []], "mean": [[], []]}
        for patient in self.pool.val[:VALIDATION_PATIENTS]:
            tumour = self.pool.tumour_mask[patient] > 0
            simulated = self._simulate(network, int(patient), self.preset.denoiser.guidance).numpy()
            for side, scans in enumerate((np.clip(self.pool.post[patient], *self.preset.hu_window), simulated)):
                inside = [np.asarray(scan)[tumour] for scan in scans]
                measures["oil"][side].append([float((v > OIL_HU).mean()) for v in inside])
                measures["low"][side].append([float((v < LOW_HU).mean()) for v in inside])
                measures["mean"][side].append([float(v.mean()) for v in inside])
        out = self._shares_recovered(network)
        for name, (true, simulated_values) in measures.items():
            slope, r = effect_slope(np.array(true), np.array(simulated_values))
            out[f"{name}_slope"], out[f"{name}_r"] = slope, r
        return out

    def _shares_recovered(self, network: Denoiser) -> dict[str, float]:
        """Effect recovery of the response head alone, within unseen patients."""
        count = self.pool.post.shape[1]
        predicted = []
        for patient in self.pool.val:
            rows = np.full(count, patient)
            spacing = self.log2_spacing[rows]
            z_pre, mask = self._latents("pre", rows), self._latents("mask", rows)
            predicted.append(network.predict_shares(z_pre, mask, self.action[patient], spacing).double().numpy())
        out = {}
        for index, name in enumerate(SHARES[:3]):
            true = self.shares[self.pool.val][:, :, index].double().numpy()
            slope, r = effect_slope(true, np.stack(predicted)[:, :, index])
            out[f"share_{name}_slope"], out[f"share_{name}_r"] = slope, r
        return out

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Per unseen patient two rows: the scan before and the true scans after, then the simulated ones."""
        assert isinstance(network, Denoiser)
        rows = []
        low, high = self.preset.hu_window
        for patient in self.pool.val[:4]:
            before = hu_to_unit(self.pool.pre[patient], self.preset.hu_window)
            true = [hu_to_unit(scan, self.preset.hu_window) for scan in self.pool.post[patient]]
            simulated = (self._simulate(network, int(patient), self.preset.denoiser.guidance) - low) / (
                high - low
            ) * 2.0 - 1.0
            rows += [[before, *true], [before, *simulated]]
        return mosaic(rows)


def train_denoiser(
    pool: Pool, preset: Preset, autoencoder: Autoencoder, out: Path, *, autoencoder_id: str, seed: int = 0,
    minutes: float | None = None, steps: int | None = None, resume: bool = False, cadence: Cadence | None = None,
    mixed_precision: bool | None = None, stop_after: int | None = None,
) -> RunResult:  # fmt: skip
    """Train in `out` (see `run_training`); the pool's latents are computed first, into `out/latents`.

    Args:
        autoencoder: trained, in evaluation mode.
        autoencoder_id: of its weights, so that latents of another autoencoder are never used.
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        seed: of weights and batches.
        minutes: budget; None takes the preset's.
        steps: overrides `minutes` and makes the run reproducible.
        resume: continue the run in `out`.
        cadence: how often things are written.
        mixed_precision: None asks the device.
        stop_after: see `run_training`.

    Raises:
        RunError: see `run_training`.
    """
    latents = compute_latents(autoencoder, pool, preset, out / "latents", autoencoder_id)
    torch.manual_seed(seed)
    task = DenoiserTask(pool, preset, latents, autoencoder)
    return run_training(
        task, task.training, out, seed=seed, budget=Budget(minutes or task.training.minutes, steps),
        fingerprint=f"{preset.fingerprint('denoiser')} {pool.data_hash} {autoencoder_id} seed {seed}", resume=resume,
        cadence=cadence or Cadence(validate_every=0.2), mixed_precision=mixed_precision, stop_after=stop_after,
    )  # fmt: skip
