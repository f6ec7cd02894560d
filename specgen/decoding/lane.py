"""One model's side of a decode: its patterns, its sequences, and how far its cache is good."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from specgen.lm.graphs import Recordings
from specgen.patterns import Coord, Pattern, PatternSpec
from specgen.tensors import pick, place, upload

MAX_BLOCK = 50  # columns of a pass; what a cache must hold beyond the longest sequence
_PART = 512  # columns of a given start that are fed at once, where there is room

# A coordinate to read or write: its row, the place of its predicting column in the block, itself.
Where = Sequence[tuple[int, int, Coord]]


class Scorer(Protocol):
    """What decoding needs of a language model; `specgen.lm.session.LMSession` is the real one."""

    @property
    def card(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def capacity(self) -> int: ...

    def feed(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """Run columns `[B, K, n]` from each row's start on; the cache forgets what was there.

        The first B rows take part, which may be fewer than there are.
        """

    def logits(
        self, hidden: Tensor, rows: Sequence[int], places: Sequence[int], codebooks: Sequence[int]
    ) -> Tensor:
        """`[M, card]` guided logits of chosen (row, place in the block, codebook)."""

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""


@runtime_checkable
class Listener(Protocol):
    """What a drafter's `Scorer` has besides that may read the verifier's states."""

    @property
    def listens(self) -> bool:
        """Whether it does."""

    @property
    def remembers(self) -> bool:
        """Whether what a column predicts depends on the columns before it."""

    def hear(self, known: Sequence[int]) -> None:
        """How many columns of each row the verifier has read that are final."""


@runtime_checkable
class Recordable(Protocol):
    """What a `Scorer` has besides where calls can be recorded (`specgen.lm.graphs`)."""

    @property
    def capacity(self) -> int: ...
    @property
    def recordings(self) -> Recordings | None:
        """Where, or None where it does not pay."""

    def positions(self, starts: Sequence[int]) -> Sequence[int]:
        """Where each row's columns lie in the cache."""

    def columns(self, tokens: Tensor, starts: Tensor, places: Tensor, reach: int) -> Tensor:
        """`feed` and `logits` of one whole column a row: `[B, K, card]`."""


@dataclass(frozen=True)
class Role:
    """A model and the pattern it was trained in."""

    scorer: Scorer
    pattern: PatternSpec


