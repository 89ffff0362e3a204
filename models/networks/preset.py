"""Preset: the sizes of the networks and how long each is trained. One YAML file in `models/presets/` per preset."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import InputError, WeightsError

BEFORE = {
    "autoencoder": (),
    "denoiser": ("autoencoder",),
    "segmenter": ("autoencoder", "denoiser"),
    "localiser": (),
    "survival": ("autoencoder", "denoiser", "segmenter"),
}
"""The networks, each with those that its training uses."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AutoencoderPreset(_Part):
    """Sizes of the VQ-GAN. Every entry of `channels` halves the grid once."""

    channels: tuple[int, ...]
    res_layers: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    codes: int = Field(ge=2)
    code_levels: int = Field(ge=1, description="residual codebooks; 1 is the plain vector quantiser")
    decode_codes: bool = Field(description="decode from the nearest codes; else from the continuous latent")


class DenoiserPreset(_Part):
    """Sizes of the action-conditioned U-Net and of its action encoder."""

    channels: tuple[int, ...]
    res_blocks: int = Field(ge=1)
    attention: tuple[bool, ...]
    head_channels: int = Field(ge=1)
    norm_groups: int = Field(ge=1)
    concept_dim: int = Field(ge=1)
    text_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    steps: int = Field(ge=1, description="steps that `sample` takes unless told otherwise")
    finalist_steps: int | None = Field(
        default=None, ge=1, description="steps in the last comparison of a plan; None takes `steps`"
    )
    guidance: float = Field(ge=0, description="classifier-free guidance; 1 is plain conditional sampling")
    guidance_at: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="time in [0, 1), 0 is noise: the first step from here on computes the guidance, those after keep "
        "what it found, those before it have none; None computes it in every step",
    )
    objective: Literal["flow", "noise"] = Field(
        default="flow", description="velocity of a rectified flow, or the paper's noise prediction, equation (2)"
    )
    sampler: Literal["ddpm", "ddim"] = Field(default="ddim", description="for noise prediction; a flow takes Euler")
    timesteps: int = Field(default=200, ge=2, description="of the noise schedule")
    condition: Literal["action", "text", "none"] = Field(
        default="action", description="what the network learns of the protocol: all, its text only, or nothing"
    )
    reading: Literal["latent", "profile"] = Field(
        default="latent", description="what the response head reads of the image"
    )
    text_encoder: Literal["hashed", "clip"] = Field(default="hashed", description="phi of equation (1)")
    viable_spread: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation over seeds of the logit of the predicted viable share; "
        "`share_viable_error` of the denoiser's metrics says by how much whole patients differ from the prediction",
    )
    redraws: int = Field(
        default=0,
        ge=0,
        description="rounds in which a drawn scan is corrected where the segmenter does not read the predicted amount "
        "of living tumour in it, and where Lipiodol was drawn but not given (`models.redraw`); 0 leaves it as it is "
        "drawn, as in the paper",
    )

    @property
    def rounds(self) -> int:
        """`redraws`, or none for a network that never learned what a protocol's agents are, and so predicts nothing."""
        return self.redraws if self.condition == "action" else 0


class SegmenterPreset(_Part):
    """Sizes of the DynUNet."""

    filters: tuple[int, ...]


class LocaliserPreset(_Part):
    """Sizes of the DynUNet that looks at whole scans."""

    filters: tuple[int, ...]


class SurvivalPreset(_Part):
    """Sizes of the MC3-18 encoder and of the two-way transformer."""

    width: int = Field(ge=1)
    input_pool: int = Field(ge=1, description="the cubes are averaged to 1/input_pool of their edge first")
    stem_stride: tuple[int, int, int]
    heads: int = Field(ge=1)
    depth: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    fuse_record: bool = Field(description="fuse tumour burden and clinical record late; off is the paper's network")
    os_edges_months: tuple[float, ...] = Field(
        default=(), description="ends of the intervals of the overall-survival head; empty leaves it out"
    )


