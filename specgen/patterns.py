"""Codebook patterns: in which order a grid of codec tokens is written.

A pattern maps every coordinate (t, k) of a `[K, T]` grid to exactly one step and lists each step's
coordinates. The conventions are those of audiocraft (`modules/codebooks_patterns.py`): step 0 is a
column of special tokens only, the special token's id is `card`, and the logits read at step s
predict the tokens of step s + 1. MusicGen's paper (Copet et al. 2023, section 2.2) names the kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("parallel", "delay", "flatten", "coarse_first", "stack", "stack_delay")


class Coord(NamedTuple):
    """One token's place in the grid: frame `t` of codebook `k`."""

    t: int
    k: int


Layout = tuple[tuple[Coord, ...], ...]


@dataclass(frozen=True)
class PatternSpec:
    """A pattern before the number of frames is known; plain data, as checkpoints hold it.

    Attributes:
        kind: one of `KINDS`. `flatten` is audiocraft's `unroll`; `stack` writes one group of
            codebooks over all frames before the next group (audiocraft's `musiclm`), `stack_delay`
            does so with delays within a group.
        codebooks: K.
        delays: frames each codebook waits (`delay`: K values; `coarse_first`: K - 1 for the fine
            ones; `flatten`: K, codebooks of one inner step must agree). Default: 0..K-1 for
            `delay`, else 0.
        flattening: `flatten` only: the inner step of each codebook; equal numbers share a step.
        flatten_first: `delay` only: the first frames are written one token a step.
        empty_initial: `delay` and `parallel` only: empty steps before the first frame.
        group: `stack` and `stack_delay`: codebooks a stack.

    Raises:
        ValueError: options that do not describe a pattern.
    """

    kind: str
    codebooks: int
    delays: tuple[int, ...] | None = None
    flattening: tuple[int, ...] | None = None
    flatten_first: int = 0
    empty_initial: int = 0
    group: int = 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"pattern kind {self.kind!r} is unknown; known: {', '.join(KINDS)}")
        if self.codebooks < 1:
            raise ValueError(f"a pattern needs at least one codebook, got {self.codebooks}")
        for name in ("delays", "flattening"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, tuple(values))
            expected = self.codebooks - (name == "delays" and self.kind == "coarse_first")
            if len(values) != expected:
                raise ValueError(f"{self.kind}: {name} needs {expected} values, got {len(values)}")
            if list(values) != sorted(values) or min(values, default=0) < 0:
                raise ValueError(f"{self.kind}: {name} must rise from 0 or more, got {values}")
        if self.kind in ("stack", "stack_delay") and self.codebooks % self.group:
            raise ValueError(
                f"{self.kind}: {self.codebooks} codebooks are no multiple of {self.group}"
            )
        if self.flatten_first < 0 or self.empty_initial < 0:
            raise ValueError(f"{self.kind}: flatten_first and empty_initial cannot be negative")

    def of(self, frames: int) -> Pattern:
        """The pattern over `frames` frames (cached: patterns are immutable)."""
        return _build(self, frames)


@dataclass(frozen=True)
class Pattern:
    """A validated pattern over a `[K, T]` grid.

    Attributes:
        spec: what it was built from.
        frames: T.
        layout: the coordinates of each step; `layout[0]` is empty (the special column). Steps may
            hold coordinates of frames T and beyond in audiocraft's layouts; here they are left out,
            since such places are always filled with the special token.

    Raises:
        ValueError: a coordinate is missing or held twice, a step holds one codebook twice, or a
            codebook's frames do not rise with the steps.
    """

    spec: PatternSpec
    frames: int
    layout: Layout = field(repr=False)

    def __post_init__(self) -> None:
        last = [-1] * self.codebooks
        if not self.layout or self.layout[0]:
            raise ValueError("a pattern starts with an empty step (the special column)")
        for s, coords in enumerate(self.layout):
            if len({c.k for c in coords}) != len(coords):
                raise ValueError(f"step {s} holds one codebook twice")
            for t, k in coords:
                if t <= last[k]:
                    raise ValueError(f"codebook {k} returns to frame {t} at step {s}")
                if t > last[k] + 1:
                    raise ValueError(f"codebook {k} skips to frame {t} at step {s}")
                last[k] = t
        if any(t != self.frames - 1 for t in last):
            raise ValueError(f"not every codebook reaches frame {self.frames - 1}: {last}")

    @property
    def codebooks(self) -> int:
        return self.spec.codebooks

    @property
    def steps(self) -> int:
        """Number of steps, the special column included (S)."""
        return len(self.layout)

    @cached_property
    def step_of(self) -> tuple[tuple[int, ...], ...]:
        """`step_of[k][t]` is the step that holds coordinate (t, k)."""
        table = [[0] * self.frames for _ in range(self.codebooks)]
        for s, coords in enumerate(self.layout):
            for t, k in coords:
                table[k][t] = s
        return tuple(map(tuple, table))

    @cached_property
    def _gather(self) -> Tensor:
        """Index of each place of `[K, S]` in a flat `[K * T + 1]` grid, whose last is special."""
        index = torch.full((self.codebooks, self.steps), self.codebooks * self.frames)
        for s, coords in enumerate(self.layout):
            for t, k in coords:
                index[k, s] = k * self.frames + t
        return index

    @cached_property
    def mask(self) -> Tensor:
        """`[K, S]` bool: where the sequence holds a real token."""
        return self._gather != self.codebooks * self.frames

    def build(self, codes: Tensor, special: int) -> Tensor:
        """Write a grid out as a sequence.

        Args:
            codes: `[B, K, T]` tokens.
            special: id of the special token (`card`).

        Returns:
            `[B, K, S]` tokens, special where a step holds nothing of a codebook.
        """
        flat = torch.cat([codes.flatten(1), codes.new_full((codes.shape[0], 1), special)], dim=1)
        return flat[:, self._gather.to(codes.device)]

    def revert(self, sequence: Tensor) -> Tensor:
        """Read a sequence `[B, K, S, ...]` back as a grid `[B, K, T, ...]`."""
        steps = torch.tensor(self.step_of, device=sequence.device)
        return sequence[:, torch.arange(self.codebooks, device=sequence.device)[:, None], steps]


