"""From logits to the distribution that is really sampled: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn (audiocraft's defaults for MusicGen).

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_k: keep this many best entries; 0 keeps all.
        top_p: keep the smallest set of best entries that holds this share (0 or 1 keeps all).

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie between 0 and 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def cuts_by_rank(self) -> bool:
        """Whether an entry's rank alone says if it is cut."""
        return self.top_k > 0 and self.top_p in (0, 1)

    def warmed(self, logits: Tensor) -> Tensor:
        """Logits over the temperature."""
        return logits if self.temperature == 1 else logits / self.temperature


def process(logits: Tensor, sampling: Sampling) -> Tensor:
    """Unnormalised log-probabilities of the sampled distribution, -inf where an entry is cut.

    Args:
        logits: `[..., card]`, guided (after CFG).
        sampling: not greedy.
    """
    logits, last = cut(logits, sampling)
    return logits if last is None else logits.masked_fill(logits < last, -torch.inf)


def cut(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits over the temperature, and what an entry must have to be kept.

    Temperature first, then top-k, then top-p of what is left. Entries that tie with the last kept
    one are kept too, so the result does not depend on how a sort breaks ties.

    Args:
        logits, sampling: as for `process`.

    Returns:
        `[..., card]` and `[..., 1]`; None where nothing is cut.
    """
    logits, last = sampling.warmed(logits), None
    if 0 < sampling.top_k < logits.shape[-1]:
        last = torch.topk(logits, sampling.top_k, sorted=False).values.amin(dim=-1, keepdim=True)
    if 0 < sampling.top_p < 1:
        left = logits if last is None else logits.masked_fill(logits < last, -torch.inf)
        ordered = torch.sort(left, dim=-1, descending=True).values
        share = ordered.softmax(dim=-1)
        before = share.cumsum(dim=-1) - share
        last = ordered.masked_fill(before >= sampling.top_p, torch.inf).amin(dim=-1, keepdim=True)
    return logits, last


def perturbed_argmax(logits: Tensor, gumbel: Tensor) -> Tensor:
    """The Gumbel-max draw: argmax(logits + noise), a sample of softmax(logits) (Gumbel 1954).

    Args:
        logits: `[..., card]` processed.
        gumbel: `[..., card]` standard Gumbel noise.

    Returns:
        `[...]` int64 tokens.
    """
    return (logits + gumbel).argmax(dim=-1)


def draw(logits: Tensor, gumbel: Tensor, sampling: Sampling) -> Tensor:
    """`perturbed_argmax(process(logits, sampling), gumbel)`; on the CPU mostly without processing.

    A token that is best before anything is cut, and is not cut itself, is best afterwards. Whether
    it is among the k best is counted in a fraction of the time that finding them takes.

    Args:
        logits, gumbel: `[M, card]`.
        sampling: not greedy.

    Returns:
        `[M]` int64 tokens.
    """
    if logits.device.type == "cpu" and sampling.cuts_by_rank:
        tokens, _, kept = foremost(sampling.warmed(logits), gumbel, sampling.top_k)
        if kept:
            return tokens
    return perturbed_argmax(process(logits, sampling), gumbel)


def foremost(
    logits: Tensor, gumbel: Tensor, top_k: int, tie: float = 0.0
) -> tuple[Tensor, Tensor, bool]:
    """The best entries before anything is cut, by numpy: a third of the time for so few numbers.

    Args:
        logits, gumbel: `[M, card]`, on the CPU.
        top_k: entries that are kept.
        tie: how near two numbers may be to be taken for equal.

    Returns:
        `[M]` entries; `[M]` bool: whether another comes within `tie` once noise is added; and
        whether all of them are among the `top_k` without it, were all that come within `tie` ahead.
    """
    bare, rows = logits.numpy(), np.arange(len(logits))
    scores = bare + gumbel.numpy()
    best = scores.argmax(axis=-1)
    ahead = bare >= bare[rows, best][:, None] - tie
    # All of them together are mostly fewer than one may have, and that is sooner counted.
    kept = int(np.count_nonzero(ahead)) <= top_k or int(ahead.sum(axis=-1).max()) <= top_k
    least = scores[rows, best] - tie
    scores[rows, best] = -np.inf
    return torch.from_numpy(best), torch.from_numpy(scores.max(axis=-1) > least), kept
