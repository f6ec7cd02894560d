"""Preallocated key/value caches: written by index, rewound by moving a length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.lm.config import LMConfig


@dataclass
class Span:
    """Where a block of n new positions lies, for each of N rows; shared by all layers of a pass.

    Attributes:
        starts: first new position of each row.
        size: n.
        reach: positions `[0, reach)` of the cache that this pass reads.
        index: `[N, n]` positions, or None when all rows start together (then slices serve).
        mask: what is added to attention scores (`[n, reach]` or `[N, 1, n, reach]`), None if
            nothing needs hiding (one new position, rows together).
    """

    starts: tuple[int, ...]
    size: int
    reach: int
    index: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(
        cls, starts: tuple[int, ...], size: int, device: torch.device, dtype: torch.dtype
    ) -> Span:
        reach = max(starts) + size
        together = min(starts) == max(starts)
        if together and size == 1:
            return cls(starts, size, reach, None, None)
        first = torch.tensor(starts[:1] if together else starts, device=device)
        index = first[:, None] + torch.arange(size, device=device)  # [1 or N, n]
        hidden = torch.arange(reach, device=device) > index[..., None]  # [1 or N, n, reach]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(
            hidden, -torch.inf
        )
        if together:
            return cls(starts, size, reach, None, mask[0])
        return cls(starts, size, reach, index, mask[:, None])

    def positions(self, device: torch.device) -> Tensor:
        """`[1 or N, n]` absolute positions."""
        if self.index is not None:
            return self.index
        return torch.arange(self.starts[0], self.starts[0] + self.size, device=device)[None]


class KVCache:
    """Keys and values of every layer, `[N, kv_heads, capacity, head_dim]` each.

    Positions at or after the row's length are stale: a pass never reads beyond what it has just
    written, so rewinding costs nothing and is the caller's business (it moves the next start).
    """

    def __init__(
        self, config: LMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        # Zeros, not empty: a masked score times a stale NaN would still be NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity

    def write(self, layer: int, span: Span, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (`[N, kv_heads, n, head_dim]`); return all up to the reach."""
        keys, values = self.keys[layer], self.values[layer]
        if span.index is None:
            low = span.starts[0]
            keys[:, :, low : low + span.size] = key
            values[:, :, low : low + span.size] = value
        else:
            rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
            keys[rows, :, span.index] = key.transpose(1, 2)
            values[rows, :, span.index] = value.transpose(1, 2)
        return keys[:, :, : span.reach], values[:, :, : span.reach]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
