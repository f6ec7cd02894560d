"""Noise belongs to coordinates: nothing else may change it, and it is what it claims to be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specgen.decoding.noise import (
    NoiseField,
    Purpose,
    acceptance_uniforms,
    gumbels,
    uniforms,
)

CPU = torch.device("cpu")
seeds = st.integers(0, 2**64 - 1)
purposes = st.sampled_from(Purpose)


@settings(deadline=None)
@given(
    seed=seeds,
    purpose=purposes,
    codebook=st.integers(0, 8),
    start=st.integers(0, 2000),
    frames=st.integers(1, 5),
    entries=st.integers(1, 40),
)
def test_a_frame_does_not_depend_on_where_reading_starts(
    seed: int, purpose: Purpose, codebook: int, start: int, frames: int, entries: int
) -> None:
    together = uniforms(seed, purpose, codebook, start, frames, entries)
    assert together.shape == (frames, entries)
    assert together.min() > 0 and together.max() < 1
    for i in range(frames):
        alone = uniforms(seed, purpose, codebook, start + i, 1, entries)
        assert np.array_equal(together[i], alone[0])


@settings(deadline=None)
@given(
    data=st.data(),
    grids=st.lists(seeds, min_size=1, max_size=4),
    codebooks=st.integers(1, 4),
    card=st.integers(1, 9),
)
def test_a_field_reads_the_same_in_any_batch_and_order(
    data: st.DataObject, grids: list[int], codebooks: int, card: int
) -> None:
    frames = 150  # several blocks
    field = NoiseField(len(grids), frames, codebooks, card, Purpose.TOKEN, CPU)
    for slot, seed in enumerate(grids):
        field.admit(slot, seed)
    coordinate = st.tuples(
        st.integers(0, len(grids) - 1), st.integers(0, frames - 1), st.integers(0, codebooks - 1)
    )
    asked = data.draw(st.lists(coordinate, min_size=1, max_size=12))
    for _ in range(2):  # made, then read again
        noise = field.at([slot for slot, _, _ in asked], [(t, k) for _, t, k in asked])
        for row, (slot, t, k) in zip(noise, asked, strict=True):
            own = gumbels(grids[slot], Purpose.TOKEN, k, t, 1, card)[0]
            assert np.array_equal(row.numpy(), own)


def test_a_slot_taken_by_another_seed_forgets_the_first() -> None:
    field = NoiseField(2, 70, 2, 5, Purpose.DRAFT, CPU)
    field.admit(0, 1)
    field.admit(1, 2)
    places = [(0, 0), (69, 1)]
    field.at([0, 0], places)
    kept = field.at([1, 1], places).clone()
    field.admit(0, 3)
    taken = field.at([0, 0], places)
    for row, (t, k) in zip(taken, places, strict=True):
        assert np.array_equal(row.numpy(), gumbels(3, Purpose.DRAFT, k, t, 1, 5)[0])
    assert torch.equal(field.at([1, 1], places), kept)


def test_neighbours_in_order_are_read_as_they_are_alone() -> None:
    """A whole run of the field is returned as a view; it must hold what single reads hold."""
    field = NoiseField(1, 130, 3, 4, Purpose.TOKEN, CPU)
    field.admit(0, 5)
    run = [(t, k) for t in range(60, 70) for k in range(3)]  # over the seam of two blocks
    together = field.at([0] * len(run), run)
    for row, place in zip(together, run, strict=True):
        assert torch.equal(row, field.at([0], [place])[0])


def test_acceptance_uniforms_are_the_coordinates_own() -> None:
    made = acceptance_uniforms(11, 9, 3)
    assert made.shape == (3, 9)
    for k in range(3):
        for t in range(9):
            assert float(made[k, t]) == uniforms(11, Purpose.ACCEPT, k, t, 1, 1)[0, 0]


def test_golden_values() -> None:
    """A seed printed by an older version must make the same music: these may never change."""
    golden = [
        0.011546754286331562,
        0.24154919656271823,
        0.11142585551493822,
        0.5644146216071338,
        0.5023796042735055,
    ]
    assert uniforms(0, Purpose.TOKEN, 0, 0, 1, 5)[0].tolist() == golden
    last = uniforms(2**64 - 1, Purpose.RESIDUAL, 3, 1499, 1, 3)[0].tolist()
    assert last == [0.25891734931893884, 0.14754537982611804, 0.3476883213230181]
    # A logarithm may differ in its last bit between C libraries, hence the tolerance.
    noise = [
        [-0.1239653080701828, -0.7344815731048584, -1.4208295345306396],
        [0.5994946360588074, 0.19735608994960785, 1.253724455833435],
    ]
    np.testing.assert_allclose(gumbels(7, Purpose.TOKEN, 2, 64, 2, 3), noise, rtol=3e-7)
    accept = [[0.36654848046680033, 0.26379676834199073], [0.5818548259607977, 0.8421312934018256]]
    assert acceptance_uniforms(7, 2, 2).tolist() == accept


@pytest.mark.parametrize("purpose", list(Purpose))
def test_gumbel_law(purpose: Purpose) -> None:
    """Kolmogorov-Smirnov on 200,000 numbers; false alarm 1e-6 each. Moments within 5 sigma."""
    noise = gumbels(2024, purpose, 1, 0, 200, 1000).astype(np.float64).ravel()
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-6
    # The Gumbel law: mean gamma, variance pi^2 / 6, fourth central moment 27/5 variance^2.
    variance = math.pi**2 / 6
    assert abs(noise.mean() - np.euler_gamma) < 5 * math.sqrt(variance / noise.size)
    assert abs(noise.var() - variance) < 5 * variance * math.sqrt(4.4 / noise.size)


def test_streams_are_independent() -> None:
    """Streams of neighbouring seeds, purposes, codebooks and frames do not correlate.

    Each correlation of 20,000 pairs stays within 5 sigma: false alarm 6e-7 a pair, 45 pairs.
    """
    n = 20_000
    base = {"seed": 5, "purpose": Purpose.TOKEN, "codebook": 1, "start": 3}
    others = [
        {"seed": 4},
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"purpose": Purpose.DRAFT},
        {"purpose": Purpose.ACCEPT},
        {"purpose": Purpose.RESIDUAL},
        {"codebook": 0},
        {"codebook": 2},
        {"start": 4},
    ]
    streams = [uniforms(**{**base, **o}, frames=1, entries=n)[0] for o in ({}, *others)]  # type: ignore[arg-type]
    correlation = np.corrcoef(np.stack(streams)) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    # and no number turns up twice, as it would if two streams overlapped
    assert np.unique(np.concatenate(streams)).size == n * len(streams)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        uniforms(seed, Purpose.TOKEN, 0, 0, 1, 1)
