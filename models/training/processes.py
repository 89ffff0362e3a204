"""Several training processes as one run, as torchrun starts them: same weights, other batches, averaged gradients.

A task's loss is no forward pass of its network (several passes, other networks, a risk set), so that
`DistributedDataParallel`, which hooks into one forward pass, does not fit; the gradients are averaged after the
backward pass instead, which is the same sum. A loss that is a mean over its batch is then that of the N batches
together; the survival network's risk sets stay those of each process. Only the first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # the others wait while the first one validates or simulates; torchrun ends dead runs


@dataclass(frozen=True)
class Processes:
    """This process among all of them.

    Attributes:
        rank: from 0.
        count: how many there are; 1 without torchrun.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Processes:
        """Join the processes that torchrun started; without torchrun this one is alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this one writes and validates."""
        return self.rank == 0

    def fingerprint(self, run: str) -> str:
        """Identity of a run: with others their number belongs to it, since it multiplies the batch."""
        return run if self.count == 1 else f"{run} in {self.count} processes"

    def generator(self, alone: np.random.Generator, seed: int, step: int) -> np.random.Generator:
        """Draws the batch of a step.

        Alone it is the run's own stream, as it stands. With others it is a stream by seed, step and process, for torch
        too: a resumed run then draws what an unbroken one draws, though a checkpoint holds the first process's state.
        """
        if self.count == 1:
            return alone
        drawn = np.random.default_rng([seed, step, self.rank])
        torch.manual_seed(int(drawn.integers(2**62)))
        return drawn

    def average_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its mean over the processes; a parameter without one counts as zero."""
        if self.count == 1:
            return
        parameters = [one for one in network.parameters() if one.requires_grad]
        grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([one.reshape(-1) for one in grads])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for one in parameters:
            mean = flat[start : start + one.numel()].view_as(one)
            one.grad = mean.clone() if one.grad is None else one.grad.copy_(mean)
            start += one.numel()

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers (a codebook, statistics), which no gradient keeps equal."""
        if self.count > 1:
            for one in network.buffers():
                dist.broadcast(one, src=0)

    def agreed(self, value: float) -> float:
        """The first process's value in all of them: clocks differ, the number of steps must not."""
        if self.count == 1:
            return value
        shared: Tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared[0])

    def in_turn(self, call: Callable[[], T]) -> T:
        """Call it in the first process, then in the others, which find what the first one wrote."""
        if self.count == 1:
            return call()
        if self.first:
            found = call()
            dist.barrier()
            return found
        dist.barrier()
        return call()

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()
