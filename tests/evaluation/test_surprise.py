"""The likelihood test: exact rules pass, the naive rule and a wrong temperature do not."""

import dataclasses

import numpy as np
import pytest
import torch

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import Role
from specgen.decoding.sampling import Sampling
from specgen.engine import Request, load
from specgen.evaluation.likelihood import Scores, of_clips, score, verdict
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for
from tests.evaluation.test_two_sample import TOY, toy

ROWS = 400


def scored(rule: Rule | None, first_seed: int = 0) -> Scores:
    spec = PatternSpec("flatten", 2)
    scorer = TableScorer(TOY, ROWS, 2, 2, capacity_for(spec, 2), spread=3.0)
    codes = torch.from_numpy(toy(rule, first_seed, ROWS))
    return score(Role(scorer, spec), codes, Sampling(top_k=0))


@pytest.mark.parametrize("rule", [None, Rule.KEEP])
def test_exact_rules_pass(rule: Rule | None) -> None:
    """False alarm 0.01 a case on fresh seeds."""
    found = verdict(scored(rule))
    assert not found["differs"] and found["outside"] == 0
    assert found["tokens"] == 4 * ROWS


@pytest.mark.parametrize("first_seed", [0, 10_000])
def test_the_naive_rule_is_caught(first_seed: int) -> None:
    found = verdict(scored(Rule.REJECTION, first_seed))
    assert found["p"] < 1e-3 and found["excess_nats"] < 0


def test_the_variance_is_that_of_the_sums() -> None:
    """Their ratio is 1; the tails are heavy, so 800 clips leave a standard error of about 0.1."""
    scores = Scores.together([scored(None, first_seed) for first_seed in (0, 20_000)])
    ratio = scores.excess.var(axis=0) / scores.variance.mean(axis=0)
    assert ((ratio > 0.7) & (ratio < 1.35)).all()


def test_a_wrong_temperature_and_another_model_are_caught(tiny: str) -> None:
    engine = load(tiny)
    right = engine.settings
    prompts = ["a jig on the flute"] * 12

    def made(temperature: float) -> np.ndarray:
        sampling = dataclasses.replace(right.sampling, temperature=temperature)
        engine.settings = dataclasses.replace(right, sampling=sampling)
        clips = engine.generate([Request(p, i, 0.4) for i, p in enumerate(prompts)], batch=12)
        codes = torch.stack([clip.codes for clip in clips]).numpy()
        engine.settings = right
        return codes

    own, cold = made(1.0), made(0.8)
    found = of_clips(engine, prompts, own, 12)
    assert found is not None and not found["differs"]
    found = of_clips(engine, prompts, cold, 12)
    assert found is not None and found["differs"] and found["excess_nats"] < 0
    assert found["detectable_nats"] < 0.3
    noise = np.random.default_rng(0).integers(0, 32, own.shape)
    found = of_clips(engine, prompts, noise, 12)
    assert found is not None and found["differs"] and found["outside"] > 0
    greedy = dataclasses.replace(right.sampling, temperature=0.0)
    engine.settings = dataclasses.replace(right, sampling=greedy)
    assert of_clips(engine, prompts, own) is None
