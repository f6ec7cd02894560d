"""Exact enumeration of everything the real decode loop can do, for codebooks of two entries.

With two entries a coordinate's Gumbel noise matters only through the difference D of its two
values, which is logistic. A draw with log-odds a gives entry 1 exactly if D > -a. So all draws that
share a coordinate's noise, in whatever contexts, are cuts of one interval, and their joint
distribution is exact: no sampling, no approximation. `enumerate_decodes` runs `decode` once for
every possible sequence of outcomes and adds up the probabilities of the grids it ends with.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specgen.decoding import loop, rounds
from specgen.decoding.acceptance import Rule, textbook_codebooks
from specgen.decoding.lane import Lane, Role, Where
from specgen.decoding.sampling import Sampling
from specgen.patterns import PatternSpec
from tests.decoding.mocks import TableScorer, capacity_for


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


class Path:
    """One run's choices: follows a given beginning, then always takes the first open branch."""

    def __init__(self, given: list[int]) -> None:
        self.given, self.taken, self.open, self.probability = given, [], [], 1.0
        self.taken: list[int]
        self.open: list[bool]

    def choose(self, p_one: float) -> int:
        """A branch: 1 with probability `p_one`, else 0."""
        at = len(self.taken)
        branch = self.given[at] if at < len(self.given) else (1 if p_one > 0 else 0)
        self.taken.append(branch)
        self.open.append(branch == 1 and p_one < 1)
        self.probability *= p_one if branch else 1 - p_one
        return branch

    def next(self) -> list[int] | None:
        """The beginning of the next run, None after the last."""
        for at in reversed(range(len(self.taken))):
            if self.open[at]:
                return [*self.taken[:at], 0]
        return None


class EnumeratedDraws:
    """Takes the place of `Draws`; each noise is an interval that draws cut."""

    path: Path
    temperature = 1.0
    called = ()  # rows of close calls: there are none in exact arithmetic

    def __init__(
        self,
        lead: Lane,
        follow: Lane | None,
        rows: int,
        frames: int,
        sampling: Sampling,
        rule: Rule,
        temperatures: Sequence[float],
        *,
        record: bool = False,
    ) -> None:
        self.forgetful = rule is Rule.REJECTION
        self.attempts = 0
        self.intervals: dict[Any, tuple[float, float]] = {}
        self.drafted: dict[Any, float] = {}
        self.tau = temperatures or (1.0,) * lead.codebooks
        self.lanes, self.rule = (lead, follow), rule
        self.by_textbook = (False,) * lead.codebooks

    def admit(self, row: int, seed: int, origin: int = 0) -> None:
        lead, follow = self.lanes
        if follow is not None:
            self.by_textbook = textbook_codebooks(
                self.rule, follow.patterns[row], lead.patterns[row]
            )

    def move(self, source: int, target: int) -> None:
        assert source == target  # there is one row

    def draw(self, key: Any, log_odds: float) -> int:
        """Entry 1 if the noise of `key` exceeds -log_odds, given all earlier draws with it."""
        low, high = self.intervals.get(key, (-math.inf, math.inf))
        cut = min(max(-log_odds, low), high)
        whole = logistic(high) - logistic(low)
        above = (logistic(high) - logistic(cut)) / whole
        one = self.path.choose(above)
        self.intervals[key] = (cut, high) if one else (low, cut)
        return one

    def guess(self, logits: Tensor, where: Where) -> Tensor:
        out = []
        for row, (_, _, c) in zip(logits, where, strict=True):
            odds = float(row[1] - row[0]) / self.tau[c.k]
            kind = "draft" if self.by_textbook[c.k] else "token"
            self.drafted[c] = odds
            self.attempts += self.forgetful  # new noise for every guess
            out.append(self.draw((kind, c, kind == "draft" and self.attempts), odds))
        return torch.tensor(out)

    def judge(
        self, logits: Tensor, where: Where, guesses: Tensor, guessed: Sequence[bool]
    ) -> Tensor:
        out = []
        stopped_at = None  # the first step with a change: later outcomes of this pass are discarded
        for i, (row, (_, place, c)) in enumerate(zip(logits, where, strict=True)):
            if stopped_at is not None and place > stopped_at:
                out.append(int(guesses[i]))
                continue
            odds, guess = float(row[1] - row[0]), int(guesses[i])
            if guessed[i] and self.by_textbook[c.k]:
                p = logistic(odds if guess else -odds)
                q = logistic(self.drafted[c] if guess else -self.drafted[c])
                accepted = self.path.choose(min(1.0, p / q))
                token = guess if accepted else 1 - guess  # two entries: the residual is the other
            else:
                token = self.draw(("token", c, False), odds)
            if guessed[i] and token != guess:
                stopped_at = place
            out.append(token)
        return torch.tensor(out)

    def margins(self, row: int) -> None:
        return None


def enumerate_decodes(
    drafter: PatternSpec,
    verifier: PatternSpec,
    rule: Rule,
    *,
    frames: int,
    steps: int,
    seed: int,
    spread: float = 1.0,
    temperatures: tuple[float, ...] = (),
) -> tuple[float, float, int]:
    """Total variation between what the loop makes and the verifier's own distribution.

    Returns:
        The total variation, the probability of all runs together (1), and the number of runs.
    """
    K = verifier.codebooks

    def scorer(which: int, spec: PatternSpec) -> TableScorer:
        capacity = capacity_for(spec, frames)
        return TableScorer(2 * seed + which, 1, K, 2, capacity, spread=spread)

    target_model, draft_model = scorer(0, verifier), scorer(1, drafter)
    made: dict[tuple[int, ...], float] = {}
    total, runs = 0.0, 0
    begin: list[int] | None = []
    real = rounds.Draws
    rounds.Draws = EnumeratedDraws  # type: ignore[assignment,misc]
    try:
        while begin is not None:
            EnumeratedDraws.path = path = Path(begin)
            decoded = loop.decode(
                Role(target_model, verifier),
                Role(draft_model, drafter),
                frames=[frames],
                seeds=[0],
                sampling=Sampling(top_k=0),
                drafting=loop.Drafting(rule, steps, temperatures),
            )
            grid = tuple(decoded.codes[0].flatten().tolist())
            made[grid] = made.get(grid, 0.0) + path.probability
            total += path.probability
            runs += 1
            begin = path.next()
    finally:
        rounds.Draws = real  # type: ignore[misc]
    target = target_model.grid_probabilities(verifier, frames)
    distance = sum(abs(made.get(grid, 0.0) - p) for grid, p in target.items()) / 2
    return distance, total, runs
