"""Trains the denoiser on latents: the same patient and noise under two protocols in every batch.

First the response head learns alone (see `models.training.response`) and is frozen; then the U-Net learns to draw what
measured shares say. Equation (2) of the paper is the loss `denoising_loss`, equation (3) `combo_contrastive_loss`, both
with an estimate of one step; some scans before treatment are attenuated (`models.networks.attenuation`).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.action import text_encoder, text_vector
from models.networks.attenuation import attenuate, level_of_share
from models.networks.autoencoder import Autoencoder
from models.networks.denoiser import Denoiser, sample
from models.networks.preset import Preset
from models.response import criteria
from models.training.contrastive import Combos, change_inside, combo_contrastive_loss
from models.training.latents import Latents, compute_latents
from models.training.loop import RunOptions, RunResult, check_folder, run_training
from models.training.losses import denoising_loss, paired_effect_loss, region_weights
from models.training.pictures import mosaic
from models.training.pool import Pool, hu_to_unit
from models.training.processes import Processes
from models.training.response import FILE as RESPONSE
from models.training.response import ResponseData, effect_slope, train_response, tumour_shares

VALIDATION_PATIENTS = 12
OIL_HU = criteria().oil_hu
LOW_HU = 60.0  # below this inside the original tumour counts as dead tissue without contrast; our choice


class DenoiserTask:
    """Equation (2) in and around the tumour + paired difference between two protocols + equation (3)."""

    def __init__(self, pool: Pool, preset: Preset, latents: Latents, autoencoder: Autoencoder) -> None:
        """Build the network from the global random state; the response head is not trained here."""
        self.pool = pool
        self.preset = preset
        self.latents = latents
        self.autoencoder = autoencoder
        self.device = next(autoencoder.parameters()).device
        self.training = preset.training.denoiser
        self.options = self.training.options
        self.network = Denoiser(preset.denoiser, preset.autoencoder.latent_channels).to(self.device)
        self.network.response.requires_grad_(False)
        encoder = text_encoder(preset.denoiser)
        self.text = torch.from_numpy(np.stack([[text_vector(p, encoder) for p in row] for row in pool.protocols]))
        self.action = torch.from_numpy(np.array(pool.actions, dtype=np.float32))
        self.shares = tumour_shares(pool)
        self.log2_spacing = torch.log2(torch.from_numpy(np.array(pool.spacing_mm, dtype=np.float32)) / 1.5)
        self.profiles = torch.from_numpy(np.array(latents.profile, dtype=np.float32))
        self.combos = Combos(pool)
        self._faded: dict[tuple[int, int], Tensor] = {}

    def fit_response(self, path: Path, run: str, seed: int) -> None:
        """Train the response head, or load what an earlier call left in `path`."""
        self.network.response.requires_grad_(True)
        head = self.network.response.to("cpu")
        train_response(head, self.response_data(), int(self.options["response_steps"]), seed, path, run)
        self.network.response.to(self.device).requires_grad_(False)

    def response_data(self) -> ResponseData:
        """What the response head learns from."""
        if self.preset.denoiser.reading == "profile":  # spares the memory
            pre = mask = torch.zeros(len(self.shares), 1)
        else:
            pre, mask = (torch.from_numpy(np.array(getattr(self.latents, name))) for name in ("pre", "mask"))
        further = self.options["further_protocols"] > 0
        return ResponseData(self.pool, self.shares, self.profiles, pre, mask, self.log2_spacing, further=further)

    def _latents(self, which: str, *index: npt.NDArray[np.int64]) -> Tensor:
        values = torch.from_numpy(np.asarray(getattr(self.latents, which)[tuple(index)], dtype=np.float32))
        return values.to(self.device)

    def _draw(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Patients and protocols; 2i and 2i+1 are one patient. The first two pairs share a combination of agents."""
        pairs = max(1, self.training.batch // 2)
        patients = rng.choice(self.pool.train, size=pairs)
        protocols = np.stack([rng.choice(self.pool.post.shape[1], size=2, replace=False) for _ in range(pairs)])
        alike = self.combos.draw(rng) if pairs > 1 and self.options["contrast_weight"] > 0 else None
        for place, (patient, protocol) in enumerate(alike or ()):
            patients[place] = patient
            protocols[place] = protocol, self.combos.other(patient, protocol, rng)
        return np.repeat(patients, 2), protocols.ravel()

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`."""
        patients, protocols = self._draw(rng)
        pairs = len(patients) // 2
        diffusion = self.network.diffusion
        z_pre, mask = self._latents("pre", patients), self._latents("mask", patients)
        z_post = self._latents("post", patients, protocols)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(pairs, *z_post.shape[1:], generator=generator).repeat_interleave(2, dim=0).to(self.device)
        t = diffusion.times(rng, pairs).repeat_interleave(2).to(self.device)
        keep = torch.from_numpy(rng.random(pairs) >= self.options["action_dropout"]).repeat_interleave(2)
        seen = self._attenuated(z_pre, patients, protocols, rng)
        z_t, target = diffusion.blend(z_post, noise, t), diffusion.target(z_post, noise)
        predicted = self.network(
            z_t, t, seen, mask, self.action[patients, protocols].to(self.device),
            self.text[patients, protocols].to(self.device), self.log2_spacing[patients].to(self.device),
            self._given_shares(patients, protocols, rng).to(self.device), keep=keep.to(self.device),
        )  # fmt: skip
        region = region_weights(mask)
        denoising = denoising_loss(predicted, target, region, self.options["outside_weight"])
        # also where the action is hidden: there the noisy latents alone tell the two protocols apart
        effect = paired_effect_loss(predicted, target, region)
        total = denoising + self.options["effect_weight"] * effect
        parts = {"denoising": float(denoising.detach()), "effect": float(effect.detach())}
        if pairs > 1 and self.options["contrast_weight"] > 0 and self.combos.classes:
            estimate = diffusion.estimate(z_t, predicted, t)
            contrast = self._contrast(change_inside(estimate, z_pre, mask))
            total = total + self.options["contrast_weight"] * contrast
            parts["contrast"] = float(contrast.detach())
        return total, parts

    def _contrast(self, changes: Tensor) -> Tensor:
        """Equation (3) with samples 0 and 2 as anchor and positive, each beside its own patient's other protocol."""
        anchor, positive = changes[[0, 2]], changes[[2, 0]]
        negatives = torch.stack([changes[[1]], changes[[3]]])
        return combo_contrastive_loss(
            anchor, positive, negatives, self.options["contrast_temperature"], self.options["contrast_paper"] > 0
        )

    def _attenuated(
        self, z_pre: Tensor, patients: npt.NDArray[np.int64], protocols: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Tensor:  # fmt: skip
        """Condition latents; for a share of the pairs those of the attenuated scan, z'_0 of equation (2)."""
        out = z_pre.clone()
        for pair in np.flatnonzero(rng.random(len(patients) // 2) < self.options["attenuation_share"]):
            for place in (2 * pair, 2 * pair + 1):
                patient = int(patients[place])
                dead = 1.0 - float(self.shares[patient, protocols[place], 0])
                out[place] = self._faded_latents(patient, level_of_share(dead))
        return out

    def _faded_latents(self, patient: int, level: int) -> Tensor:
        """Latents of the attenuated scan; kept, since a patient has four levels at most and is drawn many times.

        In main memory and half precision, as the latents of the pool are: a GPU needs its own for the training.
        """
        if (patient, level) not in self._faded:
            scan = hu_to_unit(self.pool.pre[patient], self.preset.hu_window)
            tumour = torch.from_numpy(np.array(self.pool.tumour_mask[patient]) > 0).float()
            with torch.no_grad():
                faded = attenuate(scan, tumour, level)[None, None].to(self.device)
                self._faded[patient, level] = self.autoencoder.encode(faded)[0].half().cpu()
        return self._faded[patient, level]

    def _given_shares(
        self, patients: npt.NDArray[np.int64], protocols: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> Tensor:
        """The measured shares with a little noise: in sampling they are predictions."""
        true = self.shares[patients, protocols]
        noise = self.options["share_noise"] * torch.from_numpy(rng.standard_normal(true.shape)).float()
        noisy = (true + noise).clamp_min(0.0)
        return noisy / noisy.sum(dim=1, keepdim=True)

    def _simulate(self, network: Denoiser, patient: int, guidance: float) -> Tensor:
        """Decoded samples for all protocols of a patient under one noise, in HU (K, S, S, S)."""
        count = self.pool.post.shape[1]
        rows = np.full(count, patient)
        noise = torch.randn(1, *self.latents.pre.shape[1:], generator=torch.Generator().manual_seed(patient))
        z = sample(
            network, noise.expand(count, -1, -1, -1, -1).to(self.device), self._latents("pre", rows),
            self._latents("mask", rows), self.action[patient].to(self.device), self.text[patient].to(self.device),
            self.log2_spacing[rows].to(self.device), self.profiles[rows].to(self.device), guidance=guidance,
        )  # fmt: skip
        low, high = self.preset.hu_window
        return (self.autoencoder.decode(z)[:, 0].cpu() + 1.0) * 0.5 * (high - low) + low

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
        head = copy.deepcopy(network.response).to("cpu").float()
        with torch.autocast("cpu", enabled=False):
            out = self.response_data().recovered(head, np.asarray(self.pool.val))
        for name, (true, simulated_values) in measures.items():
            slope, r = effect_slope(np.array(true), np.array(simulated_values))
            out[f"{name}_slope"], out[f"{name}_r"] = slope, r
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
    pool: Pool, preset: Preset, autoencoder: Autoencoder, out: Path, options: RunOptions, *, autoencoder_id: str
) -> RunResult:
    """Train in `out` (see `run_training`); the pool's latents are computed first, into `out/latents`,
    and the response head is trained.

    Args:
        autoencoder: trained, in evaluation mode.
        autoencoder_id: of its weights, so that latents of another autoencoder are never used.
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        options: seed, budget and so on.

    Raises:
        RunError: see `run_training`.
    """
    fingerprint = f"{preset.fingerprint('denoiser')} {pool.data_hash} {autoencoder_id} seed {options.seed}"
    check_folder(out, options, fingerprint)
    me = Processes.join()
    latents = me.in_turn(lambda: compute_latents(autoencoder, pool, preset, out / "latents", autoencoder_id))
    torch.manual_seed(options.seed)
    task = DenoiserTask(pool, preset, latents, autoencoder)
    me.in_turn(lambda: task.fit_response(out / RESPONSE, fingerprint, options.seed))
    return run_training(task, task.training, out, options, fingerprint=fingerprint, validate_every=0.2)
