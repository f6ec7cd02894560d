"""Small tables of integers on their way to the device, without making the host wait."""

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
