"""The automatic draft length: near the best fixed one where costs are known, quiet where drafting
never pays, warm from the second piece on."""

from __future__ import annotations

import statistics
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.benchmarking.prediction import Prices, Row, play
from specgen.decoding.draft_length import MAX_STEPS, AutoLength, Costs, FixedLength, Learnt, Line
from specgen.patterns import PatternSpec


def settled(acceptance: float, learnt: Learnt | None = None, ratio: float = 4.0) -> AutoLength:
    """A length after 600 rounds in which this share of the judged steps was accepted."""
    auto = AutoLength(ratio, learnt or Learnt())
    for _ in range(600):
        m = auto.choose(1)
        auto.observe(
            length=m,
            reached=m,
            accepted=round(100 * acceptance),
            judged=100,
            draft_steps=1 + round(m / ratio),
        )
    return auto


def often(auto: AutoLength, acceptance: float = 0.0) -> list[int]:
    """What it chooses in the next 250 rounds."""
    chosen = []
    for _ in range(250):
        chosen.append(m := auto.choose(1))
        auto.observe(
            length=m, reached=m, accepted=int(acceptance * m), judged=m, draft_steps=1 + m // 4
        )
    return chosen


def clocked(draft_step: float, fixed: float, slope: float) -> Learnt:
    """Costs measured on a machine that follows these lines exactly."""
    learnt = Learnt()
    for i in range(3000):
        columns, steps = 1 + i % 16, 1 + i % 4
        learnt.costs(1).clock(
            draft_steps=steps,
            draft_seconds=draft_step * steps,
            columns=columns,
            verify_seconds=fixed + slope * columns,
        )
    return learnt


def test_fixed() -> None:
    fixed = FixedLength(3)
    fixed.observe(length=3, reached=3, accepted=0, judged=3, draft_steps=3)
    assert fixed.choose(1) == 3
    with pytest.raises(ValueError, match="at least 1"):
        FixedLength(0)


def test_nothing_is_drafted_where_it_never_pays() -> None:
    """A refused draft costs time: the verifier goes alone, but for a trial now and then."""
    for auto in (settled(0.0), settled(0.5, clocked(draft_step=50.0, fixed=1.0, slope=0.1))):
        chosen = often(auto)
        trials = [m for m in chosen if m]
        assert 3 <= len(trials) <= 25
        assert chosen.count(0) == 250 - len(trials)


def test_drafting_is_taken_up_again_when_it_pays() -> None:
    auto = AutoLength(4.0, Learnt())
    assert often(auto)[50:].count(0) > 180
    for _ in range(3):
        chosen = often(auto, acceptance=1.0)
    assert statistics.median(chosen) > 4


def test_the_closer_the_call_the_more_often_the_other_way_is_tried() -> None:
    alone = [
        often(settled(0.7, clocked(draft_step, 1.0, 0.1)), 0.7).count(0)
        for draft_step in (0.1, 0.6, 30.0)
    ]
    assert 0 < alone[0] <= alone[1] < alone[2]


def test_grows_with_acceptance() -> None:
    lengths = [settled(a)._best(a, Costs())[0] for a in (0.3, 0.5, 0.7, 0.8, 0.9, 0.97)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 4 and lengths[-1] > 2 * lengths[2] > 0


@pytest.mark.parametrize("acceptance", [0.4, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3])
def test_the_choice_is_the_best_by_brute_force(acceptance: float, slope: float) -> None:
    """Steps a second, with everything known: 1 + a + a^2 + ... over pass and draft."""
    draft_step, fixed, ratio = 0.2, 0.9, 4.0
    auto = settled(acceptance, clocked(draft_step, fixed, slope), ratio)

    def pace(m: int) -> float:
        steps = sum(acceptance**i for i in range(m + 1))
        drafting = draft_step * (1 + m / ratio) if m else 0.0
        return steps / (fixed + slope * (m + 1) + drafting)

    best = max(pace(m) for m in range(MAX_STEPS + 1))
    usual = statistics.mode(often(auto, acceptance))
    assert pace(usual) > 0.95 * best  # drafter steps come in whole numbers; a close call stays


rounds = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60)


@settings(deadline=None)
@given(rounds=rounds, ratio=st.sampled_from([0.25, 1.0, 4.0]))
def test_unclocked_choices_follow_from_the_rounds_alone(
    rounds: list[tuple[int, int]], ratio: float
) -> None:
    def choices(rows: int) -> list[int]:
        auto, chosen = AutoLength(ratio, Learnt()), []
        for one, other in rounds:
            chosen.append(auto.choose(rows))
            auto.observe(
                length=chosen[-1],
                reached=chosen[-1] + other // 3,
                accepted=min(one, other),
                judged=max(one, other),
                draft_steps=1 + chosen[-1],
            )
        return [*chosen, auto.choose(rows)]

    first = choices(1)
    assert first == choices(7)
    assert all(0 <= m <= MAX_STEPS for m in first)


