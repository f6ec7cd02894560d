"""A cache for long sequences on a CPU: numbers of a key or value lie position beside position.

Two plain products then read keys and values at the pace of memory, where the fused kernel and rows
of numbers reach half of it (docs/speed.md). But a position written there touches a page of memory
for each of its numbers, which costs a step as much as a few hundred positions read. So the newest
positions wait as they come, and are turned many at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specgen.lm.cache import KVCache, Span
from specgen.lm.config import LMConfig

# A cache is turned from so many positions on, if a row's keys in a layer are so many numbers: a
# shorter or a narrower one is read sooner than the calls are made that this takes.
_LONG, _LARGE = 1024, 2**19
_WAITING = 64  # positions that wait


class _Place(NamedTuple):
    """Where a pass writes and reads.

    Attributes:
        turned, waiting: how many positions it reads that are turned, and that wait.
        into: the block's places among those that wait, `[N', n]`, or a slice for all rows; None:
            it is turned at once.
        mask: added to the scores of all these, `[n, L]` or `[N', 1, n, L]`, or None.
    """

    turned: int
    waiting: int
    into: Tensor | slice | None
    mask: Tensor | None


class TurnedCache:
    """`KVCache` in another layout; the same promises."""

    def __init__(
        self, config: LMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def zeros(*shape: int) -> list[Tensor]:
            made = (2, rows, config.heads, *shape)
            return [torch.zeros(made, device=device, dtype=dtype) for _ in range(config.layers)]

        self._turned = zeros(config.head_dim, capacity)
        self._room = _WAITING
        self._waiting = zeros(self._room, config.head_dim)
        self._ends = [0] * rows  # positions before it are turned, those from it on wait
        self._place = _Place(0, 0, None, None)
        self.capacity = capacity
        self._rows = torch.arange(rows, device=device)[:, None]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer that are turned, `[N, heads, capacity, head_dim]` each."""
        return [(keys, values) for keys, values in (held.mT for held in self._turned)]

    def begin(self, span: Span) -> None:
        """A pass over `span` is about to attend: settle where its block goes, and make room."""
        starts, size = span.starts, span.size
        ends = [min(end, start) for end, start in zip(self._ends, starts, strict=False)]
        at_once = size > self._room
        together = min(starts) == max(starts) and min(ends) == max(ends)
        full = at_once or max(s - e for s, e in zip(starts, ends, strict=True)) + size > self._room
        if full or (span.index is None and not together):
            groups = [slice(0, len(starts))] if together else map(_row, range(len(starts)))
            for rows in groups:
                self._turn(rows, ends[rows.start], starts[rows.start])
            ends, together = list(starts), span.index is None
        self._ends[: len(starts)] = [start + size for start in starts] if at_once else ends
        if at_once:
            self._place = _Place(span.reach, 0, None, span.mask)
        elif together:
            first = starts[0] - ends[0]
            into = slice(first, first + size)
            self._place = _Place(ends[0], first + size, into, span.mask)
        else:
            self._place = self._apart(span, ends)

    def _apart(self, span: Span, ends: list[int]) -> _Place:
        """The place of rows that do not stand together."""
        assert span.index is not None and span.mask is not None
        device = span.index.device
        end = torch.tensor(ends, device=device)[:, None]
        turned, waiting = max(ends), max(map(int.__sub__, span.starts, ends)) + span.size
        before = torch.arange(turned, device=device)
        behind = end + torch.arange(waiting, device=device)
        where = torch.cat([before.expand(len(ends), -1), behind], dim=1)
        void = torch.cat([before >= end, behind >= span.reach], dim=1)
        where = where.clamp(max=span.reach - 1)[:, None, None]
        mask = span.mask.gather(3, where.expand(-1, 1, span.size, -1))
        mask.masked_fill_(void[:, None, None], -torch.inf)
        return _Place(turned, waiting, span.index - end, mask)

    def _turn(self, rows: slice, first: int, end: int) -> None:
        """Turn what waits in `rows`: positions `[first, end)`."""
        end = min(end, first + self._room)
        for turned, waiting in zip(self._turned, self._waiting, strict=True):
            turned[:, rows, :, :, first:end] = waiting[:, rows, :, : end - first].mT

    def attend(self, layer: int, span: Span, queries: Tensor, block: Tensor) -> Tensor:
        """As `KVCache.attend`, after `begin`."""
        N, heads, n, head_dim = queries.shape
        place, every = self._place, N * heads
        self._store(layer, span, block.view(N, n, 2, heads, head_dim))
        keys, values = self._turned[layer].flatten(1, 2)[:, :every, :, : place.turned]
        late_keys, late_values = self._waiting[layer].flatten(1, 2)[:, :every, : place.waiting]
        asked = (queries * head_dim**-0.5).reshape(every, n, head_dim)
        scores = torch.cat([torch.bmm(asked, keys), torch.bmm(asked, late_keys.mT)], dim=-1)
        if place.mask is not None:
            scores.view(N, heads, n, -1).add_(place.mask)
        shares = scores.softmax(dim=-1)
        found = torch.bmm(shares[..., : place.turned], values.mT)
        found.baddbmm_(shares[..., place.turned :], late_values)
        return found.view(N, heads, n, head_dim)

    def _store(self, layer: int, span: Span, block: Tensor) -> None:
        """Write a block, `[N', n, 2, heads, head_dim]`, where `begin` has found its place."""
        turned, waiting, into = self._turned[layer], self._waiting[layer], self._place.into
        rows, size = block.shape[:2]
        if isinstance(into, slice):
            waiting[:, :rows, :, into] = block.permute(2, 0, 3, 1, 4)
        elif into is not None:
            waiting[:, self._rows[:rows], :, into] = block
        else:
            for row in [slice(0, rows)] if span.index is None else map(_row, range(rows)):
                start = span.starts[row.start]
                turned[:, row, ..., start : start + size] = block[row].permute(2, 0, 3, 4, 1)

    def fill(self, rows: slice, other: KVCache) -> None:
        """Let `rows` begin with all that another cache holds."""
        for turned, (keys, values) in zip(self._turned, other.layers, strict=True):
            turned[0, rows, :, :, : other.capacity] = keys.mT
            turned[1, rows, :, :, : other.capacity] = values.mT
        self._ends[rows] = [other.capacity] * len(self._ends[rows])

    def move(self, source: slice, target: slice) -> None:
        """Let rows `target` be what rows `source` are."""
        for held in self._turned + self._waiting:
            held[:, target] = held[:, source]
        self._ends[target] = self._ends[source]

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._turned + self._waiting)


def _row(row: int) -> slice:
    return slice(row, row + 1)


Cache = KVCache | TurnedCache


def cache_for(
    config: LMConfig,
    rows: int,
    capacity: int,
    device: torch.device,
    dtype: torch.dtype,
    recorded: bool = False,
) -> Cache:
    """The cache that suits; `recorded`: the host does not know where passes lie."""
    plain = device.type == "cpu" and dtype in (torch.float32, torch.float64) and not recorded
    large = capacity >= _LONG and capacity * config.dim >= _LARGE
    one_each = config.kv_heads == config.heads  # neither shared nor none at all
    kind = TurnedCache if plain and large and one_each else KVCache
    return kind(config, rows, capacity, device, dtype)
