"""Algorithm: under `coupled` the tokens are those of plain decoding, whatever drafts, and how.

Everything runs in float64, where a block of columns and one column round alike to far below any gap
between two best entries. Rows of a batch carry different seeds, lengths and conditions.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from random import Random

import pytest
import torch
from torch import Tensor

from specgen.benchmarking.prediction import play
from specgen.decoding.acceptance import Rule
from specgen.decoding.draft_length import Learnt
from specgen.decoding.lane import Lane, Role, Where
from specgen.decoding.loop import (
    Decoded,
    Drafting,
    Piece,
    capacity,
    decode,
    decode_pieces,
    steps_per_frame,
)
from specgen.decoding.noise import Purpose, gumbels
from specgen.decoding.sampling import Sampling, process
from specgen.decoding.stats import DecodeStats
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for

K, CARD = 4, 12
PARALLEL, DELAY, FLATTEN, COARSE = (
    PatternSpec(kind, K) for kind in ("parallel", "delay", "flatten", "coarse_first")
)
ODD = PatternSpec("delay", K, delays=(0, 0, 2, 5))
PARTIAL = PatternSpec("flatten", K, flattening=(0, 1, 1, 2))
SPECS = {
    "parallel": PARALLEL,
    "delay": DELAY,
    "odd_delay": ODD,
    "flatten": FLATTEN,
    "partial_flatten": PARTIAL,
    "coarse_first": COARSE,
}
SAMPLING = Sampling(1.0, 8)
GREEDY = Sampling(0.0)
NAMES = list(SPECS)
KINDS = ("random", "same", "noise")
ROWS = 6  # 36 pairs of patterns: 216 seeds


@cache
def model(kind: str) -> MusicLM:
    """The verifier ("same"), an unrelated model, the verifier with noise on every weight, or one
    that reads the verifier's states ("follows")."""
    if kind == "noise":
        near = copy.deepcopy(model("same"))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in near.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02)
        return near
    torch.manual_seed((*KINDS, "follows").index(kind))
    config = LMConfig(K, CARD, 16, 2, 2, 32, condition_dim=8, positions="rope")
    if kind == "follows":
        config = replace(config, layers=1, condition_dim=0, feature_dim=32)
    made = MusicLM(config).double().eval()
    with torch.no_grad():
        made.heads.weight.mul_(3)  # logits with something to say
    return made


