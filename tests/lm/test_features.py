"""A drafter that reads its verifier's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.decoding.lane import Lane, Role
from specgen.lm.features import Features
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.patterns import Coord, PatternSpec
from tests.lm.test_model import BASE, condition, made, tokens

ROPE = replace(BASE, positions="rope")
ROWS, WIDTH = 3, 5


def filled(starts: Sequence[int], size: int) -> tuple[Features, Tensor]:
    """States of `size` columns a row from `starts` on, known as far as they go."""
    torch.manual_seed(3)
    features = Features(ROWS, 12, WIDTH, 1, torch.device("cpu"), torch.float64)
    states = torch.randn(ROWS, size, WIDTH, dtype=torch.float64)
    features.keep(states, starts)
    features.known = [start + size for start in starts]
    return features, states


@pytest.mark.parametrize("starts", [[0, 0, 0], [0, 2, 1]])
def test_beside_a_column_stands_the_state_it_was_drawn_from(starts: list[int]) -> None:
    features, states = filled(starts, 4)
    assert torch.equal(features.beside([s + 1 for s in starts], 4), states)


@pytest.mark.parametrize("starts", [[2, 2, 2], [3, 3, 3], [2, 4, 5], [0, 2, 5]])
@pytest.mark.parametrize("halves", [1, 2])
def test_what_is_foreseen_stands_until_the_verifier_has_read(
    starts: list[int], halves: int
) -> None:
    torch.manual_seed(4)
    features = Features(ROWS, 12, 2 * WIDTH, halves, torch.device("cpu"), torch.float64)
    read = torch.randn(ROWS, 6, halves * WIDTH, dtype=torch.float64)
    features.keep(read, [0] * ROWS)
    features.known = known = [3, 3, 3] if len(set(starts)) == 1 else [3, 4, 5]
    own = torch.randn(ROWS, 2, WIDTH, dtype=torch.float64)
    features.foresee(own, starts)
    for row, start in enumerate(starts):
        for place in range(2):
            column = start + place
            found = features.beside([column + 1] * ROWS, 1)[row, 0, : halves * WIDTH]
            expected = read[row, column] if column < known[row] else own[row, place].repeat(halves)
            assert torch.equal(found, expected)
    assert not features.beside([4] * ROWS, 1)[..., halves * WIDTH :].any()
    features.keep(read, [0] * ROWS)
    features.known = [6] * ROWS
    assert torch.equal(features.beside([1] * ROWS, 6)[..., : halves * WIDTH], read)


def test_what_was_foreseen_ends_with_its_draft() -> None:
    features, states = filled([0, 0, 0], 5)
    features.hear([4, 4, 4])
    features.foresee(torch.zeros(ROWS, 1, WIDTH).double(), [4, 4, 4])
    features.hear([5, 5, 5])
    assert torch.equal(features.beside([5, 5, 5], 2)[:, 0], states[:, 4])


@pytest.mark.parametrize("starts", [[2, 2, 2], [3, 2, 0]])
def test_what_the_verifier_has_not_read_is_zero(starts: list[int]) -> None:
    """Unless it is the first of a block, where `foresee` has left something."""
    features, states = filled([0, 0, 0], 5)
    features.known = [2, 3, 4]
    features.foresee(torch.zeros(ROWS, 1, WIDTH).double(), [2, 3, 4])
    found = features.beside(starts, 3)
    late = F.pad(states, (0, 0, 1, 0))  # the first column was drawn from nothing
    for row, (start, known) in enumerate(zip(starts, features.known, strict=True)):
        for place in range(3):
            there = start + place <= known
            expected = late[row, start + place] if there else torch.zeros(WIDTH).double()
            assert torch.equal(found[row, place], expected)


def test_states_of_one_half_leave_the_other_at_zero() -> None:
    features = Features(1, 4, WIDTH, 1, torch.device("cpu"), torch.float64)
    features.keep(torch.ones(1, 2, 3, dtype=torch.float64), [0])
    features.known = [2]
    assert features.beside([1], 1).tolist() == [[[1, 1, 1, 0, 0]]]


def pair(
    rows: int, guidance: float | None, attention: bool = True
) -> tuple[MusicLM, MusicLM, LMSession, LMSession]:
    """A verifier and a drafter that reads it."""
    verifier = made(ROPE)
    options = {"layers": 1, "condition_dim": 0, "feature_dim": 2 * ROPE.dim}
    follower = made(replace(ROPE, **options, attention=attention))  # type: ignore[arg-type]
    given = condition(rows)
    options = {"condition": given, "null": condition(1, 1), "guidance": guidance}
    lead = LMSession(verifier, rows=rows, capacity=16, **options)  # type: ignore[arg-type]
    return verifier, follower, lead, LMSession(follower, rows=rows, capacity=16, verifier=lead)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("guidance", [None, 2.5])
@pytest.mark.parametrize("blocks", [[1, 1, 1, 1, 1, 1], [3, 3], [2, 1, 3]])
def test_columns_on_a_cache_equal_the_whole_sequence(
    guidance: float | None, blocks: list[int], attention: bool
) -> None:
    verifier, follower, lead, drafter = pair(2, guidance, attention)
    sequence = tokens(2, 6)
    given = verifier.transformer.memory(condition(2))
    null = verifier.transformer.memory(condition(1, 1).expand(2, -1, -1))
    halves = [verifier.hidden(sequence, given)]
    halves += [verifier.hidden(sequence, null) if guidance else torch.zeros_like(halves[0])]
    late = F.pad(torch.cat(halves, dim=-1), (0, 0, 1, -1))
    expected = follower.hidden(sequence, None, late)
    at, parts = 0, []
    for size in blocks:
        block = sequence[..., at : at + size]
        lead.feed(block, [at] * 2)
        drafter.hear([at + size] * 2)
        parts.append(drafter.feed(block, [at] * 2).clone())
        at += size
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-12)
    assert not torch.allclose(expected, follower.hidden(sequence, None), atol=1e-3)


def test_without_attention_a_column_is_all_that_is_read() -> None:
    """Beside its state: no cache is held, no position counts, and only such a drafter can do so."""
    _, follower, _, drafter = pair(2, 2.5, attention=False)
    assert drafter.cache.nbytes == 0 and follower.config.kv_heads == 0
    long = LMSession(follower, rows=1, capacity=2**19 // ROPE.dim)  # as long as caches are turned
    assert long.cache.nbytes == 0
    assert not any("attention" in name or "norm1" in name for name in follower.state_dict())
    states = torch.randn(2, 6, 2 * ROPE.dim, dtype=torch.float64)
    whole = follower.hidden(tokens(2, 6), None, states)
    last = follower.hidden(tokens(2, 6)[..., 5:], None, states[:, 5:])
    assert torch.allclose(whole[:, 5:], last, atol=1e-12)
    with pytest.raises(ValueError, match="needs attention"):
        replace(ROPE, attention=False)


@pytest.mark.parametrize("places", [[0, 1], [1, 0], [1, 1]])
def test_logits_come_in_the_order_they_are_asked_for(places: list[int]) -> None:
    """Whole columns of one row's block, also turned round or one of them twice."""
    verifier, _, lead, _ = pair(1, None)
    K = verifier.config.codebooks
    hidden = lead.feed(tokens(1, 2), [0])
    asked = [place for place in places for _ in range(K)]
    found = lead.logits(hidden, [0] * len(asked), asked, list(range(K)) * 2)
    expected = [verifier.head(hidden[0, place], k) for place in places for k in range(K)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-12)


