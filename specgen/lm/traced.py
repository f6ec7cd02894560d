"""A column of a model without attention as one call.

Such a drafter's column takes a dozen products and sums, and on a CPU calling them one by one from
Python takes about as long as they do. It reads neither a cache nor a condition, so one trace
(TorchScript's; its makers keep it but build on it no more) serves every clip: the same kernels in
the same order, the same numbers. Where torch has it no longer, columns are run call by call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specgen.lm.cache import KVCache, Span
from specgen.lm.graphs import switched_off
from specgen.lm.model import MusicLM
from specgen.lm.packed import PackedLinear
from specgen.lm.step import Stepper, norm

# Tokens `[1, K, 1]` and what stands beside them, `[1, 1, feature_dim]`, to the column's state
# `[1, 1, dim]` and its logits `[1, K, card]`.
Column = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_TRACES: WeakKeyDictionary[MusicLM, Column | None] = WeakKeyDictionary()


def traced_column(model: MusicLM) -> Column | None:
    """The model's column as one call; None where it is none: on a card, which records graphs; with
    attention; with products that cannot be traced; with SPECGEN_GRAPHS=off."""
    if not _traceable(model) or switched_off():
        return None
    if model not in _TRACES:
        _TRACES[model] = _trace(model)
    return _TRACES[model]


def column_of(model: MusicLM) -> Column:
    """The model's column, call by call; for models without attention on rotary positions, of which
    nothing is left then."""
    config, device, dtype = model.config, model.device, model.dtype
    run = Stepper(model.transformer, None, KVCache(config, 1, 1, device, dtype))
    span, finish = Span.of((0,), 1, device, dtype), norm(model.out_norm)

    def column(tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = finish(run(model.embed(tokens, features), span))
        return hidden, model.all_heads(hidden[:, 0])

    return column


def _traceable(model: MusicLM) -> bool:
    config = model.config
    plain = not config.attention and not config.condition_dim and config.positions == "rope"
    kinds = (nn.Linear, PackedLinear, nn.Embedding, nn.LayerNorm)
    leaves = (module for module in model.modules() if not list(module.children()))
    return (
        plain
        and model.device.type == "cpu"
        and not model.transformer.compiled
        and all(isinstance(leaf, kinds) for leaf in leaves)
        and not any(value.requires_grad for value in model.parameters())
    )


class _Holder(nn.Module):
    """A column with the packed weights it meets: a trace finds them nowhere else."""

    def __init__(self, model: MusicLM) -> None:
        super().__init__()
        packed = (m.packed for m in model.modules() if isinstance(m, PackedLinear))
        for place, weights in enumerate(packed):
            setattr(self, f"packed_{place}", weights)
        self.forward = column_of(model)


@torch.inference_mode()
def _trace(model: MusicLM) -> Column | None:
    config = model.config
    tokens = torch.zeros(1, config.codebooks, 1, dtype=torch.int64)
    features = torch.zeros(1, 1, config.feature_dim, dtype=model.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jit: Any = torch.jit
            traced = jit.trace(_Holder(model), (tokens, features), check_trace=False)
            with jit.optimized_execution(False):  # which takes 60 ms, and gains nothing here
                traced(tokens, features)
    except (AttributeError, RuntimeError):
        return None
    return lambda tokens, features: traced(tokens, features)
