"""Several processes that learn one thing: each takes a part of every batch, and all of them add up.

Started by torchrun; on a CPU two processes of one thread each are far quicker than two threads, which wait for each
other in every layer and so for every other program that the machine runs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class Workers:
    """This process and its fellows.

    Attributes:
        rank: Which of them this one is; the first writes files and talks.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Return the sums of everybody's values."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums)
        return list(sums.tolist())

    def add_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by the sum of everybody's."""
        if self.count == 1:
            return
        gradients = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for weight, summed in zip(weights, torch.split(flat, [weight.numel() for weight in weights]), strict=True):
            weight.grad = summed.view_as(weight)


ALONE = Workers()


def join_workers() -> Workers:
    """Find out who else was started by torchrun; without it, this process is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    distributed.init_process_group("gloo")
    return Workers(distributed.get_rank(), distributed.get_world_size())
