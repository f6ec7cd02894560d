"""The language model against audiocraft's own classes, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.sampling import Sampling
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.lm.transformer import PositionTables, rotations, sinusoids
from specgen.patterns import PatternSpec
from tests.peers import stand_ins

K, CARD, ROWS, FRAMES, WORDS = 4, 32, 2, 23, 5
DELAY, FLATTEN = PatternSpec("delay", K), PatternSpec("flatten", K)


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    with stand_ins() as module:
        yield module


def model(dtype: torch.dtype, **options: object) -> MusicLM:
    """A small model whose every parameter, layer scales and norms too, is drawn at random."""
    config = LMConfig(K, CARD, dim=32, heads=4, layers=3, ff_dim=80, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    lm = MusicLM(config).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.normal_(std=0.3)
    return lm.to(dtype)


VARIANTS = {
    "sin": {"condition_dim": 32, "positions": "sin"},
    "rope": {"condition_dim": 32, "positions": "rope"},
    "sin_rope": {"condition_dim": 32, "positions": "sin_rope", "positional_scale": 0.7},
    "narrow condition": {"condition_dim": 20, "positions": "sin"},
    "no condition": {"condition_dim": 0, "positions": "rope"},
    "post-norm": {"condition_dim": 32, "norm_first": False},
    "biases": {
        "condition_dim": 32,
        "bias_attn": True,
        "bias_ff": True,
        "bias_heads": True,
    },
    "norms, scales": {
        "condition_dim": 32,
        "qk_norm": True,
        "qk_norm_cross": True,
        "layer_scale": True,
    },
    "grouped keys": {"condition_dim": 0, "kv_repeat": 2, "activation": "relu"},
}


def give_both_the_same_positions(lm: MusicLM, theirs: object, length: int) -> None:
    """Position codes in float64 on both sides: ours are made in float32, theirs in part.

    Only the rounding of their tables differs; what is done with them is compared.
    """
    config = lm.config
    every = torch.arange(length)
    sines = turns = None
    if config.positions in ("sin", "sin_rope"):
        sines = sinusoids(every, config.dim, config.max_period, torch.float64)
        sines = sines * config.positional_scale
    if config.positions in ("rope", "sin_rope"):
        turn = rotations(every, config.head_dim, config.max_period, 1.0)
        turns = turn.to(torch.complex128)
        rope = theirs.transformer.rope  # type: ignore[attr-defined]
        rope.dtype, rope.rotation = torch.float64, turns
        turns = turns * config.positional_scale + (1.0 - config.positional_scale)
    lm.transformer._tables = PositionTables(sines, turns, length, torch.device("cpu"))


@pytest.mark.parametrize("fused", [True, False], ids=["fused attention", "einsum attention"])
@pytest.mark.parametrize("pattern", [DELAY, FLATTEN], ids=["delay", "flatten"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_logits_equal_audiocrafts(
    peer: ModuleType,
    variant: str,
    pattern: PatternSpec,
    dtype: torch.dtype,
    bound: float,
    fused: bool,
) -> None:
    lm = model(dtype, **VARIANTS[variant])
    wide = lm.config.condition_dim
    condition = torch.randn(ROWS, WORDS, wide, dtype=dtype) if wide else None
    theirs = peer.build(lm, pattern, condition, fused_attention=fused)
    codes = torch.randint(CARD, (ROWS, K, FRAMES))
    grid = pattern.of(FRAMES)
    if dtype == torch.float64:
        give_both_the_same_positions(lm, theirs, grid.steps)

    tensors = theirs.condition_provider(ROWS) if condition is not None else {}
    expected = theirs.compute_predictions(codes, [], tensors)
    sequence = grid.build(codes, CARD)
    memory = None if condition is None else lm.transformer.memory(condition)
    logits = lm.all_heads(lm.hidden(sequence, memory)).permute(0, 2, 1, 3)  # [B, K, S, card]
    steps = torch.tensor(grid.step_of) - 1  # logits at step s predict step s + 1
    found = logits[:, torch.arange(K)[:, None], steps]

    # audiocraft cuts the sequence off at its last full step: later places have no logits.
    valid = expected.mask
    assert int(valid.sum()) >= ROWS * K * (FRAMES - K)
    assert expected.logits[valid].std() > 0.1  # not a comparison of zeros
    assert (found - expected.logits)[valid].abs().max() < bound


@pytest.mark.parametrize("positions", ["sin", "rope"])
@pytest.mark.parametrize("pattern", [DELAY, FLATTEN], ids=["delay", "flatten"])
def test_greedy_generation_equals_audiocrafts(
    peer: ModuleType, pattern: PatternSpec, positions: str
) -> None:
    """Step by step, with caches and guidance on both sides, in float64."""
    lm = model(torch.float64, condition_dim=32, positions=positions)
    condition = torch.randn(ROWS, WORDS, 32, dtype=torch.float64)
    null = torch.randn(1, 1, 32, dtype=torch.float64)
    both = torch.cat([condition, null.expand_as(condition)])
    theirs = peer.build(lm, pattern, both, fused_attention=False)
    give_both_the_same_positions(lm, theirs, capacity(pattern, FRAMES))
    expected = theirs.generate(
        conditions=peer.described(ROWS),
        max_gen_len=FRAMES,
        use_sampling=False,
        cfg_coef=3.0,
    )
    session = LMSession(
        lm,
        rows=ROWS,
        capacity=capacity(pattern, FRAMES),
        condition=condition,
        null=null,
        guidance=3.0,
    )
    found = decode(
        Role(session, pattern),
        frames=[FRAMES] * ROWS,
        seeds=[0] * ROWS,
        sampling=Sampling(temperature=0.0),
    )
    assert torch.equal(torch.stack(found.codes), expected)
    assert len(expected.unique()) > 3  # not one token over and over
