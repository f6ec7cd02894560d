"""The transformer on a cache: a block of new columns at a time, as decoding needs it.

The arithmetic is that of `specgen.lm.transformer`. A step of a small model costs more in calls than
in products, so the weights are gathered once into plain tuples, the columns of all rows lie in one
`[N n, dim]` matrix, rotations happen in place, and keys and values are stored by one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.lm.cache import Span
from specgen.lm.compiled import compiled_feed_forward
from specgen.lm.transformer import (
    Block,
    CrossAttention,
    CrossMemory,
    Transformer,
    norm_queries_keys,
    rotate_,
)
from specgen.lm.turned import Cache

Product = Callable[[Tensor], Tensor]


def product(layer: nn.Module) -> Product:
    """A linear layer as a function of `[M, in]`."""
    if not isinstance(layer, nn.Linear):
        return layer.forward  # packed or quantised
    if layer.weight.device.type != "cpu" or layer.bias is not None:
        return lambda x: F.linear(x, layer.weight, layer.bias)
    turned = layer.weight.t()
    return lambda x: torch.mm(x, turned)


def norm(layer: nn.LayerNorm | None) -> Product:
    """A layer norm as a function; None leaves its argument as it is."""
    if layer is None:
        return lambda x: x
    shape, weight, bias, eps = layer.normalized_shape, layer.weight, layer.bias, layer.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def activation(block: Block) -> Product:
    """A block's activation. On the CPU torch hands GELU of rows to oneDNN, which takes two to three
    times as long for so few as its own kernel, to which it keeps where rows lie turned."""
    turns = block.activation is F.gelu and block.norm2.weight.device.type == "cpu"
    return (lambda x: F.gelu(x.mT).mT) if turns else block.activation


def feed_forward(block: Block) -> Product:
    """The feed-forward half of a block, with the norm before it."""
    first, active = norm(block.norm2 if block.norm_first else None), activation(block)
    up, down = product(block.up), product(block.down)
    return lambda x: down(active(up(first(x))))


class Attention(NamedTuple):
    """The self-attention of a block, gathered."""

    norm: Product
    qkv: Product
    out: Product
    norms: tuple[nn.LayerNorm, nn.LayerNorm] | None  # of queries and keys

    @classmethod
    def of(cls, block: Block) -> Attention | None:
        held = block.attention
        if held is None:
            return None
        norms = None
        if held.q_norm is not None and held.k_norm is not None:
            norms = held.q_norm, held.k_norm
        return cls(norm(block.norm1), product(held.qkv), product(held.out), norms)


class Layer(NamedTuple):
    """One block, gathered (to look a part up in a module takes as long as a small product)."""

    block: Block
    attention: Attention | None
    cross: CrossAttention | None
    norm_cross: Product
    norm2: Product
    feed: Product

    @classmethod
    def of(cls, block: Block, compiled: bool = False) -> Layer:
        return cls(
            block,
            Attention.of(block),
            block.cross,
            norm(block.norm_cross),
            norm(block.norm2),
            feed_forward(block) if not compiled else compiled_feed_forward(block),
        )


class Stepper:
    """A transformer, a condition and a cache.

    Args:
        transformer: in evaluation mode.
        memory: the condition of each of N rows, or None.
        cache: of N rows.
    """

    def __init__(self, transformer: Transformer, memory: CrossMemory | None, cache: Cache) -> None:
        self.config = transformer.config
        self._memory, self._cache = memory, cache
        self._tables = transformer.position_tables(cache.capacity)
        self._layers = [
            Layer.of(b, transformer.compiled) for b in transformer.blocks if isinstance(b, Block)
        ]

    def __call__(self, columns: Tensor, span: Span) -> Tensor:
        """Run a block of columns and keep its keys and values.

        Args:
            columns: `[N, n, dim]` input embeddings.
            span: where they lie.

        Returns:
            `[N, n, dim]`.
        """
        N, n, dim = columns.shape
        self._cache.begin(span)
        added, turn = self._tables.at(span.positions, columns.dtype)
        x = (columns if added is None else columns + added).view(N * n, dim)
        first = self.config.norm_first
        for index, layer in enumerate(self._layers):
            block = layer.block
            x_in, attention = x, layer.attention
            if attention is not None:
                asked = attention.norm(x) if first else x
                h = self._attend(attention, index, asked, turn, span)
                x = x + (h * block.scale1 if block.scaled else h)
                x = x if first else attention.norm(x)
            if self._memory is not None and layer.cross is not None:
                query = layer.norm_cross(x) if first else x_in
                self._consult(layer, index, query.view(N, n, dim), x.view(N, n, dim))
                x = x if first else layer.norm_cross(x)
            h = layer.feed(x)
            x = x + (h * block.scale2 if block.scaled else h)
            x = x if first else layer.norm2(x)
        return x.view(N, n, dim)

    def _attend(
        self, attention: Attention, index: int, x: Tensor, turn: Tensor | None, span: Span
    ) -> Tensor:
        """Self-attention of columns `[N n, dim]` over the cache."""
        config, n, qkv = self.config, span.size, attention.qkv(x)
        if attention.norms is not None:
            qkv = norm_queries_keys(qkv, *attention.norms)
        heads = qkv.view(len(x) // n, n, -1, config.head_dim)
        if turn is not None:
            rotate_(heads[:, :, : config.heads + config.kv_heads], turn)
        queries = heads[:, :, : config.heads].transpose(1, 2)
        mixed = self._cache.attend(index, span, queries, heads[:, :, config.heads :])
        return attention.out(mixed.transpose(1, 2).reshape(x.shape))

    def _consult(self, layer: Layer, index: int, query: Tensor, x: Tensor) -> None:
        """Add to `x` what cross-attention finds for `query`, `[N, n, dim]` both."""
        memory, cross, block = self._memory, layer.cross, layer.block
        assert memory is not None and cross is not None
        if memory.null is not None:
            query, (x, twins) = query[::2], (x[::2], x[1::2])
            added = memory.null[index]
            twins += added * block.scale_cross if block.scaled else added
        keys, values, mask = memory.keys[index], memory.values[index], memory.mask
        if x.shape[0] < keys.shape[0]:
            keys, values = keys[: x.shape[0]], values[: x.shape[0]]
            mask = mask if mask is None else mask[: x.shape[0]]
        if not memory.folded:
            h = cross(query, keys, values, mask)
            x += h * block.scale_cross if block.scaled else h
            return
        scores = torch.bmm(query, keys).view(*x.shape[:2], self.config.heads, -1)
        if mask is not None:
            scores = scores + mask  # [N, n, heads, L]
        shares = scores.softmax(dim=-1).flatten(2)
        if block.scaled:
            x += torch.bmm(shares, values) * block.scale_cross
        else:
            x.baddbmm_(shares, values)