def test_a_line_finds_the_costs() -> None:
    line = Line(1.0, 1.0)
    for i in range(4000):
        line.add(1 + i % 12, 3.0 + 0.5 * (1 + i % 12))
    assert line.fixed == pytest.approx(3.0, rel=1e-3)
    assert line.slope == pytest.approx(0.5, rel=1e-3)


def test_a_line_never_promises_free_passes() -> None:
    """Noise can make longer passes look cheaper; the line stays positive and does not fall."""
    line = Line(0.9, 0.1)
    for i in range(2000):
        line.add(1 + i % 12, 12.0 - i % 12)
    assert line.slope == 0 and line.fixed > 0


def test_costs_keep_their_scale_and_how_much_a_single_column_costs() -> None:
    costs = clocked(draft_step=2e-3, fixed=9e-3, slope=1e-3).costs(1)
    assert costs.draft_step == pytest.approx(2e-3, rel=0.03)
    assert costs.verify(8) == pytest.approx(17e-3, rel=0.03)
    costs = Costs()
    for columns, seconds in [(1, 5e-3), (5, 14e-3)] * 300:
        costs.clock(draft_steps=0, draft_seconds=0.0, columns=columns, verify_seconds=seconds)
    assert costs.verify(1) / costs.verify(5) == pytest.approx(5 / 14, rel=0.05)


@pytest.mark.parametrize("place", [0, 40])
def test_a_stretched_round_is_forgotten(place: int) -> None:
    """Another process took the processor for one round, be it the very first."""
    costs = Costs()
    for i in range(60):
        stretched = 30.0 if i == place else 1.0
        costs.clock(
            draft_steps=1,
            draft_seconds=0.4 * stretched,
            columns=4,
            verify_seconds=1.4 * stretched,
        )
    assert costs.verify(4) == pytest.approx(1.4, rel=0.05)
    assert costs.draft_step == pytest.approx(0.4, rel=0.05)


def test_what_the_very_first_round_makes_is_not_its_price() -> None:
    """The first draft of an engine makes noise and tables: ten times the price of the others."""
    learnt = Learnt()
    auto = AutoLength(1.0, learnt)
    for i in range(20):
        m = auto.choose(1)
        assert m > 0
        drafting = 0.35 * m * (10 if not i else 1)
        learnt.costs(1).clock(
            draft_steps=m, draft_seconds=drafting, columns=m + 1, verify_seconds=1 + 0.1 * m
        )
        auto.observe(length=m, reached=m, accepted=m, judged=m, draft_steps=m)


def test_a_step_of_an_equal_pattern_takes_one_drafter_step() -> None:
    """What keeps the price of a pass above nothing added .4 steps to a draft of one at first, so
    that drafting looked dear; what a draft leaves guesses for is learnt alike."""
    auto = AutoLength(1.0, Learnt())
    for _ in range(30):
        auto.observe(length=1, reached=1, accepted=1, judged=1, draft_steps=1)
        assert auto._drafts.at(1) == pytest.approx(1.0) == auto._reach.at(1)
    across = AutoLength(4.0, Learnt())
    for i in range(3000):
        m = 1 + i % 8
        across.observe(length=m, reached=m + 2, accepted=m, judged=m, draft_steps=1)
    assert across._reach.at(3) == pytest.approx(5, rel=0.01)
    assert across._drafts.at(3) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("block", [1.1, 1.6])
def test_a_few_trials_tell_what_a_block_costs_over_a_single_column(block: float) -> None:
    """In a long pause the scale follows single columns; only neighbours in time can be compared."""
    costs, noise = Costs(), Random(1)
    for i in range(500):
        trial, drift = i % 50 >= 47, 1 + i / 500
        costs.clock(
            draft_steps=int(trial),
            draft_seconds=0.35 * drift * trial,
            columns=1 + trial,
            verify_seconds=drift * (block if trial else 1.0) * noise.uniform(0.95, 1.05),
        )
    assert costs.verify(2) / costs.verify(1) == pytest.approx(block, rel=0.07)
    assert costs.draft_step / costs.verify(1) == pytest.approx(0.35, rel=0.1)


def test_a_machine_that_stalls_in_between_is_no_matter_of_columns() -> None:
    costs = Costs()
    for drafted, seconds in [(0, 1e-3)] * 20 + [(1, 9.0)] * 20:
        costs.clock(
            draft_steps=drafted,
            draft_seconds=0.3 * seconds * drafted,
            columns=1 + 4 * drafted,
            verify_seconds=seconds,
        )
    assert costs.verify(1) > 0.3 * costs.verify(5)


def test_what_the_machine_does_to_all_prices_changes_no_choice() -> None:
    learnt = clocked(0.2, 0.9, 0.1)
    before = settled(0.75, learnt).choose(1)
    for columns in (1, 4, 6) * 10:
        learnt.costs(1).clock(
            draft_steps=2,
            draft_seconds=3 * 0.4,
            columns=columns,
            verify_seconds=3 * (0.9 + 0.1 * columns),
        )
    assert abs(settled(0.75, learnt).choose(1) - before) <= 1
    assert learnt.costs(1).verify(5) > 2