class TrainingPreset(_Part):
    """How one network is trained. `minutes` bounds the time in training steps, validation apart, and sets the schedule.

    `crop` is the edge of the random cubes (voxels) that an autoencoder, segmenter or localiser sees.
    """

    minutes: float = Field(gt=0)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    ema: float = Field(ge=0, lt=1)
    crop: int = Field(default=64, ge=8)
    warmup_steps: int = Field(default=50, ge=0)
    watch: str = Field(default="", description="validation metric for the early stop; '-' before it: lower is better")
    patience: int = Field(default=0, ge=0, description="validations without a better one before stopping; 0 is never")
    watch_from: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run before which no validation is the best, or stops it"
    )
    options: dict[str, float] = Field(default_factory=dict, description="loss weights that only this network has")


class TrainingPresets(_Part):
    """Training of each network."""

    autoencoder: TrainingPreset
    denoiser: TrainingPreset
    segmenter: TrainingPreset
    localiser: TrainingPreset
    survival: TrainingPreset


class Preset(_Part):
    """A complete description of one world model."""

    name: str
    size: int = Field(ge=8, description="edge of the patch in voxels")
    spacing_mm: float = Field(gt=0, description="finest voxel edge of a patch")
    hu_window: tuple[float, float]
    autoencoder: AutoencoderPreset
    denoiser: DenoiserPreset
    segmenter: SegmenterPreset
    localiser: LocaliserPreset
    survival: SurvivalPreset
    training: TrainingPresets

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hu_window[0] >= self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window} is empty")
        if self.size % self.downsampling:
            raise ValueError(
                f"size {self.size} is not a multiple of the autoencoder's downsampling {self.downsampling}"
            )
        if len(self.denoiser.attention) != len(self.denoiser.channels):
            raise ValueError("denoiser.attention needs one entry per level of denoiser.channels")
        return self

    @property
    def downsampling(self) -> int:
        """Voxels of the patch per latent cell, along one edge."""
        return int(2 ** len(self.autoencoder.channels))

    @property
    def latent_size(self) -> int:
        """Edge of the latent cube."""
        return self.size // self.downsampling

    @property
    def least_box(self) -> int:
        """Shortest edge of the part of a patch that decoder and segmenter see: what they were trained on."""
        return max(self.training.autoencoder.crop, self.training.segmenter.crop)

    @property
    def box_step(self) -> int:
        """Edges of that part are multiples of it."""
        return int(max(self.downsampling, 2 ** (len(self.segmenter.filters) - 1)))

    def fingerprint(self, part: str) -> str:
        """Text that two presets share exactly when the training of `part` would be the same run."""
        own = getattr(self.training, part).model_dump_json()
        others = set(type(self.training).model_fields) - {part, *BEFORE[part]}
        return f"{part} {self.model_dump_json(exclude={'name', 'training', *others})} {own}"

    @classmethod
    def load(cls, name: str, changes: Sequence[str] = ()) -> Preset:
        """Read `models/presets/<name>.yaml`.

        Args:
            name: of the file.
            changes: see `changed`.

        Raises:
            WeightsError: there is no preset of that name.
            InputError: see `changed`.
        """
        folder = resources.files("models") / "presets"
        known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        if name not in known:
            raise WeightsError(f"There is no preset '{name}'; the presets are {', '.join(known)}.")
        content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        return cls.model_validate(content).changed(changes)

    def changed(self, changes: Sequence[str]) -> Preset:
        """This preset with other values.

        Args:
            changes: such as "training.denoiser.options.contrast_weight=0", for an ablation.

        Raises:
            InputError: a change names no setting, or a value that it can't have.
        """
        if not changes:
            return self
        full = self.model_dump()
        for change in changes:
            _change(full, change)
        try:
            return Preset.model_validate(full)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"The preset '{self.name}' can't be changed so: {where or 'preset'}: {first['msg']}."
            ) from error


def _change(settings: dict[str, Any], change: str) -> None:
    """Apply "a.b.c=value" in place."""
    key, equals, value = change.partition("=")
    inner: Any = settings
    *path, last = key.strip().split(".")
    for part in path:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if not equals or not isinstance(inner, dict) or last not in inner:
        raise InputError(f"--set {change} names no setting of the preset; write KEY=VALUE as in its YAML file.")
    try:
        inner[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {change} has a value that is no YAML; write it as in the preset's file.") from error
