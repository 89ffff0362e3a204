"""Simulated and segmented follow-up scans of some patients of a pool: what the survival network sees when planning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from models.errors import RunError
from models.networks.precision import autocast
from models.networks.preset import Preset
from models.networks.response_head import SHARES
from models.networks.segmenter import Segmenter, Tissue, segmenter_input
from models.patch import BOX_MARGIN, boxes_around, feather
from models.redraw import redraw
from models.training.drawings import DONE, Painter, draw_pool
from models.training.pool import Pool, hu_to_unit

SEED = 2
"""Of the noise: other than what the segmenter was trained on."""


@dataclass(frozen=True)
class Simulator:
    """What draws, what reads it, and an identity of the weights of both."""

    painter: Painter
    segmenter: Segmenter
    identity: str


@dataclass(frozen=True)
class Simulations:
    """N patients, K protocols each.

    Attributes:
        row: of each patient index that was simulated.
        scan: (N, K, S, S, S) int16 HU, as the engine draws and corrects it.
        tissue: (N, K, S, S, S) uint8, its segmentation; 0 beyond the box around the tumour that the engine looks at.
    """

    row: dict[int, int]
    scan: npt.NDArray[np.int16]
    tissue: npt.NDArray[np.uint8]

    def viable_ml(self, patient: int, pool: Pool) -> npt.NDArray[np.float64]:
        """Viable ml (K,) of all lesions: the truth, corrected by what the simulation shows otherwise in the patch."""
        voxel = float(pool.spacing_mm[patient]) ** 3 / 1000.0
        true = np.expm1(np.asarray(pool.burden[patient, :, 0], dtype=np.float64))
        found = (self.tissue[self.row[patient]] == Tissue.VIABLE).sum(axis=(1, 2, 3))
        there = (np.asarray(pool.post_labels[patient]) == Tissue.VIABLE).sum(axis=(1, 2, 3))
        corrected: npt.NDArray[np.float64] = np.maximum(true + voxel * (found.astype(float) - there), 0.0)
        return corrected


@torch.no_grad()
def simulate_pool(
    simulator: Simulator, pool: Pool, preset: Preset, patients: npt.NDArray[np.int64], folder: Path
) -> Simulations:
    """Simulate every rendered protocol of some patients, or open what an earlier call wrote.

    Args:
        simulator: trained networks, in evaluation mode.
        pool: patches.
        preset: theirs.
        patients: indices.
        folder: of the memory maps; a call that was broken off is continued.

    Raises:
        RunError: the folder can't be read or written.
    """
    drawings = draw_pool(simulator.painter, pool, preset, patients, SEED, folder)
    told = {
        **json.loads((folder / DONE).read_text(encoding="utf-8")),
        "simulator": simulator.identity, "redraws": preset.denoiser.rounds,
    }  # fmt: skip
    index, paths = folder / "simulations.json", (folder / "corrected.npy", folder / "tissue.npy")
    if index.exists() and json.loads(index.read_text(encoding="utf-8")) == told:
        scan, tissue = (np.load(path, mmap_mode="r") for path in paths)
    else:
        low, high = preset.hu_window
        device = next(simulator.segmenter.parameters()).device
        simulator.segmenter.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # as the engine
        try:
            index.unlink(missing_ok=True)  # it is of other simulations, over which these are written
            scan, tissue = (
                np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=drawings.scan.shape)
                for path, kind in zip(paths, (np.int16, np.uint8), strict=True)
            )
            with autocast(device):
                for place in track(range(len(patients)), description="simulations"):
                    patient = int(patients[place])
                    tumour = np.asarray(pool.tumour_mask[patient])
                    weight = feather(tumour, np.diag([float(pool.spacing_mm[patient])] * 3 + [1.0]))
                    (box,) = boxes_around(
                        weight[None] > 0, BOX_MARGIN, preset.least_box, preset.box_step, preset.downsampling
                    )
                    scan[place], tissue[place] = drawings.scan[place], 0
                    drawn = torch.from_numpy(np.array(drawings.scan[place][:, *box], dtype=np.float32)).to(device)
                    before = torch.from_numpy(np.array(pool.pre[patient][box], dtype=np.float32)).to(device)
                    before, mask = (
                        part.expand_as(drawn) for part in (before, torch.from_numpy(tumour[box] > 0).to(device))
                    )
                    read = partial(_read, simulator.segmenter, preset, before, mask)
                    if preset.denoiser.rounds:
                        viable = torch.from_numpy(drawings.shares[place, :, SHARES.index("viable")]).to(device)
                        oiled = torch.tensor(["Lipiodol" in p.embolics for p in pool.protocols[patient]], device=device)
                        drawn = redraw(drawn, before, mask, viable, oiled, read, preset.denoiser.rounds)
                        drawn = drawn.clamp(low, high)
                    drawn = drawn.round()
                    scan[place][:, *box] = drawn.cpu().numpy()
                    tissue[place][:, *box] = read(drawn).argmax(dim=1).to(torch.uint8).cpu().numpy()
            scan.flush()
            tissue.flush()
            part = index.with_suffix(".part")
            part.write_text(json.dumps(told), encoding="utf-8")
            part.replace(index)
        except OSError as error:
            raise RunError(f"The simulations in {folder} can't be written ({error}); remove the folder.") from error
    return Simulations({int(patient): place for place, patient in enumerate(patients)}, scan, tissue)


def _read(segmenter: Segmenter, preset: Preset, before: Tensor, mask: Tensor, scan: Tensor) -> Tensor:
    """Logits (K, 5, S, S, S) of scans (K, S, S, S) in HU."""
    inputs = segmenter_input(hu_to_unit(scan, preset.hu_window), hu_to_unit(before, preset.hu_window), mask)
    logits: Tensor = segmenter(inputs.contiguous(memory_format=torch.channels_last_3d))
    return logits
