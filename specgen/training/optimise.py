"""Optimiser, learning-rate schedule and averaged weights of the language-model training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def rate_at(progress: float, step: int, warmup: int) -> float:
    """Share of the peak rate: linear over `warmup` steps, then a cosine to 0 at progress 1."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * progress))


# Quintics for the first, second, ... Newton-Schulz step (Amsel et al. 2025, "The Polar Express");
# four are enough for an optimiser.
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix: most singular values end between 0.5 and 1.6."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / (1.01 * wide.norm() + 1e-7)
    for a, b, c in _QUINTICS:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), scaled to AdamW's usual step size (Liu et al.
    2025), so that both optimisers share one learning rate and weight decay. Matrices only."""

    def __init__(self, params: Iterable[Tensor], rate: float, weight_decay: float) -> None:
        defaults = {"lr": rate, "weight_decay": weight_decay, "momentum": 0.95}
        super().__init__(list(params), defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for value in group["params"]:
                state = self.state[value]
                mean = state.setdefault("mean", torch.zeros_like(value))
                mean.lerp_(value.grad, 1 - group["momentum"])
                push = value.grad.lerp(mean, group["momentum"])  # Nesterov's look ahead
                parts = (
                    value.shape[0] // value.shape[1] if value.shape[0] < 4 * value.shape[1] else 1
                )
                turned = torch.cat([orthogonalise(part) for part in push.chunk(max(1, parts))])
                size = 0.2 * max(value.shape) ** 0.5
                value.mul_(1 - group["lr"] * group["weight_decay"])
                value.add_(turned, alpha=-group["lr"] * size)


def optimizers(
    modules: Iterable[nn.Module],
    kind: str,
    rate: float,
    weight_decay: float,
    embedding_scale: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """AdamW for everything (`kind` "adamw"), or Muon for the transformers' matrices ("muon").

    Embeddings, heads and vectors always learn by AdamW; only matrices decay. A row of an embedding
    table is touched by few tokens, so it bears a rate `embedding_scale` times as high. Weights
    without gradients are left alone.
    """
    inner: list[Tensor] = []
    heads: list[Tensor] = []
    tables: list[Tensor] = []
    vectors: list[Tensor] = []
    for module in modules:
        for name, value in module.named_parameters():
            if not value.requires_grad:
                continue
            if "embedding" in name:
                tables.append(value)
            elif value.dim() != 2:
                vectors.append(value)
            else:
                (heads if name.startswith("heads") else inner).append(value)
    plain = [] if kind == "muon" else inner
    groups = [
        {"params": plain + heads, "weight_decay": weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": tables, "weight_decay": 0.0, "scale": embedding_scale},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    ]
    return [*made, Muon(inner, rate, weight_decay)] if kind == "muon" else made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


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
