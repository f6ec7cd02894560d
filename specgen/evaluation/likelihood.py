"""Does a side draw from its verifier's own law? A test that needs no other side.

If every token follows the verifier's distribution given the tokens before it, then -log p(token)
minus that distribution's entropy is zero on average, whatever came before; the sums over a clip are
a martingale whose variance is known exactly. So a few thousand tokens show a bias of some
thousandths of a nat: too cold a temperature, a cut that is off, an accept rule that favours what
the drafter likes. It sees biases of the likelihood only; the two-sample tests see the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.decoding.lane import Role
from specgen.decoding.sampling import Sampling, process
from specgen.engine import Engine
from specgen.evaluation.two_sample import ALPHA
from specgen.generation import ConditionedModel

_AT_ONCE = 512  # tokens whose distributions are held at a time
_Z_LEVEL = 3.0902  # a normal variable's two-sided 0.002: the level 0.01 shared by five tests
_Z_POWER = 1.2816  # exceeded with probability 0.1: power 0.9


@dataclass(frozen=True)
class Scores:
    """What the verifier thinks of clips.

    Attributes:
        excess: `[N, K]` sums of -log p - entropy, in nats.
        variance: `[N, K]` what their variance is if the tokens follow p.
        tokens: of each codebook, in all clips together.
        outside: tokens that p gives nothing (cut by top-k or top-p); rounding may make a few.
    """

    excess: NDArray[np.float64]
    variance: NDArray[np.float64]
    tokens: int
    outside: int

    @staticmethod
    def together(parts: Sequence[Scores]) -> Scores:
        """The scores of several batches."""
        return Scores(
            np.concatenate([part.excess for part in parts]),
            np.concatenate([part.variance for part in parts]),
            sum(part.tokens for part in parts),
            sum(part.outside for part in parts),
        )


Places = tuple[int, ...]


@torch.inference_mode()
def laws(
    role: Role, codes: torch.Tensor, sampling: Sampling
) -> Iterator[tuple[Places, Places, Places, torch.Tensor]]:
    """What the verifier would draw every token of clips from, given the tokens before it; it reads
    each clip in one pass.

    Args:
        role: the verifier, with the clips' conditions.
        codes: `[B, K, T]`.
        sampling: of the verifier, not greedy.

    Yields:
        Rows, codebooks and frames of M tokens, and `[M, card]` processed log-probabilities
        (unnormalised).
    """
    scorer, pattern = role.scorer, role.pattern.of(codes.shape[-1])
    sequence = pattern.build(codes.to(scorer.device), scorer.card)
    hidden = scorer.feed(sequence[..., :-1].contiguous(), [0] * len(codes))
    where = [
        (r, step - 1, k, t)
        for r in range(len(codes))
        for step in range(1, pattern.steps)
        for t, k in pattern.layout[step]
    ]
    for first in range(0, len(where), _AT_ONCE):
        rows, places, ks, ts = zip(*where[first : first + _AT_ONCE], strict=True)
        yield rows, ks, ts, process(scorer.logits(hidden, rows, places, ks), sampling)


def score(role: Role, codes: torch.Tensor, sampling: Sampling) -> Scores:
    """Score clips with the verifier; arguments as for `laws`."""
    excess, variance = np.zeros((2, len(codes), codes.shape[1]))
    outside = 0
    for rows, ks, ts, drawn_from in laws(role, codes, sampling):
        law = drawn_from.double().log_softmax(dim=-1)
        p = law.exp()
        safe = law.where(p > 0, 0)
        entropy = -(p * safe).sum(dim=-1)
        spread = (p * safe.square()).sum(dim=-1) - entropy.square()
        tokens = codes[list(rows), list(ks), list(ts)].to(law.device)
        chosen = law.gather(-1, tokens[:, None])[:, 0]
        least = law.masked_fill(p == 0, math.inf).amin(dim=-1)
        cut = torch.isinf(chosen)
        outside += int(cut.sum())
        at = (np.array(rows), np.array(ks))
        np.add.at(excess, at, (-chosen.where(~cut, least) - entropy).cpu().numpy())
        np.add.at(variance, at, spread.cpu().numpy())
    return Scores(excess, variance, codes.shape[0] * codes.shape[2], outside)


def verdict(scores: Scores) -> dict[str, Any]:
    """The test, for all codebooks and for each: how far the surprise is off, and its power."""
    K = scores.excess.shape[1]
    each = [_one(scores.excess[:, k], scores.variance[:, k], scores.tokens) for k in range(K)]
    whole = _one(scores.excess.sum(axis=1), scores.variance.sum(axis=1), scores.tokens * K)
    p = min(1.0, (K + 1) * min(part["p"] for part in [whole, *each]))
    return {
        **whole,
        "p": p,
        "alpha": ALPHA,
        "differs": p <= ALPHA,
        "per_codebook": [part["excess_nats"] for part in each],
        "clips": len(scores.excess),
        "tokens": scores.tokens * K,
        "outside": scores.outside,
    }


def _one(excess: NDArray[np.float64], variance: NDArray[np.float64], tokens: int) -> dict[str, Any]:
    error = max(math.sqrt(float(variance.sum())), 1e-12) / tokens
    mean = float(excess.sum()) / tokens
    return {
        "excess_nats": mean,
        "interval_95": [mean - 1.96 * error, mean + 1.96 * error],
        "p": math.erfc(abs(mean) / error / math.sqrt(2)),
        "detectable_nats": (_Z_LEVEL + _Z_POWER) * error,
    }


def of_clips(
    engine: Engine, prompts: Sequence[str], codes: NDArray[np.int64], batch: int = 8
) -> dict[str, Any] | None:
    """The test of an engine's clips; None if it is greedy or they are longer than one window.

    Args:
        engine: its verifier judges.
        prompts: of the clips.
        codes: `[N, K, T]`.
    """
    settings = engine.settings.sampling
    if settings.temperature == 0 or codes.shape[2] > engine.verifier.max_frames:
        return None
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    parts = []
    for first in range(0, len(codes), batch):
        part = slice(first, first + batch)
        cast = ConditionedModel.of(
            engine.verifier, list(prompts[part]), codes.shape[2], settings.cfg
        )
        parts.append(score(cast.role, torch.from_numpy(codes[part]), sampling))
    return verdict(Scores.together(parts))
