"""Close calls: two passes that round differently draw the same tokens, since a third decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specgen.decoding.lane import Role
from specgen.decoding.loop import Decoded, Drafting, decode
from specgen.decoding.sampling import Sampling, perturbed_argmax, process
from specgen.decoding.stats import DecodeStats
from specgen.decoding.ties import Referee, close_calls, settle
from specgen.lm.session import LMSession
from specgen.patterns import PatternSpec
from tests.decoding.test_identity import DELAY, FLATTEN, GREEDY, SAMPLING, condition, role

ROUGH = 0.02  # how far the rounding below moves a logit
FRAMES, SEEDS = [12, 9, 12], [5, 6, 7]
CUTS = [SAMPLING, GREEDY, Sampling(1.0, 3), Sampling(0.7, 0), Sampling(1.3, 6, 0.8)]


class Rough:
    """A session whose every pass rounds in its own way; it rereads without rounding."""

    def __init__(self, session: LMSession, seed: int, tie: float) -> None:
        self._session, self.tie = session, tie
        self._chance = torch.Generator().manual_seed(seed)
        self.card, self.device = session.card, session.device
        self.capacity = session.capacity
        self.feed, self.move, self.reread = session.feed, session.move, session.reread

    def logits(
        self, hidden: Tensor, rows: Sequence[int], places: Sequence[int], codebooks: Sequence[int]
    ) -> Tensor:
        exact = self._session.logits(hidden, rows, places, codebooks)
        noise = torch.rand(exact.shape, generator=self._chance, dtype=exact.dtype)
        return exact + ROUGH * (2 * noise - 1)


def rough(seed: int, tie: float, frames: int) -> Role:
    session = role("same", FLATTEN, frames, condition(3)).scorer
    assert isinstance(session, LMSession)
    return Role(Rough(session, seed, tie), FLATTEN)


def run(
    seed: int, tie: float, sampling: Sampling, drafter: PatternSpec | None, steps: int | None
) -> Decoded:
    longest = max(FRAMES)
    return decode(
        rough(seed, tie, longest),
        None if drafter is None else role("noise", drafter, longest, condition(3)),
        frames=FRAMES,
        seeds=SEEDS,
        sampling=sampling,
        drafting=Drafting(steps=steps),
    )


@pytest.mark.parametrize("sampling", CUTS, ids=str)
def test_passes_that_round_differently_draw_the_same_tokens(sampling: Sampling) -> None:
    exact = decode(
        role("same", FLATTEN, max(FRAMES), condition(3)),
        frames=FRAMES,
        seeds=SEEDS,
        sampling=sampling,
    )
    runs = [(1, None, None), (2, None, None), (3, DELAY, 6), (4, FLATTEN, 3), (5, DELAY, None)]
    for seed, drafter, steps in runs:
        made = run(seed, 2.5 * ROUGH, sampling, drafter, steps)
        for ours, theirs in zip(made.codes, exact.codes, strict=True):
            assert torch.equal(ours, theirs)
        assert DecodeStats.total(made.stats).close_calls > 0


def test_without_a_referee_they_do_not() -> None:
    """So that the test above can fail."""
    one, other = (run(seed, 0.0, SAMPLING, None, None) for seed in (1, 2))
    assert any(not torch.equal(a, b) for a, b in zip(one.codes, other.codes, strict=True))
    assert DecodeStats.total(one.stats).close_calls == 0


@given(
    seed=st.integers(0, 2**32),
    sampling=st.sampled_from(CUTS),
    scale=st.sampled_from([0.01, 0.1, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_a_call_that_is_not_close_stands(seed: int, sampling: Sampling, scale: float) -> None:
    """Whatever rounding of up to half of `tie` does to logits, unless it is told."""
    chance = torch.Generator().manual_seed(seed)
    tie = 0.02
    logits = torch.randn(64, 12, generator=chance, dtype=torch.float64) * scale
    noise = None
    if not sampling.greedy:
        noise = -(-torch.rand(64, 12, generator=chance, dtype=torch.float64).log()).log()
    error = torch.rand(64, 12, generator=chance, dtype=torch.float64) - 0.5
    reach = tie / 2 * min(1.0, sampling.temperature or 1.0)
    drawn, close = close_calls(logits + reach * error * 2, noise, sampling, tie)
    truth = logits.argmax(-1)
    if noise is not None:
        truth = perturbed_argmax(process(logits, sampling), noise)
    assert torch.equal(drawn[~close], truth[~close])
    for i in close.nonzero()[:3, 0].tolist():
        assert settle(logits[i], None if noise is None else noise[i], sampling) == truth[i]


def test_the_last_entry_of_a_cut_is_no_close_call_by_itself() -> None:
    """Only an entry close below the cut puts it in doubt."""
    noise = torch.tensor([[0.0, 0.0, 9.0, 0.0]])
    for below, expected in ((0.0, False), (0.999, True)):
        logits = torch.tensor([[3.0, 2.0, 1.0, below]])
        tokens, close = close_calls(logits, noise, Sampling(1.0, 3), 0.01)
        assert (tokens.tolist(), close.tolist()) == ([2], [expected])


def test_what_precision_has_close_calls() -> None:
    session = role("same", FLATTEN, 4, condition(1)).scorer
    assert isinstance(session, LMSession) and isinstance(session, Referee)
    assert session.tie == 0  # float64
    narrow = session.model.float()
    try:
        assert session.tie == 5e-5
    finally:
        narrow.double()
