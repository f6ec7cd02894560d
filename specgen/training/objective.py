"""What the language models are trained on: cross-entropy, and a teacher's distributions.

Everything is computed on the grid of coordinates, not on steps: each coordinate's hidden state is
picked before the heads, so a pattern that writes one token a step pays for one head a step, and two
models of different patterns can be compared coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.checkpoints.native import LMCheckpoint
from specgen.lm.features import as_verifiers
from specgen.training.batches import Batch, Crop, TokenItems, write_batch

if TYPE_CHECKING:
    from specgen.training.targets import Target


def states(
    model: LMCheckpoint, batch: Batch, texts: Sequence[str], features: Tensor | None = None
) -> Tensor:
    """Teacher-forced hidden states of the batch's columns, `[B, n, dim]`."""
    memory = None
    if model.lm.config.condition_dim:
        words = [model.conditioner.tokenize(text).ids for text in texts]
        memory = model.lm.transformer.memory(*model.conditioner(words))
    return model.lm.hidden(batch.inputs, memory, features)


def picked(hidden: Tensor, batch: Batch) -> Tensor:
    """Of the states of columns those that predict the coordinates, `[K, B, F, dim]`."""
    rows = torch.arange(hidden.shape[0])[:, None]
    return torch.stack([hidden[rows, batch.places[:, k]] for k in range(batch.places.shape[1])])


def head_logits(model: LMCheckpoint, hidden: Tensor) -> Tensor:
    """Logits `[K, B, F, card]` of picked states."""
    return torch.stack([model.lm.head(h, k) for k, h in enumerate(hidden)])


def grid_logits(model: LMCheckpoint, items: TokenItems, crops: Sequence[Crop]) -> Tensor:
    """Teacher-forced logits of every coordinate of the crops, `[K, B, F, card]`."""
    batch = write_batch(items, crops, model.pattern, model.lm.config.special)
    return head_logits(model, picked(states(model, batch, [crop.text for crop in crops]), batch))


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
    hidden = picked(states(model, batch, [crop.text for crop in crops]), batch)
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


@dataclass(frozen=True)
class Heard:
    """What stands beside the columns of a drafter that reads its verifier's states.

    Attributes:
        features: `[B, n, feature_dim]` of the verifier's.
        unread: `[B, n]` bool: columns beside which the drafter finds a state of its own, as beside
            those of a draft that the verifier has yet to read.
    """

    features: Tensor
    unread: Tensor

    def with_own(self, states: Tensor) -> Tensor:
        """`features` with the drafter's states `[B, n, dim]` where they are unread."""
        own = as_verifiers(states, self.features.shape[-1] // states.shape[-1])
        return F.pad(own, (0, 0, 1, -1)).where(self.unread[..., None], self.features)


def guided_losses(
    model: LMCheckpoint,
    items: TokenItems,
    crops: Sequence[Crop],
    target: Target,
    guidance: float | None = None,
    columns: bool = False,
    heard: Heard | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """How far a drafter is from a verifier's guided distributions.

    Args:
        model: the drafter.
        crops: with their captions.
        target: the verifier's distributions.
        guidance: the drafter's own CFG coefficient; None lets it draft without guidance, learning
            the guided distribution outright: half the work of a draft.
        columns: the chance that a whole column of guesses stands, which is what a verifier of the
            same pattern needs; otherwise that a single one does.
        heard: what the drafter reads of the verifier's states.

    Returns:
        Mean cross-entropy of each codebook `[K]` in nats, mean KL(target || model), and mean chance
        of acceptance under the coupled rule.
    """
    batch = write_batch(items, crops, model.pattern, model.lm.config.special)
    texts = [crop.text for crop in crops]
    features = None
    if heard is not None:
        with torch.no_grad():
            own = states(model, batch, texts, heard.features)
        features = heard.with_own(own)
    hidden = picked(states(model, batch, texts, features), batch)
    null = None
    if guidance is not None:
        null = picked(states(model, batch, [""] * len(texts), features), batch)
    entropies, divergences, chances = [], [], []
    for k, h in enumerate(hidden):
        logits = model.lm.head(h, k)
        if null is not None and guidance is not None:
            logits = torch.lerp(model.lm.head(null[k], k), logits, guidance)
        logq = logits.flatten(0, 1).log_softmax(dim=-1)
        entropies.append(F.nll_loss(logq, batch.targets[:, k].flatten()))
        logp = target.logp[k].flatten(0, 1)
        logq = logq.gather(1, target.entries[k].flatten(0, 1))
        divergences.append(F.kl_div(logq, logp, log_target=True, reduction="batchmean"))
        chances.append(coupled_chance(logp.exp(), logq.exp()).view(target.logp.shape[1:3]))
    each = torch.stack(chances, dim=1)  # [B, K, F]
    chance = column_chance(each, batch.places) if columns else each.mean()
    return torch.stack(entropies), torch.stack(divergences).mean(), chance


def column_chance(chances: Tensor, places: Tensor) -> Tensor:
    """Mean chance that all guesses of a column stand, over the columns that lie whole in the crop.

    Args:
        chances: `[B, K, F]`, of each guess.
        places: `[B, K, F]`, the column of each (see `Batch`).
    """
    rows, columns = len(chances), places.flatten(1)
    empty = chances.new_zeros(rows, int(places.max()) + 1)
    logs = empty.scatter_add(1, columns, chances.clamp(min=1e-6).log().flatten(1))
    sizes = empty.scatter_add(1, columns, torch.ones_like(chances).flatten(1))
    return logs[sizes == sizes.max()].exp().mean()


def coupled_chance(p: Tensor, q: Tensor) -> Tensor:
    """P(argmax(log p + g) == argmax(log q + g)) for Gumbel noise g, which is
    sum_i 1 / sum_j max(p_j/p_i, q_j/q_i).

    With entries sorted by p/q, those above i contribute p_j/p_i and the others q_j/q_i, so two
    running sums suffice.

    Args:
        p: `[..., k]` probabilities, 0 where an entry is cut.
        q: `[..., k]`; entries that are not listed hold the rest of its mass.

    Returns:
        `[...]`.
    """
    ratio = (p / q).nan_to_num(nan=0.0, posinf=torch.inf)  # entries of neither add nothing anywhere
    order = ratio.detach().argsort(dim=-1, descending=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    above = p.cumsum(dim=-1) - p
    below = torch.maximum(1 - (q.cumsum(dim=-1) - q), q)
    both = (p > 0) & (q > 0)
    safe_p, safe_q = p.where(both, torch.ones_like(p)), q.where(both, torch.ones_like(q))
    chance = 1 / (above / safe_p + below / safe_q)
    return chance.where(both, torch.zeros_like(chance)).sum(dim=-1)


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
