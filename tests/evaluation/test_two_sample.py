"""The two-sample test: its level, its power, and what it must catch: the naive p/q rule."""

import numpy as np
import pytest
import torch

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.evaluation.two_sample import (
    ALPHA,
    Codes,
    clip_features,
    compare,
    position_features,
    power,
    shifted,
    with_power,
)
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for


def clips(rng: np.random.Generator, n: int = 40, frames: int = 50, cold: float = 1.0) -> Codes:
    """`[n, 2, frames]` tokens; `cold` sharpens their law, as too low a temperature does."""
    law = np.random.default_rng(5).dirichlet(np.full(64, 0.3), size=2) ** cold
    law /= law.sum(axis=1, keepdims=True)
    return np.stack([rng.choice(64, size=(n, frames), p=p) for p in law], axis=1)


def test_false_alarms_stay_at_the_level() -> None:
    """120 tests at 0.05: 6 expected, more than 15 has a probability of 5e-4."""
    rng = np.random.default_rng(0)
    ps = [compare(clips(rng, 20), clips(rng, 20), rounds=99, seed=i).p for i in range(120)]
    assert sum(p <= 0.05 for p in ps) <= 15


def test_identical_sides_cannot_differ() -> None:
    same = clips(np.random.default_rng(1))
    found = compare(same, same)
    assert found.p == 1 and not found.differs
    assert set(found.variation.values()) == {0.0}


def test_a_sampler_that_is_too_cold_is_caught() -> None:
    rng = np.random.default_rng(2)
    assert compare(clips(rng), clips(rng, cold=1.15)).p <= ALPHA
    assert not compare(clips(rng), clips(rng)).differs


def test_dependence_between_codebooks_is_seen() -> None:
    """Marginals are equal; only the pairs differ."""
    rng = np.random.default_rng(3)
    a = rng.integers(8, size=(40, 2, 50))
    b = a.copy()
    b[:, 1] = np.where(rng.random(a[:, 1].shape) < 0.2, b[:, 0], rng.permuted(b[:, 1], axis=0))
    found = compare(a, b)
    assert found.differs and "with" in found.worst


def test_shift_moves_as_much_as_it_says() -> None:
    rng = np.random.default_rng(4)
    codes = clips(rng, 400)
    moved = shifted(codes, 0.1, rng)
    for k in range(2):
        a, b = (np.bincount(x[:, k].ravel(), minlength=64) / 20_000 for x in (codes, moved))
        assert np.abs(a - b).sum() / 2 == pytest.approx(0.1, abs=0.02)


def test_power_is_stated_and_grows() -> None:
    rng = np.random.default_rng(5)
    a, b = clips(rng), clips(rng)
    found = with_power(compare(a, b), a, b, runs=10)
    assert found.detectable is not None and found.power is not None
    assert found.detectable <= 0.2 and found.power >= 0.9
    assert power(a, b, 0.001, runs=10) <= 0.3


def test_features_count_every_token() -> None:
    codes = clips(np.random.default_rng(6), 12, 7)
    tables = clip_features(codes)
    assert set(tables) == {"k1", "k2", "k1 in time", "k2 in time", "k1 with k2"}
    for name, table in tables.items():
        assert table.sum() == 12 * (6 if "time" in name else 7)
    short = position_features(codes[..., :2])
    assert {"frame 1 k1", "frame 2 k2", "frame 1 k2, frame 2 k1"} <= set(short)
    assert all((table.sum(axis=1) == 1).all() for table in short.values())


TOY = 50  # the enumeration finds a bias of 0.153 in total variation for this pair


def toy(rule: Rule | None, first_seed: int, rows: int) -> Codes:
    """`[rows, 2, 2]` grids of a toy pair through the real loop; None is the verifier alone."""
    drafter, verifier = PatternSpec("delay", 2, delays=(0, 2)), PatternSpec("flatten", 2)

    def role(seed: int, spec: PatternSpec) -> Role:
        return Role(TableScorer(seed, rows, 2, 2, capacity_for(spec, 2), spread=3.0), spec)

    made = decode(
        role(TOY, verifier),
        None if rule is None else role(TOY + 1, drafter),
        frames=[2] * rows,
        seeds=range(first_seed, first_seed + rows),
        sampling=Sampling(top_k=0),
        drafting=Drafting(rule or Rule.COUPLED, 4),
    )
    return torch.stack(made.codes).numpy()


def test_the_naive_rule_is_caught_at_the_stated_power() -> None:
    """In every one of 4 runs of 400 clips a side, while the rule that keeps is let pass.

    An alarm at 0.01 in the exact runs would have a probability of 0.02 on fresh seeds.
    """
    rules = [Rule.REJECTION, Rule.REJECTION, Rule.REJECTION, Rule.REJECTION, Rule.KEEP, Rule.KEEP]
    plain = toy(None, 0, 400)
    for run, rule in enumerate(rules, 1):
        found = compare(plain, toy(rule, 10_000 * run, 400), features=position_features)
        assert found.differs == (rule is Rule.REJECTION)


def test_coupled_is_the_verifier_itself() -> None:
    plain, made = toy(None, 7, 100), toy(Rule.COUPLED, 7, 100)
    assert (plain == made).all()
