"""Residual vector quantisation (SoundStream, Zeghidour et al. 2021; EnCodec, Défossez et al. 2022).

The codebooks are learned without gradients, as running means of the vectors that chose them
(van den Oord et al. 2017, appendix A.1), started by k-means and kept alive by replacing entries
that nothing chooses.
"""

import torch
from torch import Tensor, nn


def nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Index of the nearest entry: `vectors [N, D]`, `entries [card, D]` to `[N]` int64."""
    # |v - e|^2 without |v|^2, which is the same for all entries.
    scores = torch.addmm(entries.square().sum(1).mul_(0.5), vectors, entries.T, alpha=-1.0)
    return scores.argmin(1)


def k_means(vectors: Tensor, card: int, rounds: int, generator: torch.Generator) -> Tensor:
    """`card` centres `[card, D]` of `vectors [N, D]`; empty clusters restart at random."""
    order = torch.randperm(len(vectors), generator=generator)
    centres = vectors[order[torch.arange(card) % len(vectors)]].clone()
    for _ in range(rounds):
        chosen = nearest(vectors, centres)
        counts = torch.bincount(chosen, minlength=card)
        sums = torch.zeros_like(centres).index_add_(0, chosen, vectors)
        lost = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        replacements = torch.randint(len(vectors), (int(lost.sum()),), generator=generator)
        centres[lost] = vectors[replacements]
    return centres


class ResidualQuantizer(nn.Module):
    """`codebooks` codebooks of `card` entries of `dim` numbers, each coding what is left over.

    In training mode the entries follow the data (call `adapt` with what `forward` returned);
    gradients pass straight through to the encoder.
    """

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codebooks: int, card: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.codebooks, self.card, self.dim, self.decay = codebooks, card, dim, decay
        self.register_buffer("entries", torch.zeros(codebooks, card, dim))
        # Training state only: not part of a released checkpoint.
        self.register_buffer("counts", torch.ones(codebooks, card), persistent=False)
        self.register_buffer("sums", torch.zeros(codebooks, card, dim), persistent=False)

    def encode(self, latents: Tensor) -> Tensor:
        """`latents [B, T, D]` to `codes [B, K, T]` int64."""
        residual = latents.reshape(-1, self.dim)
        columns = []
        for entries in self.entries:
            chosen = nearest(residual, entries)
            residual = residual - entries[chosen]
            columns.append(chosen.view(latents.shape[:2]))
        return torch.stack(columns, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """`codes [B, K, T]` to the summed entries `[B, T, D]`."""
        total = self.entries[0][codes[:, 0]]
        for k in range(1, self.codebooks):
            total = total + self.entries[k][codes[:, k]]
        return total

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents with straight-through gradients, codes, and the commitment loss.

        `latents [B, T, D]` to `([B, T, D], codes [B, K, T], scalar)`; the loss is the mean
        squared distance of each codebook's input to the entry it chose.
        """
        codes = self.encode(latents.detach())
        quantised = torch.zeros_like(latents)
        commitment = latents.new_zeros(())
        for k in range(self.codebooks):
            quantised = quantised + self.entries[k][codes[:, k]]
            commitment = commitment + (latents - quantised).square().mean()
        return latents + (quantised - latents).detach(), codes, commitment / self.codebooks

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """K-means start of all codebooks from `latents [N, D]`, one after the other."""
        residual = latents
        for k in range(self.codebooks):
            entries = k_means(residual, self.card, rounds, generator)
            chosen = nearest(residual, entries)
            share = torch.bincount(chosen, minlength=self.card) / len(residual)
            self.entries[k] = entries
            self.counts[k] = share
            self.sums[k] = entries * share[:, None]
            residual = residual - entries[chosen]

    @torch.no_grad()
    def adapt(self, latents: Tensor, codes: Tensor) -> None:
        """Move the entries towards `latents [B, T, D]` that chose `codes [B, K, T]`.

        `counts` are running shares: they sum to one over a codebook.
        """
        residual = latents.reshape(-1, self.dim)
        for k in range(self.codebooks):
            chosen = codes[:, k].reshape(-1)
            share = torch.bincount(chosen, minlength=self.card) / len(residual)
            sums = torch.zeros_like(self.sums[k]).index_add_(0, chosen, residual) / len(residual)
            residual = residual - self.entries[k][chosen]
            self.counts[k].lerp_(share, 1 - self.decay)
            self.sums[k].lerp_(sums, 1 - self.decay)
            self.entries[k] = self.sums[k] / self.counts[k].clamp(min=1e-8)[:, None]

    @torch.no_grad()
    def revive(self, latents: Tensor, generator: torch.Generator, threshold: float = 0.03) -> int:
        """Move entries used less than `threshold` times the mean onto current vectors.

        `latents [B, T, D]`; returns how many entries moved.
        """
        residual = latents.reshape(-1, self.dim)
        moved = 0
        for k in range(self.codebooks):
            dead = (self.counts[k] < threshold / self.card).nonzero()[:, 0]
            if len(dead):
                picks = torch.randint(len(residual), (len(dead),), generator=generator)
                self.entries[k][dead] = residual[picks]
                self.counts[k][dead] = 0.5 / self.card
                self.sums[k][dead] = residual[picks] * (0.5 / self.card)
                moved += len(dead)
            residual = residual - self.entries[k][nearest(residual, self.entries[k])]
        return moved
