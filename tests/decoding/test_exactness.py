"""Theory: the distribution of what the real loop makes, enumerated without sampling.

Every case runs `decode` once for each possible sequence of random outcomes and adds up their
probabilities, so a bias of 1e-12 would show. No figure here depends on luck.
"""

import pytest

from specgen.decoding.acceptance import Rule, is_biased
from specgen.patterns import PatternSpec, contaminated
from tests.decoding.enumeration import enumerate_decodes

FLATTEN, DELAY, PARALLEL = (PatternSpec(kind, 2) for kind in ("flatten", "delay", "parallel"))
# Two codebooks two frames apart contaminate k0 with four tokens; the delays 0, 1 would not.
WIDE = PatternSpec("delay", 2, delays=(0, 2))
TOGETHER = PatternSpec("flatten", 2, flattening=(0, 0))

PAIRS = [
    (DELAY, FLATTEN),
    (PARALLEL, FLATTEN),
    (DELAY, DELAY),
    (FLATTEN, DELAY),
    (WIDE, DELAY),
    (WIDE, TOGETHER),
    (PatternSpec("coarse_first", 2), FLATTEN),
]


def name(pair: object) -> str:
    if isinstance(pair, tuple):
        return "-".join(f"{spec.kind}{spec.delays or ''}" for spec in pair)
    return str(pair)


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.MIXED, Rule.KEEP])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_exact_where_the_usual_rule_is_biased(rule: Rule, steps: int) -> None:
    distance, total, runs = enumerate_decodes(
        WIDE, FLATTEN, rule, frames=2, steps=steps, seed=0, spread=2.0
    )
    assert runs > 50 and total == pytest.approx(1, abs=1e-12)
    assert distance < 1e-12


@pytest.mark.parametrize("pair", PAIRS, ids=name)
@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.MIXED, Rule.KEEP])
def test_exact_for_every_pair(pair: tuple[PatternSpec, PatternSpec], rule: Rule) -> None:
    distance, total, _ = enumerate_decodes(*pair, rule, frames=2, steps=2, seed=4)
    assert total == pytest.approx(1, abs=1e-12)
    assert distance < 1e-12


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.MIXED, Rule.KEEP])
def test_exact_with_draft_temperatures(rule: Rule) -> None:
    distance, total, _ = enumerate_decodes(
        WIDE, FLATTEN, rule, frames=2, steps=2, seed=1, temperatures=(1.5, 0.4)
    )
    assert total == pytest.approx(1, abs=1e-12)
    assert distance < 1e-12


def test_three_codebooks() -> None:
    delay, flatten = PatternSpec("delay", 3), PatternSpec("flatten", 3)
    assert any(contaminated(delay.of(2), flatten.of(2)))
    distance, total, _ = enumerate_decodes(delay, flatten, Rule.KEEP, frames=2, steps=1, seed=0)
    assert total == pytest.approx(1, abs=1e-12)
    assert distance < 1e-12


def test_the_usual_rule_is_biased_across_patterns() -> None:
    """The enumeration can fail: it finds the bias that discarding earlier guesses brings."""
    distance, total, _ = enumerate_decodes(
        WIDE, FLATTEN, Rule.REJECTION, frames=2, steps=2, seed=0, spread=2.0
    )
    assert total == pytest.approx(1, abs=1e-12)
    assert distance > 0.01
    assert is_biased(Rule.REJECTION, WIDE.of(2), FLATTEN.of(2))


@pytest.mark.parametrize("drafter", [PARALLEL, FLATTEN], ids=lambda spec: spec.kind)
def test_the_usual_rule_is_exact_where_nothing_is_contaminated(drafter: PatternSpec) -> None:
    assert not is_biased(Rule.REJECTION, drafter.of(2), FLATTEN.of(2))
    distance, _, _ = enumerate_decodes(drafter, FLATTEN, Rule.REJECTION, frames=2, steps=2, seed=4)
    assert distance < 1e-12
