"""What the rows of a session follow: their conditions, and behind each the null condition that
classifier-free guidance holds against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Given:
    """The condition of a row.

    Attributes:
        condition: `[L, condition_dim]`.
        mask: `[L]` bool of real places.
        null: `[n, condition_dim]`, all real, no longer than the condition; None without guidance.
    """

    condition: Tensor
    mask: Tensor
    null: Tensor | None

    def pair(self) -> tuple[Tensor, Tensor]:
        """`[1 or 2, L, condition_dim]` and its mask: the condition and its null, to one length."""
        if self.null is None:
            return self.condition[None], self.mask[None]
        missing = len(self.mask) - len(self.null)
        null = F.pad(self.null.to(self.condition), (0, 0, 0, missing))
        real = torch.arange(len(self.mask), device=self.mask.device) < len(self.null)
        return torch.stack([self.condition, null]), torch.stack([self.mask, real])

    def prefix(self) -> Tensor:
        """`[1 or 2, P, dim]`: the real places, to stand before a sequence, and the null filled up
        with zeros."""
        real = self.condition[self.mask]
        if self.null is None:
            return real[None]
        size = len(real)
        null = self.null[:size].to(real.dtype)
        return torch.stack([real, F.pad(null, (0, 0, 0, size - len(null)))])