@pytest.mark.parametrize("attention", [True, False])
def test_a_drafter_is_fed_what_it_reads(attention: bool) -> None:
    """One without attention the last settled column alone, however many its cache lacks."""
    _, _, _, drafter = pair(2, None, attention)
    lane = Lane(Role(drafter, PatternSpec("delay", ROPE.codebooks)), 2)
    for row in range(2):
        lane.admit(row, 8, None)
    lane.known = [2, 4]
    assert lane.ahead([0, 1]) == (([0, 0], 5) if attention else ([2, 4], 1))
    assert lane.fed == [3, 5]


@pytest.mark.parametrize("kind", ["delay", "parallel"])
def test_what_the_verifier_is_told_its_drafter_knows(kind: str) -> None:
    """Of one pattern the two lanes have one sequence, else each has its own."""
    _, _, verifier, drafter = pair(2, None, attention=False)
    lead = Lane(Role(verifier, PatternSpec("delay", ROPE.codebooks)), 2)
    follow = Lane(Role(drafter, PatternSpec(kind, ROPE.codebooks)), 2, lead)
    for row in range(2):
        for lane in (lead, follow):
            lane.admit(row, 8, None)
    where, token = [(1, 0, Coord(2, 1))], torch.tensor([3])
    lead.put(where, token)
    assert follow.get(where).tolist() == [3 if kind == "delay" else ROPE.card]
    follow.put(where, token)
    for lane in (lead, follow):
        lane.move(1, 0)
        lane.shrink(1)
    assert [lane.codes(0)[1, 2].item() for lane in (lead, follow)] == [3, 3]


