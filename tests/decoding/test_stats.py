"""Counts add up, and what was not measured is None, never 0."""

import pytest

from specgen.decoding.stats import DecodeStats


def test_derived_figures() -> None:
    stats = DecodeStats(
        2, [10, 6], [9, 3], bonus=4, rounds=5, verifier_passes=5, drafter_steps=7, close_calls=1
    )
    assert stats.corrected == 4
    assert stats.tokens == 20
    assert stats.acceptance == 12 / 16
    assert stats.acceptance_per_codebook == [0.9, 0.5]
    assert stats.tokens_per_pass == 4
    assert stats.as_dict() == {
        "rounds": 5,
        "drafted": 16,
        "accepted": 12,
        "corrected": 4,
        "bonus": 4,
        "acceptance": 0.75,
        "acceptance_per_codebook": [0.9, 0.5],
        "tokens_per_pass": 4.0,
        "drafter_steps": 7,
        "verifier_passes": 5,
        "close_calls": 1,
    }


def test_what_was_not_measured_is_none() -> None:
    plain = DecodeStats(2, bonus=8, verifier_passes=4)
    assert plain.acceptance is None
    assert plain.acceptance_per_codebook == [None, None]
    assert plain.tokens_per_pass == 2
    assert DecodeStats(1).tokens_per_pass is None
    assert DecodeStats(2, [4, 0], [1, 0]).acceptance_per_codebook == [0.25, None]


def test_total() -> None:
    one = DecodeStats(2, [1, 2], [1, 0], 3, 4, 5, 6, 7)
    two = DecodeStats(2, [10, 20], [10, 5], 30, 40, 50, 60, 70)
    assert DecodeStats.total([one, two]) == DecodeStats(2, [11, 22], [11, 5], 33, 44, 55, 66, 77)
    assert one == DecodeStats(2, [1, 2], [1, 0], 3, 4, 5, 6, 7)  # the parts are left alone
    with pytest.raises(ValueError, match="no statistics"):
        DecodeStats.total([])


def test_rows_do_not_share_their_counts() -> None:
    one, two = DecodeStats(2), DecodeStats(2)
    one.drafted[0] += 1
    assert two.drafted == [0, 0]
