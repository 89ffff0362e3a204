"""Engine: the only place that knows the device. It simulates, segments and scores in fixed, padded batches.

Every network call sees a batch of the same size, filled up with copies of its last entry. A result therefore depends
neither on what is computed beside it nor on its place in the batch, bit for bit on the same device: a resumed run is
the same run. The noise of a simulation depends on case, patch and seed only, so that protocols are compared under
common random numbers.

The denoiser draws whole patches. What follows it works on a box around the voxels that a simulation can change, the
same for every simulation of a case.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.clinical_record import ClinicalRecord
from models.engine_thread import in_engine_thread
from models.errors import InputError, TransientToolError
from models.networks.action import encode_protocols
from models.networks.denoiser import sample
from models.networks.precision import autocast, supports_bf16
from models.networks.record_vector import record_vector
from models.networks.response_head import SHARES, with_luck
from models.networks.segmenter import segmenter_input
from models.networks.tumour_profile import tumour_profile
from models.patch import (
    BOX_MARGIN,
    HIGHEST_HU,
    OUTSIDE_HU,
    WIDE_SPACING_MM,
    Box,
    Lesions,
    Patch,
    apply_change,
    boxes_around,
    crop,
    crop_lesions,
    feather,
    lesion_components,
    plan_patches,
)
from models.patch import voxel_ml as voxel_ml_of
from models.protocol import Protocol
from models.redraw import redraw
from models.response import VIABLE, criteria, nearest_lesion
from models.volume import Volume
from models.weights import WorldModel, load_world_model
from models.whole_volume import segment_whole

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
Job = tuple[Protocol, int]

BATCH = 6
REFERENCE_SPACING_MM = 1.5  # the networks' inputs count voxel sizes as log2(spacing / 1.5 mm)
COARSEST = 3.0  # times the finest spacing: what the networks were trained for
MOST_LESIONS = 3  # the training cohort has one to three; more would be extrapolated without limit
_KEPT_CASES = 4


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is computed once per case. L patches of S voxels along each edge.

    Attributes:
        key: identity of the images; seeds the noise.
        patches: the L patches.
        lesions: the tumour taken apart, on the case grid.
        lesion_ml: volumes of the lesions in ml, on the case grid.
        pre: (L, S, S, S) float32 HU.
        numbers: (L, S, S, S) lesion numbers inside the original tumour, 0 outside.
        near: (L, S, S, S) number of the nearest lesion within `neighbourhood_mm`, 0 elsewhere.
        own: (L, S, S, S) as `near`, for the lesions that the patch simulates only: every lesion occurs in one patch.
        weight: (L, S, S, S) feather, 1 inside the tumour, 0 far from it.
        boxes: the part of each patch that is decoded and segmented; all of one shape (X, Y, Z).
        tissue: (L, S, S, S) uint8 classes before treatment, 0 outside `near`.
        decoded: (L, X, Y, Z) float32 HU, the boxes as the autoencoder reproduces them.
        latent: (L, C, s, s, s) latents before treatment.
        mask: (L, 1, s, s, s) share of tumour in each latent cell.
        tokens: (L, T, D) tokens of the survival network before treatment.
        record: (R,) record vector.
        profile: (L, F) what the scan before treatment shows of the tumour, see `models.networks.tumour_profile`.
    """

    key: str
    patches: tuple[Patch, ...]
    lesions: Lesions
    pre: NDArray[np.float32]
    numbers: NDArray[np.int16]
    near: NDArray[np.int32]
    own: NDArray[np.int32]
    weight: NDArray[np.float32]
    boxes: tuple[Box, ...]
    tissue: NDArray[np.uint8]
    decoded: NDArray[np.float32]
    latent: Tensor
    mask: Tensor
    tokens: Tensor
    record: Tensor
    profile: Tensor

    @property
    def lesion_ml(self) -> tuple[float, ...]:
        """Volume of each lesion in ml."""
        return self.lesions.volumes_ml

    @property
    def tumour_ml(self) -> float:
        """Volume of all lesions in ml."""
        return sum(self.lesions.volumes_ml)

    @property
    def support(self) -> NDArray[np.bool_]:
        """(L, S, S, S) where a simulation can differ from the CT before treatment."""
        return self.weight > 0


