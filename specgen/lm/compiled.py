"""`torch.compile` of a step's feed-forward half, on request: norm, product, activation, product.

It is the leaf that is pure, has no cache, and reads two thirds of the weights. Weights are
arguments, so that one compiled function serves every layer and both models; with quantised weights
the compiler widens them inside the product. A first run waits for the compiler, so nothing compiles
unasked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.errors import UserError
from specgen.lm.quantized import QuantizedLinear
from specgen.lm.transformer import Block

_COMPILERS = {"cpu": ("g++", "clang++", "c++"), "cuda": ("gcc", "clang", "cc")}


def check_compiler(device: torch.device) -> None:
    """Refuse `--compile` where there is nothing to compile with.

    Raises:
        UserError: no compiler, or no triton on a card.
    """
    variable = "CXX" if device.type == "cpu" else "CC"
    names = (os.environ.get(variable), *_COMPILERS[device.type])
    if not any(name and shutil.which(name) for name in names):
        raise UserError(
            f"--compile needs a compiler ({_COMPILERS[device.type][0]}, or {variable} set), and "
            "there is none here; install one or leave it out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("--compile needs triton on a card; install it or leave --compile out")


def compiled_feed_forward(block: Block) -> Callable[[Tensor], Tensor]:
    """The feed-forward half of a block, `[M, dim]` to `[M, dim]`; compiled at its first call.

    Args:
        block: not packed.
    """
    norm = block.norm2
    scale, shift = (norm.weight, norm.bias) if block.norm_first else (None, None)
    up, down = _weights(block.up), _weights(block.down)
    run = _compiled()
    return lambda x: run(x, scale, shift, norm.eps, *up, *down, block.activation)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_feed_forward, dynamic=True)


def _feed_forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    if scale is not None:
        x = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    return F.linear(activation(F.linear(x, up, up_bias)), down, down_bias)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(layer, QuantizedLinear):
        return layer.stored, layer.bias
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias
