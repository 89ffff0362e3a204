"""The autoencoder, measured: errors of a true follow-up after encoding and decoding, and how its codes are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evals.model_card.figures import Figure, figure, mean_figure
from evals.model_card.scene import Scene, TrueFollowUp
from models.networks.quantiser import EmaQuantiser
from models.response import OIL


def measure_autoencoder(scene: Scene, true: TrueFollowUp) -> dict[str, Any]:
    """Mean absolute error in HU over the patch, in the tumour and in Lipiodol, and how often each code was nearest."""
    engine = scene.engine
    scan = np.clip(true.hu.astype(np.float32), *engine.model.preset.hu_window)
    error = np.abs(engine.reconstruct(true.hu) - scan)
    oil = true.all_tissue == OIL
    tumour = scene.prepared.numbers > 0
    return {
        "overall": float(error.mean()),
        "tumour": float(error[tumour].mean()),
        "oil": float(error[oil].mean()) if oil.any() else None,
        "codes": _codes(scene, scan[:1]),
    }


def _codes(scene: Scene, scan: Any) -> dict[str, int]:
    """Code -> latent cells whose nearest code (of the first level) it is."""
    autoencoder = scene.engine.model.autoencoder
    low, high = scene.engine.model.preset.hu_window
    unit = (torch.from_numpy(scan)[:, None] - low) * (2.0 / (high - low)) - 1.0
    with torch.inference_mode():
        raw = autoencoder.encoder(unit.to(scene.engine.device)).float()
        flat = raw.movedim(1, -1).reshape(-1, raw.shape[1])
        first = autoencoder.quantisers[0]
        assert isinstance(first, EmaQuantiser)
        nearest = first.nearest(flat).cpu().numpy()
    codes, counts = np.unique(nearest, return_counts=True)
    return {str(code): int(count) for code, count in zip(codes, counts, strict=True)}


def summarise_autoencoder(rows: Sequence[dict[str, Any]], codes: int) -> dict[str, Figure]:
    """Figures over patients.

    Args:
        rows: Of `measure_autoencoder`.
        codes: Size of the codebook.
    """
    counts = np.zeros(codes)
    for row in rows:
        for code, count in row["codes"].items():
            counts[int(code)] += count
    share = counts[counts > 0] / counts.sum()
    return {
        **{f"mae_hu_{name}": mean_figure([row[name] for row in rows]) for name in ("overall", "tumour", "oil")},
        "codes_used_share": figure(float((counts > 0).mean()), n=len(rows)),
        "code_perplexity": figure(float(np.exp(-(share * np.log(share)).sum())), n=len(rows)),
    }
