"""Rounds of a batch: draft until the next m verifier steps have guesses; feed them to the verifier
in one pass; keep the accepted prefix plus one correction, or a bonus token.

A drafter of another pattern guesses more on the way than those m steps: a delay drafter that has
reached the last codebook of a frame has the first ones of the frames behind it, too. A pass takes
along all steps that follow and are guessed already, since a column costs a fraction of a pass.

Plain decoding is the same with no drafter and m = 0. Every row of a batch has its own prefix, its
own caches and its own draft length, so a row's result does not depend on its neighbours.

All bookkeeping of *places* is plain Python, since places never depend on token values within a
draft; token values stay on the device. So a draft needs no synchronisation, and a round needs one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from specgen.decoding.acceptance import Rule
from specgen.decoding.draft_length import MAX_STEPS, AutoLength, FixedLength, Learnt
from specgen.decoding.draws import Draws
from specgen.decoding.lane import Lane, Listener, Role
from specgen.decoding.lossy import Lenient
from specgen.decoding.recorded import RecordedDraft
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.decoding.stopwatch import Stopwatch
from specgen.patterns import Coord
from specgen.tensors import pick


@dataclass(frozen=True)
class Drafting:
    """How to draft.

    Attributes:
        rule: how guesses are judged.
        steps: draft length in verifier steps, for which a round makes sure of guesses; None chooses
            it while running (`AutoLength`).
        temperatures: per codebook, divides the drafter's processed logits; () is 1 everywhere.
        lenient: what is accepted beyond the coupled rule; None keeps the decode lossless.
    """

    rule: Rule = Rule.COUPLED
    steps: int | None = None
    temperatures: tuple[float, ...] = ()
    lenient: Lenient | None = None


@dataclass(frozen=True)
class Piece:
    """A grid to decode.

    Attributes:
        frames: T.
        seed: of its noise.
        prompt: the tokens it starts with, `[K, T0]` with T0 < T.
        origin: where it begins in a longer piece, whose frames the noise belongs to.
    """

    frames: int
    seed: int
    prompt: Tensor | None = None
    origin: int = 0


@dataclass(frozen=True)
class Finished:
    """A decoded grid.

    Attributes:
        index: of its piece.
        codes: `[K, T]` int64.
        stats: of this grid.
        margins: `[K, T]` if asked for: the gap between the two best perturbed logits, which tells
            rounding ties from faults. NaN where the token was given or judged by the textbook rule.
    """

    index: int
    codes: Tensor
    stats: DecodeStats
    margins: Tensor | None = None


class Batch:
    """The pieces being decoded, a row each; `index` names them."""

    def __init__(
        self,
        verifier: Role,
        drafter: Role | None,
        rows: int,
        longest: int,
        sampling: Sampling,
        drafting: Drafting,
        margins: bool,
        learnt: Learnt | None = None,
    ) -> None:
        self._drafting, self._longest = drafting, longest
        self.lead = Lane(verifier, rows)
        self.follow = None if drafter is None else Lane(drafter, rows, self.lead)
        self._draws = Draws(
            self.lead,
            self.follow,
            rows,
            longest,
            sampling,
            drafting.rule,
            drafting.temperatures,
            record=margins,
        )
        self._draws.lenient = drafting.lenient
        self._recorded = RecordedDraft.of(self.lead, self.follow, self._draws)
        scorer = None if drafter is None else drafter.scorer
        # Once, since asking for a protocol takes as long as a small product.
        self._listener = scorer if isinstance(scorer, Listener) and scorer.listens else None
        self._learnt = learnt or Learnt()
        # Told of each round: drafter passes and their seconds, columns verified and theirs.
        # Of the latter is what the host did since the round before.
        self.on_times: Callable[[int, float, int, float], None] | None = None
        self._ended = 0.0
        if self._clocked:
            self.on_times = self._learn
        self.index: list[int] = []
        self.origin: list[int] = []
        self.stats: list[DecodeStats] = []
        self.lengths: list[FixedLength | AutoLength] = []

    def admit(self, row: int, index: int, piece: Piece) -> None:
        """Let piece `index` take a row (the next, or one whose piece was taken).

        Raises:
            ValueError: it is longer than the longest that was announced, or has nothing to decode.
        """
        given = 0 if piece.prompt is None else piece.prompt.shape[-1]
        if given >= piece.frames:
            raise ValueError(f"the prompt has {given} of {piece.frames} frames already")
        if piece.frames > self._longest:
            raise ValueError(f"a piece of {piece.frames} frames among pieces of {self._longest}")
        for lane in (self.lead, self.follow):
            if lane is not None:
                lane.admit(row, piece.frames, piece.prompt)
        self._draws.admit(row, piece.seed, piece.origin)
        fresh = (index, piece.origin, DecodeStats(self.lead.codebooks), self._length(row))
        for values, value in zip(self._state, fresh, strict=True):
            values[row : row + 1] = [value]

    @property
    def _state(self) -> tuple[list[Any], ...]:
        return self.index, self.origin, self.stats, self.lengths

    def _length(self, row: int) -> FixedLength | AutoLength:
        steps = self._drafting.steps
        if steps is not None:
            if steps > MAX_STEPS:
                raise ValueError(f"draft length {steps} is over the limit of {MAX_STEPS} steps")
            return FixedLength(steps)
        lead, follow = self.lead, self.follow
        ratio = 1.0 if follow is None else lead.last[row] / follow.last[row]
        return AutoLength(ratio, self._learnt if self._clocked else Learnt())

    @property
    def _clocked(self) -> bool:
        """Whether rounds teach `auto`. Under other rules the sample depends on the draft length,
        which neither a clock nor what was decoded before may decide."""
        drafting, chosen = self._drafting, self.follow is not None and self._drafting.steps is None
        return chosen and drafting.rule is Rule.COUPLED and drafting.lenient is None

    def _learn(self, passes: int, drafting: float, columns: int, verifying: float) -> None:
        self._learnt.costs(len(self.index)).clock(
            draft_steps=passes,
            draft_seconds=drafting,
            columns=columns,
            verify_seconds=verifying,
        )

    def finished(self, row: int) -> bool:
        self.lead.skip_known(row, self.lead)
        return self.lead.known[row] >= self.lead.last[row]

    def new_frames(self, row: int) -> int:
        """Settled tokens of a row in frames, less those that the window before it has settled."""
        overlap = self.lead.given_frames(row) if self.origin[row] else 0
        return self.lead.frames_done(row) - overlap

    def settled(self, row: int) -> Tensor:
        """`[K, T']`: the frames from the start on whose every token is final."""
        return self.lead.codes(row)[:, : self.lead.whole_frames(row)]

    def take(self, row: int) -> Finished:
        """What a row's piece has become."""
        codes, margins = self.lead.codes(row), self._draws.margins(row)
        return Finished(self.index[row], codes, self.stats[row], margins)

    def close(self, row: int) -> None:
        """Go on without a row: the last one takes its place."""
        last = len(self.index) - 1
        for lane in (self.lead, self.follow):
            if lane is not None:
                if row != last:
                    lane.move(last, row)
                lane.shrink(last)
        self._draws.move(last, row)
        for values in self._state:
            values[row] = values[last]
            del values[last]

    def round(self) -> None:
        """One draft and one verifier pass for every row."""
        lead, follow = self.lead, self.follow
        rows = range(len(self.index))
        beside = time.perf_counter() - self._ended if self._ended else 0.0  # between the rounds
        watch = Stopwatch(lead.device)
        ahead = [length.choose(len(rows)) if follow is not None else 0 for length in self.lengths]
        if self._listener is not None:
            self._listener.hear(lead.fed)
            # A given start is first read by the verifier, so that its states are there to be heard.
            unread = [lead.given_frames(r) > 0 and not lead.fed[r] for r in rows]
            ahead = [0 if wait else n for n, wait in zip(ahead, unread, strict=True)]
        ends = {r: min(lead.known[r] + ahead[r], lead.last[r]) for r in rows}
        before = [row.drafter_steps for row in self.stats]
        passes = 0
        if follow is not None and any(ahead):
            passes = _draft(lead, follow, self._draws, self._recorded, ends, self.stats)
        watch.mark()
        settled = list(lead.known)
        if follow is not None:
            ends |= {r: _guessed(lead, follow, r, ends[r]) for r in rows if ahead[r]}
        judged, accepted, columns = _verify(lead, follow, self._draws, ends, self.stats)
        if self.on_times is not None:
            drafting, verifying = watch.laps()
            self.on_times(passes, drafting, columns, verifying + beside)
        for r in rows:
            self.lengths[r].observe(
                length=ahead[r],
                reached=ends[r] - settled[r],
                accepted=accepted[r],
                judged=judged[r],
                draft_steps=self.stats[r].drafter_steps - before[r],
            )
        self._ended = time.perf_counter()