@lru_cache(maxsize=64)
def _build(spec: PatternSpec, frames: int) -> Pattern:
    if frames < 1:
        raise ValueError(f"a pattern needs at least one frame, got {frames}")
    makers = {
        "parallel": _delayed,
        "delay": _delayed,
        "flatten": _flattened,
        "coarse_first": _coarse_first,
        "stack": _stacked,
        "stack_delay": _stacked,
    }
    steps = (
        tuple(Coord(t, k) for t, k in step if t < frames)
        for step in makers[spec.kind](spec, frames)
    )
    return Pattern(spec, frames, ((), *steps))


Steps = Iterator[list[tuple[int, int]]]


def _delayed(spec: PatternSpec, frames: int) -> Steps:
    K, first = spec.codebooks, min(spec.flatten_first, frames)
    delays: Sequence[int] = spec.delays or ([0] * K if spec.kind == "parallel" else range(K))
    yield from ([] for _ in range(spec.empty_initial))
    yield from ([(t, k)] for t in range(first) for k in range(K))
    # audiocraft starts the delayed part at `flatten_first` even when the piece is shorter.
    for step in range(spec.flatten_first, frames + max(delays)):
        yield [(step - d, k) for k, d in enumerate(delays) if step - d >= spec.flatten_first]


def _flattened(spec: PatternSpec, frames: int) -> Steps:
    K = spec.codebooks
    inner = spec.flattening or tuple(range(K))
    delays = spec.delays or (0,) * K
    groups: dict[int, list[int]] = {}
    for k, i in enumerate(inner):
        groups.setdefault(i, []).append(k)
    if any(len({delays[k] for k in members}) > 1 for members in groups.values()):
        raise ValueError("flatten: codebooks of one inner step must have the same delay")
    last = frames + max(delays)
    placed: list[tuple[int, list[tuple[int, int]]]] = []
    for t in range(last):
        for i in range(max(inner) + 1):
            members = groups.get(i)
            if members is None:
                placed.append((t, []))
            elif t + delays[members[0]] < last:
                placed.append((t + delays[members[0]], [(t, k) for k in members]))
    # Sorting by (virtual frame, coordinates) is audiocraft's rule for interleaving delayed groups.
    yield from (coords for _, coords in sorted(placed))


def _coarse_first(spec: PatternSpec, frames: int) -> Steps:
    delays = spec.delays or (0,) * (spec.codebooks - 1)
    yield from ([(t, 0)] for t in range(frames))
    for step in range(frames + max(delays, default=-frames)):
        yield [(step - d, k + 1) for k, d in enumerate(delays) if step - d >= 0]


def _stacked(spec: PatternSpec, frames: int) -> Steps:
    for low in range(0, spec.codebooks, spec.group):
        books = range(low, low + spec.group)
        if spec.kind == "stack":
            yield from ([(t, k)] for t in range(frames) for k in books)
        else:
            for step in range(frames + spec.group - 1):
                yield [(step - k + low, k) for k in books if step - k + low >= 0]


def contaminated(drafter: Pattern, verifier: Pattern) -> tuple[bool, ...]:
    """Which codebooks the textbook accept rule would bias, for this pair of patterns.

    A codebook is contaminated when, for some coordinate c of it, a token that the verifier judges
    before c was drafted after c, hence with sight of c's guess: given that this token was accepted,
    the guess no longer follows the drafter's distribution (docs/exactness.md).

    Returns:
        One flag a codebook.
    """
    flags = [False] * verifier.codebooks
    latest = 0  # the latest drafter step among coordinates of earlier verifier steps
    for coords in verifier.layout:
        steps = [drafter.step_of[k][t] for t, k in coords]
        for (_, k), step in zip(coords, steps, strict=True):
            flags[k] |= latest > step
        latest = max([latest, *steps])
    return tuple(flags)
