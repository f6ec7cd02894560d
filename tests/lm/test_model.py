"""The language model and its session: a cached pass in any blocks equals the whole sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specgen.lm.cache import KVCache, Span
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession

BASE = LMConfig(codebooks=3, card=11, dim=24, heads=3, layers=2, ff_dim=32, condition_dim=10)
VARIANTS = {
    "sin": BASE,
    "rope": replace(BASE, positions="rope"),
    "sin_rope": replace(BASE, positions="sin_rope"),
    "kv_repeat": replace(BASE, kv_repeat=3, positions="rope"),
    "qk_norm": replace(BASE, qk_norm=True, qk_norm_cross=True),
    "layer_scale": replace(BASE, layer_scale=True),
    "post_norm": replace(BASE, norm_first=False),
    "biases": replace(BASE, bias_attn=True, bias_ff=True, bias_heads=True, activation="relu"),
    "unconditional": replace(BASE, condition_dim=0, activation="silu"),
}


def made(config: LMConfig) -> MusicLM:
    """A model in float64 whose every parameter matters."""
    torch.manual_seed(1)
    model = MusicLM(config).double().eval().requires_grad_(False)
    for value in model.parameters():
        value.add_(torch.randn_like(value) * 0.2)
    return model


def tokens(rows: int, steps: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(BASE.card + 1, (rows, BASE.codebooks, steps), generator=generator)


def condition(rows: int, length: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, length, BASE.condition_dim, generator=generator, dtype=torch.float64)


def whole(model: MusicLM, sequence: Tensor, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states of the whole sequences, no cache: `[B, S, dim]`."""
    return model.hidden(sequence, model.transformer.memory(vectors, mask))


def session(model: MusicLM, vectors: Tensor, **options: object) -> LMSession:
    given = vectors if model.config.condition_dim else None
    return LMSession(model, rows=len(vectors), capacity=20, condition=given, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("blocks", [(1,) * 9, (4, 5), (1, 3, 1, 4), (9,)])
def test_blocks_equal_the_whole(name: str, blocks: tuple[int, ...]) -> None:
    model = made(VARIANTS[name])
    sequence, vectors = tokens(2, 9), condition(2)
    running = session(model, vectors)
    parts, at = [], 0
    for size in blocks:
        parts.append(running.feed(sequence[..., at : at + size], [at, at]))
        at += size
    assert torch.allclose(torch.cat(parts, 1), whole(model, sequence, vectors), atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_rewinding_forgets(name: str) -> None:
    model = made(VARIANTS[name])
    kept, dropped, vectors = tokens(2, 9), tokens(2, 9, seed=5), condition(2)
    running = session(model, vectors)
    running.feed(kept[..., :4], [0, 0])
    running.feed(dropped[..., 4:9], [4, 4])
    again = running.feed(kept[..., 4:7], [4, 4])
    assert torch.allclose(again, whole(model, kept, vectors)[:, 4:7], atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_ragged_starts_equal_each_row_alone(name: str) -> None:
    model = made(VARIANTS[name])
    sequence, vectors = tokens(3, 10), condition(3)
    running = session(model, vectors)
    running.feed(sequence[..., :6], [0, 0, 0])
    starts = [2, 6, 4]
    block = torch.stack([sequence[row, :, s : s + 3] for row, s in enumerate(starts)])
    hidden = running.feed(block, starts)
    expected = whole(model, sequence, vectors)
    for row, start in enumerate(starts):
        assert torch.allclose(hidden[row], expected[row, start : start + 3], atol=1e-12)
    onward = running.feed(sequence[..., 7:8].clone(), [5, 9, 7])  # and on from ragged lengths
    assert onward.shape == (3, 1, BASE.dim)


def test_a_later_token_changes_nothing_before_it() -> None:
    model = made(VARIANTS["rope"])
    sequence, vectors = tokens(1, 8), condition(1)
    other = sequence.clone()
    other[..., 5] = (other[..., 5] + 1) % BASE.card
    a, b = whole(model, sequence, vectors), whole(model, other, vectors)
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5], b[:, 5])


def test_masked_condition_places_do_not_matter() -> None:
    model = made(BASE)
    sequence, vectors = tokens(2, 5), condition(2, 6)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    padded = whole(model, sequence, vectors, mask)
    alone = whole(model, sequence[1:], vectors[1:, :3])
    assert torch.allclose(padded[1:], alone, atol=1e-12)
    other = vectors.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(padded, whole(model, sequence, other, mask))


@pytest.mark.parametrize("places", [[(0, 1), (1, 0)], [(0, 0), (1, 2)]])
def test_guidance_doubles_the_batch(places: list[tuple[int, int]]) -> None:
    model = made(VARIANTS["rope"])
    sequence, vectors = tokens(2, 4), condition(2)
    null = condition(1, 1)
    guided = session(model, vectors, null=null, guidance=3.0)
    hidden = guided.feed(sequence, [0, 0])
    assert hidden.shape == (4, 4, BASE.dim)
    rows, columns = [p[0] for p in places], [p[1] for p in places]
    books = [1, 2]
    got = guided.logits(hidden, rows, columns, books)
    with_text = whole(model, sequence, vectors)
    without = whole(model, sequence, null.expand(2, -1, -1))
    for i, (row, column) in enumerate(places):
        a = model.head(with_text[row, column], books[i])
        b = model.head(without[row, column], books[i])
        assert torch.allclose(got[i], b + 3.0 * (a - b), atol=1e-12)


def test_guidance_of_one_is_no_guidance() -> None:
    model = made(BASE)
    plain = session(model, condition(2), null=condition(1, 1), guidance=1.0)
    assert plain.feed(tokens(2, 3), [0, 0]).shape[0] == 2


def test_chosen_heads_equal_all_heads() -> None:
    model = made(BASE)
    running = session(model, condition(2))
    hidden = running.feed(tokens(2, 5), [0, 0])
    every = model.all_heads(hidden)  # [B, n, K, card]
    coords = [(r, p, k) for r in range(2) for p in (1, 4) for k in range(3)]
    rows, places, books = (list(part) for part in zip(*coords, strict=True))
    whole_columns = running.logits(hidden, rows, places, books)
    shuffled = running.logits(hidden, rows[::-1], places[::-1], books[::-1])
    for i, (row, place, k) in enumerate(coords):
        assert torch.allclose(whole_columns[i], every[row, place, k], atol=1e-12)
        assert torch.allclose(shuffled[-1 - i], every[row, place, k], atol=1e-12)


def test_logits_come_in_float32_at_least() -> None:
    model = made(BASE).to(torch.bfloat16)
    running = session(model, condition(1))
    assert running.logits(running.feed(tokens(1, 1), [0]), [0], [0], [0]).dtype == torch.float32


def test_the_cache_is_written_where_it_should_be() -> None:
    cache = KVCache(replace(BASE, kv_repeat=3), 2, 6, torch.device("cpu"), torch.float64)
    span = Span.of((1, 3), 2, torch.device("cpu"), torch.float64)
    block = torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None].expand(2, 2, 2, 8)
    keys, values = cache.write(1, span, block)
    assert keys.shape == values.shape == (2, 1, 5, 8) and span.reach == 5
    for filled, one in ((keys, 1), (values, 2)):
        expected = [[0, one, one, 0, 0], [0, 0, 0, one, one]]
        assert filled[:, 0, :, 0].tolist() == expected
    untouched = [*cache.layers[0], *(held[..., 5:, :] for held in cache.layers[1])]
    assert not any(held.any() for held in untouched)


