"""The rules by which guesses are judged, each against its own mathematics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from specgen.decoding.acceptance import Rule, is_biased, textbook, textbook_codebooks
from specgen.decoding.noise import Purpose, gumbels
from specgen.decoding.sampling import perturbed_argmax
from specgen.patterns import PatternSpec

FRAMES = 20
DELAY, FLATTEN, PARALLEL, COARSE = (
    PatternSpec(kind, 4) for kind in ("delay", "flatten", "parallel", "coarse_first")
)
PARTIAL = PatternSpec("flatten", 4, flattening=(0, 1, 1, 2))


@pytest.mark.parametrize(
    ("drafter", "verifier", "contaminated"),
    [
        (DELAY, FLATTEN, {0, 1}),  # the design's example
        (PARALLEL, FLATTEN, set()),
        (DELAY, DELAY, set()),
        (FLATTEN, FLATTEN, set()),
        (PARALLEL, PARALLEL, set()),
        (COARSE, COARSE, set()),
        (PARTIAL, PARTIAL, set()),
        (PARALLEL, PARTIAL, set()),
        (DELAY, PARALLEL, {0, 1}),
        (FLATTEN, PARALLEL, set()),
        (FLATTEN, DELAY, {2, 3}),  # delay writes (t + 1, 0) before (t, 2); flatten saw (t, 2) first
        (PatternSpec("delay", 4, delays=(0, 0, 2, 5)), FLATTEN, {0, 1, 2}),
        (PatternSpec("delay", 4, delays=(0, 1, 1, 1)), FLATTEN, set()),
        (COARSE, FLATTEN, {0}),
    ],
)
def test_mixed_uses_the_textbook_where_nothing_is_contaminated(
    drafter: PatternSpec, verifier: PatternSpec, contaminated: set[int]
) -> None:
    pair = drafter.of(FRAMES), verifier.of(FRAMES)
    judged = textbook_codebooks(Rule.MIXED, *pair)
    assert {k for k, by_textbook in enumerate(judged) if not by_textbook} == contaminated
    assert is_biased(Rule.REJECTION, *pair) == bool(contaminated)
    for rule in (Rule.COUPLED, Rule.MIXED, Rule.KEEP):
        assert not is_biased(rule, *pair)
    assert textbook_codebooks(Rule.COUPLED, *pair) == (False,) * 4
    assert textbook_codebooks(Rule.KEEP, *pair) == (True,) * 4
    assert textbook_codebooks(Rule.REJECTION, *pair) == (True,) * 4


@settings(deadline=None)
@given(delays=st.lists(st.integers(0, 6), min_size=1, max_size=6).map(sorted))
def test_a_codebook_is_safe_when_its_delay_is_the_last_but_one(delays: list[int]) -> None:
    """Design, section 4: towards a flatten verifier, k is safe exactly when d_k >= d_max - 1."""
    K = len(delays)
    drafter = PatternSpec("delay", K, delays=tuple(delays)).of(FRAMES)
    judged = textbook_codebooks(Rule.MIXED, drafter, PatternSpec("flatten", K).of(FRAMES))
    assert judged == tuple(d >= max(delays) - 1 for d in delays)


def law(seed: int, spread: float, card: int = 8) -> Tensor:
    """Log-probabilities of a random distribution."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(card, generator=generator).double()).log_softmax(dim=-1)


def coupled_acceptance(p: Tensor, q: Tensor) -> float:
    """Chance that argmax(log p + g) = argmax(log q + g): sum_i 1 / sum_j max(p_j/p_i, q_j/q_i)."""
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
    return float((1 / ratios.sum(dim=-1)).sum())


