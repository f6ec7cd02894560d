"""A model's weights as plain tensors, however they are packed: what other packages are given."""

from __future__ import annotations

import torch
from torch import Tensor

from specgen.lm.model import MusicLM
from specgen.lm.packed import PackedHeads, PackedLinear


def dense_state(model: MusicLM) -> dict[str, Tensor]:
    """The state of a model under its own names, packed products unpacked.

    Raises:
        ValueError: a packed product with a bias, which cannot be had back.
    """
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if not isinstance(module, PackedLinear) or name == "heads.together":
            continue  # all heads together are those of `heads.each` once more
        weight = module.weight
        if module.count != weight.numel():
            raise ValueError(f"{name}: the bias of a packed product cannot be had back")
        state[f"{name}.weight"] = weight
    if isinstance(model.heads, PackedHeads):
        parts = [state.pop(f"heads.each.{k}.weight") for k in range(model.config.codebooks)]
        state["heads.weight"] = torch.cat(parts)
    return state