def condition(rows: int) -> Tensor:
    """`[B, L, condition_dim]`, a row's own whatever B is."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(64, 3, 8, generator=generator, dtype=torch.float64)[:rows]


NULL = torch.zeros(1, 1, 8, dtype=torch.float64)


def role(
    kind: str,
    spec: PatternSpec,
    frames: int,
    given: Tensor,
    guidance: float | None = 2.0,
    verifier: Role | None = None,
) -> Role:
    lead = None if verifier is None else verifier.scorer
    assert lead is None or isinstance(lead, LMSession)
    session = LMSession(
        model(kind),
        rows=len(given),
        capacity=capacity(spec, frames),
        condition=given if model(kind).config.condition_dim else None,
        null=NULL,
        guidance=guidance if model(kind).config.condition_dim else None,
        verifier=lead,
    )
    return Role(session, spec)


def run(
    verifier: PatternSpec,
    drafter: PatternSpec | None,
    kind: str,
    frames: list[int],
    seeds: list[int],
    *,
    steps: int | None = None,
    temperatures: tuple[float, ...] = (),
    sampling: Sampling = SAMPLING,
    prompt: Tensor | None = None,
    guidance: float | None = 2.0,
    rule: Rule = Rule.COUPLED,
    given: Tensor | None = None,
    learnt: Learnt | None = None,
) -> Decoded:
    given = condition(len(frames)) if given is None else given
    lead = role("same", verifier, max(frames), given)
    return decode(
        lead,
        None if drafter is None else role(kind, drafter, max(frames), given, guidance, lead),
        frames=frames,
        seeds=seeds,
        sampling=sampling,
        drafting=Drafting(rule, steps, temperatures),
        prompt=prompt,
        learnt=learnt,
    )


def assert_same(made: Decoded, expected: Decoded) -> None:
    for ours, theirs in zip(made.codes, expected.codes, strict=True):
        assert torch.equal(ours, theirs)


@torch.inference_mode()
def by_definition(
    spec: PatternSpec, frames: int, seed: int, sampling: Sampling, given: Tensor
) -> Tensor:
    """Plain decoding without the loop, the cache or the session: the whole sequence every step."""
    lm, pattern = model("same"), spec.of(frames)
    codes = torch.full((1, K, frames), CARD)
    memory = lm.transformer.memory(torch.cat([given, NULL.expand_as(given)]))
    for s in range(pattern.steps - 1):
        sequence = pattern.build(codes, CARD)[..., : s + 1]
        hidden = lm.hidden(torch.cat([sequence, sequence]), memory)[:, -1]
        for t, k in pattern.layout[s + 1]:
            with_text, without = lm.head(hidden, k)
            logits = (without + 2.0 * (with_text - without))[None]
            if not sampling.greedy:
                noise = gumbels(seed, Purpose.TOKEN, k, t, 1, CARD)
                logits = process(logits, sampling) + torch.from_numpy(noise)
            codes[0, k, t] = int(logits.argmax())
    return codes[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_plain_decoding_is_what_its_definition_says(name: str, sampling: Sampling) -> None:
    spec, frames, seeds = SPECS[name], [6, 4], [3, 2**64 - 1]
    made = run(spec, None, "", frames, seeds, sampling=sampling)
    for i in range(2):
        given = condition(2)[i : i + 1]
        expected = by_definition(spec, frames[i], seeds[i], sampling, given)
        assert torch.equal(made.codes[i], expected)


def lengths(case: int) -> list[int]:
    """Ragged, and short enough that the end of every row matters."""
    return [1 + (case + 3 * r) % 6 for r in range(ROWS)]


@pytest.mark.parametrize("verifier", NAMES)
@pytest.mark.parametrize("drafter", NAMES)
def test_every_pair_of_patterns(drafter: str, verifier: str) -> None:
    case = NAMES.index(verifier) * len(NAMES) + NAMES.index(drafter)
    frames, seeds = lengths(case), [1000 + ROWS * case + r for r in range(ROWS)]
    plain = run(SPECS[verifier], None, "", frames, seeds)
    for i, kind in enumerate(KINDS):
        steps = [None, 1, 2, 3, 5, 9, 17][(case + 2 * i) % 7]
        made = run(SPECS[verifier], SPECS[drafter], kind, frames, seeds, steps=steps)
        assert_same(made, plain)
        counts = DecodeStats.total(made.stats)
        assert counts.tokens == K * sum(frames)
        if drafter == verifier and kind == "same":
            assert counts.acceptance in (1.0, None)


PAIRS = [("delay", "flatten"), ("delay", "delay"), ("flatten", "delay"), ("odd_delay", "flatten")]


@cache
def expected_for(verifier: str) -> Decoded:
    return run(SPECS[verifier], None, "", [13, 10], [71, 72])


@pytest.mark.parametrize("verifier", NAMES)
@pytest.mark.parametrize("drafter", NAMES)
def test_a_pass_takes_along_what_is_guessed_already(drafter: str, verifier: str) -> None:
    """Where every guess stands, passes are those of the play: across patterns fewer than drafts of
    so many steps would take. Both models always say entry 0."""
    frames = 20
    for steps in (1, 2, 5):
        models = [
            TableScorer(1, 1, K, 5, capacity_for(SPECS[p], frames)) for p in (verifier, drafter)
        ]
        for model in models:
            model.table.zero_()
        made = decode(
            Role(models[0], SPECS[verifier]),
            Role(models[1], SPECS[drafter]),
            frames=[frames],
            seeds=[0],
            sampling=GREEDY,
            drafting=Drafting(steps=steps),
        ).stats[0]
        every = (1.0,) * K
        played = play(SPECS[verifier], SPECS[drafter], frames=frames, steps=steps, chance=every)
        assert (made.verifier_passes, made.drafter_steps) == (played.rounds, played.draft)
        if (drafter, verifier) == ("delay", "flatten"):
            assert made.verifier_passes < 0.9 * frames * K / (steps + 1)
        if drafter == verifier == "flatten":
            assert made.verifier_passes == -(-frames * K // (steps + 1))


LENGTHS = [*product(PAIRS[:2], [*range(1, 13), None]), *product(PAIRS[2:], [2, 12, None])]


@pytest.mark.parametrize(("pair", "frames_ahead"), LENGTHS)
def test_every_draft_length(pair: tuple[str, str], frames_ahead: int | None) -> None:
    drafter, verifier = pair
    kind = KINDS[(frames_ahead or 0) % 3]
    steps = None if frames_ahead is None else frames_ahead * steps_per_frame(SPECS[verifier])
    made = run(SPECS[verifier], SPECS[drafter], kind, [13, 10], [71, 72], steps=steps)
    assert_same(made, expected_for(verifier))


@pytest.mark.parametrize("name", ["delay", "odd_delay", "flatten"])
@pytest.mark.parametrize("steps", [1, 2, 5, None])
def test_a_drafter_that_reads_the_verifiers_states(name: str, steps: int | None) -> None:
    """Rows of unlike length, some of which leave early; from nothing and from a prompt."""
    frames, seeds = [9, 4, 7, 9], [31, 32, 33, 34]
    plain = run(SPECS[name], None, "", frames, seeds)
    assert_same(run(SPECS[name], SPECS[name], "follows", frames, seeds, steps=steps), plain)
    prompt = torch.stack([codes[:, :3] for codes in plain.codes])
    made = run(SPECS[name], SPECS[name], "follows", frames, seeds, steps=steps, prompt=prompt)
    assert_same(made, plain)


@pytest.mark.parametrize("pair", PAIRS[:2], ids="-".join)
@pytest.mark.parametrize("drafter_guidance", [None, 1.0, 2.0, 3.5])
def test_the_drafters_guidance_is_its_own(
    pair: tuple[str, str], drafter_guidance: float | None
) -> None:
    drafter, verifier = pair
    frames, seeds = [7, 5, 8], [81, 82, 83]
    plain = run(SPECS[verifier], None, "", frames, seeds)
    made = run(
        SPECS[verifier], SPECS[drafter], "noise", frames, seeds, steps=5, guidance=drafter_guidance
    )
    assert_same(made, plain)


@pytest.mark.parametrize("pair", PAIRS[:2], ids="-".join)
@pytest.mark.parametrize(
    "temperatures", [(1.0, 0.3, 0.5, 0.7), (1.3, 1.6, 2.0, 4.0), (0.01, 1.0, 1.0, 100.0)]
)
def test_any_draft_temperatures(pair: tuple[str, str], temperatures: tuple[float, ...]) -> None:
    drafter, verifier = pair
    frames, seeds = [7, 5, 8], [91, 92, 93]
    plain = run(SPECS[verifier], None, "", frames, seeds)
    for kind in KINDS:
        made = run(
            SPECS[verifier], SPECS[drafter], kind, frames, seeds, steps=6, temperatures=temperatures
        )
        assert_same(made, plain)


@pytest.mark.parametrize("pair", list(product(NAMES, ("flatten", "delay"))), ids="-".join)
def test_greedy(pair: tuple[str, str]) -> None:
    """Greedy has no noise to share; every rule accepts what equals the best entry."""
    drafter, verifier = pair
    frames, seeds = [6, 4], [0, 1]
    plain = run(SPECS[verifier], None, "", frames, seeds, sampling=GREEDY)
    for rule, kind in zip(Rule, ("random", "noise", "same", "noise"), strict=True):
        made = run(
            SPECS[verifier],
            SPECS[drafter],
            kind,
            frames,
            seeds,
            steps=4,
            sampling=GREEDY,
            rule=rule,
        )
        assert_same(made, plain)


@pytest.mark.parametrize("pair", list(product(NAMES, ("flatten", "delay", "partial_flatten"))))
def test_continuations(pair: tuple[str, str]) -> None:
    """A prompt is kept as it is, and decoding goes on from it as it would have from its own."""
    drafter, verifier = pair
    frames, seeds = [9, 7, 8], [11, 12, 13]
    plain = run(SPECS[verifier], None, "", frames, seeds)
    own = torch.stack([codes[:, :5] for codes in plain.codes])
    foreign = own.roll(1, dims=0)
    alone = run(SPECS[verifier], None, "", frames, seeds, prompt=foreign)
    for prompt, expected in ((own, plain), (foreign, alone)):
        made = run(SPECS[verifier], SPECS[drafter], "noise", frames, seeds, steps=5, prompt=prompt)
        assert_same(made, expected)
        for codes, start in zip(made.codes, prompt, strict=True):
            assert torch.equal(codes[:, :5], start)
        counts = DecodeStats.total(made.stats)
        assert counts.tokens == K * (sum(frames) - 15)


@pytest.mark.parametrize("pair", PAIRS[:3], ids="-".join)
def test_a_row_is_what_it_is_alone(pair: tuple[str, str]) -> None:
    drafter, verifier = pair
    frames, seeds = [8, 3, 6, 1], [21, 22, 23, 24]
    together = run(SPECS[verifier], SPECS[drafter], "noise", frames, seeds, steps=None)
    for i, codes in enumerate(together.codes):
        alone = run(
            SPECS[verifier],
            SPECS[drafter],
            "noise",
            frames[i : i + 1],
            seeds[i : i + 1],
            steps=3,
            given=condition(4)[i : i + 1],
        )
        assert torch.equal(codes, alone.codes[0])


@pytest.mark.parametrize("pair", PAIRS[:2], ids="-".join)
def test_acceptance_stands_between(pair: tuple[str, str]) -> None:
    """random < verifier with noise < verifier; the last is 1 where the patterns are the same."""
    drafter, verifier = pair
    share = {}
    for kind in KINDS:
        made = run(SPECS[verifier], SPECS[drafter], kind, [12] * 3, [31, 32, 33], steps=4)
        share[kind] = DecodeStats.total(made.stats).acceptance or 0.0
    if drafter == verifier:
        assert share["same"] == 1
        assert share["random"] + 0.1 < share["noise"] < 1
    else:
        assert 0 < share["random"] < 1 and 0 < share["same"] < 1


@pytest.mark.parametrize("rule", [Rule.MIXED, Rule.KEEP, Rule.REJECTION])
def test_the_clock_never_decides_a_sample(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under these rules another draft length is another sample; `auto` must not use the clock."""

    def sample(seed: int) -> Decoded:
        clock = Random(seed)
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", lambda: clock.uniform(0, 9))
            return run(FLATTEN, DELAY, "noise", [9, 6], [41, 42], rule=rule)

    one, other = sample(1), sample(2)
    assert_same(one, other)
    assert [s.as_dict() for s in one.stats] == [s.as_dict() for s in other.stats]


