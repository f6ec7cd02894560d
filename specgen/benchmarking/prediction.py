"""The cost model: what a decode should take, from the price of its passes and the acceptance.

A round drafts until the next m verifier steps have guesses, then verifies them, and all that follow
and are guessed already, in one pass. Which places are drafted, judged and drafted again depends on
the patterns and on which guesses stand, not on what the tokens are; so the loop is played with a
coin for each guess (`play`), and its passes are charged at their prices. The coins are independent,
each codebook with its own chance: real acceptance comes in runs, so a real decode can differ. What
comes out is a prediction, and is called so wherever it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from specgen.decoding.draft_length import MAX_STEPS
from specgen.patterns import Pattern, PatternSpec


@dataclass
class Passes:
    """Forward passes of a decode, a batch counted once.

    Attributes:
        verify: how many verifier passes there were of each number of columns.
        draft: drafter passes.
        tokens: tokens of each row.
    """

    tokens: int
    verify: Counter[int] = field(default_factory=Counter)
    draft: int = 0

    @property
    def rounds(self) -> int:
        return sum(self.verify.values())

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.rounds

    def seconds(self, verify: Callable[[int], float], draft: float) -> float:
        """The price: of a verifier pass of some columns, and of a drafter pass."""
        return sum(verify(n) * count for n, count in self.verify.items()) + draft * self.draft


class Row:
    """One sequence of the play: what `specgen.decoding.lane.Lane` knows, without tokens."""

    def __init__(self, verifier: Pattern, drafter: Pattern) -> None:
        self.lead, self.follow = verifier, drafter
        self.final = self.guessed = 0  # steps settled: of the verifier, of the drafter

    @property
    def done(self) -> bool:
        while self.final < self.lead.steps - 1 and not self.lead.layout[self.final + 1]:
            self.final += 1
        return self.final >= self.lead.steps - 1

    def draft(self, end: int) -> int:
        """Guess what the verifier's steps up to `end` hold; returns drafter passes."""
        goal = max(
            (
                self.follow.step_of[k][t]
                for step in range(self.final + 1, end + 1)
                for t, k in self.lead.layout[step]
            ),
            default=0,
        )
        passes = 0
        while True:
            while self.guessed < self.follow.steps - 1 and all(
                self.lead.step_of[k][t] <= self.final
                for t, k in self.follow.layout[self.guessed + 1]
            ):
                self.guessed += 1
            if self.guessed >= goal:
                return passes
            self.guessed += 1
            passes += 1

    def reach(self, end: int) -> int:
        """The last step from `end` on of which, and before which, all is guessed."""
        most = min(self.final + MAX_STEPS, self.lead.steps - 1)
        while end < most and all(
            self.follow.step_of[k][t] <= self.guessed for t, k in self.lead.layout[end + 1]
        ):
            end += 1
        return end

    def verify(self, end: int, chance: Sequence[float], coin: Random) -> tuple[int, int]:
        """Judge the guesses up to `end`, and draw what comes after them; returns steps judged and
        steps accepted."""
        judged = accepted = 0
        for step in range(self.final + 1, min(end + 1, self.lead.steps - 1) + 1):
            self.final = step
            places = {(t, k): self.follow.step_of[k][t] for t, k in self.lead.layout[step]}
            open_places = {c: at for c, at in places.items() if at <= self.guessed}
            changed = [at for (_, k), at in open_places.items() if coin.random() >= chance[k]]
            judged += bool(open_places)
            accepted += bool(open_places) and not changed
            if changed:
                self.guessed = min(self.guessed, *changed)
            if changed or len(open_places) < len(places):
                break
        return judged, accepted


def play(
    verifier: PatternSpec,
    drafter: PatternSpec | None,
    *,
    frames: int,
    steps: int,
    chance: Sequence[float] = (),
    batch: int = 1,
    seed: int = 0,
) -> Passes:
    """Play the decode loop with coins.

    Args:
        verifier, drafter: the patterns; no drafter: the verifier alone.
        frames: T.
        steps: draft length, in verifier steps (see `specgen.decoding.rounds`).
        chance: acceptance of each codebook.
        batch: rows that go round together; a pass is as long as its longest row's.
        seed: of the coins.
    """
    lead = verifier.of(frames)
    passes = Passes(frames * verifier.codebooks)
    if drafter is None or steps < 1:
        passes.verify[1] = sum(1 for step in lead.layout if step)
        return passes
    coin = Random(seed)
    rows = [Row(lead, drafter.of(frames)) for _ in range(batch)]
    while running := [row for row in rows if not row.done]:
        ends = [min(row.final + steps, lead.steps - 1) for row in running]
        passes.draft += max(row.draft(end) for row, end in zip(running, ends, strict=True))
        ends = [row.reach(end) for row, end in zip(running, ends, strict=True)]
        passes.verify[max(e + 1 - r.final for r, e in zip(running, ends, strict=True))] += 1
        for row, end in zip(running, ends, strict=True):
            row.verify(end, chance, coin)
    return passes


@dataclass(frozen=True)
class Prices:
    """Seconds of passes.

    Attributes:
        verify: seconds of a verifier pass by its columns, at least of one column.
        draft: seconds of a drafter pass of one column.
    """

    verify: dict[int, float]
    draft: float

    def of(self, columns: int) -> float:
        """Seconds of a verifier pass: on the line between the measured sizes beside it."""
        known = sorted(self.verify)
        if len(known) == 1:
            return self.verify[known[0]]
        right = next((i for i in range(1, len(known)) if known[i] >= columns), len(known) - 1)
        low, high = known[right - 1], known[right]
        share = (columns - low) / (high - low)
        return self.verify[low] + share * (self.verify[high] - self.verify[low])


@dataclass(frozen=True)
class Prediction:
    """What the cost model says of one row; never a measurement.

    Attributes:
        seconds: of decoding.
        steps: the draft length it holds for, in verifier steps; 0: the verifier alone.
        passes: what was played.
    """

    seconds: float
    steps: int
    passes: Passes


def predict(
    verifier: PatternSpec,
    drafter: PatternSpec | None,
    prices: Prices,
    *,
    frames: int,
    steps: Sequence[int],
    chance: Sequence[float] = (),
    batch: int = 1,
    seed: int = 0,
) -> Prediction:
    """The best of some draft lengths, by the cost model; arguments as for `play`."""

    def one(length: int) -> Prediction:
        passes = play(
            verifier, drafter, frames=frames, steps=length, chance=chance, batch=batch, seed=seed
        )
        return Prediction(passes.seconds(prices.of, prices.draft), length, passes)

    return min(map(one, steps), key=lambda found: found.seconds)
