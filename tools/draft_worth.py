"""What an acceptance would be worth end to end, by the cost model; see `draft_ideas.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from specgen.benchmarking.cards import CARDS, pass_seconds
from specgen.benchmarking.prediction import Prices, _Row, play
from specgen.benchmarking.shapes import Shape
from specgen.patterns import Coord, PatternSpec


@dataclass(frozen=True)
class Worth:
    """A pair's patterns and the prices of its passes, here and at the roof of a card."""

    verifier: PatternSpec
    drafter: PatternSpec | None
    prices: dict[str, Prices]
    frames: int = 400

    def seconds(self, where: str, chance: Sequence[float], second: Sequence[float] = ()) -> float:
        """Predicted, by the best draft length; `second`: chance that the second candidate is right
        where the first is not, each step's second candidate being a leaf of the tree."""
        prices, per_frame = self.prices[where], 1
        if self.verifier.kind == "flatten":
            per_frame = self.verifier.codebooks
        lengths = [m * per_frame for m in (1, 2, 3, 4, 6, 8)]
        plays = range(8)
        return min(
            sum(self._played(m, prices, chance, second, seed) for seed in plays) / len(plays)
            for m in lengths
        )

    def _played(
        self, m: int, prices: Prices, chance: Sequence[float], second: Sequence[float], seed: int
    ) -> float:
        if not second:
            passes = play(
                self.verifier,
                self.drafter,
                frames=self.frames,
                steps=m,
                chance=chance,
                seed=seed,
            )
            return passes.seconds(prices.of, prices.draft)
        assert self.drafter is not None
        lead, coin, total = self.verifier.of(self.frames), Random(seed), 0.0
        row = _Leaves(lead, self.drafter.of(self.frames))
        leaves = max(map(len, lead.layout))  # a step: one token of it replaced
        while not row.done:
            end = min(row.final + m, lead.steps - 1)
            total += row.draft(end) * prices.draft
            total += prices.of(end - row.final + 1 + leaves * (end - row.final))
            row.verify_leaves(end, chance, second, coin)
        return total

    def alone(self, where: str) -> float:
        return play(self.verifier, None, frames=self.frames, steps=0).seconds(
            self.prices[where].of, 0.0
        )


def undrafted(plan: Worth, chance: Sequence[float], share: float = 0.0) -> dict[str, float]:
    """Predicted speed-up over the verifier alone, of guesses made in its own order at `share` of
    the price of a step each, by the best draft length."""
    out, spec = {}, plan.verifier
    for where, prices in plan.prices.items():
        priced = Prices(prices.verify, share * prices.of(1))
        lengths = (1, 2, 3, 4, 8, 12)
        played = [
            play(spec, spec, frames=plan.frames, steps=m, chance=chance).seconds(
                priced.of, priced.draft
            )
            for m in lengths
        ]
        out[where] = round(plan.alone(where) / min(played), 3)
    return out


class _Leaves(_Row):
    """A row of the play with second candidates as leaves."""

    def verify_leaves(
        self, end: int, chance: Sequence[float], second: Sequence[float], coin: Random
    ) -> None:
        before = self.final
        self.verify(end, chance, coin)
        members = self.lead.layout[self.final]
        if before < self.final <= end and coin.random() < self._saved(members, chance, second):
            # The leaf holds the token, so the pass has drawn the step after it too.
            self.final = min(self.final + 1, self.lead.steps - 1)

    @staticmethod
    def _saved(members: Sequence[Coord], chance: Sequence[float], second: Sequence[float]) -> float:
        """Chance that, where a step does not stand, one token alone fails, its second holds."""
        every = math.prod(chance[k] for _, k in members)
        one = sum(every / chance[k] * (1 - chance[k]) * second[k] for _, k in members)
        return one / (1 - every)


def prices_of(preset: str, measured: dict[str, Any]) -> dict[str, Prices]:
    """Of the preset's passes on a CPU (docs/benchmarks/cpu.json), of a draft step without the
    loop's bookkeeping, and of MusicGen's shapes at the roof of an A4000."""
    row = next(r for r in measured["rows"] if r["label"] == preset)["predicted"]
    verify = {int(n): s for n, s in row["verify_pass_seconds"].items()}
    lead = "large:delay" if preset == "embedded-delay" else "large:flatten"
    follow = "large:delay" if preset == "embedded-dual" else "small:delay"
    card = CARDS["A4000"]

    def pass_of(shape: str, columns: int) -> float:
        return pass_seconds(
            Shape.parse(shape), card, columns=columns, share=1.0, positions=1000, rows=2
        )

    return {
        "cpu": Prices(verify, row["draft_step_seconds"]),
        "gpu": Prices({n: pass_of(lead, n) for n in (1, 5, 17, 33)}, pass_of(follow, 1)),
    }
