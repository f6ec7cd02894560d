"""What passes cost here, and what the cost model makes of it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, cycle
from typing import Any

import torch

from specgen.benchmarking.prediction import Prices, predict
from specgen.benchmarking.timing import Samples
from specgen.benchmarking.trials import Plan, Trial
from specgen.decoding.draft_length import MAX_STEPS, FixedLength
from specgen.decoding.lane import Role
from specgen.decoding.loop import Piece, steps_per_frame
from specgen.decoding.rounds import Batch

AUTO_STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # draft lengths tried in place of `auto`
_TIMED = (1, 2, 4, 8, 16)  # those of them that are timed
_ROUNDS = 6  # at each length, in turn; those of the first turn do not count
_LEAST = 18  # rounds in all


def lengths_tried(trial: Trial) -> list[int]:
    """The draft lengths, in verifier steps, that a pair's prediction chooses from."""
    fixed = trial.drafting.steps
    return [fixed] if fixed is not None else [s for s in AUTO_STEPS if s <= MAX_STEPS]


class InTurn(FixedLength):
    """One length after the other, round by round: a slow moment meets all alike."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(lengths[0])
        self._lengths = cycle(lengths)

    def choose(self, rows: int) -> int:
        return next(self._lengths)


class Times:
    """Seconds of rounds of one pair, as they were taken.

    Attributes:
        verify: by the columns of the verifier's pass.
        draft: of a drafter pass.
    """

    def __init__(self) -> None:
        self.verify: dict[int, list[float]] = defaultdict(list)
        self.draft: list[float] = []

    @torch.inference_mode()
    def take(self, trial: Trial, lead: Role, follow: Role, lengths: Sequence[int]) -> None:
        """Time rounds of some draft lengths, begun at half the clip on tokens of chance."""
        shape, rows = (lead.pattern.codebooks, trial.frames // 2), trial.case.batch
        chance = torch.Generator().manual_seed(0)
        prompt = torch.randint(lead.scorer.card, shape, generator=chance).to(lead.scorer.device)
        fixed = replace(trial.drafting, steps=lengths[0])
        batch = Batch(lead, follow, rows, trial.frames, trial.sampling, fixed, margins=False)
        times: list[tuple[int, float, int, float]] = []
        batch.on_times = lambda *one: times.append(one)
        for row in range(rows):
            batch.admit(row, row, Piece(trial.frames, row, prompt))
            batch.lengths[row] = InTurn(lengths)
        for turn in range(max(_LEAST, _ROUNDS * len(lengths))):
            began = time.perf_counter()
            batch.round()
            whole = time.perf_counter() - began
            done = any(batch.finished(row) for row in range(rows))
            if turn >= len(lengths) or done:  # the first one feeds what was given
                passes, drafting, columns, verifying = times[-1]
                # What a round does besides belongs to it: the host's own time, where it is the last
                # to be done.
                self.verify[columns].append(max(verifying, whole - drafting))
                if passes:
                    self.draft.append(drafting / passes)
            if done:
                return


class Book:
    """The prices of one group of trials, each pair's timed as its loop pays them.

    A model timed by itself finds its weights in the cache, which in turns the two push each other
    out of; so whole rounds are timed, drafts and passes alternating, draws and bookkeeping with
    them: a few at each of some draft lengths in turn, begun at half the length of the clip. They
    are apart from the measured runs, and taken between these, so that a slow minute meets both.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._times: dict[tuple[object, ...], Times] = defaultdict(Times)

    def look(self, trial: Trial) -> None:
        """Time rounds of a pair at the lengths that its prediction rests on."""
        lead, follow = trial.roles([r.prompt for r in self._plan.requests(trial.case, 0)])
        assert follow is not None
        chosen = trial.drafting.steps
        lengths = _TIMED if chosen is None else (chosen,)
        self._times[_key(trial)].take(trial, lead, follow, lengths)

    def prices(self, trial: Trial, alone: float) -> Prices:
        """Passes of more columns than one lie on a line through what was seen; one of a single
        column costs a step of the verifier alone, a drafter pass the median of what was seen."""
        times = self._times[_key(trial)]
        blocks = {n: seen for n, seen in times.verify.items() if n > 1}
        return Prices({1: alone, **on_a_line(blocks)}, statistics.median(times.draft or [0.0]))

    def predict(
        self, trial: Trial, alone: tuple[Trial, Samples], chance: list[float], measured: float
    ) -> dict[str, Any]:
        """A pair's `predicted` field.

        Args:
            trial: the pair.
            alone: its verifier alone, with its times.
            chance: acceptance of each codebook.
            measured: seconds, to say how far off the prediction is.
        """
        follow = trial.follow
        assert follow is not None
        prices = self.prices(trial, _step_seconds(*alone))
        found = predict(
            trial.lead.pattern,
            follow.pattern,
            prices,
            frames=trial.frames,
            steps=lengths_tried(trial),
            chance=chance,
            batch=trial.case.batch,
        )
        return {
            "seconds": found.seconds,
            "relative_error": found.seconds / measured - 1,
            "draft_frames": found.steps / steps_per_frame(trial.lead.pattern),
            "tokens_per_pass": found.passes.tokens_per_pass,
            "draft_step_seconds": prices.draft,
            "verify_pass_seconds": {str(n): s for n, s in sorted(prices.verify.items())},
            "acceptance_per_codebook": chance,
        }


def on_a_line(seen: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """The two ends of a line through samples by size, that stretched ones do not bend (Sen 1968):
    its slope, which is not below zero, is the median of those between the samples."""
    if not seen:
        return {}
    points = [(size, value) for size, values in seen.items() for value in values]
    slopes = [
        (later - value) / (larger - size)
        for (size, value), (larger, later) in combinations(points, 2)
        if larger != size
    ]
    slope = max(0.0, statistics.median(slopes or [0.0]))
    fixed = statistics.median(value - slope * size for size, value in points)
    return {size: fixed + slope * size for size in (min(seen), max(seen))}


def _key(trial: Trial) -> tuple[object, ...]:
    """What pairs share whose rounds cost the same."""
    draft = trial.case.draft
    assert draft is not None
    return trial.case.reference, trial.case.draft_reference, draft.rule, trial.column


def _step_seconds(trial: Trial, samples: Samples) -> float:
    return samples.median / statistics.fmean(verify for verify, _ in trial.passes)
