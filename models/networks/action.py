"""Action encoder, equation (1) of the paper: tau(a) = sigma_2([sigma_1(phi(a_1)), ..., sigma_1(phi(a_H))], c).

phi is a text encoding of each sub-action, c the learnable concept embeddings of the drugs and embolics in it. The paper
concatenates the projected texts in report order; here they are summed, because a protocol is a set: neither the order
of the agents nor that of the keys can change the result. The dose enters as a number beside a flag that says whether it
is stated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import WeightsError
from models.formulary import ITEM_ORDER, Formulary
from models.networks.preset import DenoiserPreset
from models.protocol import Protocol

FEATURES = 3  # present, dose stated, log2(dose / reference)
CLIP_FOLDER = "MEWM_CLIP"
LOG_DOSE_LIMIT = 2.0  # a quarter to four times the usual session dose


@lru_cache(maxsize=1)
def _reference_doses() -> dict[str, float]:
    formulary = Formulary.load("all")
    return {item.name: item.dose.reference for item in formulary.items if item.dose is not None}


def action_vector(protocol: Protocol) -> npt.NDArray[np.float32]:
    """Encode a protocol as numbers.

    Args:
        protocol: canonical names of the formulary `all`.

    Returns:
        (18, 3) float32 in `ITEM_ORDER`: present (0 or 1), dose stated (0 or 1), log2(dose / reference) within +-2.
        An absent agent is all zeros; without a stated dose, or a known reference dose, the last two are 0.
    """
    out = np.zeros((len(ITEM_ORDER), FEATURES), dtype=np.float32)
    for name in protocol.items:
        row = out[ITEM_ORDER.index(name)]
        row[0] = 1.0
        dose, reference = protocol.dose(name), _reference_doses().get(name)
        if dose is not None and reference is not None:
            row[1] = 1.0
            row[2] = float(np.clip(np.log2(dose.amount / reference), -LOG_DOSE_LIMIT, LOG_DOSE_LIMIT))
    return out


class TextEncoder(Interface):
    """phi of equation (1): a fixed text encoder."""

    dim: int

    def encode(self, text: str) -> npt.NDArray[np.float32]:
        """One sub-action, such as "Cisplatin 50 mg", as a vector (dim,)."""
        ...


class HashedTextEncoder:
    """Bag of hashed character 3- to 5-grams, unit length. Deterministic, needs no download."""

    def __init__(self, dim: int = 64) -> None:
        """Args: dim: length of the vector."""
        self.dim = dim

    def encode(self, text: str) -> npt.NDArray[np.float32]:
        """See `TextEncoder.encode`; case and outer blanks don't matter."""
        padded = f" {text.strip().lower()} "
        out = np.zeros(self.dim, dtype=np.float32)
        for length in (3, 4, 5):
            for start in range(len(padded) - length + 1):
                digest = hashlib.blake2b(padded[start : start + length].encode(), digest_size=8).digest()
                sign = 1.0 if digest[0] & 1 else -1.0
                out[int.from_bytes(digest[1:], "little") % self.dim] += sign
        norm = float(np.linalg.norm(out))
        return out / np.float32(norm) if norm > 0 else out


