"""Trains the segmenter on scans before and after treatment, and on what the engine really shows it.

The engine shows the segmenter a composite: the scan before + feather * (decoded after - decoded before). Decoding blurs
thin structures, so a segmenter that had only seen sharp scans would miss them. Beside each scan the network sees the
one before treatment and the tumour's mask.

Simulated scans are noised true ones that the denoiser finishes: they look like its drawings, yet the true labels hold.
Drawn scans are those that planning reads, from noise alone. Where their tissues lie nobody knows, but how much of each
was meant to be drawn is known: two protocols of a patient have to be told apart by that much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from models.networks.action import text_encoder, text_vector
from models.networks.autoencoder import Autoencoder
from models.networks.denoiser import Denoiser, sample
from models.networks.preset import Preset
from models.networks.segmenter import Segmenter, Tissue, segmenter_input
from models.patch import feather
from models.training.drawings import Drawings, Painter, composite, draw_pool
from models.training.latents import latent_mask
from models.training.loop import RunOptions, RunResult, check_folder, run_training
from models.training.pictures import mosaic
from models.training.pool import Pool, another_scanner, crop_around, crop_holding, fits, hu_to_unit, random_flips
from models.training.processes import Processes
from models.training.response import effect_slope, shares_of

VALIDATION_PATIENTS = 16
VALIDATION_PROTOCOLS = 4
START = (0.2, 0.7)  # range of the time from which the denoiser finishes a noised true scan
VALIDATION_START = 0.45  # the middle of it
FINISHING_STEPS = 3
DIVIDED = (Tissue.VIABLE, Tissue.NECROTIC, Tissue.OIL)
EXACT = 1e4  # sharpness that makes 0 and 1 of one-hot classes
DRAWN_SEED = 1  # of the noise
View = Literal["pre", "post", "composite", "simulated"]
SCANS: tuple[View, ...] = ("pre", "post", "composite")
COMPOSED: tuple[View, ...] = ("pre", "composite", "simulated")
"""Views that share their scanner, and outside of the tumour every voxel, with the scan before treatment."""


def found_shares(logits: Tensor, mask: Tensor, sharpness: float) -> Tensor:
    """How the network divides the original tumour: (N, 3), the shares of viable, necrotic and oil.

    Args:
        logits: (N, 5, S, S, S).
        mask: (N, S, S, S) bool, tumour before treatment; all shares are 0 without any.
        sharpness: factor of the logits before the softmax. What is used later is the most likely class of every voxel,
            not its probability, and a high factor is close to that.
    """
    inside = mask.float()[:, None]
    size = inside.sum(dim=(2, 3, 4)).clamp_min(1.0)
    return (torch.softmax(sharpness * logits, dim=1)[:, list(DIVIDED)] * inside).sum(dim=(2, 3, 4)) / size


def true_shares(labels: Tensor, mask: Tensor) -> Tensor:
    """As `found_shares`, of classes (N, S, S, S)."""
    return found_shares(nn.functional.one_hot(labels, len(Tissue)).movedim(-1, 1).float(), mask, EXACT)


def share_loss(found: Tensor, true: Tensor) -> Tensor:
    """Mean squared error of shares (N, 3), the figures that the risk depends on; those of dead tissue count half."""
    weight = found.new_tensor([1.0, 0.5, 0.5])
    return ((found - true).square() * weight).sum(dim=1).mean()


def drawn_loss(found: Tensor, meant: Tensor) -> Tensor:
    """Error of the shares (2, 3) read from two drawn scans of one patient, and of the difference between the two."""
    return share_loss(found, meant) + share_loss(found[:1] - found[1:], meant[:1] - meant[1:])


def outline_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - Dice of the whole tumour, living or dead, averaged over scans: the smallest counts as the largest does.

    Args:
        logits: (N, 5, S, S, S).
        labels: (N, S, S, S) int64 classes.
    """
    found = torch.softmax(logits, dim=1)[:, Tissue.VIABLE :].sum(dim=1, keepdim=True)
    tumour = (labels >= Tissue.VIABLE)[:, None].to(found.dtype)
    loss: Tensor = DiceLoss(squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)(found, tumour)
    return loss


