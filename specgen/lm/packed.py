"""Products laid out for CPU decoding: the same numbers, read from memory the way the CPU likes.

A decoding step multiplies a handful of columns by every weight of the model, so what it costs is
reading weights. Checkpoints hold 16-bit weights: where the weights of a float32 layer are float16
numbers exactly, FBGEMM keeps them packed as such and multiplies in float32: half the reading, and
kernels made for few columns. Small layers and other weights stay as they are, but stored column by
column, which MKL prefers here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_SMALL = 2**16  # weights up to which the packed product's fixed cost outweighs what it saves


class PackedLinear(nn.Module):
    """A float32 linear layer whose weights are float16 numbers, packed. Inference only.

    Args:
        weight: `[out, in]` float32, exactly representable in float16.
        bias: `[out]` or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.count = weight.numel() + (0 if bias is None else bias.numel())
        self.nbytes = 2 * weight.numel() + (0 if bias is None else bias.nbytes)  # as in memory
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        product = torch.ops.quantized.linear_dynamic_fp16.default
        self._product = getattr(product, "_op", product)  # past the overload's Python, if it can be

    @property
    def weight(self) -> Tensor:
        """`[out, in]` float32, unpacked."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self.packed)[0]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """`[out]` float32, or None."""
        bias: Tensor | None = torch.ops.quantized.linear_unpack_fp16(self.packed)[1]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x, self.packed)  # type: ignore[no-any-return]


class PackedHeads(nn.Module):
    """The K heads, packed one by one, since a flatten step needs one alone, and once more together,
    since a delay step needs all, and one product costs little more than half of four.

    Args:
        heads: all in one.
        codebooks: K.
        layer: makes a head of its weight and bias.
    """

    def __init__(
        self,
        heads: nn.Linear,
        codebooks: int,
        layer: Callable[[Tensor, Tensor | None], nn.Module] = PackedLinear,
    ) -> None:
        super().__init__()
        biases = [None] * codebooks if heads.bias is None else heads.bias.chunk(codebooks)
        weights = heads.weight.chunk(codebooks)
        self.each = nn.ModuleList(map(layer, weights, biases))
        self.together: PackedLinear | None = None
        if layer is PackedLinear:
            self.together = PackedLinear(heads.weight, heads.bias)
            self.together.count = 0  # the same weights again, yet bytes of their own

    def head(self, hidden: Tensor, codebook: int) -> Tensor:
        """Logits `[..., card]` of one codebook."""
        return self.each[codebook](hidden)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits `[..., K card]` of all."""
        if self.together is not None:
            return self.together.forward(hidden)
        return torch.cat([head(hidden) for head in self.each], dim=-1)


def stored_bytes(layer: nn.Module) -> int:
    """Bytes of a linear layer's weights, packed, quantised or neither."""
    if not isinstance(layer, nn.Linear):
        return layer.nbytes  # type: ignore[return-value]
    return sum(value.nbytes for value in layer.parameters())


def packs() -> bool:
    """Whether this build of torch has packed float16 products (x86 builds do)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def fits(weight: Tensor) -> bool:
    """Whether packing a float32 weight loses nothing and pays."""
    return (
        weight.dtype == torch.float32
        and weight.numel() >= _SMALL
        and bool((weight.half().float() == weight).all())
    )


def pack_(module: nn.Module) -> None:
    """Lay out every linear layer below `module` for decoding on the CPU, in place.

    Args:
        module: on the CPU, in evaluation mode. It cannot be trained any more.
    """
    able = packs()
    parents = [m for m in module.modules() if type(m) is not nn.Linear]  # so that those are freed
    for parent in parents:
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear:
                continue
            if able and fits(layer.weight):
                setattr(parent, name, PackedLinear(layer.weight, layer.bias))
            elif layer.weight.dtype in (torch.float32, torch.float64):
                layer.weight.data = layer.weight.data.t().contiguous().t()