def test_a_short_prompt_is_folded_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded cross-attention is the same arithmetic in another order."""
    monkeypatch.setattr("specgen.lm.transformer._CALLS", 0)
    model = made(BASE)
    for words, folds in ((2, True), (3, False)):  # 3 rows 3 heads words of 24
        vectors = condition(3, words)
        mask = torch.ones(3, words, dtype=torch.bool)
        mask[1, 1:] = False
        running = session(model, vectors, mask=mask)
        assert running.memory is not None and running.memory.folded is folds
        sequence = tokens(3, 9)
        found = running.feed(sequence, [0, 0, 0])
        assert torch.allclose(found, whole(model, sequence, vectors, mask), atol=1e-12)


def test_a_model_can_train_after_it_has_decoded() -> None:
    model = MusicLM(VARIANTS["rope"])
    running = session(model, condition(1).float())
    running.feed(tokens(1, 1), [0])
    loss = model.all_heads(whole(model, tokens(1, 9), condition(1).float())).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 25},
        {"heads": 0},
        {"kv_repeat": 2},
        {"positions": "alibi"},
        {"activation": "tanh"},
        {"qk_norm": True, "kv_repeat": 3},
    ],
)
def test_contradictory_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(BASE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "size"), [(0, 2), (5, 3), (61, 3), (62, 2), (7, 64), (3, 70)])
def test_a_block_hides_what_comes_after_each_column(start: int, size: int) -> None:
    mask = Span.of((start, start), size, torch.device("cpu"), torch.float32).mask
    assert mask is not None and mask.shape == (size, start + size)
    for row in range(size):
        assert (mask[row, : start + row + 1] == 0).all()
        assert (mask[row, start + row + 1 :] == -torch.inf).all()
