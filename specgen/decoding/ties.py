"""Close calls: where rounding could swap the two best scores, double precision decides.

The verifier's token is argmax(log p + noise). Passes over one column, over a block and over a
batch round differently, so where two scores nearly tie, or the best lies on the edge of the top-k
cut, the token would depend on how it was come by: once in some 100,000 tokens of float32. There
the sequence is read again in float64 (`specgen.lm.reread`), by itself, and that reading decides.
So a decode in float32 gives the same tokens whatever is drafted, however far ahead, in whatever
batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from specgen.decoding.sampling import Sampling, cut, foremost, perturbed_argmax, process


@runtime_checkable
class Referee(Protocol):
    """What a scorer has that can decide close calls; `specgen.lm.session.LMSession` has it."""

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
    if noise is None:
        return _best(logits, tie)
    if logits.device.type == "cpu" and sampling.cuts_by_rank:  # see `sampling.draw`
        tokens, close, kept = foremost(sampling.warmed(logits), noise, sampling.top_k, tie)
        if kept:
            return tokens, close
    warm, low = cut(logits, _moved(sampling, 2 * tie))
    if low is None:
        return _best(warm + noise, tie)
    high = low if sampling.cuts_by_rank else cut(logits, _moved(sampling, -2 * tie))[1]
    assert high is not None
    tokens, close = _best((warm + noise).masked_fill(warm < low - tie, -torch.inf), tie)
    edge = warm.gather(-1, tokens[:, None])[:, 0] < high[:, 0] + tie
    # Seldom, and a cut is in doubt only where an entry lies close below it. A card is not asked.
    if edge.device.type != "cpu" or edge.any():
        close |= edge & ((warm < high) & (warm >= low - tie)).any(dim=-1)
    return tokens, close


def _moved(sampling: Sampling, share: float) -> Sampling:
    """The same with top-p, where it is used, at the edge of what rounding makes of it."""
    if sampling.top_p in (0, 1):
        return sampling
    return replace(sampling, top_p=min(1 - 1e-9, max(1e-9, sampling.top_p + share)))


def _best(scores: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """`[M]` best entries of `[M, card]`, and whether the next is within `tie`."""
    best, order = scores.topk(2, dim=-1)
    return order[:, 0], best[:, 0] - best[:, 1] < tie


def settle(logits: Tensor, noise: Tensor | None, sampling: Sampling) -> Tensor:
    """The token of one close call: `[]`, from float64 logits `[card]` and its noise."""
    if noise is None:
        return logits.argmax()
    return perturbed_argmax(process(logits, sampling), noise.double())
