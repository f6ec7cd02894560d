"""The rules by which a verifier judges guesses. See docs/exactness.md for why there are several."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor

from specgen.decoding.sampling import perturbed_argmax
from specgen.patterns import Pattern, contaminated


class Rule(StrEnum):
    """Which rule judges which codebook, and what becomes of open guesses after a correction.

    COUPLED: guess and final token are drawn with the same noise; the final token is the verifier's
        own draw. Exact for any pair; equal, token for token, to the verifier alone.
    MIXED: the textbook test on codebooks that are not contaminated, the coupled rule on the others.
        Exact in distribution.
    KEEP: the textbook test on every codebook; a correction voids only guesses drawn after it, and
        those drawn before stay open. Exact in distribution for any pair, accepts most.
    REJECTION: the textbook test on every codebook; a correction voids every open guess, as
        speculative decoding is usually written. Biased when a codebook is contaminated.
    """

    COUPLED = "coupled"
    MIXED = "mixed"
    KEEP = "keep"
    REJECTION = "rejection"


def textbook_codebooks(rule: Rule, drafter: Pattern, verifier: Pattern) -> tuple[bool, ...]:
    """Which codebooks `rule` judges by the textbook test, for this pair of patterns."""
    match rule:
        case Rule.COUPLED:
            return (False,) * verifier.codebooks
        case Rule.KEEP | Rule.REJECTION:
            return (True,) * verifier.codebooks
        case Rule.MIXED:
            return tuple(not flag for flag in contaminated(drafter, verifier))


def is_biased(rule: Rule, drafter: Pattern, verifier: Pattern) -> bool:
    """Whether this rule changes the distribution of the output, for this pair of patterns."""
    return rule is Rule.REJECTION and any(contaminated(drafter, verifier))


def textbook(
    guess: Tensor, target: Tensor, draft: Tensor, uniform: Tensor, gumbel: Tensor
) -> Tensor:
    """Speculative sampling (Leviathan et al. 2023; Chen et al. 2023): accept, or draw the residual.

    The guess stands with probability min(1, p/q); otherwise the token comes from the normalised
    positive part of p - q. If `guess` follows q and the noises are independent of it, the result
    follows p.

    Args:
        guess: `[M]` tokens drawn from q.
        target, draft: `[M, card]` processed log-probabilities (unnormalised) of p and q.
        uniform: `[M]` in (0, 1).
        gumbel: `[M, card]` noise for the residual draw.

    Returns:
        `[M]` tokens; one equal to the guess means accepted (the residual never holds the guess).
    """
    p = target.double().softmax(dim=-1)
    q = draft.double().softmax(dim=-1)
    at = guess[:, None]
    accepted = uniform * q.gather(-1, at)[:, 0] < p.gather(-1, at)[:, 0]
    residual = (p - q).clamp_min(0.0)
    # A guess is only refused where q > p, so its residual is 0 and the draw always differs from it.
    other = perturbed_argmax(residual.log(), gumbel.double())
    return guess.where(accepted, other)
