"""Weight-only quantisation by torchao: 8 bits a weight, a scale a row; all else stays as it was.

A product widens its weights as it meets them, so activations, norms, embeddings and caches keep
their dtype. What is saved is memory, and where a compiler fuses the widening into the product
(`specgen.lm.compiled`) also reading. The model is another one than its checkpoint: a drafter may be
that at no cost but its acceptance, a verifier changes what is made.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.errors import UserError
from specgen.lm.packed import PackedHeads

if TYPE_CHECKING:
    from specgen.lm.model import MusicLM

_FP8_CARD = (8, 9)  # compute capability from which e4m3 numbers are converted in hardware


class QuantizedLinear(nn.Module):
    """A linear layer whose weights are 8-bit numbers. Inference only.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or None; it is not quantised.
        kind: `int8` or `fp8` (e4m3), both with one scale a row.

    Raises:
        UserError: torchao is not installed.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, kind: str) -> None:
        super().__init__()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        _torchao(layer, kind)
        # Plain attributes: their bytes are not those that `parameters()` would tell.
        self.stored, self.bias = layer.weight.detach(), bias
        self.count = weight.numel() + (0 if bias is None else bias.numel())

    @property
    def weight(self) -> Tensor:
        """`[out, in]` in the dtype it came in, the numbers that the products use."""
        weight: Tensor = self.stored.dequantize()
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes of weights, scales and bias."""
        return _stored_bytes(self.stored) + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.stored, self.bias)


def quantize_(model: MusicLM, kind: str) -> None:
    """Quantise every linear layer and the heads of a model, in place.

    Args:
        model: in evaluation mode, not packed. It cannot be trained any more.
        kind: `int8` or `fp8`.

    Raises:
        UserError: torchao is not installed.
    """
    for parent in [m for m in model.transformer.modules() if type(m) is not nn.Linear]:
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, QuantizedLinear(layer.weight, layer.bias, kind=kind))
    if isinstance(model.heads, nn.Linear):
        each = partial(QuantizedLinear, kind=kind)
        model.heads = PackedHeads(model.heads, model.config.codebooks, each)


def check_kind(kind: str, device: torch.device) -> None:
    """Refuse what a device cannot do, before anything is loaded.

    Raises:
        UserError: fp8 on a CPU or an older card.
    """
    if kind != "fp8":
        return
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CARD
    if not able:
        where = "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        raise UserError(
            "fp8 weights need a CUDA card of compute capability 8.9 or newer (Ada, Hopper), this "
            f"is {where}; use int8"
        )


def _stored_bytes(weight: Tensor) -> int:
    """Bytes of a tensor, or of those that a tensor subclass is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(_stored_bytes(getattr(weight, name)) for name in names)


def _torchao(layer: nn.Linear, kind: str) -> None:
    """Let torchao quantise a layer's weight."""
    with _quiet():
        try:
            from torchao.quantization import (
                Float8WeightOnlyConfig,
                Int8WeightOnlyConfig,
                quantize_,
            )
        except ImportError as error:
            raise UserError(
                f"quantised weights need torchao ({error}): pip install 'specgen[quant]'"
            ) from None
        config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
        quantize_(nn.ModuleList([layer]), config(set_inductor_config=False))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torchao's import has to say of extensions that nothing here uses off stderr."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
