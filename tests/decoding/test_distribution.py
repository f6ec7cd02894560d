"""The real loop with its real noise, by sampling: the law of its tokens is the verifier's.

One decode of toy models that forget everything every few steps holds thousands of independent
samples of a block whose exact law is known. Seeds are fixed, so a result never changes; the
false-alarm probabilities say how likely a failure would be for a right program on fresh seeds.
"""

from itertools import combinations

import pytest
import torch
from scipy import stats
from torch import Tensor

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for

CARD, FRAMES, K = 10, 60, 2
FLATTEN, WIDE = PatternSpec("flatten", K), PatternSpec("delay", K, delays=(0, 2))
DELAY = PatternSpec("delay", K)
EXACT = [Rule.COUPLED, Rule.MIXED, Rule.KEEP]
PERIOD = {FLATTEN: 4, DELAY: 2}  # steps; four tokens a block either way


def scorer(seed: int, spec: PatternSpec, rows: int, **options: object) -> TableScorer:
    """A toy model: a part all models share, so that guesses are often right, and its own."""
    made = TableScorer(seed, rows, K, CARD, capacity_for(spec, FRAMES), **options)  # type: ignore[arg-type]
    if "near" not in options:
        shared = torch.randn(K, CARD, generator=torch.Generator().manual_seed(9)).double()
        made.table += shared
    return made


def block_steps(verifier: PatternSpec) -> list[list[int]]:
    """The codebooks that each step of a block writes."""
    return [[0], [1], [0], [1]] if verifier == FLATTEN else [[0, 1], [0, 1]]


def block_law(model: TableScorer, verifier: PatternSpec) -> Tensor:
    """`[card] * 4`: the exact distribution of a block's tokens in the order they are written."""
    values = torch.cartesian_prod(*[torch.arange(CARD)] * 4)
    state, log_p, at = torch.zeros(len(values), dtype=torch.int64), torch.zeros(()).double(), 0
    for books in block_steps(verifier):
        table = model.table.log_softmax(dim=-1)[state % model.size]
        column = torch.full((len(values), K), CARD)
        for k in books:
            column[:, k] = values[:, at]
            log_p = log_p + table[torch.arange(len(values)), k, values[:, at]]
            at += 1
        state = model.fold(state, column)
    return log_p.exp().view([CARD] * 4)


def samples(
    pair: tuple[PatternSpec, PatternSpec], rule: Rule, kind: str, rows: int, steps: int = 5
) -> tuple[Tensor, Tensor, DecodeStats]:
    """`[N, 4]` blocks that the loop made, their exact law, and the counts."""
    drafter, verifier = pair
    period = PERIOD[verifier]
    target = scorer(1, verifier, rows, period=period)
    same = {"random": {}, "same": {"near": target}, "noise": {"near": target, "noise": 0.5}}[kind]
    draft = scorer(2, drafter, rows, period=period, **same)
    decoded = decode(
        Role(target, verifier),
        Role(draft, drafter),
        frames=[FRAMES] * rows,
        seeds=range(rows),
        sampling=Sampling(top_k=0),
        drafting=Drafting(rule, steps),
    )
    pattern = verifier.of(FRAMES)
    sequence = pattern.build(torch.stack(decoded.codes), CARD)
    books = block_steps(verifier)
    blocks = [
        torch.stack([sequence[:, k, s + i + 1] for i, ks in enumerate(books) for k in ks], dim=1)
        for s in range(period, pattern.steps - period, period)
    ]
    whole = torch.cat([b for b in blocks if int(b.max()) < CARD])
    return whole, block_law(target, verifier), DecodeStats.total(decoded.stats)


def least_p_value(made: Tensor, law: Tensor) -> float:
    """The least chi-square p-value over the joint counts of every two tokens of a block."""
    least = 1.0
    for pair in combinations(range(4), 2):
        others = tuple(i for i in range(4) if i not in pair)
        expected = law.sum(dim=others).flatten() * len(made)
        index = made[:, pair[0]] * CARD + made[:, pair[1]]
        counts = torch.bincount(index, minlength=CARD * CARD).double()
        rare = expected < 5  # taken together, as the chi-square approximation needs
        seen = torch.cat([counts[~rare], counts[rare].sum()[None]]).numpy()
        hoped = torch.cat([expected[~rare], expected[rare].sum()[None]]).numpy()
        if hoped[-1] < 5:
            seen[-2], hoped[-2] = seen[-2:].sum(), hoped[-2:].sum()
            seen, hoped = seen[:-1], hoped[:-1]
        least = min(least, float(stats.chisquare(seen, hoped * seen.sum() / hoped.sum()).pvalue))
    return least


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        ((WIDE, FLATTEN), "random"),
        ((DELAY, DELAY), "random"),
        ((DELAY, DELAY), "noise"),
    ],
    ids=["delay-flatten", "delay-delay, random", "delay-delay, verifier with noise"],
)
def test_exact_rules_follow_the_verifier(
    pair: tuple[PatternSpec, PatternSpec], kind: str, rule: Rule
) -> None:
    """False alarm: 6 tests at 1e-6, so under 1e-5 a case."""
    made, law, counts = samples(pair, rule, kind, rows=64)
    assert counts.acceptance is not None and 0.05 < counts.acceptance < 0.95
    assert least_p_value(made, law) > 1e-6


def test_the_usual_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same statistic rejects the biased rule, and on the same models not the rule that keeps.

    The bias is small (test_exactness enumerates it), so it takes three entries a codebook and
    59,392 blocks: p is 1e-13. False alarm for `keep`: 6 tests at 1e-3.
    """
    monkeypatch.setattr("tests.decoding.test_distribution.CARD", 3)
    made, law, _ = samples((WIDE, FLATTEN), Rule.REJECTION, "random", rows=2048)
    assert least_p_value(made, law) < 1e-5
    made, law, _ = samples((WIDE, FLATTEN), Rule.KEEP, "random", rows=2048)
    assert least_p_value(made, law) > 1e-3


@pytest.mark.parametrize("rule", list(Rule))
def test_a_perfect_drafter_is_never_corrected(rule: Rule) -> None:
    _, _, counts = samples((DELAY, DELAY), rule, "same", rows=8)
    assert counts.acceptance == 1
    assert counts.corrected == 0


@pytest.mark.parametrize("rule", [Rule.MIXED, Rule.KEEP])
def test_distance_shrinks_towards_the_verifier_only(rule: Rule) -> None:
    """vLLM's criterion: from few samples to many, 20 times more than towards a random law.

    The distance to the target falls as one over the root of the sample count, here 27 times from 10
    samples to all; averaged over the four tokens of a block it falls 20 times less than expected
    with a probability under 1e-3 (both figures from plain multinomial draws).
    """
    made, law, _ = samples((WIDE, FLATTEN), rule, "random", rows=384)
    random = torch.rand(CARD, generator=torch.Generator().manual_seed(3)).double()
    random = random / random.sum()

    def distances(part: Tensor, to: Tensor) -> Tensor:
        """Root-mean-square distance of the empirical laws of groups `[G, n]` to a law."""
        laws = torch.nn.functional.one_hot(part, CARD).double().mean(dim=1)
        return (laws - to).square().sum(dim=-1).mean().sqrt()

    gains = []
    for token in range(4):
        target = law.sum(dim=tuple(i for i in range(4) if i != token))
        column = made[:, token]
        few = column[: len(column) // 10 * 10].view(-1, 10)
        gain = [distances(few, to) / distances(column[None], to) for to in (target, random)]
        gains.append(float(gain[0] / gain[1]))
    assert sum(gains) / 4 > 20
