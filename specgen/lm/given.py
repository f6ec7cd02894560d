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
        null, null_mask: the null condition likewise; None without guidance.
    """

    condition: Tensor
    mask: Tensor
    null: Tensor | None
    null_mask: Tensor | None

    @classmethod
    def each(
        cls,
        condition: Tensor | None,
        mask: Tensor | None,
        null: Tensor | None,
        null_mask: Tensor | None,
        rows: int,
    ) -> list[Given]:
        """Of every row, from batches of them (`null` of 1 serves all); [] without a condition."""
        if condition is None or mask is None:
            return []
        none: list[Tensor | None] = [None] * rows
        nulls = none if null is None else list(null.expand(rows, -1, -1))
        null_masks = none if null_mask is None else list(null_mask.expand(rows, -1))
        return [cls(*one) for one in zip(condition, mask, nulls, null_masks, strict=True)]

    def pair(self) -> tuple[Tensor, Tensor]:
        """`[1 or 2, L, condition_dim]` and its mask: the condition and its null, to one length."""
        if self.null is None or self.null_mask is None:
            return self.condition[None], self.mask[None]
        twin = self.null[None], self.null_mask[None]
        return stack(self.condition[None], self.mask[None], *twin, 1)

    def prefix(self) -> Tensor:
        """`[1 or 2, P, dim]`: the real places, to stand before a sequence, and the null filled up
        with zeros."""
        real = self.condition[self.mask]
        if self.null is None:
            return real[None]
        size = len(real)
        null = self.null[:size].to(real.dtype)
        return torch.stack([real, F.pad(null, (0, 0, 0, size - len(null)))])


def stack(
    condition: Tensor, mask: Tensor, null: Tensor, null_mask: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Each condition, and its null condition behind it, padded to one length."""
    length = max(condition.shape[1], null.shape[1])

    def pad(x: Tensor) -> Tensor:
        missing = length - x.shape[1]
        return F.pad(x, (0, 0, 0, missing) if x.dim() == 3 else (0, missing))

    null, null_mask = null.expand(rows, -1, -1), null_mask.expand(rows, -1)
    return (
        torch.stack([pad(condition), pad(null)], dim=1).flatten(0, 1),
        torch.stack([pad(mask), pad(null_mask)], dim=1).flatten(0, 1),
    )
