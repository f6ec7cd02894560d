"""One loop for plain, same-pattern and dual-pattern decoding of a batch.

A round: draft until the next m verifier steps have guesses; feed them to the verifier in one pass;
keep the accepted prefix plus one correction, or a bonus token. Plain decoding is the same loop with
no drafter and m = 0. Every row of a batch has its own prefix and its own caches, so a row's result
does not depend on its neighbours.

All bookkeeping of *places* is plain Python, since places never depend on token values within a
draft; token values stay on the device. So a draft needs no synchronisation, and a round needs one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specgen.decoding.acceptance import Rule
from specgen.decoding.draft_length import MAX_STEPS, AutoLength, FixedLength
from specgen.decoding.draws import Draws
from specgen.decoding.lane import Lane, Role, Rows
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.patterns import PatternSpec


@dataclass(frozen=True)
class Drafting:
    """How to draft.

    Attributes:
        rule: how guesses are judged.
        steps: draft length in verifier steps; None chooses it while running (`AutoLength`).
        temperatures: per codebook, divides the drafter's processed logits; () is 1 everywhere.
    """

    rule: Rule = Rule.COUPLED
    steps: int | None = None
    temperatures: tuple[float, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Frames whose every token is final, of all rows, and the counts so far."""

    frames_done: int
    frames_total: int
    stats: DecodeStats


@dataclass
class Decoded:
    """What a decode made.

    Attributes:
        codes: one `[K, T_r]` int64 grid a row.
        stats: one a row.
        margins: one `[K, T_r]` a row if asked for: the gap between the two best perturbed logits,
            which tells rounding ties from faults. NaN where the token was given or judged by the
            textbook rule.
    """

    codes: list[Tensor]
    stats: list[DecodeStats]
    margins: list[Tensor] | None = None


def steps_per_frame(pattern: PatternSpec) -> int:
    """Steps that a pattern spends on a frame in the long run (flatten: K; delay, parallel: 1)."""
    frames = 256
    return max(1, round(len(pattern.of(frames).layout) / frames))


def capacity(pattern: PatternSpec, frames: int) -> int:
    """Cache positions that decoding up to `frames` frames in this pattern needs."""
    return pattern.of(frames).steps + MAX_STEPS + 2


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
) -> Decoded:
    """Decode a batch.

    Args:
        verifier: the model whose output is wanted.
        drafter: the model that guesses, or None.
        frames: T of each row.
        seeds: one a row.
        sampling: temperature 0 is greedy.
        drafting: rule, length and temperatures of the draft.
        prompt: `[B, K, T0]` tokens that every row starts with.
        on_round: called after every round.
        margins: record the margins of every coupled or greedy token.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    drafting = drafting or Drafting()
    rows = Rows.of(frames, prompt)
    lead = Lane(verifier, rows)
    follow = None if drafter is None else Lane(drafter, rows)
    draws = Draws(
        lead, follow, seeds, sampling, drafting.rule, drafting.temperatures, record=margins
    )
    lengths = _length_policy(lead, follow, drafting)
    stats = [DecodeStats(lead.codebooks) for _ in frames]
    total = sum(frames)

    def unfinished() -> list[int]:
        for r in range(len(frames)):
            lead.skip_known(r, lead)
        return [r for r in range(len(frames)) if lead.known[r] < lead.last[r]]

    while active := unfinished():
        began = time.perf_counter()
        ahead = lengths.choose() if follow is not None else 0
        ends = {r: min(lead.known[r] + ahead, lead.last[r]) for r in active}
        drafted = 0
        if follow is not None and ahead:
            drafted = _draft(lead, follow, draws, ends, stats)
        middle = time.perf_counter()
        judged, accepted, columns = _verify(lead, follow, draws, ends, stats)
        finished = time.perf_counter()
        lengths.observe(
            length=ahead,
            accepted=accepted / len(active),
            judged=judged / len(active),
            draft_steps=drafted,
            columns=columns,
            draft_seconds=middle - began,
            verify_seconds=finished - middle,
        )
        if on_round is not None:
            done = sum(lead.frames_done(r) for r in range(len(frames)))
            on_round(Progress(done, total, DecodeStats.total(stats)))
    return Decoded(lead.codes(), stats, draws.margins())


def _length_policy(lead: Lane, follow: Lane | None, drafting: Drafting) -> FixedLength | AutoLength:
    if drafting.steps is not None:
        if drafting.steps > MAX_STEPS:
            raise ValueError(
                f"draft length {drafting.steps} is over the limit of {MAX_STEPS} steps"
            )
        return FixedLength(drafting.steps)
    ratio = 1.0 if follow is None else lead.patterns[0].steps / follow.patterns[0].steps
    return AutoLength(ratio, clocked=drafting.rule is Rule.COUPLED)


def _draft(
    lead: Lane, follow: Lane, draws: Draws, ends: dict[int, int], stats: list[DecodeStats]
) -> int:
    """Guess every open coordinate of the verifier's steps up to `ends`; returns drafter passes."""
    goals = {r: follow.step_reaching(r, lead, end) for r, end in ends.items()}
    passes = 0
    while True:
        for r in goals:
            follow.skip_known(r, lead)
        open_rows = [r for r, goal in goals.items() if follow.known[r] < goal]
        if not open_rows:
            return passes
        hidden, starts = follow.feed(open_rows)
        passes += 1
        where = [
            (r, follow.known[r] - starts[r], coord)
            for r in open_rows
            for coord in follow.patterns[r].layout[follow.known[r] + 1]
            if not lead.holds(r, coord)
        ]
        logits = follow.logits(hidden, where)
        guesses = draws.guess(logits, where)
        follow.put(where, guesses)
        lead.put(where, guesses)
        for r in open_rows:
            follow.known[r] += 1
            stats[r].drafter_steps += 1


