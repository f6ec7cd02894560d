"""What a drafter may read of its verifier: the states that tokens were drawn from.

Where a verifier has read a column, its last layer says more of what comes than the tokens drawn
from it do. A drafter of the same pattern takes that state in beside the next column (Li et al.
2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty"), both halves of it
where there is guidance. It only guesses, so the verifier's output depends on none of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.lm.upload import upload


class Features:
    """A verifier's states, column by column.

    Args:
        rows, capacity: of the verifier's session.
        width: numbers a column: `feature_dim` of the drafter.
        device, dtype: the drafter's.

    Attributes:
        known: of each row, how many columns the verifier has read that are final.
    """

    def __init__(
        self, rows: int, capacity: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        # A column late: beside a column stands what it was drawn from. The first has nothing.
        self._beside = torch.zeros(rows, capacity + 1, width, device=device, dtype=dtype)
        self._known = [0] * rows
        self._bounds = torch.zeros(rows, dtype=torch.int64, device=device)  # the same, for `at`
        self._rows = torch.arange(rows, device=device)[:, None]

    @property
    def known(self) -> Sequence[int]:
        return self._known

    @known.setter
    def known(self, columns: Sequence[int]) -> None:
        self._known = list(columns)
        self._bounds[: len(columns)] = upload(self._known, self._bounds.device)

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
        """What stands beside columns from each row's start on, `[B, size, width]`; zero where the
        verifier has not read the column before."""
        if min(starts) == max(starts) and min(self._known[: len(starts)]) + 1 >= starts[0] + size:
            return self._beside[: len(starts), starts[0] : starts[0] + size]  # a view, all known
        return self.at(upload(starts, self._beside.device), size)

    def at(self, starts: Tensor, size: int) -> Tensor:
        """`beside` as a function of a tensor `[B]`, on the device alone."""
        index = starts[:, None] + torch.arange(size, device=starts.device)
        rows = self._rows[: len(starts)]
        read = index <= self._bounds[: len(starts), None]
        return self._beside[rows, index] * read[..., None]

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        self._beside[target] = self._beside[source]
        self._known[target] = self._known[source]
        self._bounds[target] = self._bounds[source]
