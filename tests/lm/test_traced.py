"""A column without attention as one call: the same numbers, and only where it may be."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from specgen.lm import traced
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.lm.traced import column_of, traced_column
from tests.lm.test_features import ROPE, pair
from tests.lm.test_model import condition, made, tokens

WIDE = replace(ROPE, dim=256, ff_dim=256, card=128, heads=4)


def follower(**changes: Any) -> MusicLM:
    """A drafter without attention, in float64."""
    options = {"layers": 1, "condition_dim": 0, "attention": False}
    return made(replace(ROPE, **(options | {"feature_dim": 2 * ROPE.dim} | changes)))


def packed() -> MusicLM:
    """One in float32 whose products are packed, as checkpoints are."""
    model = made(replace(WIDE, layers=2, condition_dim=0, feature_dim=512, attention=False))
    for value in model.parameters():
        value.data = value.data.half().float()
    return model.pack()


@pytest.mark.parametrize("model", [follower(), follower(norm_first=False), packed()])
def test_a_trace_has_the_numbers_of_single_calls(model: MusicLM) -> None:
    column, expected = traced_column(model), column_of(model)
    assert column is not None
    for seed in range(3):
        torch.manual_seed(seed)
        features = torch.randn(1, 1, model.config.feature_dim, dtype=model.dtype)
        given = torch.randint(model.config.card + 1, (1, model.config.codebooks, 1))
        with torch.inference_mode():
            pairs = zip(column(given, features), expected(given, features), strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_model_is_traced_once_and_let_go() -> None:
    model = follower()
    assert traced_column(model) is traced_column(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "changes",
    [{"attention": True}, {"positions": "sin"}, {"condition_dim": ROPE.dim}],
    ids=["a cache", "a place", "a condition"],
)
def test_columns_that_depend_on_more_are_not_traced(changes: dict[str, Any]) -> None:
    assert traced_column(follower(**changes)) is None


def test_who_does_not_want_it_runs_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    learning = follower().requires_grad_(True)
    assert traced_column(learning) is None
    monkeypatch.setenv("SPECGEN_GRAPHS", "off")
    assert traced_column(follower()) is None
    monkeypatch.delenv("SPECGEN_GRAPHS")
    monkeypatch.delattr(torch.jit, "trace")  # a torch that has it no more
    assert traced_column(follower()) is None


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_a_session_says_the_same_either_way(
    guidance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of a row one at a time, the last ones beside the drafter's own states."""
    said = []
    for switch in ("on", "off"):
        monkeypatch.setenv("SPECGEN_GRAPHS", switch)
        verifier, model, lead, drafter = pair(1, guidance, attention=False)
        sequence = tokens(1, 6)
        lead.feed(sequence[..., :4], [0])
        drafter.hear([4])
        for at in range(6):
            hidden = drafter.feed(sequence[..., at : at + 1], [at])
            K = list(range(model.config.codebooks))
            said.append(drafter.logits(hidden, [0] * len(K), [0] * len(K), K).clone())
            part = drafter.logits(hidden, [0], [0], [1])  # the end of a delay pattern
            assert torch.allclose(part[0], said[-1][1], atol=1e-12)
    assert torch.equal(torch.stack(said[:6]), torch.stack(said[6:]))
    whole = verifier.transformer.memory(condition(1))
    null = verifier.transformer.memory(condition(1, 1))
    halves = [verifier.hidden(sequence, whole)]
    halves += [verifier.hidden(sequence, null) if guidance else torch.zeros_like(halves[0])]
    late = F.pad(torch.cat(halves, dim=-1), (0, 0, 1, -1))
    expected = model.all_heads(model.hidden(sequence, None, late)[0, :5])
    assert torch.allclose(torch.stack(said[:5]), expected, atol=1e-12)


def test_a_block_after_a_traced_column_is_read_by_itself() -> None:
    """What the trace has said of its column is not taken for what follows another."""
    _, model, lead, drafter = pair(1, None, attention=False)
    sequence, K = tokens(1, 4), list(range(ROPE.codebooks))
    lead.feed(sequence, [0])
    drafter.hear([4])
    drafter.logits(drafter.feed(sequence[..., :1], [0]), [0] * len(K), [0] * len(K), K)
    hidden = drafter.feed(sequence[..., 1:3], [1])
    found = drafter.logits(hidden, [0] * len(K), [1] * len(K), K)
    assert torch.allclose(found, model.all_heads(hidden[0, 1]), atol=1e-12)


def test_rows_and_modules_that_do_not_fit_are_run_call_by_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("traced")

    _, _, lead, drafter = pair(2, None, attention=False)
    monkeypatch.setattr(drafter, "_column", refuse)
    drafter.hear([0, 0])
    assert drafter.feed(tokens(2, 1), [0, 0]).shape[:2] == (2, 1)
    with pytest.raises(AssertionError, match="traced"):
        drafter.feed(tokens(1, 1), [0])
    plain = LMSession(lead.model, rows=1, capacity=8)
    assert plain._column is None and traced.traced_column(lead.model) is None
