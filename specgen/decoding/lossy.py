"""Accepting guesses that the verifier did not draw but would not mind: faster, and not the same.

Both kinds loosen the coupled rule: a guess that equals the verifier's own draw always stands, so
the strictest threshold is the lossless rule. What stands beyond that changes the distribution of
the music, which is why nothing here is ever on by default, and everything made with it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from specgen.tensors import upload


class Kind(StrEnum):
    """What makes a guess good enough.

    TYPICAL: the verifier gives it a probability above min(e, sqrt(e) exp(-H)), H being the entropy
        of the verifier's distribution (typical acceptance, Cai et al. 2024, "Medusa", section 3.2).
    GROUPS: its codebook vector lies within a cosine of the vector of the token that the verifier
        drew: both are of one group of acoustically near codes, and groups are what is judged. A
        relative of principled coarse-graining (Yanuka et al. 2025, arXiv:2511.13732), which draws
        groups by rejection sampling and is exact in them; here the coupled draw is the judge.
    """

    TYPICAL = "typical"
    GROUPS = "groups"


@dataclass(frozen=True)
class Leniency:
    """A kind with its threshold.

    Attributes:
        kind: see `Kind`.
        threshold: `TYPICAL`: e in (0, 1], smaller accepts more; `GROUPS`: a cosine in [-1, 1],
            smaller accepts more, and 1 only accepts codes of one direction.
    """

    kind: Kind
    threshold: float

    @classmethod
    def of(cls, text: str) -> Leniency:
        """From `typical:0.1` or `groups:0.9`.

        Raises:
            ValueError: another kind, or a threshold out of range.
        """
        name, _, number = text.partition(":")
        if name not in tuple(Kind):
            raise ValueError(f"{text!r} is unknown; use typical:0.1 or groups:0.9")
        kind = Kind(name)
        low = 0.0 if kind is Kind.TYPICAL else -1.0
        try:
            threshold = float(number)
        except ValueError:
            threshold = float("nan")
        inside = low < threshold <= 1 or (kind is Kind.GROUPS and threshold == low)
        if not inside:
            raise ValueError(f"the threshold of {text!r} must lie between {low:g} and 1")
        return cls(kind, threshold)

    def __str__(self) -> str:
        return f"{self.kind}:{self.threshold:g}"


class Lenient:
    """Judges guesses that differ from the verifier's draw.

    Args:
        leniency: how much is let pass.
        vectors: `[K, card, D]` codebook vectors; only `GROUPS` needs them.

    Raises:
        ValueError: no vectors for groups.
    """

    def __init__(self, leniency: Leniency, vectors: Tensor | None = None) -> None:
        self.leniency = leniency
        self._vectors: Tensor | None = None
        if leniency.kind is Kind.GROUPS:
            if vectors is None:
                raise ValueError("groups of near codes need the codec's codebook vectors")
            self._vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)

    def stands(
        self, guesses: Tensor, tokens: Tensor, logits: Tensor, codebooks: Sequence[int]
    ) -> Tensor:
        """Which guesses are good enough.

        Args:
            guesses, tokens: `[M]` of the drafter and of the verifier.
            logits: `[M, card]` of the verifier, as processed for sampling.
            codebooks: k of each.

        Returns:
            `[M]` booleans.
        """
        e = self.leniency.threshold
        if self._vectors is None:
            log_p = logits.float().log_softmax(dim=-1)
            p = log_p.exp()
            entropy = -(p * log_p.where(p > 0, 0)).sum(dim=-1)
            least = torch.clamp(e**0.5 * torch.exp(-entropy), max=e)
            return p.gather(-1, guesses[:, None])[:, 0] > least
        vectors = self._vectors.to(guesses.device)
        book = upload(codebooks, guesses.device)
        cosine = (vectors[book, guesses] * vectors[book, tokens]).sum(dim=-1)
        return (guesses == tokens) | (cosine >= e)
