"""Noise that belongs to coordinates, so that no order, batch or device can change it.

Every coordinate (t, k) has its own stream of the counter-based generator Philox (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the seed. numpy's `Philox` makes the
raw integers, whose stream numpy promises never to change; they are made on the host and copied, so
that a CPU and a GPU see the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specgen.tensors import pick

_WORDS = 4  # 64-bit words that one Philox-4x64 counter value yields
_FRAMES = 64  # frames made at a time


class Purpose(IntEnum):
    """What a stream is for; different purposes are independent.

    `TOKEN` is the coordinate's own Gumbel noise, which drafter and verifier share under coupling.
    The others serve the textbook rule, which must *not* share noise between its draws.
    """

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def uniforms(
    seed: int, purpose: Purpose, codebook: int, start: int, frames: int, entries: int
) -> NDArray[np.float64]:
    """Uniform numbers strictly inside (0, 1), a pure function of (seed, purpose, k, t, entry).

    Args:
        seed: 0 <= seed < 2**64.
        start, frames: the frames `[start, start + frames)`.
        entries: numbers a coordinate.

    Returns:
        `[frames, entries]`.
    """
    blocks = -(-entries // _WORDS)
    bits = np.random.Philox(
        key=np.array([seed, codebook * len(Purpose) + purpose], dtype=np.uint64),
        counter=start * blocks,
    )
    words = bits.random_raw(frames * blocks * _WORDS).reshape(frames, -1)[:, :entries]
    unit: NDArray[np.float64] = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return unit


def gumbels(
    seed: int, purpose: Purpose, codebook: int, start: int, frames: int, entries: int
) -> NDArray[np.float32]:
    """Standard Gumbel noise `[frames, entries]`; arguments as for `uniforms`."""
    unit = uniforms(seed, purpose, codebook, start, frames, entries)
    return (-np.log(-np.log(unit))).astype(np.float32)


class NoiseField:
    """The Gumbel noise of a batch's grids, made in blocks of frames when first asked for.

    Args:
        slots: grids at a time; `admit` says which.
        frames: T of the longest.
        codebooks, card: of the grids.
        purpose: which stream.
        device: where the noise is wanted.
    """

    def __init__(
        self,
        slots: int,
        frames: int,
        codebooks: int,
        card: int,
        purpose: Purpose,
        device: torch.device,
    ) -> None:
        self._seeds, self._origins = [0] * slots, [0] * slots
        self.card = card
        self._codebooks, self._purpose = codebooks, purpose
        self._blocks = -(-frames // _FRAMES)
        shape = (slots * self._blocks, _FRAMES * codebooks, card)
        self._field = torch.empty(shape, device=device)
        self._made: set[int] = set()

    def admit(self, slot: int, seed: int, origin: int = 0) -> None:
        """Another grid takes the slot: its seed, and the frame of its piece that it starts at."""
        self._seeds[slot], self._origins[slot] = seed, origin
        self._made.difference_update(range(slot * self._blocks, (slot + 1) * self._blocks))

    def _make(self, block: int) -> None:
        slot, place = divmod(block, self._blocks)
        seed, start = self._seeds[slot], self._origins[slot] + place * _FRAMES
        parts = [
            gumbels(seed, self._purpose, k, start, _FRAMES, self.card)
            for k in range(self._codebooks)
        ]
        whole = torch.from_numpy(np.stack(parts, axis=1)).flatten(0, 1)  # [frames * K, card]
        if self._field.is_cuda:
            whole = whole.pin_memory()  # so that the copy is queued, and nobody waits
        self._field[block].copy_(whole, non_blocking=True)
        self._made.add(block)

    def places(self, slots: Sequence[int], coords: Sequence[tuple[int, int]]) -> list[int]:
        """Where the noise of coordinates (t, k), each of its slot, lies in `flat`."""
        size = _FRAMES * self._codebooks
        index = []
        for slot, (t, k) in zip(slots, coords, strict=True):
            block = slot * self._blocks + t // _FRAMES
            if block not in self._made:
                self._make(block)
            index.append(block * size + (t % _FRAMES) * self._codebooks + k)
        return index

    @property
    def flat(self) -> Tensor:
        """All noise, `[places, card]` float32; good only where `places` has pointed."""
        return self._field.flatten(0, 1)

    def at(self, slots: Sequence[int], coords: Sequence[tuple[int, int]]) -> Tensor:
        """Noise of M coordinates: `[M, card]` float32."""
        index, flat = self.places(slots, coords), self.flat
        if index[-1] - index[0] == len(index) - 1 and index == list(range(index[0], index[-1] + 1)):
            return flat[index[0] : index[-1] + 1]  # neighbours (all of flatten, row alone): a view
        return pick(flat, index)


def acceptance_uniforms(seed: int, frames: int, codebooks: int, origin: int = 0) -> Tensor:
    """The textbook rule's uniform number of every coordinate from `origin` on: `[K, T]` float64."""
    parts = [uniforms(seed, Purpose.ACCEPT, k, origin, frames, 1)[:, 0] for k in range(codebooks)]
    return torch.from_numpy(np.array(parts))
