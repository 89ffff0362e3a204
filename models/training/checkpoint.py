"""Checkpoint of a training run: one safetensors file with weights, averages, optimiser, random states and counters."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import RunError

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, rng: np.random.Generator,
    state: dict[str, Any], adversary: tuple[nn.Module, torch.optim.Optimizer] | None = None,
) -> None:  # fmt: skip
    """Write everything that the next step depends on, atomically.

    Args:
        folder: of the run.
        network: what is trained.
        average: its moving average.
        optimiser: its state is kept too.
        rng: draws the batches.
        state: JSON-able counters (step, seconds, fingerprint of the run).
        adversary: the opponent and its optimiser, where there is one.
    """
    tensors: dict[str, Tensor] = {"rng.torch": torch.get_rng_state()}
    if next(network.parameters()).is_cuda:
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for prefix, module in _modules(network, average, adversary):
        tensors |= {prefix + name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    for prefix, one in _optimisers(optimiser, adversary):
        for index, slots in one.state_dict()["state"].items():
            tensors |= {f"{prefix}{index}.{slot}": value.detach().clone().contiguous() for slot, value in slots.items()}
    header = {"state": json.dumps(state), "rng": json.dumps(rng.bit_generator.state)}
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    save_file(tensors, temporary, metadata=header)
    temporary.replace(folder / FILE)


def load_checkpoint(
    folder: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, rng: np.random.Generator,
    adversary: tuple[nn.Module, torch.optim.Optimizer] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Restore in place what `save_checkpoint` wrote; returns `state`.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / FILE
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            for key in file.keys():  # noqa: SIM118 (not a dict)
                tensors[key] = file.get_tensor(key)
        for prefix, module in _modules(network, average, adversary):
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"The checkpoint {path} can't be continued (damaged); start anew.") from error
    for prefix, one in _optimisers(optimiser, adversary):
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, slot = key[len(prefix) :].split(".", 1)
                slots.setdefault(int(index), {})[slot] = value
        one.load_state_dict({"state": slots, "param_groups": one.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    rng.bit_generator.state = json.loads(header["rng"])
    state: dict[str, Any] = json.loads(header["state"])
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint alone, without its weights.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"The checkpoint {folder / FILE} can't be continued (damaged); start anew.") from error
    return state


def _modules(
    network: nn.Module, average: nn.Module, adversary: tuple[nn.Module, torch.optim.Optimizer] | None
) -> list[tuple[str, nn.Module]]:
    return [("net.", network), ("ema.", average), *([("foe.", adversary[0])] if adversary else [])]


def _optimisers(
    optimiser: torch.optim.Optimizer, adversary: tuple[nn.Module, torch.optim.Optimizer] | None
) -> list[tuple[str, torch.optim.Optimizer]]:
    return [("opt.", optimiser), *([("foeopt.", adversary[1])] if adversary else [])]
