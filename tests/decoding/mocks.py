"""Toy models for the decode loop: their logits are a table of the columns really fed."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from specgen.patterns import PatternSpec


class TableScorer:
    """A language model whose logits depend on every token of every column before.

    The columns fed are folded into one running hash a position, as a transformer's cache folds them
    into keys and values; reading behind a rewind that was forgotten gives other logits than the
    right ones. `logits` reads a table by the hash, so exact target distributions can be enumerated.

    Args:
        seed: of the table.
        spread: scale of the logits.
        near, noise: start from another scorer's table and add noise of this scale.
        period: forget everything at each multiple of this many steps, so that one long decode holds
            many independent samples. None never forgets.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        seed: int,
        rows: int,
        codebooks: int,
        card: int,
        capacity: int,
        *,
        spread: float = 1.5,
        near: "TableScorer | None" = None,
        noise: float = 0.0,
        period: int | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.card, self.capacity, self.codebooks = card, capacity, codebooks
        self.size, self.period = 4093, period
        fresh = rng.normal(size=(self.size, codebooks, card))
        if near is None:
            self.table = torch.from_numpy(fresh * spread)
            self.factors = torch.from_numpy(rng.integers(1, 1 << 20, size=codebooks + 1))
        else:
            self.table = near.table + torch.from_numpy(fresh * noise)
            self.factors = near.factors
        self.state = torch.zeros(rows, capacity + 1, dtype=torch.int64)  # [:, s + 1]: columns 0..s

    def fold(self, state: Tensor, column: Tensor) -> Tensor:
        """`[B]` hashes and `[B, K]` tokens to the hash with that column appended."""
        mixed = state * self.factors[-1] + (column * self.factors[:-1]).sum(dim=-1) + 7
        return (mixed ^ (mixed >> 7)) % 1_000_003

    def feed(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        self.block = tokens.shape[-1]
        assert self.block > 0
        rows = torch.arange(len(starts))
        at = torch.tensor(starts)
        for i in range(tokens.shape[-1]):
            folded = self.fold(self.state[rows, at], tokens[:, :, i])
            if self.period is not None:
                folded = folded.where(at % self.period > 0, 0)
            self.state[rows, at + 1] = folded
            at = at + 1
        return torch.tensor(starts)

    def move(self, source: int, target: int) -> None:
        self.state[target] = self.state[source]

    def logits(
        self, hidden: Tensor, rows: Sequence[int], places: Sequence[int], codebooks: Sequence[int]
    ) -> Tensor:
        # only what the last pass has fed can be read, as with a real model's hidden states
        assert min(places) >= 0 and max(places) < self.block
        row = torch.tensor(rows)
        state = self.state[row, hidden[row] + torch.tensor(places) + 1]
        return self.table[state % self.size, torch.tensor(codebooks)]

    def grid_probabilities(self, spec: PatternSpec, frames: int) -> dict[tuple[int, ...], float]:
        """The exact distribution over grids (flattened `[K, T]`) of sampling this model plainly."""
        pattern = spec.of(frames)
        out = {}
        for values in product(range(self.card), repeat=self.codebooks * frames):
            grid = torch.tensor(values).view(1, self.codebooks, frames)
            sequence = pattern.build(grid, self.card)
            state, p = torch.zeros(1, dtype=torch.int64), 1.0
            for s in range(pattern.steps - 1):
                state = self.fold(state, sequence[:, :, s])
                table = self.table[int(state) % self.size].softmax(dim=-1)
                for t, k in pattern.layout[s + 1]:
                    p *= float(table[k, grid[0, k, t]])
            out[values] = p
        return out


def capacity_for(spec: PatternSpec, frames: int) -> int:
    return spec.of(frames).steps + 60
