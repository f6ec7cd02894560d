"""Preallocated key/value caches: written by index, rewound by moving a length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from specgen.lm.config import LMConfig
from specgen.lm.upload import upload

_FEW = 64  # columns up to which a block's mask is kept for the next


@dataclass
class Span:
    """Where a block of n new positions lies, for each of N rows; shared by all layers of a pass.

    Attributes:
        starts: first new position of each row, where `index` does not tell.
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
        return span

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


# The capacity from which a CPU's keys are stored number by number, each for all positions in a row:
# a step reads long ones so in less time, but writing costs more (docs/speed.md).
_TURNED = 1024


class KVCache:
    """Keys and values of every layer, `[N, kv_heads, capacity, head_dim]` each.

    Positions at or after the row's length are stale: a pass never reads beyond what it has just
    written, so rewinding costs nothing and is the caller's business (it moves the next start).

    Attributes:
        layers: (keys, values) of each layer.
        turned: whether the keys lie position beside position, which suits plain products and not
            fused attention.
    """

    def __init__(
        self, config: LMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # Zeros, not empty: a masked score times a stale NaN would still be NaN.
        shape = (2, rows, config.kv_heads, capacity, config.head_dim)
        stored = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        plain = device.type == "cpu" and dtype in (torch.float32, torch.float64)
        self.turned = plain and config.kv_repeat == 1 and capacity >= _TURNED
        self.layers = [
            (keys.view(rows, -1, config.head_dim, capacity).mT if self.turned else keys, values)
            for keys, values in stored
        ]
        self._joint = [] if self.turned else stored  # then one copy stores both
        self.capacity = capacity
        self._rows = torch.arange(rows, device=device)[:, None]

    def write(self, layer: int, span: Span, block: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of a block of the first N' rows.

        Args:
            block: both, side by side: `[N', n, 2 kv_heads, head_dim]`.

        Returns:
            All keys and all values up to the reach, `[N', kv_heads, reach, head_dim]` each.
        """
        rows, reach = block.shape[0], span.reach
        block = block.view(*block.shape[:2], 2, -1, block.shape[-1])
        fresh = slice(span.starts[0], span.starts[0] + span.size) if span.index is None else None
        if self._joint:
            held = self._joint[layer]
            if rows < held.shape[1]:
                held = held[:, :rows]
            if fresh is not None:
                held[:, :, :, fresh] = block.permute(2, 0, 3, 1, 4)
            else:
                held[:, self._rows[:rows], :, span.index] = block
            keys, values = held[:, :, :, :reach]
            return keys, values
        for kept, new in zip(self.layers[layer], block.unbind(2), strict=True):
            if fresh is not None:
                kept[:rows, :, fresh] = new.transpose(1, 2)
            else:
                kept[self._rows[:rows], :, span.index] = new
        keys, values = self.layers[layer]
        return keys[:rows, :, :reach], values[:rows, :, :reach]

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for layer in self.layers for held in layer)