class SegmenterTask:
    """Dice + cross-entropy over the views + the tumour's outline + the error of the shares of the original tumour."""

    def __init__(
        self, pool: Pool, preset: Preset, autoencoder: Autoencoder, denoiser: Denoiser | None = None,
        drawings: Drawings | None = None,
    ) -> None:  # fmt: skip
        """Build the network from the global random state; without a denoiser no simulated scans are seen."""
        self.pool = pool
        self.preset = preset
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.drawings = drawings
        simulated: tuple[View, ...] = ("simulated",) if denoiser is not None else ()
        self.views = SCANS + simulated
        self.device = next(autoencoder.parameters()).device
        self.text = text_encoder(preset.denoiser)
        self.training = preset.training.segmenter
        # this memory order takes two thirds of the time on a CPU
        self.network = Segmenter(preset.segmenter).to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        # no extra weight for the tumour's classes: it made every doubtful voxel of vacated liver count as alive
        weight = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0], device=self.device)
        self.criterion = DiceCELoss(
            softmax=True, to_onehot_y=True, squared_pred=True, batch=True, weight=weight, smooth_dr=1e-6
        )

    def _view(
        self, patient: int, protocol: int, view: View, where: tuple[slice, slice, slice], noise: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """One cube (X, Y, Z) in [-1, 1], the same before treatment, and the classes of the first.

        `noise` perturbs the latents, as imperfect sampling does; of a simulated scan it is the time that it starts at.
        """
        pool, window = self.pool, self.preset.hu_window
        before = hu_to_unit(pool.pre[patient][where], window)
        labels_before = torch.from_numpy(np.array(pool.pre_labels[patient][where], dtype=np.int64))
        if view == "pre":
            return before, before, labels_before
        after = hu_to_unit(pool.post[patient, protocol][where], window)
        labels = torch.from_numpy(np.array(pool.post_labels[patient, protocol][where], dtype=np.int64))
        if view == "post":
            return after, before, labels
        if view == "simulated":
            # the denoiser needs the whole cube
            images = self._finished(patient, protocol, noise, generator)[:, *where]
        else:
            with torch.no_grad():
                z = self.autoencoder.encode(torch.stack([before, after])[:, None].to(self.device))
                z[1] += noise * torch.randn(z[1].shape, generator=generator).to(self.device)
                images = self.autoencoder.decode(z)[:, 0].cpu()
        spacing = float(pool.spacing_mm[patient])
        weight = torch.from_numpy(feather(np.asarray(pool.tumour_mask[patient][where]), np.diag([spacing] * 3 + [1.0])))
        classes = torch.where(weight >= 0.5, labels, labels_before)
        return composite(before, images[0], images[1], weight), before, classes

    @torch.no_grad()
    def _finished(self, patient: int, protocol: int, start: float, generator: torch.Generator | None) -> Tensor:
        """Decoded cubes (2, S, S, S): before treatment, and the true one noised and finished by the denoiser."""
        assert self.denoiser is not None
        pool, window, device = self.pool, self.preset.hu_window, self.device
        scans = [hu_to_unit(scan, window) for scan in (pool.pre[patient], pool.post[patient, protocol])]
        z = self.autoencoder.encode(torch.stack(scans)[:, None].to(device))
        tumour = np.asarray(pool.tumour_mask[patient]) > 0
        mask = latent_mask(torch.from_numpy(tumour)[None, None], self.autoencoder.downsampling).to(device)
        shares = shares_of(np.asarray(pool.post_labels[patient, protocol]), tumour)
        text = torch.from_numpy(text_vector(pool.protocols[patient][protocol], self.text))
        action = torch.from_numpy(np.array(pool.actions[patient, protocol], dtype=np.float32))
        noise = torch.randn(z[1:].shape, generator=generator).to(device)
        noised = self.denoiser.diffusion.blend(z[1:], noise, torch.tensor([start], device=device))
        done = sample(
            self.denoiser, noised, z[:1], mask, action[None].to(device), text[None].to(device),
            torch.tensor([np.log2(float(pool.spacing_mm[patient]) / 1.5)], dtype=torch.float32, device=device),
            torch.zeros(1, 1, device=device), steps=FINISHING_STEPS, guidance=1.0,
            shares=torch.from_numpy(shares)[None].to(device), start=start,
        )  # fmt: skip
        return self.autoencoder.decode(torch.cat([z[:1], done]))[:, 0].cpu()

    def _mask(self, patient: int, where: tuple[slice, slice, slice]) -> Tensor:
        """Tumour before treatment (X, Y, Z), bool."""
        return torch.from_numpy(np.asarray(self.pool.tumour_mask[patient][where]) > 0)

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`."""
        inputs, classes, masks = [], [], []
        for _ in range(self.training.batch):
            patient, protocol = int(rng.choice(self.pool.train)), int(rng.integers(self.pool.post.shape[1]))
            view = self.views[int(rng.integers(len(self.views)))]
            tumour = np.asarray(self.pool.tumour_mask[patient])
            where = crop_around(tumour, self.training.crop, rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            noise = self.training.options["decoded_noise"] * float(rng.random())
            if view == "simulated":
                noise = float(rng.uniform(*START))
            cube, before, labels = self._view(patient, protocol, view, where, noise, generator)
            mask = self._mask(patient, where)
            flips = random_flips(rng)
            masks.append(mask.flip(flips))
            if view in COMPOSED:
                scan, beside = another_scanner([cube, before], rng)
            else:
                scan, beside = another_scanner([cube], rng)[0], another_scanner([before], rng)[0]
            inputs.append(segmenter_input(scan, beside, mask).flip(flips))
            classes.append(labels.flip(flips))
        labels, inside = torch.stack(classes).to(self.device), torch.stack(masks).to(self.device)
        options, count = self.training.options, len(inputs)
        meant = None
        if self.drawings is not None:
            drawn, mask, meant = self._drawn_pair(self.drawings, rng)
            inputs.extend(drawn)
            inside = torch.cat([inside, torch.stack([mask, mask]).to(self.device)])
        seen = torch.stack(inputs).to(self.device, memory_format=torch.channels_last_3d)
        logits = self.network(seen)
        found = found_shares(logits, inside, options["share_sharpness"])
        share = share_loss(found[:count], true_shares(labels, inside[:count]))
        outline = outline_loss(logits[:count], labels)
        loss: Tensor = self.criterion(logits[:count], labels[:, None]) + options["share_weight"] * share
        loss = loss + options["outline_weight"] * outline
        told = {"share": float(share.detach()), "outline": float(outline.detach())}
        if meant is not None:
            drawn_share = drawn_loss(found[count:], meant.to(self.device))
            loss = loss + options["drawn_weight"] * drawn_share
            told["drawn"] = float(drawn_share.detach())
        return loss, told

    def _drawn_pair(self, drawings: Drawings, rng: np.random.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
        """Inputs of two drawn scans of one patient with the whole tumour, its mask, and the shares meant (2, 3)."""
        row = int(rng.integers(len(drawings.patients)))
        patient = int(drawings.patients[row])
        tumour = np.asarray(self.pool.tumour_mask[patient]) > 0
        where = crop_holding(tumour, self.training.crop, rng)
        pair = rng.choice(drawings.scan.shape[1], size=2, replace=False)
        window = self.preset.hu_window
        cubes = [hu_to_unit(self.pool.pre[patient][where], window)]
        cubes += [hu_to_unit(np.asarray(drawings.scan[row, protocol][where]), window) for protocol in pair]
        before, *scans = another_scanner(cubes, rng)
        flips = random_flips(rng)
        mask = torch.from_numpy(tumour[where])
        inputs = [segmenter_input(scan, before, mask).flip(flips) for scan in scans]
        meant = torch.from_numpy(np.array(drawings.shares[row][pair], dtype=np.float32))
        return inputs, mask.flip(flips), meant[:, : len(DIVIDED)]

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on unseen patients, each under up to four protocols.

        Returns:
            dice_CLASS_VIEW: pooled, per class and of the whole tumour, before treatment (`pre`), on true scans after it
            (`post`), on what the engine shows (`composite`) and on simulated ones (`simulated`: true ones noised and
            finished by the denoiser).
            viable_slope_VIEW, viable_r_VIEW: how much of the within-patient effect of the protocol on the viable
            share of the original tumour is found, see `effect_slope`.
        """
        where = (slice(0, self.preset.size),) * 3
        protocols = min(VALIDATION_PROTOCOLS, self.pool.post.shape[1])
        hits: dict[str, npt.NDArray[np.float64]] = {}
        simulated: tuple[View, ...] = ("simulated",) if self.denoiser is not None else ()
        views: tuple[View, ...] = ("post", "composite", *simulated)
        shares: dict[View, tuple[list[list[float]], list[list[float]]]] = {view: ([], []) for view in views}

        def count(name: str, predicted: Tensor, labels: Tensor) -> None:
            for tissue, mine, truth in [
                *((tissue.name.lower(), predicted == tissue, labels == tissue) for tissue in Tissue if tissue),
                ("tumour", predicted >= Tissue.VIABLE, labels >= Tissue.VIABLE),
            ]:
                counts = np.array([2.0 * float((mine & truth).sum()), float(mine.sum() + truth.sum())])
                hits[f"dice_{tissue}_{name}"] = hits.get(f"dice_{tissue}_{name}", np.zeros(2)) + counts

        for patient in (int(p) for p in self.pool.val[:VALIDATION_PATIENTS]):
            mask = self._mask(patient, where)
            cube, before, labels = self._view(patient, 0, "pre", where, 0.0, None)
            count("pre", _classes(network, cube, before, mask), labels)
            for view, (true, found) in shares.items():
                true.append([])
                found.append([])
                for protocol in range(protocols):
                    generator = torch.Generator().manual_seed(patient)
                    noise = VALIDATION_START if view == "simulated" else 0.0
                    cube, before, labels = self._view(patient, protocol, view, where, noise, generator)
                    predicted = _classes(network, cube, before, mask)
                    count(view, predicted, labels)
                    true[-1].append(_viable_share(labels, mask))
                    found[-1].append(_viable_share(predicted, mask))
        out = {name: float(both / total) if total else 0.0 for name, (both, total) in hits.items()}
        for view, (true, found) in shares.items():
            out[f"viable_slope_{view}"], out[f"viable_r_{view}"] = effect_slope(np.array(true), np.array(found))
        return out

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Scans before, composite scans, true classes, predicted classes (brighter: viable, necrotic, oil)."""
        where = (slice(0, self.preset.size),) * 3
        patients = [int(p) for p in self.pool.val[:6]]
        views = [
            self._view(p, i % self.pool.post.shape[1], "composite", where, 0.0, None) for i, p in enumerate(patients)
        ]
        predicted = [
            _classes(network, cube, before, self._mask(p, where))
            for p, (cube, before, _) in zip(patients, views, strict=True)
        ]
        return mosaic([
            [before for _, before, _ in views],
            [cube for cube, _, _ in views],
            [labels / 2.0 - 1.0 for _, _, labels in views],
            [labels / 2.0 - 1.0 for labels in predicted],
        ])  # fmt: skip


def _classes(network: nn.Module, cube: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Predicted classes (X, Y, Z) of one cube."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    logits: Tensor = network(segmenter_input(cube, before, mask)[None].to(device))
    return logits.argmax(1)[0].cpu()


def _viable_share(classes: Tensor, mask: Tensor) -> float:
    """Share of the original tumour that is viable; 0 without a tumour."""
    inside = classes[mask]
    return float((inside == Tissue.VIABLE).float().mean()) if inside.numel() else 0.0


def train_segmenter(
    pool: Pool, preset: Preset, autoencoder: Autoencoder, out: Path, options: RunOptions, *, autoencoder_id: str,
    denoiser: Denoiser | None = None, denoiser_id: str = "none",
) -> RunResult:  # fmt: skip
    """Train in `out`; see `run_training`.

    Args:
        autoencoder: trained, decodes what the engine would show.
        autoencoder_id: of its weights.
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        options: seed, budget and so on.
        denoiser: trained, for simulated scans; None leaves them out.
        denoiser_id: of its weights.

    Raises:
        RunError: see `run_training`.
    """
    fingerprint = (
        f"{preset.fingerprint('segmenter')} {pool.data_hash} {autoencoder_id} {denoiser_id} seed {options.seed}"
    )
    check_folder(out, options, fingerprint)
    drawings = None
    number = int(preset.training.segmenter.options["drawn_patients"])
    if denoiser is not None and number:
        painter = Painter(autoencoder.eval(), denoiser.eval(), f"{autoencoder_id} {denoiser_id}")
        # from the other end than the survival network's: it must see what the segmenter makes of new patients
        chosen = [p for p in np.asarray(pool.train)[::-1] if fits(pool.tumour_mask[p], preset.training.segmenter.crop)]
        patients = np.array(chosen[:number], dtype=np.int64)
        folder = out / "drawings"
        if len(patients):
            drawings = Processes.join().in_turn(lambda: draw_pool(painter, pool, preset, patients, DRAWN_SEED, folder))
    torch.manual_seed(options.seed)
    task = SegmenterTask(pool, preset, autoencoder.eval(), denoiser, drawings)
    return run_training(task, task.training, out, options, fingerprint=fingerprint, validate_every=0.5)