class Lane:
    """The state of one model in a decode.

    Args:
        role: the model in its part.
        rows: B.
        beside: the verifier's lane, for a drafter. Of one pattern, the two have one sequence, which
            the verifier writes: every token that a drafter draws or learns of goes to both.

    Attributes:
        known: for each row, the last step up to which every token is settled: final for the
            verifier, guessed or final for the drafter.
        fed: for each row, columns `[0, fed)` of the cache that hold the sequence as it is now.
        last: for each row, its last step.
    """

    def __init__(self, role: Role, rows: int, beside: Lane | None = None) -> None:
        self.scorer, self._pattern = role.scorer, role.pattern
        self.codebooks, self.card = role.pattern.codebooks, role.scorer.card
        self.device = role.scorer.device
        self._remembers = not isinstance(self.scorer, Listener) or self.scorer.remembers
        # The last column is nobody's: what a recorded draft draws in vain is written there.
        self._width = role.scorer.capacity + 1
        shape = (rows, self.codebooks, self._width)
        self._sequence = torch.full(shape, self.card, device=self.device)
        self._shares = False
        if beside is not None and beside._like(self):
            self._shares, self._sequence = True, beside._sequence
        self.patterns: list[Pattern] = [role.pattern.of(1)] * rows
        self.known, self.fed, self.last = [0] * rows, [0] * rows, [0] * rows
        self._given = [0] * rows  # frames given at the start
        self._final = [0] * rows  # steps up to here hold final tokens only
        self._finished: list[list[int]] = [[] for _ in range(rows)]  # tokens settled by each step
        self._whole: list[list[int]] = [[] for _ in range(rows)]  # step that completes each frame

    def admit(self, row: int, frames: int, prompt: Tensor | None) -> None:
        """Begin a grid of `frames` frames that starts with `prompt` `[K, T0]`."""
        pattern = self._pattern.of(frames)
        self.patterns[row], self.last[row] = pattern, pattern.steps - 1
        self.known[row] = self.fed[row] = self._final[row] = 0
        self._finished[row] = list(accumulate(len(step) for step in pattern.layout))
        columns = zip(*pattern.step_of, strict=True)
        self._whole[row] = list(accumulate(map(max, columns), max))
        self._given[row] = 0 if prompt is None else prompt.shape[-1]
        self._sequence[row] = self.card
        if prompt is not None:
            grid = torch.full((1, self.codebooks, frames), self.card, device=self.device)
            grid[0, :, : self._given[row]] = prompt
            self._sequence[row, :, : pattern.steps] = pattern.build(grid, self.card)[0]
        self.skip_known(row, self)

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        self.scorer.move(source, target)
        self._sequence[target] = self._sequence[source]
        for values in self._state:
            values[target] = values[source]

    def shrink(self, rows: int) -> None:
        """Go on with the first `rows` rows."""
        self._sequence = self._sequence[:rows]
        for values in self._state:
            del values[rows:]

    def _like(self, other: Lane) -> bool:
        """Whether the other's sequence is this one's."""
        same = self._pattern == other._pattern and self.device == other.device
        return same and self._sequence.shape == other._sequence.shape

    @property
    def _state(self) -> tuple[list[Any], ...]:
        state = (self.patterns, self.known, self.fed, self.last)
        return (*state, self._given, self._final, self._finished, self._whole)

    @property
    def whole_columns(self) -> bool:
        """Whether most steps hold a token of every codebook."""
        return self._pattern.kind in ("delay", "parallel")

    def step_of(self, row: int, coord: Coord) -> int:
        return self.patterns[row].step_of[coord.k][coord.t]

    def given_frames(self, row: int) -> int:
        """Frames that were there from the start."""
        return self._given[row]

    def open(self, row: int, coords: Sequence[Coord]) -> Sequence[Coord]:
        """Those coordinates whose tokens were not there from the start."""
        given = self._given[row]
        return [coord for coord in coords if coord.t >= given] if given else coords

    def holds(self, row: int, coord: Coord) -> bool:
        """Whether the token is settled (see `known`)."""
        t, k = coord
        return self.patterns[row].step_of[k][t] <= self.known[row] or t < self._given[row]

    def skip_known(self, row: int, lead: Lane) -> None:
        """Pass over steps that leave nothing to draw: `lead` holds all their tokens already."""
        layout = self.patterns[row].layout
        while self.known[row] < self.last[row] and all(
            lead.holds(row, coord) for coord in layout[self.known[row] + 1]
        ):
            self.known[row] += 1

    def step_reaching(self, row: int, lead: Lane, end: int) -> int:
        """The step of this lane that settles the coordinates of `lead`'s open steps to `end`."""
        layout = lead.patterns[row].layout
        return max(
            (
                self.step_of(row, coord)
                for step in range(lead.known[row] + 1, end + 1)
                for coord in layout[step]
            ),
            default=0,
        )

    def ahead(
        self, rows: Sequence[int], upto: Mapping[int, int] | None = None
    ) -> tuple[list[int], int]:
        """The block that feeds each row's settled columns (or those up to `upto`) that the cache
        lacks; it counts as fed, and whoever asks must run it.

        Rows not named ride along: what they feed is either good, and then counted, or overwritten
        before it is read.

        Returns:
            Each row's first column, and how many.
        """
        if upto is None and not self._remembers:
            self.fed = [known + 1 for known in self.known]
            return list(self.known), 1
        # A row that rides along keeps its last settled column for its own turn: what that column
        # predicts is read from the pass that feeds it.
        ends = list(self.known)
        for r in rows:
            ends[r] = (self.known[r] if upto is None else upto[r]) + 1
        while True:
            starts = list(self.fed)
            missing = {r: ends[r] - starts[r] for r in rows}
            size = max(missing.values())
            # A given start is fed in parts first, so that no row that rides along runs out of room.
            most = max(MAX_BLOCK, min(_PART, self.scorer.capacity - max(starts)))
            if size <= most:
                break
            part = min(most, size - MAX_BLOCK)
            self.run(starts, part)
            for r in rows:
                self.fed[r] += max(0, min(part, missing[r] - MAX_BLOCK))
        self.fed = [max(s, min(s + size, e)) for s, e in zip(starts, ends, strict=True)]
        return starts, size

    def run(self, starts: list[int], size: int) -> Tensor:
        """Run `size` columns of every row from its start on."""
        if min(starts) == max(starts):
            block = self._sequence[..., starts[0] : starts[0] + size]
        else:
            block = self.columns(upload(starts, self.device), size)
        return self.scorer.feed(block, starts)

    def columns(self, starts: Tensor, size: int) -> Tensor:
        """`[B, K, size]` tokens of the columns from `starts` `[B]` on."""
        index = starts[:, None, None] + torch.arange(size, device=self.device)
        return self._sequence.gather(2, index.expand(-1, self.codebooks, -1))

    def cell(self, row: int, coord: Coord | None, k: int) -> int:
        """Where a token lies in `flat`; without a coordinate, a place of codebook `k` that nobody
        reads."""
        step = self._width - 1 if coord is None else self.step_of(row, coord)
        return (row * self.codebooks + k) * self._width + step

    @property
    def flat(self) -> Tensor:
        """All tokens of all rows, in one line (the same memory)."""
        return self._sequence.view(-1)

    def logits(self, hidden: Tensor, where: Where) -> Tensor:
        """`[M, card]` logits of coordinates, read at their predicting columns."""
        rows, places, coords = zip(*where, strict=True)
        return self.scorer.logits(hidden, rows, places, [c.k for c in coords])

    def before(self, row: int, coord: Coord) -> Tensor:
        """`[K, n]`: every column before a coordinate, the last of which predicts it."""
        return self._sequence[row, :, : self.step_of(row, coord)]

    def _cells(self, where: Where) -> list[int]:
        codebooks, width, patterns = self.codebooks, self._width, self.patterns
        return [(r * codebooks + k) * width + patterns[r].step_of[k][t] for r, _, (t, k) in where]

    def put(self, where: Where, tokens: Tensor) -> None:
        """Write `[M]` tokens at their coordinates; nothing if the verifier's lane has done so."""
        if not self._shares:
            place(self.flat, self._cells(where), tokens)

    def get(self, where: Where) -> Tensor:
        """Read `[M]` tokens at their coordinates."""
        return pick(self.flat, self._cells(where))

    def commit(self, row: int, final: int) -> None:
        """Steps up to `final` are settled for good; the cache is good for the columns before it."""
        self.known[row] = self.fed[row] = final

    def rewind(self, row: int, step: int) -> None:
        """A token of `step` has changed: what was fed or guessed from there on is void."""
        self.known[row] = min(self.known[row], step)
        self.fed[row] = min(self.fed[row], step)

    def forget(self, row: int, lead: Lane) -> None:
        """Void every guess that is not final."""
        layout = self.patterns[row].layout
        step = self._final[row]
        while step < self.last[row] and all(lead.holds(row, coord) for coord in layout[step + 1]):
            step += 1
        self._final[row] = step
        self.rewind(row, step)

    def frames_done(self, row: int) -> int:
        """Settled tokens, in frames."""
        return self._finished[row][self.known[row]] // self.codebooks

    def whole_frames(self, row: int) -> int:
        """Frames from the start on whose every token is settled."""
        return bisect_right(self._whole[row], self.known[row])

    def codes(self, row: int) -> Tensor:
        """The grid, `[K, T]`; where it is not settled yet, what stands there for now."""
        pattern = self.patterns[row]
        return pattern.revert(self._sequence[row : row + 1, :, : pattern.steps])[0]