def _draft(
    lead: Lane,
    follow: Lane,
    draws: Draws,
    recorded: RecordedDraft | None,
    ends: dict[int, int],
    stats: list[DecodeStats],
) -> int:
    """Guess every open coordinate of the verifier's steps up to `ends`; returns drafter passes."""
    goals = {r: follow.step_reaching(r, lead, end) for r, end in ends.items()}
    passes = 0
    while True:
        for r, goal in goals.items():
            if follow.known[r] < goal:
                follow.skip_known(r, lead)
        open_rows = [r for r, goal in goals.items() if follow.known[r] < goal]
        if not open_rows:
            return passes
        starts, size = follow.ahead(open_rows)
        passes += 1
        where = [
            (r, follow.known[r] - starts[r], coord)
            for r in open_rows
            for coord in follow.patterns[r].layout[follow.known[r] + 1]
            if not lead.holds(r, coord)
        ]
        if recorded is None or not recorded.step(starts, size, where):
            logits = follow.logits(follow.run(starts, size), where)
            guesses = draws.guess(logits, where)
            follow.put(where, guesses)
            lead.put(where, guesses)
        for r in open_rows:
            follow.known[r] += 1
            stats[r].drafter_steps += 1


def _guessed(lead: Lane, follow: Lane, row: int, end: int) -> int:
    """The last step of `lead` from `end` on that a pass can judge, all before it being guessed."""
    layout = lead.patterns[row].layout
    most = min(lead.known[row] + MAX_STEPS, lead.last[row])
    while end < most and all(follow.holds(row, coord) for coord in layout[end + 1]):
        end += 1
    return end


