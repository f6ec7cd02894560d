"""Close calls: where rounding could swap the two best scores, double precision decides.

The verifier's token is argmax(log p + noise). Passes over one column, over a block and over a
batch round differently, so where two scores nearly tie, or the best lies on the edge of the top-k
cut, the token would depend on how it was come by: once in some 100,000 tokens of float32. There
the sequence is read again in float64 (`specgen.lm.reread`), by itself, and that reading decides.
So a decode in float32 gives the same tokens whatever is drafted, however far ahead, in whatever
batch.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from specgen.decoding.sampling import Sampling, cut, perturbed_argmax, process


@runtime_checkable
class Referee(Protocol):
    """What a scorer has that can decide close calls; `specgen.lm.model.LMSession` has it."""

    @property
    def tie(self) -> float:
        """How near two scores may be for rounding to swap them; 0: no calls are close."""

    def reread(self, row: int, columns: Tensor, codebook: int) -> Tensor:
        """`[card]` guided logits in float64 of what follows columns `[K, n]`."""


def close_calls(
    logits: Tensor, noise: Tensor | None, sampling: Sampling, tie: float
) -> tuple[Tensor, Tensor]:
    """Draw tokens, and tell which of them rounding may have drawn.

    Args:
        logits: `[M, card]` guided.
        noise: `[M, card]` Gumbel noise; None is greedy.
        sampling: of the verifier.
        tie: how near is close.

    Returns:
        `[M]` tokens, and `[M]` bool: whether another entry comes within `tie` of the token's score,
        or the token lies on the edge of a cut that rounding may move.
    """
    total, last = logits, None
    if noise is not None:
        logits, last = cut(logits, sampling)
        total = logits + noise
    if last is not None:
        total = total.masked_fill(logits < last - tie, -torch.inf)
    best, order = total.topk(2, dim=-1)
    tokens, close = order[:, 0], best[:, 0] - best[:, 1] < tie
    if last is not None:
        edge = logits.gather(-1, order[:, :1])[:, 0] < last[:, 0] + tie
        if edge.any():  # seldom, and a cut is in doubt only where an entry lies close below it
            close |= edge & ((logits < last) & (logits >= last - tie)).any(dim=-1)
    return tokens, close


def settle(logits: Tensor, noise: Tensor | None, sampling: Sampling) -> Tensor:
    """The token of one close call: `[]`, from float64 logits `[card]` and its noise."""
    if noise is None:
        return logits.argmax()
    return perturbed_argmax(process(logits, sampling), noise.double())