def taught() -> Learnt:
    """What a decode with other prices and another acceptance leaves behind."""
    learnt = Learnt()
    run(FLATTEN, DELAY, "same", [12] * 3, [1, 2, 3], learnt=learnt)
    for _ in range(200):
        learnt.add(accepted=9, judged=9)
        for rows in (1, 2):
            learnt.costs(rows).clock(
                draft_steps=1, draft_seconds=1e-3, columns=5, verify_seconds=9.0
            )
    return learnt


def test_what_was_learnt_changes_lengths_and_no_token() -> None:
    frames, seeds = [9, 6], [41, 42]
    cold = run(FLATTEN, DELAY, "noise", frames, seeds)
    warm = run(FLATTEN, DELAY, "noise", frames, seeds, learnt=taught())
    assert_same(warm, run(FLATTEN, None, "", frames, seeds))
    steps = [DecodeStats.total(made.stats).drafter_steps for made in (warm, cold)]
    assert steps[0] > steps[1]  # it was read


@pytest.mark.parametrize("rule", [Rule.MIXED, Rule.KEEP, Rule.REJECTION])
def test_nothing_learnt_decides_a_sample(rule: Rule) -> None:
    """Nor does such a decode, or a row of it, teach what other decodes read."""
    frames, seeds = [9, 6], [41, 42]
    learnt = taught()
    before = learnt.accepted, learnt.judged
    cold = run(FLATTEN, DELAY, "noise", frames, seeds, rule=rule)
    warm = run(FLATTEN, DELAY, "noise", frames, seeds, rule=rule, learnt=learnt)
    assert_same(cold, warm)
    assert [s.as_dict() for s in cold.stats] == [s.as_dict() for s in warm.stats]
    assert (learnt.accepted, learnt.judged) == before
    alone = run(
        FLATTEN, DELAY, "noise", frames[1:], seeds[1:], rule=rule,
        given=condition(2)[1:], learnt=learnt,
    )  # fmt: skip
    assert torch.equal(alone.codes[0], cold.codes[1])


