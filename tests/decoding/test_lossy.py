"""What the lossy modes let pass, and that they start from the lossless rule."""

import math

import pytest
import torch

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.lossy import Kind, Leniency, Lenient
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for

K, CARD, FRAMES, ROWS = 2, 8, 12, 16


def made(lenient: Lenient | None, steps: int | None = 3) -> tuple[torch.Tensor, DecodeStats]:
    drafter, verifier = PatternSpec("delay", K), PatternSpec("flatten", K)

    def role(seed: int, spec: PatternSpec) -> Role:
        return Role(TableScorer(seed, ROWS, K, CARD, capacity_for(spec, FRAMES)), spec)

    decoded = decode(
        role(1, verifier),
        role(2, drafter),
        frames=[FRAMES] * ROWS,
        seeds=range(ROWS),
        sampling=Sampling(top_k=0),
        drafting=Drafting(Rule.COUPLED, steps, lenient=lenient),
    )
    return torch.stack(decoded.codes), DecodeStats.total(decoded.stats)


def test_typical_is_the_published_threshold() -> None:
    """min(e, sqrt(e) exp(-H)): an unlikely token passes only where nothing is likely."""
    logits = torch.tensor([[0.0] * 8, [9.0] + [0.0] * 7]).log_softmax(dim=-1)
    lenient = Lenient(Leniency(Kind.TYPICAL, 0.3))
    guesses, tokens = torch.tensor([3, 3]), torch.tensor([1, 0])
    assert lenient.stands(guesses, tokens, logits, [0, 0]).tolist() == [True, False]
    p = float(logits[1].exp()[3])  # where the entropy is low, the threshold is e itself
    for e, passes in ((p * 0.98, True), (p * 1.02, False)):
        lenient = Lenient(Leniency(Kind.TYPICAL, e))
        assert lenient.stands(guesses[1:], tokens[1:], logits[1:], [0]).item() is passes
    law = logits[1].exp()
    least = 0.3**0.5 * math.exp(float((law * law.log()).sum()))
    assert least > 0.3  # else the row above would not have tested e


def test_entries_that_are_cut_never_pass_as_typical() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    lenient = Lenient(Leniency(Kind.TYPICAL, 0.001))
    for guess, passes in ((1, True), (2, False)):
        assert (
            lenient.stands(torch.tensor([guess]), torch.tensor([0]), logits, [0]).item() is passes
        )


def test_groups_are_near_codes_of_the_same_codebook() -> None:
    vectors = torch.tensor(
        [[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]], [[1.0, 0.0], [0.0, 3.0], [0.1, 1]]]
    )
    lenient = Lenient(Leniency(Kind.GROUPS, 0.9), vectors)
    guesses, tokens = torch.tensor([1, 2, 1, 2]), torch.tensor([0, 0, 0, 1])
    logits = torch.zeros(4, 3)
    assert lenient.stands(guesses, tokens, logits, [0, 0, 1, 1]).tolist() == [
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="codebook vectors"):
        Lenient(Leniency(Kind.GROUPS, 0.9))


def test_the_strictest_groups_are_the_lossless_rule_and_looser_ones_accept_more() -> None:
    vectors = torch.randn(K, CARD, 3, generator=torch.Generator().manual_seed(0))
    plain, counts = made(None)
    shares = [counts.acceptance or 0]
    for threshold in (1.0, 0.5, 0.0, -1.0):
        codes, counts = made(Lenient(Leniency(Kind.GROUPS, threshold), vectors))
        assert (threshold == 1.0) == bool((codes == plain).all())
        shares.append(counts.acceptance or 0)
    assert shares[1] == shares[0] and shares[-1] == 1
    assert sorted(shares) == shares


def test_typical_accepts_more_with_a_smaller_threshold() -> None:
    plain, counts = made(None)
    codes, loose = made(Lenient(Leniency(Kind.TYPICAL, 0.05)))
    _, tight = made(Lenient(Leniency(Kind.TYPICAL, 0.9)))
    assert not (codes == plain).all()
    assert (loose.acceptance or 0) > (tight.acceptance or 0) >= (counts.acceptance or 0)


def test_no_clock_decides_what_a_lossy_decode_makes() -> None:
    """With an automatic draft length the sample must be the same in every run."""
    vectors = torch.randn(K, CARD, 3, generator=torch.Generator().manual_seed(0))
    lenient = Lenient(Leniency(Kind.GROUPS, 0.5), vectors)
    first, again = made(lenient, None), made(lenient, None)
    assert (first[0] == again[0]).all() and first[1] == again[1]


@pytest.mark.parametrize(
    "text", ["typical:0", "typical:1.5", "groups:2", "groups", "near:0.5", "typical:nan"]
)
def test_other_modes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Leniency.of(text)


def test_a_mode_is_written_as_it_is_read() -> None:
    for text in ("typical:0.1", "groups:0.9", "groups:-1"):
        assert str(Leniency.of(text)) == text