def _verify(
    lead: Lane, follow: Lane | None, draws: Draws, ends: dict[int, int], stats: list[DecodeStats]
) -> tuple[list[int], list[int], int]:
    """One verifier pass over steps up to `ends` and one more.

    `lead.known` moves to each row's last final step, and the drafter is rewound to the first step
    that holds a changed token.

    Returns:
        Steps judged and steps accepted of each row, and the columns of the pass.
    """
    rows = list(ends)
    starts, size = lead.ahead(rows, upto=ends)
    hidden = lead.run(starts, size)
    where: list[tuple[int, int, Coord]] = []
    drawn: dict[int, list[range]] = {r: [] for r in rows}  # of each step, places in `where`
    for r in rows:
        layout = lead.patterns[r].layout
        for step in range(lead.known[r], min(ends[r] + 1, lead.last[r])):
            first, place = len(where), step - starts[r]
            where += [(r, place, coord) for coord in lead.open(r, layout[step + 1])]
            drawn[r].append(range(first, len(where)))
    guessed = [follow is not None and follow.holds(r, coord) for r, _, coord in where]
    logits = lead.logits(hidden, where)
    guesses = lead.get(where)
    tokens = draws.judge(logits, where, guesses, guessed)
    same = (tokens == guesses).tolist()  # the round's one synchronisation
    for r in draws.called:
        stats[r].close_calls += 1

    keep: list[int] = []
    judged, accepted = [0] * len(rows), [0] * len(rows)
    for r in rows:
        row = stats[r]
        row.rounds += follow is not None
        row.verifier_passes += 1
        final = lead.known[r]
        rewind: list[int] = []
        for members in drawn[r]:
            final += 1
            keep += members
            open_members = [i for i in members if guessed[i]]
            for i in members:
                k = where[i][2].k
                row.drafted[k] += guessed[i]
                row.accepted[k] += guessed[i] and same[i]
                row.bonus += not guessed[i]
            changed = [i for i in open_members if not same[i]]
            judged[r] += bool(open_members)
            accepted[r] += bool(open_members) and not changed
            if follow is not None and changed:
                rewind = [follow.step_of(r, where[i][2]) for i in changed]
                break
            if len(open_members) < len(members):
                break  # what follows was fed without this step's tokens
        lead.commit(r, final)
        if follow is not None and rewind:
            follow.rewind(r, min(rewind))
            if draws.forgetful:
                follow.forget(r, lead)
    kept, final_tokens = [where[i] for i in keep], pick(tokens, keep)
    lead.put(kept, final_tokens)
    if follow is not None:
        follow.put(kept, final_tokens)
    return judged, accepted, max(ends[r] + 1 - starts[r] for r in rows)
