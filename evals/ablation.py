"""Ablation: the planner with a part of it switched off, to see what the part is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.engine import Engine
from models.errors import InputError
from models.response import VIABLE
from models.weights import read_manifest

ASSISTANT = "assistant"
"""The assistant model of the paper's Table 3: the segmentation that tells the survival model where the tumour is."""


class WithoutAssistant(Engine):
    """An engine's networks without its segmentation model: what is left of the tumour is not looked for.

    The whole original tumour counts as viable under every protocol, so that the survival model still sees the simulated
    image and the place of the tumour, but not what the treatment left of it. Volumes and diameters are then the same
    for every protocol. What it simulates is what the full engine simulates, under the same names; what it calls a
    segmentation is not, and needs a name of its own.
    """

    def __init__(self, full: Engine) -> None:
        """Args: full: the engine whose networks are used; nothing is loaded again."""
        super().__init__(
            "cuda" if full.device == "cuda" else "cpu",
            model=full.model,
            precision="bf16" if full.precision == "bf16" else "fp32",
            batch=full.batch,
        )

    def segment(
        self,
        patches: NDArray[np.generic],
        before: NDArray[np.generic],  # noqa: ARG002 (as of `Engine.segment`)
        mask: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """The tumour before treatment as viable tissue, (N, S, S, S)."""
        return np.where(np.asarray(mask, dtype=bool), VIABLE, 0).astype(np.uint8).reshape(np.shape(patches))


CONTROL = "nothing"
"""Weights that were trained again with every part, beside those that lack one."""
TRAINED_WITH = {"contrastive": "contrast_weight", "attenuation": "attenuation_share", "paper_losses": "effect_weight"}
"""Setting of the denoiser's training that is 0 in weights without the part (`docs/training.md`)."""


def check_trained_without(what: str, folder: Path) -> None:
    """Refuses weights that were trained with the part that they are said to lack.

    Args:
        what: Key of `TRAINED_WITH`, or `CONTROL`, which lacks nothing.
        folder: Of the bundle.

    Raises:
        WeightsError: there is no bundle.
        InputError: the part was there, or nothing says that it was not; a control lacks one.
    """
    preset = read_manifest(folder).preset
    if what == CONTROL:
        if lacking := [name for name in TRAINED_WITH.values() if not preset.training.denoiser.options.get(name)]:
            raise InputError(
                f"The weights in {folder} are no control, which is trained with every part: they have no "
                f"{', '.join(lacking)}; train them with python -m evals.trained_without --only {CONTROL}."
            )
        return
    setting = TRAINED_WITH[what]
    value = preset.training.denoiser.options.get(setting)
    if value != 0:
        raise InputError(
            f"The weights in {folder} were not trained without {what}: their {setting} is "
            f"{'not stated' if value is None else f'{value:g}'}; train and export them with --set "
            f"training.denoiser.options.{setting}=0."
        )
    if what == "paper_losses" and preset.denoiser.objective != "noise":
        raise InputError(
            f"The weights in {folder} were not trained with the paper's losses: their objective is "
            f"{preset.denoiser.objective}; train and export them with --set denoiser.objective=noise."
        )