# ---- toy models that hash every column they are fed ------------------------------------------


class Recorder(TableScorer):
    """A toy model that keeps the columns it was fed, as a cache would, and counts rewinds."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.columns: list[tuple[int, ...]] = []  # of the one row
        self.rewinds = self.needless = 0

    def feed(self, tokens: Tensor, starts: object) -> Tensor:
        (start,) = starts  # type: ignore[misc]
        assert start <= len(self.columns), "a gap in the cache"
        new = [tuple(column) for column in tokens[0].T.tolist()]
        if start < len(self.columns):
            self.rewinds += 1
            self.needless += self.columns[start] == new[0]
        self.columns[start:] = new
        return super().feed(tokens, starts)  # type: ignore[arg-type]


@pytest.fixture
def stale_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compares, whenever logits are read, the columns fed with the sequence as it is now."""
    seen: list[int] = []
    real = Lane.logits

    def checked(lane: Lane, hidden: Tensor, where: Where) -> Tensor:
        scorer = lane.scorer
        assert isinstance(scorer, Recorder)
        for _, place, _ in where:
            reach = len(scorer.columns) - scorer.block + place + 1
            now = [tuple(column) for column in lane._sequence[0, :, :reach].T.tolist()]
            seen.append(scorer.columns[:reach] == now)
        return real(lane, hidden, where)

    monkeypatch.setattr(Lane, "logits", checked)
    yield seen


