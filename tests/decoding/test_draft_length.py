"""The automatic draft length: right where costs are known, quiet where drafting never pays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.decoding.draft_length import MAX_STEPS, AutoLength, Costs, FixedLength, Line


def settled(acceptance: float, costs: Costs | None = None, ratio: float = 4.0) -> AutoLength:
    """A length after 400 rounds in which this share of the judged steps was accepted."""
    auto = AutoLength(ratio, costs or Costs())
    for _ in range(400):
        m = auto.choose()
        auto.observe(
            length=m,
            accepted=round(100 * acceptance),
            judged=100,
            draft_steps=1 + round(m / ratio),
        )
    return auto


def clocked(draft_step: float, fixed: float, slope: float) -> Costs:
    """Costs measured on a machine that follows these lines exactly."""
    costs = Costs()
    for i in range(300):
        columns, steps = 1 + i % 16, 1 + i % 4
        costs.clock(
            draft_steps=steps,
            draft_seconds=draft_step * steps,
            columns=columns,
            verify_seconds=fixed + slope * columns,
        )
    return costs


def test_fixed() -> None:
    fixed = FixedLength(3)
    fixed.observe(length=3, accepted=0, judged=3, draft_steps=3)
    assert fixed.choose() == 3
    with pytest.raises(ValueError, match="at least 1"):
        FixedLength(0)


def test_nothing_is_drafted_where_it_never_pays() -> None:
    """A refused draft costs time: the verifier goes alone, but for a probe now and then."""
    for auto in (settled(0.0), settled(0.5, clocked(draft_step=50.0, fixed=1.0, slope=0.1))):
        chosen = []
        for _ in range(250):
            chosen.append(auto.choose())
            auto.observe(length=chosen[-1], accepted=0, judged=bool(chosen[-1]), draft_steps=1)
        probes = [m for m in chosen if m]
        assert 5 <= len(probes) <= 11  # one in 25
        assert chosen.count(0) == 250 - len(probes)


def test_drafting_is_taken_up_again_when_it_pays() -> None:
    auto = AutoLength(4.0, Costs())
    chosen = []
    for i in range(600):
        chosen.append(m := auto.choose())
        auto.observe(
            length=m,
            accepted=m if i > 200 else 0,
            judged=min(m, 1) if i <= 200 else m,
            draft_steps=1 + m // 4,
        )
    assert chosen[150:200].count(0) >= 46
    assert min(chosen[400:]) > 4


def test_grows_with_acceptance() -> None:
    lengths = [settled(a).choose() for a in (0.3, 0.5, 0.7, 0.8, 0.9, 0.97)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 4 and lengths[-1] > 2 * lengths[2] > 0


def test_shrinks_with_the_cost_of_columns() -> None:
    lengths = [
        settled(0.85, clocked(draft_step=0.1, fixed=1.0, slope=slope)).choose()
        for slope in (0.01, 0.05, 0.2, 0.6)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


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
    assert pace(auto.choose()) > 0.98 * best  # drafter steps come in whole numbers


rounds = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60)


@settings(deadline=None)
@given(rounds=rounds, ratio=st.sampled_from([0.25, 1.0, 4.0]))
def test_unclocked_choices_follow_from_the_rounds_alone(
    rounds: list[tuple[int, int]], ratio: float
) -> None:
    def choices() -> list[int]:
        auto, chosen = AutoLength(ratio, Costs()), []
        for one, other in rounds:
            chosen.append(auto.choose())
            auto.observe(
                length=chosen[-1],
                accepted=min(one, other),
                judged=max(one, other),
                draft_steps=1 + chosen[-1],
            )
        return [*chosen, auto.choose()]

    first = choices()
    assert first == choices()
    assert all(0 <= m <= MAX_STEPS for m in first)


def test_a_line_finds_the_costs() -> None:
    line = Line(1.0, 1.0)
    for i in range(400):
        line.add(1 + i % 12, 3.0 + 0.5 * (1 + i % 12))
    assert line.fixed == pytest.approx(3.0, rel=1e-3)
    assert line.slope == pytest.approx(0.5, rel=1e-3)


def test_a_line_never_promises_free_passes() -> None:
    """Noise can make longer passes look cheaper; the line stays positive and does not fall."""
    line = Line(0.9, 0.1)
    for i in range(50):
        line.add(1 + i % 12, 12.0 - i % 12)
    assert line.slope == 0 and line.fixed > 0


def test_costs_keep_their_scale() -> None:
    costs = clocked(draft_step=2e-3, fixed=9e-3, slope=1e-3)
    assert costs.draft_step == pytest.approx(2e-3, rel=1e-2)
    assert costs.verify.at(8) == pytest.approx(17e-3, rel=1e-2)
