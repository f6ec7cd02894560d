"""What the language models are trained on: cross-entropy, and a teacher's distributions.

Everything is computed on the grid of coordinates, not on steps: each coordinate's hidden state is
picked before the heads, so a pattern that writes one token a step pays for one head a step, and two
models of different patterns can be compared coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.checkpoints.native import LMCheckpoint
from specgen.training.batches import Batch, Crop, TokenItems, write_batch


def picked_hidden(model: LMCheckpoint, batch: Batch, texts: Sequence[str]) -> Tensor:
    """Teacher-forced hidden states of the batch's coordinates, `[K, B, F, dim]`."""
    condition, mask = model.conditioner([model.conditioner.tokenize(text).ids for text in texts])
    memory = model.lm.transformer.memory(condition, mask)
    hidden = model.lm.hidden(batch.inputs, memory)  # [B, n, dim]
    rows = torch.arange(hidden.shape[0])[:, None]
    return torch.stack([hidden[rows, batch.places[:, k]] for k in range(batch.places.shape[1])])


def grid_logits(model: LMCheckpoint, items: TokenItems, crops: Sequence[Crop]) -> Tensor:
    """Teacher-forced logits of every coordinate of the crops, `[K, B, F, card]`."""
    batch = write_batch(items, crops, model.pattern, model.lm.config.special)
    hidden = picked_hidden(model, batch, [crop.text for crop in crops])
    return torch.stack([model.lm.head(h, k) for k, h in enumerate(hidden)])


def losses(
    model: LMCheckpoint,
    items: TokenItems,
    crops: Sequence[Crop],
    teacher: LMCheckpoint | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each codebook `[K]` in nats, and mean KL(teacher || model) (0 without).

    The condition of a crop, null condition included, is the same for both models.
    """
    batch = write_batch(items, crops, model.pattern, model.lm.config.special)
    hidden = picked_hidden(model, batch, [crop.text for crop in crops])
    given = None
    if teacher is not None:
        with torch.no_grad():
            given = grid_logits(teacher, items, crops)
    entropies, divergences = [], []
    for k, h in enumerate(hidden):
        logits = model.lm.head(h, k).flatten(0, 1)
        logq = logits.log_softmax(dim=-1)
        entropies.append(F.nll_loss(logq, batch.targets[:, k].flatten()))
        if given is not None:
            logp = given[k].flatten(0, 1).log_softmax(dim=-1)
            divergences.append(F.kl_div(logq, logp, log_target=True, reduction="batchmean"))
    divergence = torch.stack(divergences).mean() if divergences else hidden.new_zeros(())
    return torch.stack(entropies), divergence


def unigram_entropy(items: TokenItems, smoothed_by: TokenItems, card: int) -> list[float]:
    """Cross-entropy in nats of each codebook under the unigram frequencies of `smoothed_by`.

    The frequencies are counted with one added to every entry, so none is impossible.
    """
    counts = [_histogram(one, card) for one in (items, smoothed_by)]
    rates = (counts[1] + 1) / (counts[1] + 1).sum(dim=1, keepdim=True)
    shares = counts[0] / counts[0].sum(dim=1, keepdim=True)
    return [float(value) for value in -(shares * rates.log()).sum(dim=1)]


def _histogram(items: TokenItems, card: int) -> Tensor:
    grid = torch.cat([items.grid(row) for row in range(len(items.rows))], dim=1)
    return torch.stack([torch.bincount(column, minlength=card) for column in grid]).double()
