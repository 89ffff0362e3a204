"""The weight bundle of a world model: five safetensors files and a manifest with their hashes.

Tensors are stored as float16 and computed in float32 or bfloat16. Nothing is ever unpickled. The sizes of the networks
come from the manifest, so a bundle loads even after the preset file has moved on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from models.errors import WeightsError
from models.networks.action import TextEncoder, text_encoder
from models.networks.autoencoder import Autoencoder
from models.networks.denoiser import Denoiser
from models.networks.localiser import Localiser
from models.networks.preset import Preset
from models.networks.segmenter import Segmenter
from models.networks.survival import SurvivalNet

DEFAULT_WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
FORMAT = 2
PartName = Literal["autoencoder", "denoiser", "segmenter", "localiser", "survival"]
PARTS: tuple[PartName, ...] = ("autoencoder", "denoiser", "segmenter", "localiser", "survival")
"""The networks in the order in which they are trained."""
Origin = Literal["synthetic", "real", "mixed", "untrained"]


class SurvivalBaseline(BaseModel):
    """Breslow baseline survival: the curve of a patient whose total log-risk is 0 on the scale of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    times_months: tuple[float, ...]
    survival: tuple[float, ...]
    n: int
    data_origin: str


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """`manifest.json` of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    origin: Origin
    preset: Preset
    files: dict[str, _File]
    survival_baseline: SurvivalBaseline | None = None
    provenance: dict[str, str]

    @property
    def weights_hash(self) -> str:
        """Short id of exactly these weights with their preset, origin and survival baseline (12 hex digits).

        The preset counts as the bundle states it: a setting that presets gain later leaves the id as it is.
        """
        told = self.model_dump_json(include={"origin", "preset", "survival_baseline"}, exclude_unset=True)
        text = json.dumps({name: file.sha256 for name, file in sorted(self.files.items())})
        return hashlib.sha256((text + told).encode()).hexdigest()[:12]


def told_by_network(values: Mapping[PartName, str]) -> str:
    """One text for a provenance: the value of all networks, or each value with its networks, "A (x, y); B (z)"."""
    by = [
        f"{value} ({', '.join(name for name, other in values.items() if other == value)})"
        for value in dict.fromkeys(values.values())
    ]
    return next(iter(values.values())) if len(by) == 1 else "; ".join(by)


def told_of_network(name: PartName, text: str) -> str:
    """What a text of `told_by_network` says of one network; "unknown" where it says nothing of it."""
    for part in text.split("; "):
        value, _, names = part.partition(" (")
        if not names or name in names.rstrip(")").split(", "):
            return value
    return "unknown"


@dataclass(frozen=True)
class WorldModel:
    """Five networks in evaluation mode on one device.

    `weights_hash` identifies the weights; `origin` says what they were trained on ("untrained" for random ones).
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    segmenter: Segmenter
    localiser: Localiser
    survival: SurvivalNet
    preset: Preset
    weights_hash: str
    origin: Origin
    baseline: SurvivalBaseline | None

    @property
    def text_encoder(self) -> TextEncoder:
        """Phi of equation (1) for this model's denoiser."""
        return text_encoder(self.preset.denoiser)

    def part(self, name: PartName) -> nn.Module:
        """One network by name."""
        module: nn.Module = getattr(self, name)
        return module


def build_network(name: PartName, preset: Preset) -> nn.Module:
    """One network of a preset with random weights."""
    if name == "autoencoder":
        return Autoencoder(preset.autoencoder)
    if name == "denoiser":
        return Denoiser(preset.denoiser, preset.autoencoder.latent_channels)
    if name == "segmenter":
        return Segmenter(preset.segmenter)
    if name == "localiser":
        return Localiser(preset.localiser)
    return SurvivalNet(preset.survival)


def _assemble(
    networks: Mapping[PartName, nn.Module], preset: Preset, device: str, weights_hash: str, origin: Origin,
    baseline: SurvivalBaseline | None,
) -> WorldModel:  # fmt: skip
    parts: dict[str, Any] = {}
    for name, network in networks.items():
        parts[name] = network.requires_grad_(False).eval().to(device)
    return WorldModel(**parts, preset=preset, weights_hash=weights_hash, origin=origin, baseline=baseline)