def test_each_number_of_rows_has_its_prices() -> None:
    learnt = clocked(0.2, 0.9, 0.1)
    eight = learnt.costs(8)
    assert eight.verify(5) == learnt.costs(1).verify(5) and eight is not learnt.costs(1)
    for _ in range(200):
        learnt.costs(8).clock(draft_steps=1, draft_seconds=1.0, columns=5, verify_seconds=9.0)
    assert learnt.costs(8).verify(5) > 5 and learnt.costs(1).verify(5) < 2


# ---- the loop played with coins: seconds of `auto` beside those of fixed lengths -----------------

FLATTEN, DELAY = PatternSpec("flatten", 4), PatternSpec("delay", 4)
HARD = Prices({1: 5.0, 2: 7.0, 4: 7.8, 9: 11.0, 13: 13.0, 49: 40.0}, 1.9)  # a block costs at once
EASY = Prices({1: 5.2, 2: 6.5, 5: 8.3, 9: 9.8, 13: 12.4, 49: 29.0}, 1.9)
DEAR = Prices(EASY.verify, 5.2)  # a drafter as dear as the verifier
FLAT = Prices({1: 5.0, 17: 5.5, 49: 6.5}, 1.7)


def automatic(
    verifier: PatternSpec, drafter: PatternSpec, prices: Prices, chance: tuple[float, ...],
    learnt: Learnt, seed: int, frames: int = 200,
) -> float:  # fmt: skip
    """Seconds of a played piece; its clock is noisy, and now and then stretched."""
    lead, follow = verifier.of(frames), drafter.of(frames)
    row, coin, noise = Row(lead, follow), Random(seed), Random(seed + 1)
    auto = AutoLength(lead.steps / follow.steps, learnt)
    seconds = 0.0
    while not row.done:
        m = auto.choose(1)
        end = min(row.final + m, lead.steps - 1)
        passes = row.draft(end) if m else 0
        end = row.reach(end) if m else end
        reached = end - row.final
        columns = reached + 1
        judged, accepted = row.verify(end, chance, coin)
        longer = 0.8 + 0.4 * row.final / lead.steps
        verifying, drafting = prices.of(columns) * longer, passes * prices.draft * longer
        seconds += verifying + drafting
        stretched = noise.uniform(1.5, 5) if noise.random() < 0.02 else 1.0
        learnt.costs(1).clock(
            draft_steps=passes,
            draft_seconds=drafting * noise.uniform(0.9, 1.1),
            columns=columns,
            verify_seconds=verifying * stretched * noise.uniform(0.9, 1.1),
        )
        auto.observe(
            length=m, reached=reached, accepted=accepted, judged=judged, draft_steps=passes
        )
    return seconds


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("verifier", "drafter", "prices", "chance"),
    [
        (FLATTEN, DELAY, EASY, (0.89, 0.78, 0.70, 0.66)),
        (FLATTEN, DELAY, DEAR, (0.89, 0.78, 0.70, 0.71)),
        (DELAY, DELAY, EASY, (0.93, 0.82, 0.76, 0.79)),
        (DELAY, DELAY, HARD, (0.93, 0.82, 0.76, 0.79)),
        (FLATTEN, DELAY, FLAT, (0.95, 0.90, 0.90, 0.90)),
    ],
)
def test_close_to_the_best_fixed_length(
    verifier: PatternSpec,
    drafter: PatternSpec,
    prices: Prices,
    chance: tuple[float, ...],
    warm: bool,
) -> None:
    """Of one frame and of two, and of parts of one; means over five pieces of 4 s."""
    learnt, auto = Learnt(), []
    for seed in range(6):
        learnt = learnt if warm else Learnt()
        auto.append(automatic(verifier, drafter, prices, chance, learnt, seed))
    per_frame = 4 if verifier is FLATTEN else 1
    fixed = [
        statistics.fmean(
            play(verifier, drafter, frames=200, steps=steps, chance=chance, seed=seed).seconds(
                prices.of, prices.draft
            )
            for seed in range(1, 6)
        )
        for steps in {1, max(1, per_frame // 2), per_frame, 2 * per_frame}
    ]
    assert statistics.fmean(auto[1:]) < 1.06 * min(fixed)


def test_a_second_piece_starts_warm() -> None:
    """Prices and acceptance nothing like the guess: the first rounds choose as the last did."""
    learnt = Learnt()
    automatic(FLATTEN, DELAY, FLAT, (0.97,) * 4, learnt, seed=1)
    warm, cold = AutoLength(4.0, learnt), AutoLength(4.0, Learnt())
    assert warm.choose(1) > 2 * cold.choose(1)
    automatic(FLATTEN, DELAY, Prices(EASY.verify, 60.0), (0.3,) * 4, learnt, seed=2, frames=600)
    assert AutoLength(4.0, learnt).choose(1) == 0
