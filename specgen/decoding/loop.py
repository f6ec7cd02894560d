"""One loop for plain, same-pattern and dual-pattern decoding: pieces enter a batch, go round after
round (`specgen.decoding.rounds`), and leave it when every token is final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from specgen.decoding.draft_length import Learnt
from specgen.decoding.lane import MAX_BLOCK, Role
from specgen.decoding.rounds import Batch, Drafting, Finished, Piece
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.patterns import PatternSpec

__all__ = [
    "Decoded",
    "Drafting",
    "Finished",
    "Piece",
    "Progress",
    "Settled",
    "capacity",
    "decode",
    "decode_pieces",
    "draft_steps",
    "steps_per_frame",
]


@dataclass(frozen=True)
class Settled:
    """The frames of a running piece whose every token is final: how many, and `codes()`,
    `[K, frames]`, read only when asked for."""

    frames: int
    codes: Callable[[], Tensor]


@dataclass(frozen=True)
class Progress:
    """Where a decode stands after a round.

    Attributes:
        frames_done, frames_total: settled tokens in frames, and those of all pieces.
        stats: the counts so far.
        running: index of each piece that is being decoded -> what of it is final.
    """

    frames_done: int
    frames_total: int
    stats: DecodeStats
    running: Mapping[int, Settled]


@dataclass
class Decoded:
    """What a decode of a whole batch made: a list of one `Finished` value a row each."""

    codes: list[Tensor]
    stats: list[DecodeStats]
    margins: list[Tensor] | None = None


def steps_per_frame(pattern: PatternSpec) -> int:
    """Steps that a pattern spends on a frame in the long run (flatten: K; delay, parallel: 1)."""
    frames = 256
    return max(1, round(len(pattern.of(frames).layout) / frames))


def draft_steps(frames: float | None, pattern: PatternSpec) -> int | None:
    """A draft length in a verifier's steps, one at least; None, which is `auto`, stays."""
    return None if frames is None else max(1, round(frames * steps_per_frame(pattern)))


def capacity(pattern: PatternSpec, frames: int) -> int:
    """Cache positions that decoding up to `frames` frames in this pattern needs."""
    return pattern.of(frames).steps + MAX_BLOCK


def decode(
    verifier: Role,
    drafter: Role | None = None,
    *,
    frames: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    drafting: Drafting | None = None,
    prompt: Tensor | None = None,
    on_round: Callable[[Progress], None] | None = None,
    margins: bool = False,
    learnt: Learnt | None = None,
) -> Decoded:
    """Decode a batch, every row at once; arguments as for `decode_pieces`.

    Args:
        frames: T of each row.
        seeds: one a row.
        prompt: `[B, K, T0]` tokens that every row starts with.
    """
    if len(seeds) != len(frames):
        raise ValueError(f"{len(frames)} rows, but {len(seeds)} seeds")
    if prompt is not None and prompt.shape[0] != len(frames):
        raise ValueError(f"{len(frames)} rows, but a prompt for {prompt.shape[0]}")
    starts = [None] * len(frames) if prompt is None else list(prompt)
    pieces = [Piece(*one) for one in zip(frames, seeds, starts, strict=True)]
    done = decode_pieces(
        verifier,
        drafter,
        pieces,
        rows=len(pieces),
        sampling=sampling,
        drafting=drafting,
        on_round=on_round,
        margins=margins,
        learnt=learnt,
    )
    ordered = sorted(done, key=lambda one: one.index)
    kept = [one.margins for one in ordered if one.margins is not None]
    return Decoded(
        [one.codes for one in ordered], [one.stats for one in ordered], kept if margins else None
    )


def decode_pieces(
    verifier: Role,
    drafter: Role | None,
    pieces: Sequence[Piece],
    *,
    rows: int,
    sampling: Sampling,
    drafting: Drafting | None = None,
    on_admit: Callable[[int, int], None] | None = None,
    then: Callable[[Finished], Piece | None] | None = None,
    longest: int | None = None,
    total_frames: int | None = None,
    on_round: Callable[[Progress], None] | None = None,
    margins: bool = False,
    learnt: Learnt | None = None,
) -> Iterator[Finished]:
    """Decode pieces, `rows` at a time: where one is done, the next takes its place in the batch.

    Args:
        verifier: the model whose output is wanted.
        drafter: the model that guesses, or None.
        pieces: what to decode, in the order in which they enter.
        rows: places in the batch; the models have at least as many.
        sampling: temperature 0 is greedy.
        drafting: rule, length and temperatures of the draft.
        on_admit: called with (row, index of the piece) before a piece takes a row, so that the
            models can take up its condition. Without it, piece i is made on row i's condition.
        then: what follows a piece that is done, in its row and under its index (the next window of
            a long piece); None: nothing.
        longest: frames of the longest grid, and
        total_frames: of all, for `Progress`; where `then` brings more than `pieces` tell.
        on_round: called after every round.
        margins: record the margins of every coupled or greedy token.
        learnt: what decodes of this pair have taught `auto`; added to. It never changes a token.

    Yields:
        Pieces as they are done.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    if not pieces or rows < 1:
        raise ValueError("a batch needs at least one row")
    rows = min(rows, len(pieces))
    longest = longest or max(piece.frames for piece in pieces)
    batch = Batch(
        verifier, drafter, rows, longest, sampling, drafting or Drafting(), margins, learnt
    )
    total, done = total_frames or sum(piece.frames for piece in pieces), 0
    counts = DecodeStats(batch.lead.codebooks)
    waiting = iter(range(len(pieces)))

    def admit(row: int, index: int, piece: Piece) -> None:
        if on_admit is not None:
            on_admit(row, index)
        batch.admit(row, index, piece)

    for row, index in zip(range(rows), waiting, strict=False):
        admit(row, index, pieces[index])
    while batch.index:
        batch.round()
        if on_round is not None:
            on_round(_progress(batch, done, total, counts))
        row = 0
        while row < len(batch.index):
            if not batch.finished(row):
                row += 1
                continue
            done += batch.new_frames(row)
            made = batch.take(row)
            counts = DecodeStats.total([counts, made.stats])
            yield made
            after = None if then is None else then(made)
            index = made.index if after is not None else next(waiting, -1)
            if index >= 0:
                admit(row, index, after or pieces[index])
            else:
                batch.close(row)


def _progress(batch: Batch, done: int, total: int, counts: DecodeStats) -> Progress:
    rows = range(len(batch.index))
    return Progress(
        done + sum(batch.new_frames(row) for row in rows),
        total,
        DecodeStats.total([counts, *batch.stats]),
        {
            batch.index[row]: Settled(batch.lead.whole_frames(row), partial(batch.settled, row))
            for row in rows
        },
    )
