"""Processing of logits, against a reference that is as naive as its definition."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from specgen.decoding.noise import Purpose, gumbels
from specgen.decoding.sampling import Sampling, draw, foremost, perturbed_argmax, process

# Multiples of a quarter: ties happen, and sums and quotients by powers of two are exact.
quarters = st.integers(-20, 20).map(lambda i: i / 4)
rows = st.lists(quarters, min_size=1, max_size=12)


def naive(logits: list[float], sampling: Sampling) -> list[float]:
    """The definition, entry by entry, without a tensor; probabilities."""
    scaled = [x / sampling.temperature for x in logits]
    kept = set(range(len(scaled)))
    if sampling.top_k:
        worst = sorted(scaled, reverse=True)[min(sampling.top_k, len(scaled)) - 1]
        kept = {i for i in kept if scaled[i] >= worst}
    if 0 < sampling.top_p < 1:
        whole = sum(math.exp(scaled[i]) for i in kept)
        share, worst = 0.0, math.inf
        for i in sorted(kept, key=lambda i: -scaled[i]):
            assume(abs(share - sampling.top_p) > 1e-9)  # on the edge rounding decides
            if share >= sampling.top_p:
                break
            share, worst = share + math.exp(scaled[i]) / whole, scaled[i]
        kept = {i for i in kept if scaled[i] >= worst}
    whole = sum(math.exp(scaled[i]) for i in kept)
    return [math.exp(x) / whole if i in kept else 0.0 for i, x in enumerate(scaled)]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    return process(logits, sampling).softmax(dim=-1)


@settings(deadline=None)
@given(
    logits=rows,
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]),
    top_k=st.integers(0, 14),
    top_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.01, 0.99)),
)
@example(logits=[1.0, 1.0, 1.0], temperature=1.0, top_k=1, top_p=0.0)  # all tie
@example(logits=[0.0, 5.0], temperature=1.0, top_k=1, top_p=0.3)
def test_against_the_definition(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p)
    made = probabilities(torch.tensor([logits]).double(), sampling)[0]
    torch.testing.assert_close(
        made, torch.tensor(naive(logits, sampling), dtype=torch.float64), atol=1e-12, rtol=0
    )


@settings(deadline=None)
@given(logits=rows, top_k=st.integers(1, 12), seed=st.integers(0, 99))
def test_nothing_leaks_past_top_k(logits: list[float], top_k: int, seed: int) -> None:
    """Whatever the noise, a cut entry is never drawn."""
    processed = process(torch.tensor([logits]).double(), Sampling(1.0, top_k))
    noise = torch.from_numpy(gumbels(seed, Purpose.TOKEN, 0, 0, 50, len(logits)))
    drawn = perturbed_argmax(processed.expand(50, -1), noise)
    least = sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]
    assert all(logits[i] >= least for i in drawn.tolist())
    distinct = len(set(logits)) == len(logits)
    if distinct:
        assert int(processed.isfinite().sum()) == min(top_k, len(logits))


@settings(deadline=None)
@given(logits=st.lists(rows.filter(lambda r: len(r) == 6), min_size=1, max_size=5))
def test_a_row_does_not_see_its_neighbours(logits: list[list[float]]) -> None:
    batch = torch.tensor(logits).double()
    for sampling in (Sampling(0.7, 3), Sampling(1.3, 0, 0.6), Sampling(1.0, 4, 0.5)):
        whole = process(batch, sampling)
        for i in range(len(batch)):
            assert torch.equal(whole[i], process(batch[i : i + 1], sampling)[0])
        assert torch.equal(whole.view(-1, 1, 6), process(batch[:, None], sampling))


def test_ties_are_kept_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert process(logits, Sampling(1.0, 2)).isfinite().tolist() == [[True] * 4 + [False]]
    # the share before the first 1.0 is 0.45, before the second 0.61: top-p of 0.5 cuts among ties
    assert process(logits, Sampling(1.0, 0, 0.5)).isfinite().tolist() == [[True] * 4 + [False]]


def test_logits_are_not_changed_in_place() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    process(logits, Sampling(0.5, 3, 0.4))
    assert torch.equal(logits, before)


def test_the_gumbel_draw_follows_the_distribution() -> None:
    """Chi-square over 40,000 draws; false alarm 1e-6."""
    generator = torch.Generator().manual_seed(4)
    logits = process(torch.randn(12, generator=generator).double() * 2, Sampling(1.0, 8))
    n = 40_000
    noise = torch.from_numpy(gumbels(31, Purpose.TOKEN, 0, 0, n, 12))
    counts = torch.bincount(perturbed_argmax(logits.expand(n, -1), noise), minlength=12)
    law = logits.softmax(dim=-1)
    assert int(counts[law == 0].sum()) == 0
    kept = law > 0
    seen, expected = counts[kept].double().numpy(), (law[kept] * n).numpy()
    assert stats.chisquare(seen, expected).pvalue > 1e-6


def test_greedy_is_temperature_zero() -> None:
    assert Sampling(0.0).greedy
    assert not Sampling(1e-3).greedy
    # a low temperature comes down to the best entry
    logits = torch.tensor([[0.1, 0.4, -1.0, 0.3]]).double()
    assert float(probabilities(logits, Sampling(1e-3, 0))[0, 1]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-0.1, 0, 0.0), "temperature"),
        ((math.inf, 0, 0.0), "temperature"),
        ((math.nan, 0, 0.0), "temperature"),
        ((1.0, -1, 0.0), "top_k"),
        ((1.0, 0, -0.1), "top_p"),
        ((1.0, 0, 1.5), "top_p"),
        ((1.0, 0, math.nan), "top_p"),
    ],
)
def test_values_out_of_range(values: tuple[float, int, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(*values)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, 3), Sampling(0.7, 11), Sampling(1.3, 12), Sampling(1.0, 0, 0.6)]
)
def test_a_draw_is_that_from_the_processed_logits(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2000, 12, generator=generator).round(decimals=1)  # so that entries tie
    noise = -torch.log(-torch.log(torch.rand(2000, 12, generator=generator)))
    wanted = perturbed_argmax(process(logits, sampling), noise)
    assert torch.equal(draw(logits, noise, sampling), wanted)  # some are cut: all are processed
    for one in range(2000):
        row = slice(one, one + 1)
        assert draw(logits[row], noise[row], sampling) == wanted[row]


@given(
    table=st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(quarters, min_size=2 * n, max_size=2 * n), min_size=1)
    ),
    top_k=st.integers(1, 20),
    tie=st.sampled_from([0.125, 0.375, 1.0]),
)
def test_the_foremost_are_what_counting_finds(
    table: list[list[float]], top_k: int, tie: float
) -> None:
    """Entry by entry: the best, whether a second comes near it, and its rank at worst."""
    logits, noise = torch.tensor(table).chunk(2, dim=1)
    tokens, near, kept = foremost(logits, noise, top_k, tie)
    ranks = []
    for row, (bare, scores) in enumerate(zip(logits, logits + noise, strict=True)):
        best = int(scores.argmax())
        assert tokens[row] == best
        assert near[row] == (sum(float(s) > float(scores[best]) - tie for s in scores) > 1)
        ranks.append(sum(float(b) >= float(bare[best]) - tie for b in bare))
    assert kept == (max(ranks) <= top_k)
