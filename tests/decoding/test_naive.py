"""The usual rule's bias across patterns, by sums that a reader can follow."""

import numpy as np
import pytest

from specgen.decoding.acceptance import Rule
from specgen.patterns import PatternSpec
from tests.decoding.enumeration import enumerate_decodes
from tests.decoding.naive import grid_bias, softmax_law, two_tokens

FLATTEN, WIDE, PARALLEL = (
    PatternSpec("flatten", 2),
    PatternSpec("delay", 2, delays=(0, 2)),
    PatternSpec("parallel", 2),
)


@pytest.mark.parametrize("keep", [False, True])
def test_two_tokens(keep: bool) -> None:
    """Biased if a refusal discards the earlier guess, exact if it keeps it."""
    rng = np.random.default_rng(1)
    distances = [two_tokens(lambda: softmax_law(rng, 4, 1.0), keep=keep) for _ in range(50)]
    if keep:
        assert max(distances) < 1e-12
    else:
        assert min(distances) > 1e-4 and max(distances) > 0.05


def test_three_codebooks_are_biased_in_the_usual_delays() -> None:
    delay, flatten = PatternSpec("delay", 3), PatternSpec("flatten", 3)
    assert grid_bias(delay, flatten, frames=2, seed=0) > 1e-4


def test_nothing_is_biased_where_nothing_is_contaminated() -> None:
    assert grid_bias(PARALLEL, FLATTEN, frames=2, seed=0) < 1e-12
    assert grid_bias(FLATTEN, FLATTEN, frames=2, seed=0, card=3) < 1e-12


def test_the_real_loop_has_this_very_bias() -> None:
    through_the_loop, _, _ = enumerate_decodes(
        WIDE, FLATTEN, Rule.REJECTION, frames=2, steps=4, seed=0, spread=2.0
    )
    by_hand = grid_bias(WIDE, FLATTEN, frames=2, seed=0, spread=2.0)
    assert by_hand == pytest.approx(through_the_loop, abs=1e-12)
    assert by_hand > 0.01
