"""How fast memory is here, and how much of it a decode must move."""

from __future__ import annotations

import statistics
import time

import torch

from specgen.checkpoints.base import LMCheckpoint
from specgen.lm.model import MusicLM
from specgen.lm.packed import PackedHeads

_CPU_BYTES, _CARD_BYTES = 2**28, 2**30


def copy_bandwidth(device: torch.device, size: int | None = None, repeats: int = 7) -> float:
    """Bytes a second of a plain copy, what is read and what is written both counted.

    Args:
        device: whose memory.
        size: bytes of the buffer; None: larger than any cache.
        repeats: the median of so many copies.
    """
    size = size or (_CPU_BYTES if device.type == "cpu" else _CARD_BYTES)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(repeats + 2):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return 2 * source.nbytes / statistics.median(taken[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pass_bytes(lm: MusicLM, tokens: float) -> float:
    """Bytes of weights that one forward pass must read.

    All but the embedding tables, of which a pass reads a few rows, and the products that make the
    cross-attention's memory, which run once a prompt. A pass that makes fewer tokens than there are
    codebooks needs that share of the heads.

    Args:
        lm: the model as it lies in memory, packed or not.
        tokens: that the pass makes, on average.
    """
    config = lm.config
    item = lm.embedding.weight.element_size()
    heads = config.codebooks * config.card * config.dim
    memory = 2 * config.condition_dim * config.dim * config.layers
    whole = lm.weight_bytes() - lm.embedding.weight.nbytes
    if isinstance(lm.heads, PackedHeads) and lm.heads.together is not None:
        whole -= lm.heads.together.nbytes  # a pass reads one of the two copies
    per_number = whole / max(1, lm.parameter_count() - lm.embedding.weight.numel())
    idle = memory + heads * (1 - min(1.0, tokens / config.codebooks))
    return whole - idle * min(per_number, item)


def position_bytes(lm: MusicLM) -> int:
    """Bytes that one position of one sequence holds in the cache."""
    config = lm.config
    item = lm.embedding.weight.element_size()
    return 2 * config.layers * config.kv_heads * config.head_dim * item


def moved_bytes(
    model: LMCheckpoint, *, passes: float, tokens: float, steps: int, sequences: int
) -> float:
    """Bytes that a model's passes must move in a decode, at least.

    Args:
        model: the model.
        passes: forward passes, a batch counted once.
        tokens: tokens made a pass, of one row.
        steps: the length that the sequence reaches; half of it lies in the cache on average.
        sequences: rows, their twins of guidance included.
    """
    cache = position_bytes(model.lm) * sequences * steps / 2
    return passes * (pass_bytes(model.lm, tokens) + cache)
