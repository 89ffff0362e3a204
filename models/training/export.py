"""Trained networks on disk: what a finished run left, and the bundle made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from models.errors import WeightsError
from models.networks.autoencoder import Autoencoder
from models.networks.preset import Preset
from models.training.loop import FINAL
from models.training.survival import BASELINE
from models.weights import (
    PARTS,
    Manifest,
    Origin,
    PartName,
    SurvivalBaseline,
    build_network,
    load_world_model,
    read_manifest,
    save_world_model,
)

FREE = frozenset(
    {"steps", "finalist_steps", "guidance", "guidance_at", "sampler", "dropout", "viable_spread", "redraws"}
)
"""Settings of a network that its weights do not depend on: how it is sampled or used, and what only training does."""
COMMON = ("size", "spacing_mm", "hu_window")
_OPTIONS = "training."


def load_trained(name: PartName, run: Path, preset: Preset) -> tuple[nn.Module, str]:
    """The averaged network of a finished run in evaluation mode, and the short hash of its file.

    Raises:
        WeightsError: the run is not finished, or was made with another preset.
    """
    path = run / name / FINAL
    try:
        content = path.read_bytes()
        with safe_open(path, framework="pt") as file:
            text, decoder = file.metadata()["fingerprint"], json.JSONDecoder()
            sizes, end = decoder.raw_decode(text, len(name) + 1)
            training, _ = decoder.raw_decode(text, end + 1)
        trained = _settings(name, sizes, training)
        asked = _settings(name, preset.model_dump(mode="json"), getattr(preset.training, name).model_dump(mode="json"))
        if other := [f"{key}={value}" for key, value in _different(trained, asked).items()]:
            raise WeightsError(
                f"{path} was trained with {' and '.join(sorted(other))}: give the same preset and the same --set here."
            )
        tensors = load_tensors(content)
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, preset)
        network.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise WeightsError(
            f"There is no trained {name} in {run}; run `mewm train {name} --out {run}` first."
        ) from error
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged or was trained with another preset than '{preset.name}'.") from error
    return network.requires_grad_(False).eval(), hashlib.sha256(content).hexdigest()[:12]


def _settings(name: PartName, preset: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a network mean something with, by the key that `--set` takes, and what they were taught.

    How long and how fast they were trained is left out: that the recorded command says.
    """
    own = {f"{name}.{key}": value for key, value in preset[name].items() if key not in FREE}
    taught = {f"{_OPTIONS}{name}.options.{key}": value for key, value in training["options"].items()}
    if name == "survival":  # it has learned from scans that were corrected so
        taught["denoiser.redraws"] = preset["denoiser"].get("redraws", 0)
    return own | {key: preset[key] for key in COMMON} | taught


def _different(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a network was trained with and that are asked otherwise.

    Presets gain settings. A training option that one of the two does not know yet is 0 there, which is off; another
    setting that only one of them has is no difference: its default is the old way.
    """
    keys = (trained.keys() & asked.keys()) | {key for key in trained.keys() | asked.keys() if key.startswith(_OPTIONS)}
    return {key: trained.get(key, 0) for key in keys if trained.get(key, 0) != asked.get(key, 0)}


def load_trained_autoencoder(run: Path, preset: Preset) -> tuple[Autoencoder, str]:
    """`load_trained` for the autoencoder, in the memory layout that is fastest for it.

    Raises:
        WeightsError: see `load_trained`.
    """
    network, identity = load_trained("autoencoder", run, preset)
    assert isinstance(network, Autoencoder)
    return network.to(memory_format=torch.channels_last_3d), identity  # type: ignore[call-overload]


def export_bundle(
    run: Path, preset: Preset, folder: Path, *, origin: Origin, provenance: Mapping[str, str]
) -> Manifest:
    """Write the bundle of a run whose networks are trained.

    Args:
        run: the `--out` folder of the training commands.
        preset: the preset that they were trained with.
        folder: of the bundle, for example `models/weights`.
        origin: of the training data.
        provenance: goes into the headers and the manifest.

    Raises:
        WeightsError: a network or the survival baseline is missing, or the folder can't be written.
    """
    networks = {name: load_trained(name, run, preset)[0] for name in PARTS}
    path = run / "survival" / BASELINE
    try:
        baseline = SurvivalBaseline.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"The survival baseline {path} can't be read; train the survival network again.") from error
    return save_world_model(networks, preset, folder, origin=origin, provenance=provenance, baseline=baseline)


def unpack_bundle(
    folder: Path, run: Path, parts: Sequence[PartName], notes: Mapping[PartName, Mapping[str, str]]
) -> None:
    """Write networks of a bundle as finished runs, the inverse of `export_bundle`: all of them or none.

    Args:
        folder: of the bundle.
        run: folder of the run of all networks; made if missing.
        parts: the networks that are wanted.
        notes: text files that a network's folder gets beside its weights, by name.

    Raises:
        WeightsError: the bundle is missing or damaged; the run has one of the networks already, or can't be written.
    """
    model, manifest = load_world_model(folder), read_manifest(folder)
    if there := [name for name in parts if (run / name).exists()]:
        raise WeightsError(f"{run} has a {' and a '.join(there)} already; choose another folder.")
    try:
        run.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=run, prefix=".unpacking-") as unfinished:
            for name in parts:
                own = Path(unfinished) / name
                own.mkdir()
                told = {"fingerprint": f"{manifest.preset.fingerprint(name)} of the weights {manifest.weights_hash}"}
                tensors = {key: tensor.contiguous().clone() for key, tensor in model.part(name).state_dict().items()}
                (own / FINAL).write_bytes(save_tensors(tensors, metadata=told))
                texts = dict(notes.get(name, {}))
                if name == "survival" and manifest.survival_baseline is not None:
                    texts[BASELINE] = manifest.survival_baseline.model_dump_json()
                for file, text in texts.items():
                    (own / file).write_text(text, encoding="utf-8")
            for name in parts:
                (Path(unfinished) / name).rename(run / name)
    except OSError as error:
        raise WeightsError(f"The run in {run} can't be written: {error.strerror}.") from error
