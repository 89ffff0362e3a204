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
    state: dict[str, Any],
) -> None:  # fmt: skip
    """Write everything that the next step depends on, atomically.

    Args:
        folder: of the run.
        network: what is trained.
        average: its moving average.
        optimiser: its state is kept too.
        rng: draws the batches.
        state: JSON-able counters (step, seconds, fingerprint of the run).
    """
    tensors: dict[str, Tensor] = {"rng.torch": torch.get_rng_state()}
    for prefix, module in (("net.", network), ("ema.", average)):
        tensors |= {prefix + name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"opt.{index}.{slot}": value.detach().clone().contiguous() for slot, value in slots.items()}
    header = {"state": json.dumps(state), "rng": json.dumps(rng.bit_generator.state)}
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    save_file(tensors, temporary, metadata=header)
    temporary.replace(folder / FILE)


def load_checkpoint(
    folder: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, rng: np.random.Generator
) -> dict[str, Any]:
    """Restore in place what `save_checkpoint` wrote; returns `state`.

    Raises:
        RunError: the file is damaged or belongs to other network sizes.
    """
    path = folder / FILE
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            for key in file.keys():  # noqa: SIM118 (not a dict)
                tensors[key] = file.get_tensor(key)
        for prefix, module in (("net.", network), ("ema.", average)):
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(
            f"The checkpoint {path} can't be continued (damaged, or of another preset); start anew."
        ) from error
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("opt."):
            _, index, slot = key.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.torch"])
    rng.bit_generator.state = json.loads(header["rng"])
    state: dict[str, Any] = json.loads(header["state"])
    return state
