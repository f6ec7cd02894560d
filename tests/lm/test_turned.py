"""A cache in another layout says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.lm import turned
from specgen.lm.cache import KVCache
from specgen.lm.config import LMConfig
from specgen.lm.session import LMSession
from specgen.lm.turned import TurnedCache, cache_for
from tests.lm.test_model import BASE, condition, made, tokens

CPU = torch.device("cpu")
CAPACITY, ROWS = 40, 3
LARGE = LMConfig(4, 16, 1024, 16, 1, 16)
MODELS = {past: made(replace(BASE, past_context=past)) for past in (None, 3)}


def both(past: int | None, rows: int = ROWS, waiting: int = 4) -> tuple[LMSession, LMSession]:
    """A session on a plain cache and its twin on a turned one where few positions wait."""
    options = {"rows": rows, "capacity": CAPACITY, "condition": condition(rows)}
    options |= {"null": condition(1, 1), "guidance": 2.5}
    plain = LMSession(MODELS[past], **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turned, "_LONG", 10)
        patch.setattr(turned, "_LARGE", 10)
        patch.setattr(turned, "_WAITING", waiting)
        long = LMSession(MODELS[past], **options)  # type: ignore[arg-type]
    assert isinstance(long.cache, TurnedCache) and isinstance(plain.cache, KVCache)
    return plain, long


# Blocks of a size, and how far each row goes back before it or goes on.
Blocks = list[tuple[int, tuple[int, int, int], int]]
blocks = st.lists(
    st.tuples(
        st.integers(1, 7), st.tuples(*[st.integers(0, 6)] * ROWS), st.sampled_from([1, 2, 3, 3, 3])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(blocks, st.sampled_from([None, 3]), st.integers(1, 9), st.booleans())
def test_any_blocks_in_any_order(
    steps: Blocks, past: int | None, waiting: int, together: bool
) -> None:
    """Rows stand together or apart, go back, some take no part; blocks are larger and smaller than
    what may wait."""
    plain, long = both(past, waiting=waiting)
    sequence = tokens(ROWS, CAPACITY)
    at = [0] * ROWS
    for size, back, rows in steps:
        back = (back[0],) * ROWS if together else back
        starts = [max(0, place - less) for place, less in zip(at, back, strict=True)][:rows]
        if max(starts) + size > CAPACITY:
            break
        block = torch.stack([sequence[r, :, s : s + size] for r, s in enumerate(starts)])
        found = [session.feed(block, starts) for session in (plain, long)]
        assert torch.allclose(*found, atol=1e-12)
        at[:rows] = [start + size for start in starts]


def test_rows_move_with_what_waits() -> None:
    plain, long = both(None)
    sequence = tokens(ROWS, 12)
    for session in (plain, long):
        session.feed(sequence[..., :5], [0] * ROWS)
        session.feed(sequence[..., 5:8], [5] * ROWS)
        session.move(2, 0)
    block = sequence[[2, 1], :, 8:9]
    found = [session.feed(block, [8, 8]) for session in (plain, long)]
    assert torch.allclose(*found, atol=1e-12)


def test_what_stands_before_a_sequence() -> None:
    model = MODELS[None]
    with pytest.MonkeyPatch.context() as patch:
        prefix = torch.randn(2, 5, BASE.dim, dtype=torch.float64)
        sessions = []
        for long in (10_000, 10):
            patch.setattr(turned, "_LONG", long)
            patch.setattr(turned, "_LARGE", long)
            null = torch.zeros(1, 1, BASE.dim, dtype=torch.float64)
            sessions.append(
                LMSession(
                    model,
                    rows=2,
                    capacity=20,
                    condition=prefix,
                    null=null,
                    guidance=2.0,
                    prepend=True,
                )
            )
        assert isinstance(sessions[1].cache, TurnedCache)
        sequence = tokens(2, 6)
        for _ in range(2):
            found = [session.feed(sequence[..., :4], [0, 0]) for session in sessions]
            assert torch.allclose(*found, atol=1e-12)
            found = [session.feed(sequence[..., 4:], [4, 3]) for session in sessions]
            assert torch.allclose(*found, atol=1e-12)
            for session in sessions:  # another sequence takes a row
                session.admit(1, prefix[0, :3])


@pytest.mark.parametrize("change", [{"kv_repeat": 4}, {}], ids=["shared keys", "bfloat16"])
def test_fused_attention_keeps_its_layout(change: dict[str, int]) -> None:
    dtype, large = torch.float32 if change else torch.bfloat16, replace(LARGE, **change)
    assert isinstance(cache_for(large, 1, 5000, CPU, dtype), KVCache)
    assert isinstance(cache_for(LARGE, 1, 5000, CPU, torch.float32), TurnedCache)
    assert isinstance(cache_for(LARGE, 1, 5000, CPU, torch.float32, recorded=True), KVCache)


@pytest.mark.parametrize(("dim", "capacity"), [(1024, 1024), (256, 2048)])
def test_short_and_narrow_caches_keep_their_layout(dim: int, capacity: int) -> None:
    config = replace(LARGE, dim=dim)
    assert isinstance(cache_for(config, 1, capacity, CPU, torch.float32), TurnedCache)
    assert isinstance(cache_for(config, 1, capacity - 1, CPU, torch.float32), KVCache)


def test_it_takes_little_more_memory() -> None:
    large = (2, 1024, CPU, torch.float32)
    plain, long = KVCache(LARGE, *large).nbytes, cache_for(LARGE, *large)
    assert plain < long.nbytes <= 1.07 * plain
    assert sum(k.nbytes + v.nbytes for k, v in long.layers) == plain