class ClipTextEncoder:
    """The paper's text encoder: CLIP (Radford et al. 2021), from a folder on this machine. Nothing is downloaded.

    The folder is one that `transformers` saves (`CLIPTextModelWithProjection` and its tokenizer; the paper took
    ViT-B/32), with weights as safetensors. The environment variable `MEWM_CLIP` names it.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        """Args: folder: of the model. dim: what the network expects, the projection's length.

        Raises:
            WeightsError: `transformers` is not installed, the folder holds no such model or one of another length.
        """
        try:
            transformers: Any = import_module("transformers")
        except ModuleNotFoundError as error:
            raise WeightsError("The CLIP text encoder needs the package transformers; install it.") from error
        try:
            self._tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            self._model = transformers.CLIPTextModelWithProjection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).eval()
        except OSError as error:
            raise WeightsError(f"There is no CLIP text model in {folder} (set {CLIP_FOLDER} to its folder).") from error
        self.dim = dim
        found = int(self._model.config.projection_dim)
        if found != dim:
            raise WeightsError(f"CLIP in {folder} gives {found} numbers, the preset's text_dim is {dim}; change it.")

    def encode(self, text: str) -> npt.NDArray[np.float32]:
        """See `TextEncoder.encode`; unit length."""
        with torch.no_grad():
            tokens = self._tokenizer([text], return_tensors="pt", truncation=True)
            embedded = torch.nn.functional.normalize(self._model(**tokens).text_embeds.float(), dim=1)
        vector: npt.NDArray[np.float32] = embedded[0].numpy()
        return vector


@lru_cache(maxsize=2)
def text_encoder(preset: DenoiserPreset) -> TextEncoder:
    """Phi of equation (1) that a preset names.

    Raises:
        WeightsError: CLIP is asked for and not there.
    """
    if preset.text_encoder == "hashed":
        return HashedTextEncoder(preset.text_dim)
    folder = os.environ.get(CLIP_FOLDER)
    if not folder:
        raise WeightsError(f"The preset's text encoder is CLIP; set {CLIP_FOLDER} to the folder of its text model.")
    return ClipTextEncoder(Path(folder), preset.text_dim)


def text_vector(protocol: Protocol, encoder: TextEncoder) -> npt.NDArray[np.float32]:
    """Sum of the text encodings of the sub-actions (dim,), float32: order-free."""
    total = np.zeros(encoder.dim, dtype=np.float32)
    for name in sorted(protocol.items):
        dose = protocol.dose(name)
        total += encoder.encode(name if dose is None else f"{name} {dose}")
    return total


def encode_protocols(protocols: Sequence[Protocol], encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """Numbers for a batch: actions (N, 18, 3) and texts (N, encoder.dim), float32."""
    actions = np.stack([action_vector(protocol) for protocol in protocols])
    texts = np.stack([text_vector(protocol, encoder) for protocol in protocols])
    return torch.from_numpy(actions), torch.from_numpy(texts)


class ActionEncoder(nn.Module):
    """tau(a) of equation (1), order-free."""

    def __init__(self, preset: DenoiserPreset, items: int = len(ITEM_ORDER)) -> None:
        """Args: preset: sizes. items: number of agents that the network knows."""
        super().__init__()
        self.concept = nn.Parameter(torch.randn(items, preset.concept_dim) * 0.3)
        self.dose_direction = nn.Parameter(torch.randn(items, preset.concept_dim) * 0.1)
        self.stated_direction = nn.Parameter(torch.zeros(items, preset.concept_dim))
        self.text_projection = nn.Linear(preset.text_dim, preset.concept_dim, bias=False)
        self.fuse = nn.Sequential(
            nn.Linear(2 * preset.concept_dim, 4 * preset.concept_dim),
            nn.GELU(),
            nn.Linear(4 * preset.concept_dim, 4 * preset.concept_dim),
            nn.GELU(),
            nn.Linear(4 * preset.concept_dim, preset.action_dim),
        )
        self.absent = nn.Parameter(torch.zeros(preset.action_dim))

    def forward(self, action: Tensor, text: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            action: (N, items, 3) from `action_vector`.
            text: (N, text_dim) from `text_vector`.
            keep: (N,) bool; where False the learned "no action given" vector is used (classifier-free guidance).

        Returns:
            (N, action_dim).
        """
        present, stated, dose = action.unbind(-1)
        concepts = present @ self.concept + stated @ self.stated_direction + dose @ self.dose_direction
        out: Tensor = self.fuse(torch.cat([concepts, self.text_projection(text)], dim=1))
        if keep is not None:
            out = torch.where(keep[:, None], out, self.absent.to(out.dtype).expand_as(out))
        return out
