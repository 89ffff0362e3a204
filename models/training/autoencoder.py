"""Trains the autoencoder on crops around tumours, before and after treatment.

The opponents of the VQ-GAN learn from the moment that they are needed, and their judgement counts a little later: an
opponent that has not learned anything only pulls the decoder about.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import RunError
from models.formulary import ITEM_ORDER
from models.networks.autoencoder import Autoencoder
from models.networks.critic import Critics
from models.networks.preset import Preset
from models.networks.segmenter import Tissue
from models.training.loop import RunOptions, RunResult, run_training
from models.training.losses import gradient_difference, weighted_l1, weighted_square
from models.training.perceptual import critic_loss, feature_matching_loss, fooling_loss, perceptual_loss
from models.training.pictures import mosaic
from models.training.pool import Pool, crop_around, hu_to_unit, random_flips

VALIDATION_CUBES = 24


class AutoencoderTask:
    """L1 (heavier in the tumour, heaviest in oil), edges, commitment; perceptual, adversarial and feature matching."""

    def __init__(self, pool: Pool, preset: Preset, device: torch.device | str = "cpu") -> None:
        """Build the networks from the global random state."""
        self.device = torch.device(device)
        self.pool = pool
        self.preset = preset
        self.training = preset.training.autoencoder
        self.options = self.training.options
        protocols = pool.post.shape[1]
        self.rows = np.stack([np.repeat(pool.train, protocols), np.tile(np.arange(protocols), len(pool.train))], axis=1)
        self.oily = self.rows[pool.actions[self.rows[:, 0], self.rows[:, 1], ITEM_ORDER.index("Lipiodol"), 0] > 0]
        network = Autoencoder(preset.autoencoder).to(self.device)
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.adversary: nn.Module = Critics().to(self.device)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def _crop(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        use_post = rng.random() < self.options["post_share"]
        # Lipiodol is in half of the scans but in few voxels of each, yet it is what changes most
        rows = self.oily if use_post and len(self.oily) and rng.random() < self.options["oil_share"] else self.rows
        patient, protocol = (int(value) for value in rows[rng.integers(len(rows))])
        mask = np.asarray(self.pool.tumour_mask[patient])
        where = crop_around(mask, self.training.crop, rng)
        labels = (self.pool.post_labels[patient, protocol] if use_post else self.pool.pre_labels[patient])[where]
        scan = (self.pool.post[patient, protocol] if use_post else self.pool.pre[patient])[where]
        tumour = (mask[where] > 0) | (labels >= Tissue.VIABLE)
        weight = np.where(
            labels == Tissue.OIL, self.options["oil_weight"], np.where(tumour, self.options["tumour_weight"], 1.0)
        )
        flips = random_flips(rng)
        cube = torch.stack([hu_to_unit(scan, self.preset.hu_window), torch.from_numpy(weight.astype(np.float32))])
        return tuple(cube.flip(flips).unsqueeze(1).unbind(0))  # type: ignore[return-value]

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """See `models.training.loop.Task.loss`."""
        crops = [self._crop(rng) for _ in range(self.training.batch)]
        x = torch.stack([image for image, _ in crops]).contiguous(memory_format=torch.channels_last_3d).to(self.device)
        weight = torch.stack([heavy for _, heavy in crops]).to(self.device)
        # the codebook follows the latents from the first step; the decoder sees codes once it has caught up with them
        share = 0.0 if progress < self.options["unquantised_until"] else self.options["quantised_share"]
        out = self.network(x, quantised_share=share)
        level = weighted_l1(out.image, x, weight)
        edges = gradient_difference(out.image, x, weight)
        commitment = out.commitment if share > 0 else out.commitment * 0.0
        square = weighted_square(out.image, x, weight)
        loss = level + self.options["square_weight"] * square + self.options["gradient_weight"] * edges
        loss = loss + self.options["commitment_weight"] * commitment
        parts = {
            "l1": float(level.detach()), "square": float(square.detach()), "edges": float(edges.detach()),
            "commitment": float(commitment.detach()), "perplexity": float(out.perplexity),
        }  # fmt: skip
        if self.options["perceptual_weight"] > 0:
            perceptual = perceptual_loss(out.image, x, weight)
            loss = loss + self.options["perceptual_weight"] * perceptual
            parts["perceptual"] = float(perceptual.detach())
        self._last = None
        if self.options["adversarial_weight"] > 0 and progress >= self.options["critic_from"]:
            depth = torch.from_numpy(rng.integers(x.shape[-1], size=len(x)))
            self._last = (x, out.image.detach(), depth)
            if progress >= self.options["adversarial_from"]:
                adversarial, matching = self._opposed(x, out.image, depth)
                loss = loss + self.options["adversarial_weight"] * adversarial
                loss = loss + self.options["feature_weight"] * matching
                parts |= {"adversarial": float(adversarial.detach()), "matching": float(matching.detach())}
        return loss, parts

    def _opposed(self, x: Tensor, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """How little the opponents are fooled, and how far their features are from those of the true cubes."""
        judged, mine = self.adversary(image, depth)
        with torch.no_grad():
            _, wanted = self.adversary(x, depth)
        return fooling_loss(judged), feature_matching_loss(wanted, mine)

    def adversary_loss(self, progress: float) -> Tensor | None:  # noqa: ARG002
        """See `models.training.loop.Adversarial`."""
        if self._last is None:
            return None
        x, image, depth = self._last
        return critic_loss(self.adversary(x, depth)[0], self.adversary(image, depth)[0])

    def _validation(self) -> list[tuple[Tensor, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]]:
        out = []
        for index in range(min(VALIDATION_CUBES, len(self.pool.val))):
            patient, protocol = int(self.pool.val[index]), index % self.pool.post.shape[1]
            x = hu_to_unit(self.pool.post[patient, protocol], self.preset.hu_window)
            out.append((x, self.pool.tumour_mask[patient] > 0, np.asarray(self.pool.post_labels[patient, protocol])))
        return out

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean absolute error in HU: everywhere, in the tumour (`coded`: through the codes), in oil; bias in oil.

        Decoded from the continuous latent but for `coded`; a negative bias is too dark.
        """
        assert isinstance(network, Autoencoder)
        scale = (self.preset.hu_window[1] - self.preset.hu_window[0]) / 2.0
        sums = {"all": [0.0, 0.0], "tumour": [0.0, 0.0], "oil": [0.0, 0.0], "oil_bias": [0.0, 0.0], "coded": [0.0, 0.0]}
        for x, tumour, labels in self._validation():
            raw = network.encoder(x[None, None].to(self.device)).float()
            image = network.decoder(raw).float().clamp(-1, 1)[0, 0].cpu()
            coded = network.decoder(network.quantise(raw)[0]).float().clamp(-1, 1)[0, 0].cpu()
            error = ((image - x) * scale).numpy()
            coded_error = ((coded - x) * scale).numpy()
            oil = labels == Tissue.OIL
            for name, values in (
                ("all", np.abs(error)), ("tumour", np.abs(error[tumour])), ("oil", np.abs(error[oil])),
                ("oil_bias", error[oil]), ("coded", np.abs(coded_error[tumour])),
            ):  # fmt: skip
                sums[name][0] += float(values.sum())
                sums[name][1] += float(values.size)
        return {f"hu_error_{name}": total / max(count, 1.0) for name, (total, count) in sums.items()}

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Post-treatment cubes above, their reconstructions below."""
        assert isinstance(network, Autoencoder)
        cubes = [x for x, _, _ in self._validation()[:6]]
        decoded = network.decode(network.encode(torch.stack(cubes)[:, None].to(self.device)))[:, 0].cpu()
        return mosaic([cubes, list(decoded)])


@torch.no_grad()
def measure_latents(network: Autoencoder, pool: Pool, preset: Preset, count: int = 48) -> None:
    """Store the per-channel mean and standard deviation of raw latents of training cubes, before and after."""
    raw = []
    device = next(network.parameters()).device
    for index, patient in enumerate(pool.train[:count]):
        scans = (pool.pre[patient], pool.post[patient, index % pool.post.shape[1]])
        raw.append(
            network.encoder(
                torch.stack([hu_to_unit(scan, preset.hu_window) for scan in scans])[:, None].to(device)
            ).float()
        )
    values = torch.cat(raw).transpose(0, 1).flatten(1)
    network.set_latent_statistics(values.mean(1), values.std(1))


def train_autoencoder(pool: Pool, preset: Preset, out: Path, options: RunOptions, device: str = "cpu") -> RunResult:
    """Train in `out`; see `models.training.loop.run_training` for what is written there.

    Args:
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        options: seed, budget and so on.
        device: where to train.

    Raises:
        RunError: see `run_training`.
    """
    torch.manual_seed(options.seed)
    task = AutoencoderTask(pool, preset, device)
    if not pool.train.size:
        raise RunError("The pool has no training patients; make a larger one.")
    return run_training(
        task, task.training, out, options,
        fingerprint=f"{preset.fingerprint('autoencoder')} {pool.data_hash} seed {options.seed}",
        finish=lambda network: measure_latents(network, pool, preset),  # type: ignore[arg-type]
    )  # fmt: skip
