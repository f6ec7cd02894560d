"""A row's drafts, not only its tokens, are what they would be alone."""

import pytest
import torch

from specgen.decoding.acceptance import Rule
from specgen.decoding.lane import Role
from specgen.decoding.loop import Decoded, Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for

FRAMES = [9, 4, 7, 9, 6, 8]


def run(rows: list[int], drafter: PatternSpec, verifier: PatternSpec, rule: Rule) -> Decoded:
    def role(seed: int, spec: PatternSpec, near: TableScorer | None = None) -> Role:
        capacity = capacity_for(spec, max(FRAMES))
        scorer = TableScorer(seed, len(rows), 4, 6, capacity, near=near, noise=0.3)
        return Role(scorer, spec)

    lead = role(1, verifier)
    assert isinstance(lead.scorer, TableScorer)
    same = drafter == verifier  # then the drafter nearly agrees, and runs of guesses get long
    return decode(
        lead,
        role(2, drafter, lead.scorer if same else None),
        frames=[FRAMES[r] for r in rows],
        seeds=[100 + r for r in rows],
        sampling=Sampling(top_k=0),
        drafting=Drafting(rule, 3),
    )


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.MIXED, Rule.KEEP])
@pytest.mark.parametrize(("drafter", "verifier"), [("delay", "flatten"), ("delay", "delay")])
def test_rows_draft_as_they_would_alone(drafter: str, verifier: str, rule: Rule) -> None:
    """A column fed while its row rode along once left the row without its prediction."""
    specs = PatternSpec(drafter, 4), PatternSpec(verifier, 4)
    together = run(list(range(len(FRAMES))), *specs, rule)
    for r in range(len(FRAMES)):
        alone = run([r], *specs, rule)
        assert torch.equal(together.codes[r], alone.codes[0])
        ours, theirs = together.stats[r], alone.stats[0]
        assert (ours.drafted, ours.accepted) == (theirs.drafted, theirs.accepted)
        assert ours.drafter_steps == theirs.drafter_steps
