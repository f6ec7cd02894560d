"""Small tables of integers on their way to the device, and what they point at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`values` as an int64 tensor on `device`.

    A plain copy to a CUDA card waits for everything that was queued there before; one from pinned
    memory is queued like the rest, so that a draft needs no synchronisation.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)


def pick(table: Tensor, index: Sequence[int]) -> Tensor:
    """`table[index]`: a copy of a few rows. On the CPU numpy makes it, for a third of the cost."""
    if table.device.type != "cpu":
        return table[upload(index, table.device)]
    return torch.from_numpy(table.numpy()[index])


def place(table: Tensor, index: Sequence[int], values: Tensor) -> None:
    """`table[index] = values`, likewise."""
    if table.device.type != "cpu":
        table[upload(index, table.device)] = values
    else:
        table.numpy()[index] = values.numpy()