@pytest.mark.parametrize("case", range(6))
def test_coupled_guesses_agree_as_often_as_the_formula_says(case: int) -> None:
    """40,000 draws with shared noise, within 5 sigma: false alarm 6e-7 each."""
    p, q, n = law(case, 1.0), law(100 + case, 0.5 + 0.4 * case), 40_000
    noise = torch.from_numpy(gumbels(case, Purpose.TOKEN, 0, 0, n, 8)).double()
    agree = perturbed_argmax(p + noise, torch.zeros(1)) == perturbed_argmax(
        q + noise, torch.zeros(1)
    )
    expected = coupled_acceptance(p.exp(), q.exp())
    assert abs(float(agree.double().mean()) - expected) < 5 * math.sqrt(
        expected * (1 - expected) / n
    )


@settings(deadline=None)
@given(a=st.integers(0, 10_000), b=st.integers(0, 10_000), spread=st.floats(0.1, 5))
def test_the_cost_of_coupling_has_its_bounds(a: int, b: int, spread: float) -> None:
    p, q = law(a, spread).exp(), law(b, spread).exp()
    distance = float((p - q).abs().sum()) / 2
    agreement = coupled_acceptance(p, q)
    assert (1 - distance) / (1 + distance) - 1e-12 <= agreement <= 1 - distance + 1e-12


def judge_many(p: Tensor, q: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Guesses from q and what the textbook rule makes of them."""
    card = len(p)

    def noise(purpose: Purpose) -> Tensor:
        return torch.from_numpy(gumbels(seed, purpose, 0, 0, n, card))

    guess = perturbed_argmax(q.expand(n, -1), noise(Purpose.DRAFT))
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    made = textbook(guess, p.expand(n, -1), q.expand(n, -1), uniform, noise(Purpose.RESIDUAL))
    return guess, made


@pytest.mark.parametrize("case", range(4))
def test_textbook_tokens_follow_the_verifier(case: int) -> None:
    """Law of the tokens, of the replacements and the share accepted; false alarm 1e-6 each."""
    p, q, n = law(case, 1.5), law(50 + case, 1.0), 40_000
    guess, made = judge_many(p, q, n, case)

    def fits(tokens: Tensor, expected: Tensor) -> float:
        some = expected > 0
        counts = torch.bincount(tokens, minlength=len(p)).double()
        assert int(counts[~some].sum()) == 0
        return float(
            stats.chisquare(counts[some].numpy(), (expected[some] * len(tokens)).numpy()).pvalue
        )

    assert fits(made, p.exp()) > 1e-6
    residual = (p.exp() - q.exp()).clamp_min(0)
    assert fits(made[made != guess], residual / residual.sum()) > 1e-6
    share = 1 - float(residual.sum())  # 1 - TV
    sigma = math.sqrt(share * (1 - share) / n)
    assert abs(float((made == guess).double().mean()) - share) < 5 * sigma


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cut_p=st.sets(st.integers(0, 7), max_size=7),
    cut_q=st.sets(st.integers(0, 7), max_size=7),
)
def test_textbook_never_makes_what_the_verifier_has_cut(
    seed: int, cut_p: set[int], cut_q: set[int]
) -> None:
    """With top-k on both sides the supports differ; even disjoint ones must work."""
    p, q = law(seed, 1.0), law(seed + 1, 1.0)
    p[list(cut_p)], q[list(cut_q)] = -torch.inf, -torch.inf
    guess, made = judge_many(p, q, 64, seed)
    assert bool(p[made].isfinite().all())
    # A guess at least as likely under p is never refused.
    likely = p.softmax(dim=-1)[guess] >= q.softmax(dim=-1)[guess]
    assert torch.equal(made[likely], guess[likely])


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_textbook_takes_unnormalised_scores(seed: int) -> None:
    p, q = law(seed, 1.0), law(seed + 1, 1.0)
    ours, shifted = judge_many(p, q, 64, seed), judge_many(p + 3, q - 5, 64, seed)
    assert torch.equal(ours[0], shifted[0]) and torch.equal(ours[1], shifted[1])


def test_equal_distributions_are_always_accepted() -> None:
    p = law(3, 2.0)
    guess, made = judge_many(p, p, 5000, 3)
    assert torch.equal(guess, made)