class Engine:
    """Batched inference with one world model on one device. One instance per process."""

    @in_engine_thread
    def __init__(
        self,
        device: Device = "auto",
        weights: Path | None = None,
        *,
        model: WorldModel | None = None,
        precision: Precision = "auto",
        batch: int = BATCH,
    ) -> None:
        """Loads the weights.

        Args:
            device: "auto" takes CUDA where torch sees it.
            weights: folder of a weight bundle; None is the shipped one.
            model: networks that are loaded already (tests, ablations), in place of `weights`.
            precision: "auto" is bfloat16 where the device computes it natively.
            batch: size of every network call; part of what makes results reproducible.

        Raises:
            InputError: CUDA is asked for but torch does not see it.
            WeightsError: weights missing or damaged.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("The device 'cuda' was asked for but torch sees no CUDA device: use --device cpu.")
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self.batch = batch
        self.precision = ("bf16" if supports_bf16(self.device) else "fp32") if precision == "auto" else precision
        if self.device == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
        self.model = model if model is not None else load_world_model(weights, self.device)
        # with their channels last in memory they take less time on a CPU; most of it was in finding the best class
        for network in (self.model.autoencoder, self.model.segmenter):
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch has no stub of it
        # a CPU takes as long for each patch of a batch as for one alone: filling up would be wasted
        self._segmenter_batch = 1 if self.device == "cpu" else batch
        self._kept: OrderedDict[str, Prepared] = OrderedDict()

    @property
    def weights_hash(self) -> str:
        """Short hash of the weights."""
        return self.model.weights_hash

    @property
    def origin(self) -> str:
        """What the weights were trained on: "synthetic", "real", "mixed" or "untrained"."""
        return self.model.origin

    @property
    def preset(self) -> str:
        """Name of the preset."""
        return self.model.preset.name

    @property
    def steps(self) -> int:
        """Sampling steps of the preset."""
        return self.model.preset.denoiser.steps

    @property
    def finalist_steps(self) -> int:
        """Sampling steps of the preset in the last comparison of a plan."""
        return self.model.preset.denoiser.finalist_steps or self.steps

    @property
    def redraws(self) -> int:
        """Rounds in which a drawn scan is corrected."""
        return self.model.preset.denoiser.rounds

    @in_engine_thread
    def prepare(
        self, volume: Volume, labels: NDArray[np.generic], record: ClinicalRecord, key: str | None = None
    ) -> Prepared:
        """Plans the patches of a case and runs the part of the networks that no protocol changes. Kept for the last
        cases.

        Args:
            volume: CT before treatment.
            labels: (X, Y, Z) labels on its grid.
            record: clinical record.
            key: content hash of the case; None hashes the other arguments.

        Raises:
            MaskError: no tumour, or one that is too large.
            TransientToolError: out of memory.
        """
        key = key or _content_key(volume, labels, record)
        if (found := self.prepared(key)) is not None:
            return found
        preset = self.model.preset
        lesions = lesion_components(labels, volume.affine)
        patches = plan_patches(
            labels, volume.affine, preset.size, preset.spacing_mm, COARSEST * preset.spacing_mm, lesions=lesions
        )
        pre = np.stack([crop(volume, patch) for patch in patches])
        numbers = np.stack([crop_lesions(lesions, volume.affine, patch) for patch in patches])
        spacings = [(patch.spacing_mm,) * 3 for patch in patches]
        reach = criteria().neighbourhood_mm
        near = np.stack([nearest_lesion(n, spacing, reach) for n, spacing in zip(numbers, spacings, strict=True)])
        own = np.stack([np.where(np.isin(n, p.lesions), n, 0) for n, p in zip(near, patches, strict=True)])
        weight = np.stack([feather(n, patch.affine) for n, patch in zip(numbers, patches, strict=True)])
        unit = self._unit(pre)
        tumour = torch.from_numpy((numbers > 0).astype(np.float32))[:, None]
        latent = self._batched(self.model.autoencoder.encode, [unit])
        boxes = self._boxes(weight > 0)
        prepared = Prepared(
            key=key,
            patches=tuple(patches),
            lesions=lesions,
            pre=pre,
            numbers=numbers,
            near=near,
            own=own,
            weight=weight,
            boxes=boxes,
            tissue=np.zeros(near.shape, dtype=np.uint8),  # found below
            decoded=self._hu(self._batched(self.model.autoencoder.decode, [self._cut(latent, boxes)])),
            latent=latent,
            mask=torch.nn.functional.avg_pool3d(tumour, preset.downsampling),
            tokens=self._batched(self.model.survival.encode_pre, [torch.cat([unit, tumour], dim=1)], exact=True),
            record=torch.from_numpy(record_vector(record)),
            profile=torch.from_numpy(
                np.stack(
                    [
                        tumour_profile(scan, inside > 0, patch.spacing_mm)
                        for scan, inside, patch in zip(pre, numbers, patches, strict=True)
                    ]
                )
            ),
        )
        prepared = replace(prepared, tissue=self.segment_near(prepared, [pre])[0])
        self._kept[key] = prepared
        while len(self._kept) > _KEPT_CASES:
            self._kept.popitem(last=False)
        return prepared

    def with_record(self, prepared: Prepared, record: ClinicalRecord) -> Prepared:
        """The same patches with another record: all but the survival network's input stays, the noise too."""
        return replace(prepared, record=torch.from_numpy(record_vector(record)))

    def prepared(self, key: str) -> Prepared | None:
        """The case that was prepared under this key, where it is still kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def simulate_differences(
        self, prepared: Prepared, jobs: Sequence[Job], steps: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """Simulates jobs and yields each as soon as its patches are done.

        Args:
            prepared: the case.
            jobs: (protocol, seed) pairs.
            steps: sampling steps; None takes the preset's.

        Yields:
            (position in `jobs`, difference): (L, S, S, S) int16 HU, decoded after minus decoded before, corrected
            inside the tumour where the preset says so, 0 outside the feather.

        Raises:
            TransientToolError: out of memory.
        """
        if not jobs:
            return
        count = len(prepared.patches)
        actions, texts = encode_protocols([protocol for protocol, _ in jobs], self.model.text_encoder)
        slots = [(job, patch) for job in range(len(jobs)) for patch in range(count)]
        pending: dict[int, list[NDArray[np.int16]]] = {}
        for start in range(0, len(slots), self.batch):
            part = slots[start : start + self.batch]
            job, patches = [j for j, _ in part], [p for _, p in part]
            seeds = [jobs[j][1] for j in job]
            shares = self._shares(prepared, patches, seeds, actions[job])
            drawn = self._draw(prepared, patches, seeds, shares, actions[job], texts[job], steps)
            support = np.stack([prepared.support[p][prepared.boxes[p]] for p in patches])
            changes = np.rint(np.where(support, drawn - prepared.decoded[patches], 0.0)).astype(np.int16)
            if self.redraws:
                oiled = torch.tensor(["Lipiodol" in jobs[j][0].embolics for j in job])
                changes = self._redrawn(prepared, patches, changes, shares[:, SHARES.index("viable")], oiled)
            for (j, p), inside in zip(part, changes, strict=True):
                change = np.zeros(prepared.pre.shape[1:], dtype=np.int16)
                change[prepared.boxes[p]] = inside
                pending.setdefault(j, []).append(change)
                if len(pending[j]) == count:
                    yield j, np.stack(pending.pop(j))

    @in_engine_thread
    def _draw(
        self,
        prepared: Prepared,
        patches: list[int],
        seeds: list[int],
        shares: Tensor,
        actions: Tensor,
        texts: Tensor,
        steps: int | None,
    ) -> NDArray[np.float32]:
        """The boxes of N patches after treatment, (N, X, Y, Z) HU, for N seeds, shares, action vectors and texts."""
        noise = torch.stack([self._noise(prepared, p, seed) for p, seed in zip(patches, seeds, strict=True)])
        inputs = [
            torch.tensor(patches), shares, noise, prepared.latent[patches],
            prepared.mask[patches], actions, texts, self._log2_spacing(prepared, patches), prepared.profile[patches],
        ]  # fmt: skip

        def draw(where: Tensor, shares: Tensor, *tensors: Tensor) -> Tensor:
            latent = sample(self.model.denoiser, *tensors, steps=steps, shares=shares)
            return self.model.autoencoder.decode(self._cut(latent, [prepared.boxes[p] for p in where.tolist()]))

        return self._hu(self._batched(draw, inputs))

    def _shares(self, prepared: Prepared, patches: list[int], seeds: list[int], actions: Tensor) -> Tensor:
        """How N simulations divide the tumours of their patches: (N, 4), see `models.networks.response_head`."""
        inputs = [
            prepared.latent[patches], prepared.mask[patches], actions, self._log2_spacing(prepared, patches),
            prepared.profile[patches],
        ]  # fmt: skip
        shares = self._batched(self.model.denoiser.predict_shares, inputs, exact=True)
        spread = self.model.preset.denoiser.viable_spread
        if spread == 0:
            return shares
        luck = [self._generator(prepared, p, seed, "viable") for p, seed in zip(patches, seeds, strict=True)]
        return with_luck(shares, spread * torch.cat([torch.randn(1, generator=one) for one in luck]))

    def _redrawn(
        self, prepared: Prepared, patches: list[int], changes: NDArray[np.int16], viable: Tensor, oiled: Tensor
    ) -> NDArray[np.int16]:
        """Changes (N, X, Y, Z) in the boxes of N patches, corrected until the scan shows the viable shares (N,), and
        without Lipiodol where `oiled` (N,) is false."""
        low, high = window = self.model.preset.hu_window

        def cut(whole: NDArray[np.generic]) -> NDArray[np.float32]:
            return np.stack([whole[p][prepared.boxes[p]].astype(np.float32) for p in patches])

        before = cut(prepared.pre)
        scans = apply_change(before, changes.astype(np.float32), cut(prepared.weight), window)

        def corrected(scan: Tensor, before: Tensor, mask: Tensor, viable: Tensor, oiled: Tensor) -> Tensor:
            beside = self._scaled(before)

            def read(hu: Tensor) -> Tensor:
                return self._tissue_logits(self._scaled(hu), beside, mask)

            return redraw(scan, before, mask, viable, oiled, read, self.redraws)

        inputs = [torch.from_numpy(part) for part in (scans, before, cut(prepared.numbers) > 0)]
        after = self._batched(corrected, [*inputs, viable, oiled], size=self._segmenter_batch).numpy()
        new = np.rint(np.clip(after, low, high) - np.clip(before, low, high)).astype(np.int16)
        return np.where(after == scans, changes, new)

    def composite(self, prepared: Prepared, difference: NDArray[np.int16]) -> NDArray[np.int16]:
        """The simulated CT patches: before + feather * difference, (L, S, S, S) int16 HU."""
        window = self.model.preset.hu_window
        after = apply_change(prepared.pre, difference.astype(np.float32), prepared.weight, window)
        result: NDArray[np.int16] = np.rint(np.clip(after, OUTSIDE_HU, HIGHEST_HU)).astype(np.int16)
        return result

    def simulate(self, prepared: Prepared, jobs: Sequence[Job], steps: int | None = None) -> list[NDArray[np.int16]]:
        """Simulated CT patches of each job, (L, S, S, S) int16 HU; see `simulate_differences`."""
        return [self.composite(prepared, d) for _, d in sorted(self.simulate_differences(prepared, jobs, steps))]

    @in_engine_thread
    def reconstruct(self, patches: NDArray[np.generic]) -> NDArray[np.float32]:
        """CT patches (N, S, S, S) in HU as the autoencoder reproduces them, before quantisation."""
        latent = self._batched(self.model.autoencoder.encode, [self._unit(patches)])
        return self._hu(self._batched(self.model.autoencoder.decode, [latent]))

    @in_engine_thread
    def segment(
        self,
        patches: NDArray[np.generic],
        before: NDArray[np.generic],
        mask: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """Tissue classes (0 other, 1 liver, 2 viable, 3 necrotic, 4 oil) of CT patches.

        Args:
            patches: (N, X, Y, Z) HU, cubes or parts of them; edges divide by 2 to the number of levels less one.
            before: the same patches before treatment, in HU; `patches` themselves where those are segmented.
            mask: (N, X, Y, Z) tumour before treatment.

        Returns:
            (N, X, Y, Z).

        Raises:
            TransientToolError: out of memory.
        """

        def classes(scan: Tensor, before: Tensor, mask: Tensor) -> Tensor:
            return self._tissue_logits(scan, before, mask).argmax(dim=1).to(torch.uint8)

        inputs = [self._unit(patches)[:, 0], self._unit(before)[:, 0], torch.from_numpy(np.asarray(mask, dtype=bool))]
        result: NDArray[np.uint8] = self._batched(classes, inputs, size=self._segmenter_batch).numpy()
        return result

    def _tissue_logits(self, scan: Tensor, before: Tensor, mask: Tensor) -> Tensor:
        """The segmenter's logits (N, 5, X, Y, Z) of scans (N, X, Y, Z) in [-1, 1]."""
        channels = segmenter_input(scan, before, mask).contiguous(memory_format=torch.channels_last_3d)
        logits: Tensor = self.model.segmenter(channels)
        return logits

    def segment_near(self, prepared: Prepared, scans: Sequence[NDArray[np.generic]]) -> list[NDArray[np.uint8]]:
        """Tissue classes near the tumour in scans of a case: those of `segment`, which sees the boxes only.

        Args:
            prepared: the case.
            scans: CT patches (L, S, S, S) in HU that differ from those before treatment around the tumour only.

        Returns:
            Of each scan (L, S, S, S), 0 beyond `Prepared.near`.

        Raises:
            TransientToolError: out of memory.
        """

        def cut(patches: NDArray[np.generic]) -> list[NDArray[np.generic]]:
            return [patch[box] for patch, box in zip(patches, prepared.boxes, strict=True)]

        found = self.segment(
            np.stack([part for scan in scans for part in cut(scan)]),
            np.stack(cut(prepared.pre) * len(scans)),
            np.stack(cut(prepared.numbers > 0) * len(scans)),
        )
        result = np.zeros((len(scans), *prepared.near.shape), dtype=np.uint8)
        near = prepared.near > 0
        for position, part in enumerate(found):
            scan, patch = divmod(position, len(prepared.boxes))
            box = prepared.boxes[patch]
            result[scan, patch][box] = np.where(near[patch][box], part, 0)
        return list(result)

    def segment_volume(self, volume: Volume) -> NDArray[np.uint8]:
        """Liver (1) and tumour (2) on a whole CT of which nothing is known, in a sliding window on its own grid.

        Raises:
            TransientToolError: out of memory.
        """
        preset = self.model.preset

        def logits(x: Tensor) -> Tensor:
            return self._batched(self.model.localiser, [x])

        # the window that it was trained on: its normalisation takes the mean of all that it sees
        window = preset.training.localiser.crop
        return segment_whole(logits, volume, window, WIDE_SPACING_MM, preset.hu_window, self.batch)

    @in_engine_thread
    def log_risk(
        self,
        prepared: Prepared,
        outcomes: Sequence[NDArray[np.int16]],
        segmentations: Sequence[NDArray[np.uint8]],
    ) -> list[float]:
        """The network's log hazard of each outcome (the tumour's share; toxicity comes on top).

        The burden is that of the whole case: viable ml of all lesions after, tumour ml before, number of lesions. A
        case with several patches gets the mean over its patches, weighted by the tumour volume that each simulates.

        Args:
            prepared: the case.
            outcomes: simulated CT patches (L, S, S, S) of each outcome.
            segmentations: tissue classes (L, S, S, S) of each outcome.
        """
        count = len(prepared.patches)
        volumes = [sum(prepared.lesion_ml[n - 1] for n in patch.lesions) for patch in prepared.patches]
        share = np.array(volumes) / sum(volumes)
        spacing = [math.log2(patch.spacing_mm / REFERENCE_SPACING_MM) for patch in prepared.patches]
        slots = [(outcome, patch) for outcome in range(len(outcomes)) for patch in range(count)]
        viable = [self._viable_ml(prepared, tissue) for tissue in segmentations]
        risks = np.zeros((len(outcomes), count))
        for start in range(0, len(slots), self.batch):
            part = slots[start : start + self.batch]
            patch = [p for _, p in part]
            image = self._unit(np.stack([outcomes[o][p] for o, p in part]))
            alive = np.stack([(segmentations[o][p] == VIABLE) & (prepared.near[p] > 0) for o, p in part])
            number = float(min(prepared.lesions.count, MOST_LESIONS))
            burden = [[math.log1p(viable[o]), math.log1p(prepared.tumour_ml), number, spacing[p]] for o, p in part]
            inputs = [
                prepared.tokens[patch],
                torch.cat([image, torch.from_numpy(alive.astype(np.float32))[:, None]], dim=1),
                torch.tensor(burden, dtype=torch.float32),
                prepared.record.expand(len(part), -1),
            ]
            values = self._batched(self.model.survival, inputs, exact=True).tolist()
            for (o, p), value in zip(part, values, strict=True):
                risks[o, p] = value
        return [float(np.dot(row, share)) for row in risks]

    def _viable_ml(self, prepared: Prepared, tissue: NDArray[np.uint8]) -> float:
        alive = (tissue == VIABLE) & (prepared.own > 0)
        return sum(
            float(mask.sum()) * voxel_ml_of(patch.affine) for mask, patch in zip(alive, prepared.patches, strict=True)
        )

    def _boxes(self, support: NDArray[np.bool_]) -> tuple[Box, ...]:
        """What is decoded and segmented of each patch; never less than the networks were trained on."""
        preset = self.model.preset
        return boxes_around(support, BOX_MARGIN, preset.least_box, preset.box_step, preset.downsampling)

    def _cut(self, latent: Tensor, boxes: Sequence[Box]) -> Tensor:
        """The boxes of latents (N, C, s, s, s)."""
        edge = self.model.preset.downsampling
        cells = [tuple(slice(s.start // edge, s.stop // edge) for s in box) for box in boxes]
        return torch.stack([one[:, *cell] for one, cell in zip(latent, cells, strict=True)])

    def _noise(self, prepared: Prepared, patch: int, seed: int) -> Tensor:
        """Standard normal noise of one (case, patch, seed), the same for every protocol and on every device."""
        return torch.randn(prepared.latent.shape[1:], generator=self._generator(prepared, patch, seed))

    def _generator(self, prepared: Prepared, patch: int, seed: int, *purpose: str) -> torch.Generator:
        digest = hashlib.sha256(":".join((prepared.key, str(patch), str(seed), *purpose)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def _log2_spacing(self, prepared: Prepared, patches: list[int]) -> Tensor:
        return torch.tensor([math.log2(prepared.patches[p].spacing_mm / REFERENCE_SPACING_MM) for p in patches])

    def _unit(self, hu: NDArray[np.generic]) -> Tensor:
        """HU (N, S, S, S) -> (N, 1, S, S, S) in [-1, 1] over the preset's window."""
        return self._scaled(torch.from_numpy(np.asarray(hu, dtype=np.float32)))[:, None]

    def _scaled(self, hu: Tensor) -> Tensor:
        low, high = self.model.preset.hu_window
        return ((hu - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0)

    def _hu(self, unit: Tensor) -> NDArray[np.float32]:
        """(N, 1, S, S, S) in [-1, 1] -> HU (N, S, S, S)."""
        low, high = self.model.preset.hu_window
        result: NDArray[np.float32] = ((unit[:, 0] + 1.0) * (0.5 * (high - low)) + low).numpy()
        return result

    @in_engine_thread
    def _batched(
        self, network: Callable[..., Tensor], inputs: Sequence[Tensor], *, exact: bool = False, size: int | None = None
    ) -> Tensor:
        """Runs a network over the first axis in batches of exactly one size; the result lies on the CPU.

        Args:
            network: what to run.
            inputs: tensors with the same first axis.
            size: of the batches; None is `batch`.
            exact: float32 even where the engine computes in bfloat16. A risk needs it: bfloat16 has steps of 0.008
                near 1, as large as the differences between protocols.
        """
        half = self.precision == "bf16" and not exact
        total, size = inputs[0].shape[0], size or self.batch
        results = []
        with _device_errors(self.device), torch.inference_mode(), autocast(self.device, half):
            for start in range(0, total, size):
                part = [tensor[start : start + size] for tensor in inputs]
                missing = size - part[0].shape[0]
                if missing:
                    part = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in part]
                out = network(*[tensor.contiguous().to(self.device) for tensor in part])
                results.append(out[: size - missing].cpu())
        return torch.cat(results)


@contextmanager
def _device_errors(device: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as exc:
        torch.cuda.empty_cache()
        raise TransientToolError(
            f"The device '{device}' ran out of memory: free it, or run with --device cpu."
        ) from exc
    except MemoryError as exc:
        raise TransientToolError("The machine ran out of memory: close other programs and resume the run.") from exc
    except RuntimeError as exc:
        if "DefaultCPUAllocator" not in str(exc):
            raise
        raise TransientToolError("The machine ran out of memory: close other programs and resume the run.") from exc


def _content_key(volume: Volume, labels: NDArray[np.generic], record: ClinicalRecord) -> str:
    total = hashlib.sha256(np.ascontiguousarray(volume.data).tobytes())
    total.update(np.ascontiguousarray(volume.affine, dtype=np.float64).tobytes())
    total.update(np.ascontiguousarray(labels).tobytes())
    total.update(record.model_dump_json().encode())
    return total.hexdigest()