def _verify(
    lead: Lane, follow: Lane | None, draws: Draws, ends: dict[int, int], stats: list[DecodeStats]
) -> tuple[int, int, int]:
    """One verifier pass over steps up to `ends` and one more; returns (judged, accepted, columns).

    The counts are of steps. `lead.known` moves to each row's last final step, and the drafter is
    rewound to the first step that holds a changed token.
    """
    rows = list(ends)
    hidden, starts = lead.feed(rows, upto=ends)
    where = [
        (r, step - starts[r], coord)
        for r in rows
        for step in range(lead.known[r], min(ends[r] + 1, lead.last[r]))
        for coord in lead.patterns[r].layout[step + 1]
        if not lead.given(coord)
    ]
    guessed = [follow is not None and follow.holds(r, coord) for r, _, coord in where]
    logits = lead.logits(hidden, where)
    guesses = lead.get(where)
    tokens = draws.judge(logits, where, guesses, guessed)
    same = (tokens == guesses).tolist()  # the round's one synchronisation

    at: dict[int, dict[int, list[int]]] = {r: {} for r in rows}
    for i, (r, place, _) in enumerate(where):
        at[r].setdefault(starts[r] + place + 1, []).append(i)
    keep: list[int] = []
    judged = accepted = 0
    for r in rows:
        stop = min(ends[r] + 1, lead.last[r])
        row = stats[r]
        row.rounds += follow is not None
        row.verifier_passes += 1
        final = lead.known[r]
        rewind: list[int] = []
        for step in range(lead.known[r] + 1, stop + 1):
            final = step
            members = at[r].get(step, [])
            keep += members
            open_members = [i for i in members if guessed[i]]
            for i in members:
                k = where[i][2].k
                row.drafted[k] += guessed[i]
                row.accepted[k] += guessed[i] and same[i]
                row.bonus += not guessed[i]
            changed = [i for i in open_members if not same[i]]
            judged += bool(open_members)
            accepted += bool(open_members) and not changed
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
    pick = torch.tensor(keep, device=tokens.device)
    kept = [where[i] for i in keep]
    lead.put(kept, tokens[pick])
    if follow is not None:
        follow.put(kept, tokens[pick])
    return judged, accepted, max(ends[r] + 1 - starts[r] for r in rows)
