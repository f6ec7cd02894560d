"""One prediction in double precision, from the first column on, whatever a model decodes in.

Rounding differs from pass to pass: a product over five columns adds up in another order than one
over a single column or over sixteen rows. Where that could turn a draw (`specgen.decoding.ties`),
the sequence is read once more here, by itself and in float64, so that the answer depends on its
tokens and the weights alone. Weights are widened a layer at a time: what a whole model takes in
float64 is never held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.lm.transformer import Block, CrossMemory, hiding
from specgen.tensors import bare

if TYPE_CHECKING:
    from specgen.lm.model import MusicLM

Module = TypeVar("Module", bound=nn.Module)


@torch.inference_mode()
def reread(
    model: MusicLM,
    columns: Tensor,
    codebook: int,
    *,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """What follows a sequence, in float64.

    Args:
        model: in any precision, packed or not.
        columns: `[K, n]` token ids.
        codebook: whose logits are wanted, after the last column.
        condition: `[N, L, condition_dim]` for the cross-attention, or None.
        mask: `[N, L]` bool of real places, or None.
        prefix: `[N, P, dim]` that stands before the columns, or None.

    Returns:
        `[N, card]` logits (N is 1 without condition and prefix).
    """
    config, transformer = model.config, model.transformer
    x = F.embedding(columns[None] + model.offsets, model.embedding.weight).double().sum(dim=1)
    if prefix is not None:
        x = torch.cat([prefix.double(), x.expand(len(prefix), -1, -1)], dim=1)
    elif condition is not None:
        x = x.expand(len(condition), -1, -1)
    positions = torch.arange(x.shape[1], device=x.device)[None]
    added, turn = transformer.position_tables(x.shape[1]).at(positions, x.dtype)
    x = x if added is None else x + added
    hidden = hiding(mask, x.dtype)
    for block in transformer.blocks:
        with bare():
            wide = Block(config)
        widen_(wide, block)
        memory = None
        if condition is not None and wide.cross is not None:
            keys, values = wide.cross.memory(condition.double())
            memory = CrossMemory([keys], [values], hidden)
        x = wide(x, 0, turn, memory)
    last = x[:, -1]
    if model.out_norm is not None:
        last = widen_(nn.LayerNorm(config.dim), model.out_norm)(last)
    weight, bias = model.head_weight(codebook)
    return F.linear(last, weight.double(), None if bias is None else bias.double())


def widen_(wide: Module, module: nn.Module) -> Module:
    """Give `wide` the weights of `module`, whose products may be packed, in float64."""
    for name, part in wide.named_modules():
        held = module.get_submodule(name)
        for key in [key for key, _ in part.named_parameters(recurse=False)]:
            number = nn.Parameter(getattr(held, key).double(), requires_grad=False)
            setattr(part, key, number)
    return wide