def init_world_model(preset: str | Preset = "small", seed: int = 0, device: str = "cpu") -> WorldModel:
    """A world model with random weights, for tests and as the start of training.

    The denoiser's output layer, which starts at zero, gets small random weights too, so that every input has an effect.

    Args:
        preset: name or object.
        seed: of the random weights; the global random state is left as it was.
        device: torch device.
    """
    sizes = Preset.load(preset) if isinstance(preset, str) else preset
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {name: build_network(name, sizes) for name in PARTS}
        for parameter in networks["denoiser"].parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return _assemble(networks, sizes, device, f"untrained-{seed}", "untrained", None)


def _half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float16 for what fits it; large running sums stay float32."""
    out = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if value.dtype == torch.float32 and bool((value.abs() < 6e4).all()):
            value = value.half()
        out[name] = value
    return out


def _write_atomic(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def save_world_model(
    networks: Mapping[PartName, nn.Module], preset: Preset, folder: Path, *, origin: Origin,
    provenance: Mapping[str, str], baseline: SurvivalBaseline | None = None,
) -> Manifest:  # fmt: skip
    """Write a bundle.

    Args:
        networks: all parts.
        preset: the sizes they were built with.
        folder: made if missing; its bundle is replaced, the manifest last.
        origin: what the weights were trained on.
        provenance: command, seed, data hash, date: goes into every file's header and the manifest.
        baseline: Breslow baseline of the survival network.

    Raises:
        WeightsError: a weight is not finite, or the folder can't be written.
    """
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PARTS:
            state = _half(networks[name].state_dict())
            broken = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
            if broken:
                raise WeightsError(
                    f"The {name} was not saved: {broken[0]} holds values that are not finite; train it again."
                )
            header = {"part": name, "preset": preset.name, "config": preset.model_dump_json(), **provenance}
            content = save_tensors(state, metadata=header)
            _write_atomic(folder / f"{name}.safetensors", content)
            files[f"{name}.safetensors"] = _File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        manifest = Manifest(
            format=FORMAT,
            origin=origin,
            preset=Preset.model_validate(preset.model_dump()),  # states every setting, the defaults too
            files=files,
            survival_baseline=baseline,
            provenance=dict(provenance),
        )
        _write_atomic(folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise WeightsError(f"The weights can't be written to {folder}: {error.strerror}.") from error
    return manifest


def read_manifest(folder: Path = DEFAULT_WEIGHTS) -> Manifest:
    """Read and check `manifest.json` without loading tensors.

    Raises:
        WeightsError: missing, not readable, of another format, or without one of the parts.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if (found := content["format"]) != FORMAT:
            raise WeightsError(f"{path} has format {found}, but this version reads format {FORMAT}; train again.")
        manifest = Manifest.model_validate(content)
    except FileNotFoundError as error:
        raise WeightsError(
            f"There are no model weights in {folder} ({MANIFEST} is missing); train them with `mewm train all`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"The weights manifest {path} can't be read; restore the folder or train again.") from error
    if absent := [name for name in PARTS if f"{name}.safetensors" not in manifest.files]:
        raise WeightsError(f"{path} does not list the {absent[0]}; restore the folder or train again.")
    return manifest


def _read_part(folder: Path, name: PartName, expected: _File) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"The weights file {path} can't be read ({error.strerror}); restore it or train again."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise WeightsError(
            f"The weights file {path} is damaged: its hash is {found[:12]}, the manifest says {expected.sha256[:12]}; "
            "restore it or train again."
        )
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
    except SafetensorError as error:
        raise WeightsError(f"The weights file {path} is no safetensors file; restore it or train again.") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_world_model(folder: Path | None = None, device: str = "cpu") -> WorldModel:
    """Load a bundle, checking every file against its hash.

    Args:
        folder: of the bundle; None is the shipped one.
        device: torch device.

    Raises:
        WeightsError: a file is missing, damaged, or does not fit the preset in the manifest.
    """
    where = DEFAULT_WEIGHTS if folder is None else folder
    manifest = read_manifest(where)
    networks: dict[PartName, nn.Module] = {}
    for name in PARTS:
        tensors = _read_part(where, name, manifest.files[f"{name}.safetensors"])
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, manifest.preset)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsError(
                f"{where / name}.safetensors does not fit the preset '{manifest.preset.name}'; train again."
            ) from error
        networks[name] = network
    return _assemble(
        networks, manifest.preset, device, manifest.weights_hash, manifest.origin, manifest.survival_baseline
    )
