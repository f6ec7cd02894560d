"""Packed products: the same numbers, for the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specgen.benchmarking.roofline import pass_bytes
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.packed import PackedHeads, PackedLinear, fits, pack_, packs
from specgen.lm.session import LMSession

WIDE = LMConfig(
    codebooks=2,
    card=300,
    dim=256,
    heads=4,
    layers=2,
    ff_dim=512,
    condition_dim=64,
    positions="rope",
)

needs_packing = pytest.mark.skipif(not packs(), reason="this build of torch packs nothing")


def half_model() -> MusicLM:
    """A float32 model whose weights are float16 numbers, as checkpoints hold them."""
    torch.manual_seed(3)
    model = MusicLM(WIDE).eval().requires_grad_(False)
    for value in model.parameters():
        value.copy_(value.half().float())
    return model


def logits(model: MusicLM, blocks: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    condition = torch.randn(1, 5, WIDE.condition_dim, generator=generator)
    tokens = torch.randint(WIDE.card + 1, (1, WIDE.codebooks, sum(blocks)), generator=generator)
    session = LMSession(model, rows=1, capacity=40, condition=condition)
    at, parts = 0, []
    for size in blocks:
        hidden = session.feed(tokens[..., at : at + size], [at])
        places = [place for place in range(size) for _ in range(WIDE.codebooks)]
        books = list(range(WIDE.codebooks)) * size
        parts.append(session.logits(hidden, [0] * len(places), places, books))
        at += size
    return torch.cat(parts)


@needs_packing
def test_a_packed_model_says_the_same() -> None:
    plain, packed = half_model(), half_model().pack()
    assert isinstance(packed.heads, PackedHeads)
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) >= 2 * 4
    for blocks in ((1,) * 8, (3, 5), (8,)):
        assert (logits(plain, blocks) - logits(packed, blocks)).abs().max() < 1e-5
    assert packed.parameter_count() == plain.parameter_count()
    assert packed.weight_bytes() < 0.8 * plain.weight_bytes()


@needs_packing
def test_the_second_copy_of_the_heads_counts_as_memory_only() -> None:
    model = half_model().pack()
    assert isinstance(model.heads, PackedHeads) and model.heads.together is not None
    heads = WIDE.codebooks * WIDE.card * WIDE.dim
    assert sum(head.nbytes for head in model.heads.each) == 2 * heads
    both, counted, read = model.weight_bytes(), model.parameter_count(), pass_bytes(model, 4)
    model.heads.together = None
    assert both - model.weight_bytes() == 2 * heads
    assert counted == model.parameter_count() and read == pass_bytes(model, 4)


@needs_packing
def test_packing_keeps_the_weights() -> None:
    weight = torch.randn(300, 256).half().float()
    layer = PackedLinear(weight, torch.ones(300))
    assert torch.equal(layer.weight, weight)
    x = torch.randn(3, 256)
    assert torch.allclose(layer(x), x @ weight.T + 1, atol=1e-4)


def test_only_weights_that_lose_nothing_are_packed() -> None:
    exact = torch.randn(300, 256).half().float()
    assert fits(exact)
    assert not fits(exact * 1.0001)  # no float16 numbers
    assert not fits(exact.double())
    assert not fits(exact[:64])  # too small to pay
    layer = nn.Sequential(nn.Linear(256, 300, bias=False))
    before = layer[0].weight.detach().clone()
    pack_(layer)
    assert type(layer[0]) is nn.Linear and torch.equal(layer[0].weight, before)
    assert layer[0].weight.t().is_contiguous()  # laid out by columns