@pytest.mark.parametrize("verifier", NAMES)
@pytest.mark.parametrize("drafter", NAMES)
def test_rewinds_are_as_short_as_they_can_be(
    drafter: str, verifier: str, stale_reads: list[bool]
) -> None:
    """A cache is rewound to the first column that really changed, and never read behind one."""
    frames = 8
    for steps, noise in product((2, 7), (0.3, 2.0)):
        lead = Recorder(1, 1, K, 5, capacity_for(SPECS[verifier], frames))
        follow = Recorder(2, 1, K, 5, capacity_for(SPECS[drafter], frames), near=lead, noise=noise)
        made = decode(
            Role(lead, SPECS[verifier]),
            Role(follow, SPECS[drafter]),
            frames=[frames],
            seeds=[steps],
            sampling=Sampling(top_k=0),
            drafting=Drafting(steps=steps),
        )
        assert follow.needless == 0
        assert lead.needless == 0
        assert made.stats[0].corrected >= follow.rewinds
    assert stale_reads and all(stale_reads)


@pytest.mark.parametrize("pair", list(product(NAMES, NAMES)), ids="-".join)
def test_pieces_in_a_queue(pair: tuple[str, str]) -> None:
    """Rows leave and others take their place; each is what it is alone, by the verifier alone."""
    drafter, verifier = pair
    frames = [5, 7, 3, 1, 6]
    pieces = [Piece(T, 500 + i) for i, T in enumerate(frames)]

    def scorers(rows: int) -> tuple[Role, Role]:
        lead = TableScorer(1, rows, K, 6, capacity_for(SPECS[verifier], 7))
        follow = TableScorer(2, rows, K, 6, capacity_for(SPECS[drafter], 7), near=lead, noise=0.5)
        return Role(lead, SPECS[verifier]), Role(follow, SPECS[drafter])

    steps = [None, 2, 7][NAMES.index(drafter) % 3]
    done = decode_pieces(
        *scorers(2), pieces, rows=2, sampling=Sampling(top_k=0), drafting=Drafting(steps=steps)
    )
    made = {one.index: one.codes for one in done}
    assert sorted(made) == list(range(len(pieces)))
    for i, piece in enumerate(pieces):
        plain = decode(
            scorers(1)[0], frames=[piece.frames], seeds=[piece.seed], sampling=Sampling(top_k=0)
        )
        assert torch.equal(made[i], plain.codes[0])
