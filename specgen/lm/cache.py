"""Preallocated key/value caches: written by index, rewound by moving a length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.lm.config import LMConfig
from specgen.tensors import upload

_FEW = 64  # columns up to which a block's mask is kept for the next


@dataclass
class Span:
    """Where a block of n new positions lies, for each of N rows; shared by all layers of a pass.

    Attributes:
        starts: first new position of each row; () where only the device knows (see `at`).
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
        cls,
        starts: tuple[int, ...],
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        past: int | None = None,
    ) -> Span:
        """A block behind `starts`; `past` is how far back a position sees, None: to the first."""
        reach = max(starts) + size
        together = min(starts) == max(starts)
        if together and size == 1 and (past is None or reach <= past + 1):
            return cls(starts, size, reach, None, None)
        if together and past is None and size <= _FEW:
            return cls(starts, size, reach, None, _triangle(size, reach, dtype, device))
        first = upload(starts[:1] if together else starts, device)
        span = cls.at(first, size, reach, dtype, past)
        if together:
            assert span.mask is not None
            return cls(starts, size, reach, None, span.mask[0, 0])
        return replace(span, starts=starts)

    @classmethod
    def at(
        cls, starts: Tensor, size: int, reach: int, dtype: torch.dtype, past: int | None = None
    ) -> Span:
        """A block behind `starts` `[N]`, which may lie anywhere as long as it ends by `reach`."""
        device = starts.device
        index = starts[:, None] + torch.arange(size, device=device)  # [N, n]
        ahead = torch.arange(reach, device=device) - index[..., None]  # [N, n, reach]
        hidden = ahead > 0 if past is None else (ahead > 0) | (ahead < -past)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return cls((), size, reach, index, mask.masked_fill_(hidden, -torch.inf)[:, None])

    @property
    def positions(self) -> Tensor | slice:
        """Where the block lies: `[N, n]`, or the slice that serves all rows."""
        if self.index is not None:
            return self.index
        return slice(self.starts[0], self.starts[0] + self.size)


def _triangle(size: int, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask `[size, reach]` of a block whose last position is the last that is read."""
    room = 1 << reach.bit_length()
    return _triangles(size, room, dtype, device)[:, room - reach :]


@lru_cache(maxsize=128)
def _triangles(size: int, room: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        hidden = torch.ones(size, room, dtype=torch.bool, device=device).triu(room - size + 1)
        mask = torch.zeros(size, room, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, -torch.inf)


class KVCache:
    """Keys and values of every layer.

    Positions at or after the row's length are stale: a pass never reads beyond what it has just
    written, so rewinding costs nothing and is the caller's business (it moves the next start).
    """

    def __init__(
        self, config: LMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # Zeros, not empty: a masked score times a stale NaN would still be NaN.
        shape = (2, rows, config.kv_heads, capacity, config.head_dim)
        self._held = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.capacity = capacity
        self._shared = config.kv_repeat > 1
        self._rows = torch.arange(rows, device=device)[:, None]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, `[N, kv_heads, capacity, head_dim]` each."""
        return [(keys, values) for keys, values in self._held]

    def begin(self, span: Span) -> None:
        """A pass over `span` is about to attend, layer by layer."""

    def attend(self, layer: int, span: Span, queries: Tensor, block: Tensor) -> Tensor:
        """Store keys and values of a block of the first N' rows, and read all up to its reach.

        Args:
            queries: of the block, `[N', heads, n, head_dim]`.
            block: its keys and values, side by side: `[N', n, 2 kv_heads, head_dim]`.

        Returns:
            `[N', heads, n, head_dim]`.
        """
        keys, values = self.write(layer, span, block)
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=span.mask, enable_gqa=self._shared
        )

    def write(self, layer: int, span: Span, block: Tensor) -> tuple[Tensor, Tensor]:
        """Store a block as `attend` does.

        Returns:
            All keys and all values up to the reach, `[N', kv_heads, reach, head_dim]` each.
        """
        rows = block.shape[0]
        block = block.view(*block.shape[:2], 2, -1, block.shape[-1])
        held = self._held[layer]
        if rows < held.shape[1]:
            held = held[:, :rows]
        if span.index is None:
            fresh = slice(span.starts[0], span.starts[0] + span.size)
            held[:, :, :, fresh] = block.permute(2, 0, 3, 1, 4)
        else:
            held[:, self._rows[:rows], :, span.index] = block
        keys, values = held[:, :, :, : span.reach]
        return keys, values

    def fill(self, rows: slice, other: KVCache) -> None:
        """Let `rows` begin with all that another cache holds."""
        for held, made in zip(self._held, other._held, strict=True):
            held[:, rows, :, : other.capacity] = made

    def move(self, source: slice, target: slice) -> None:
        """Let rows `target` be what rows `source` are."""
        for held in self._held:
            held[:, target] = held[:, source]

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held)