@pytest.mark.parametrize("attention", [True, False])
def test_a_draft_goes_on_with_the_drafters_own_states(attention: bool) -> None:
    _, follower, lead, drafter = pair(2, 2.5, attention)
    sequence = tokens(2, 6)
    lead.feed(sequence[..., :3], [0] * 2)
    drafter.hear([3] * 2)
    parts = [drafter.feed(sequence[..., :4], [0] * 2).clone()]
    parts += [drafter.feed(sequence[..., at : at + 1], [at] * 2).clone() for at in (4, 5)]
    read = lead.model.hidden(sequence, lead.model.transformer.memory(condition(2)))
    null = lead.model.transformer.memory(condition(1, 1).expand(2, -1, -1))
    late = F.pad(torch.cat([read, lead.model.hidden(sequence, null)], dim=-1), (0, 0, 1, -1))
    for column in (4, 5):
        own = follower.hidden(sequence[..., :column], None, late[:, :column])[:, -1]
        late[:, column] = torch.cat([own, own], dim=-1)
    expected = follower.hidden(sequence, None, late)
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-12)


def test_rows_move_with_their_states() -> None:
    _, _, lead, drafter = pair(3, 2.0)
    sequence = tokens(3, 4)
    lead.feed(sequence, [0] * 3)
    drafter.hear([4] * 3)
    expected = drafter.feed(sequence, [0] * 3)[2].clone()
    lead.move(2, 0)
    drafter.move(2, 0)
    drafter.hear([4])
    assert torch.allclose(drafter.feed(sequence[2:], [0])[0], expected, atol=1e-12)


def test_a_drafter_without_its_verifier_reads_nothing() -> None:
    _, follower, _, _ = pair(1, None)
    alone = LMSession(follower, rows=1, capacity=16)
    alone.hear([3])
    assert torch.allclose(
        alone.feed(tokens(1, 4), [0]), follower.hidden(tokens(1, 4), None), atol=1e-12
    )


def test_sessions_made_in_inference_mode_hear_outside_of_it() -> None:
    with torch.inference_mode():
        _, _, lead, drafter = pair(2, 2.5)
    sequence = tokens(2, 3)
    lead.feed(sequence, [0] * 2)
    drafter.hear([1, 2])
    heard = drafter.feed(sequence, [0] * 2).clone()
    drafter.hear([3, 3])
    assert not torch.equal(drafter.feed(sequence, [0] * 2), heard)
