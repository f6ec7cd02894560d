"""Reading a sequence again in float64 gives what the session's own passes give there."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from tests.lm.test_model import BASE, VARIANTS, condition, made, session, tokens

CASES = {**VARIANTS, "past": replace(BASE, positions="rope", past_context=3)}


def drawn(running: LMSession, sequence: Tensor, row: int, codebook: int) -> Tensor:
    """Logits after the last column, by the session's own pass."""
    hidden = running.feed(sequence, [0] * len(sequence))
    return running.logits(hidden, [row], [sequence.shape[-1] - 1], [codebook])[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_it_reads_what_the_session_reads(name: str, guidance: float | None) -> None:
    model, sequence, vectors = made(CASES[name]), tokens(2, 9), condition(2)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    options = {"guidance": guidance, "null": condition(3)[2:, :1], "mask": mask}
    running = session(model, vectors, **(options if model.config.condition_dim else {}))
    for row, codebook in ((0, 0), (1, 2)):
        again = running.reread(row, sequence[row], codebook)
        assert again.dtype == torch.float64
        assert torch.allclose(again, drawn(running, sequence, row, codebook), atol=1e-12)


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_a_condition_that_stands_before(guidance: float | None) -> None:
    config = replace(BASE, condition_dim=0, positions="rope")
    model, sequence = made(config), tokens(2, 7)
    chance = torch.Generator().manual_seed(8)
    prefix = torch.randn(2, 4, config.dim, generator=chance, dtype=torch.float64)
    running = LMSession(
        model,
        rows=2,
        capacity=20,
        condition=prefix,
        mask=torch.tensor([[True] * 4, [True, True, False, False]]),
        null=prefix[:1, :1] * 0.5,
        guidance=guidance,
        prepend=True,
    )
    for row in range(2):
        again = running.reread(row, sequence[row], 1)
        assert torch.allclose(again, drawn(running, sequence, row, 1), atol=1e-12)


def test_it_follows_rows_that_are_admitted_and_moved() -> None:
    model, sequence, vectors = made(BASE), tokens(2, 6), condition(4)
    running = session(model, vectors[:2], null=condition(1, 1) * 0, guidance=2.0)
    before = running.reread(1, sequence[1], 0)
    running.admit(1, vectors[3])
    admitted = running.reread(1, sequence[1], 0)
    assert not torch.allclose(admitted, before)
    assert torch.allclose(admitted, drawn(running, sequence, 1, 0), atol=1e-12)
    running.move(1, 0)
    assert torch.equal(running.reread(0, sequence[1], 0), admitted)


def test_packed_float32_weights_are_read_in_float64() -> None:
    torch.manual_seed(4)
    config = replace(BASE, card=300, dim=256, heads=4, ff_dim=512, bias_ff=True, bias_heads=True)
    model = MusicLM(config).eval().requires_grad_(False)
    for value in model.parameters():
        value.copy_(value.half().float())
    wide = copy.deepcopy(model).double()
    model.pack()
    assert model.weight_bytes() < 3 * model.parameter_count()  # it is packed
    sequence, vectors = tokens(1, 9).clamp(max=10), condition(1).float()
    options = {"null": torch.zeros(1, 1, 10), "guidance": 3.0}
    running = session(model, vectors, **options)
    exact = drawn(session(wide, vectors.double(), **options), sequence, 0, 2)
    assert torch.allclose(running.reread(0, sequence[0], 2), exact, atol=1e-11)
    assert not torch.equal(drawn(running, sequence, 0, 2).double(), exact)
