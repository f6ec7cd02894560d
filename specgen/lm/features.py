"""What a drafter may read of its verifier: the states that tokens were drawn from.

Where a verifier has read a column, its last layer says more of what comes than the tokens drawn
from it do. A drafter of the same pattern takes that state in beside the next column (Li et al.
2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty"), both halves of it
where there is guidance. Beside columns of a draft beyond the first, which the verifier has not read
yet, stands the drafter's own state instead. It only guesses, so the verifier's output depends on
none of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.tensors import upload


def as_verifiers(states: Tensor, halves: int) -> Tensor:
    """A drafter's own states `[..., dim]` in the place of its verifier's, `[..., halves dim]`.

    A drafter says outright what the verifier says after guidance, g c + (1 - g) u of its halves c
    and u; were both halves the drafter's state, that is what guidance would make of them.
    """
    return torch.cat([states] * halves, dim=-1)


class Features:
    """A verifier's states, column by column.

    Args:
        rows, capacity: of the verifier's session.
        width: numbers a column: `feature_dim` of the drafter.
        halves: of the verifier's states that it keeps: 2 with guidance.
        device, dtype: the drafter's.

    Attributes:
        known: of each row, how many columns the verifier has read that are final.
    """

    def __init__(
        self,
        rows: int,
        capacity: int,
        width: int,
        halves: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._halves = halves
        # A column late: beside a column stands what it was drawn from. The first has nothing.
        self._beside = torch.zeros(rows, capacity + 1, width, device=device, dtype=dtype)
        self.known: list[int] = [0] * rows
        self._bounds = torch.zeros(rows, dtype=torch.int64, device=device)
        self._told = self.known  # what the device knows of it
        self._foreseen: tuple[Tensor, Sequence[int]] | None = None  # yet to be written down
        self._rows = torch.arange(rows, device=device)[:, None]

    def hear(self, known: Sequence[int]) -> None:
        """How many columns of each row the verifier has read that are final. What was drafted
        before it has read by now, so nothing foreseen is wanted any more."""
        self.known, self._foreseen = list(known), None

    def settle(self) -> None:
        """Let the device know what is known, for `at` and `foresee_at`."""
        if self._told is self.known:
            return
        self._told = self.known
        self._bounds[: len(self.known)] = upload(self.known, self._bounds.device)

    def keep(self, states: Tensor, starts: Sequence[int]) -> None:
        """Remember the states `[B, n, at most width]` of columns from each row's start on."""
        held = self._beside[: states.shape[0], :, : states.shape[2]]
        size = states.shape[1]
        if min(starts) == max(starts):
            held[:, starts[0] + 1 : starts[0] + 1 + size] = states
            return
        first = upload(starts, held.device)[:, None]
        index = first + torch.arange(1, size + 1, device=held.device)
        held[self._rows[: len(starts)], index] = states.to(held.dtype)

    def beside(self, starts: Sequence[int], size: int) -> Tensor:
        """What stands beside columns from each row's start on, `[B, size, width]`: beyond those
        that the verifier has read, beside the first what was foreseen, beside others zero."""
        known = min(self.known[: len(starts)])
        if max(starts) + size > known + 1 and self._foreseen is not None:
            self._note(*self._foreseen)
        if min(starts) == max(starts) and (size == 1 or starts[0] + size <= known + 1):
            return self._beside[: len(starts), starts[0] : starts[0] + size]  # a view, all there
        self.settle()
        return self.at(upload(starts, self._beside.device), size)

    def at(self, starts: Tensor, size: int) -> Tensor:
        """`beside` as a function of a tensor `[B]`, on the device alone; after `settle`."""
        index = starts[:, None] + torch.arange(size, device=starts.device)
        there = index <= self._bounds[: len(starts)].maximum(starts)[:, None]
        return self._beside[self._rows[: len(starts)], index] * there[..., None]

    def foresee(self, states: Tensor, starts: Sequence[int]) -> None:
        """Let a drafter's own states `[B, n, dim]` of columns that the verifier has not read stand
        for both halves of the verifier's, until it has."""
        self._foreseen = states, starts  # most drafts end before anyone reads it

    def _note(self, states: Tensor, starts: Sequence[int]) -> None:
        """Write down what was foreseen."""
        self._foreseen = None
        known, size = self.known[: len(starts)], states.shape[1]
        if min(starts) == max(starts) and min(known) == max(known):
            first = max(starts[0], known[0])
            fresh = as_verifiers(states[:, first - starts[0] :], self._halves)
            held = self._beside[: len(starts), first + 1 : starts[0] + size + 1]
            held[..., : fresh.shape[2]] = fresh
            return
        self.settle()
        self.foresee_at(states, upload(starts, self._beside.device))

    def foresee_at(self, states: Tensor, starts: Tensor) -> None:
        """`foresee` as a function of tensors, on the device alone; after `settle`."""
        index = starts[:, None] + torch.arange(1, states.shape[1] + 1, device=starts.device)
        rows, own = self._rows[: len(starts)], as_verifiers(states, self._halves)
        held = self._beside[..., : own.shape[2]]
        ahead = index > self._bounds[: len(starts), None]
        held[rows, index] = own.where(ahead[..., None], held[rows, index])

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        self._beside[target] = self._beside[source]
        self.known[target] = self.known[source]
        self._bounds[target] = self._bounds[source]
