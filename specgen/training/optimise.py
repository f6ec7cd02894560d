"""Optimiser, learning-rate schedule and averaged weights of the language-model training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def rate_at(progress: float, step: int, warmup: int) -> float:
    """Share of the peak rate: linear over `warmup` steps, then a cosine to 0 at progress 1."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(
    modules: Iterable[nn.Module], rate: float, weight_decay: float, embedding_scale: float
) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; embeddings (and heads) learn `embedding_scale` times faster.

    A row of an embedding table is touched by few tokens, so it bears a higher rate.
    """
    matrices, tables, vectors = [], [], []
    for module in modules:
        for name, value in module.named_parameters():
            if value.dim() < 2:
                vectors.append(value)
            elif "embedding" in name:
                tables.append(value)
            else:
                matrices.append(value)
    groups = [
        {"params": matrices, "scale": 1.0, "weight_decay": weight_decay},
        {"params": tables, "scale": embedding_scale, "weight_decay": 0.0},
        {"params": vectors, "scale": 1.0, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class Average:
    """Exponential moving average of parameters, with a horizon that grows with the run.

    The decay at step s is min(decay, s / (s + 10) ), so an average of a short run is not the start.
    """

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.decay = decay
        self.sources = [value for module in modules for value in module.parameters()]
        self.values = [value.detach().clone() for value in self.sources]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, step / (step + 10))
        torch._foreach_lerp_(self.values, [s.detach() for s in self.sources], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the parameters; a second call exchanges them back."""
        for value, source in zip(self.values, self.sources, strict=True):
            held: Tensor = source.detach().clone()
            source.copy_(value)
            value.copy_(held)


def initialise(module: nn.Module, layers: int, std: float = 0.02) -> None:
    """Normal weights of `std`, those that write into the residual stream shrunk by sqrt(3 * layers)
    (GPT-2's rule, with three writers a layer)."""
    for name, value in module.named_parameters():
        if value.dim() >= 2:
            writes = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(value, std=std / math.sqrt(3 * layers) if writes else std)
