"""Every random choice of a decode: guesses, final tokens, and the noise behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.decoding.acceptance import Rule, textbook, textbook_codebooks
from specgen.decoding.lane import Lane, Where
from specgen.decoding.noise import NoiseField, Purpose, acceptance_uniforms, gumbels
from specgen.decoding.sampling import Sampling, perturbed_argmax, process


class Draws:
    """The draws of a batch; the result for a coordinate depends on its row's seed and logits alone.

    Args:
        lead: the verifier's lane.
        follow: the drafter's, or None.
        seeds: one a row.
        sampling: of both models' distributions.
        rule: how guesses are judged.
        temperatures: per codebook, of the guesses; () is 1 everywhere.
        record: keep the margins of coupled and greedy tokens.
    """

    def __init__(
        self,
        lead: Lane,
        follow: Lane | None,
        seeds: Sequence[int],
        sampling: Sampling,
        rule: Rule,
        temperatures: Sequence[float],
        *,
        record: bool = False,
    ) -> None:
        K, frames = lead.codebooks, [p.frames for p in lead.patterns]
        if len(seeds) != len(frames):
            raise ValueError(f"{len(frames)} rows, but {len(seeds)} seeds")
        if temperatures and (len(temperatures) != K or min(temperatures) <= 0):
            raise ValueError(f"draft temperatures must be {K} positive numbers, got {temperatures}")
        if follow is not None and (follow.codebooks, follow.card) != (K, lead.card):
            raise ValueError("drafter and verifier differ in codebooks or card")
        self._sampling = sampling
        self._tau = (
            torch.tensor(temperatures, device=lead.device)
            if temperatures and set(temperatures) != {1.0}
            else None
        )
        self._frames = frames
        self._margins: Tensor | None = None
        if record:
            self._margins = torch.full(
                (len(frames), K, max(frames)), torch.nan, dtype=torch.float64
            )
        self._textbook = (False,) * K
        # Whether a correction voids every open guess; such guesses are drawn anew, with new noise.
        self.forgetful = rule is Rule.REJECTION
        self._attempts: dict[tuple[int, int, int], int] = {}
        self._seeds = tuple(seeds)
        if sampling.greedy:
            return

        def field(purpose: Purpose) -> NoiseField:
            return NoiseField(seeds, frames, K, lead.card, purpose, lead.device)

        self._token = field(Purpose.TOKEN)
        if follow is None or rule is Rule.COUPLED:
            return
        longest = frames.index(max(frames))
        self._textbook = textbook_codebooks(rule, follow.patterns[longest], lead.patterns[longest])
        self._draft, self._residual = field(Purpose.DRAFT), field(Purpose.RESIDUAL)
        self._uniform = acceptance_uniforms(seeds, frames, K, lead.device)
        self._drafted: dict[tuple[int, int, int], Tensor] = {}

    def guess(self, logits: Tensor, where: Where) -> Tensor:
        """Draw the drafter's guesses.

        Args:
            logits: `[M, card]` guided logits of the drafter.
            where: their coordinates.

        Returns:
            `[M]` tokens.
        """
        if self._sampling.greedy:
            return logits.argmax(dim=-1)
        logits = process(logits, self._sampling)
        if self._tau is not None:
            logits = logits / self._tau[[c.k for _, _, c in where]][:, None]
        if not any(self._textbook):
            return perturbed_argmax(logits, _noise(self._token, where))
        noise = torch.empty_like(logits)
        private = [i for i, (_, _, c) in enumerate(where) if self._textbook[c.k]]
        shared = [i for i, (_, _, c) in enumerate(where) if not self._textbook[c.k]]
        for at, draw in ((private, self._private), (shared, self._shared)):
            if at:
                noise[at] = draw([where[i] for i in at]).to(noise.dtype)
        for (r, _, c), row in zip(where, logits, strict=True):
            if self._textbook[c.k]:
                self._drafted[r, c.t, c.k] = row
        return perturbed_argmax(logits, noise)

    def _shared(self, where: Where) -> Tensor:
        return _noise(self._token, where)

    def _private(self, where: Where) -> Tensor:
        """Noise of guesses for the textbook test: `[M, card]`."""
        if not self.forgetful:
            return _noise(self._draft, where)
        rows = []
        for r, _, c in where:
            attempt = self._attempts[r, c.t, c.k] = self._attempts.get((r, c.t, c.k), -1) + 1
            stream = c.k + len(self._textbook) * attempt
            noise = gumbels(self._seeds[r], Purpose.DRAFT, stream, c.t, 1, self._token.card)
            rows.append(torch.from_numpy(noise[0]))
        return torch.stack(rows).to(self._uniform.device)

    def judge(
        self, logits: Tensor, where: Where, guesses: Tensor, guessed: Sequence[bool]
    ) -> Tensor:
        """Draw the final tokens.

        Args:
            logits: `[M, card]` guided logits of the verifier.
            where: their coordinates.
            guesses: `[M]` tokens; only those with
            guessed: True are guesses.

        Returns:
            `[M]` tokens; equal to the guess where it is accepted.
        """
        if self._sampling.greedy:
            scores = logits
        else:
            logits = process(logits, self._sampling)
            scores = logits + _noise(self._token, where)
        tokens = scores.argmax(dim=-1)
        if self._margins is not None:
            best = scores.double().topk(2, dim=-1).values
            for (r, _, c), gap in zip(where, (best[:, 0] - best[:, 1]).tolist(), strict=True):
                self._margins[r, c.k, c.t] = gap
        at = [i for i, (_, _, c) in enumerate(where) if guessed[i] and self._textbook[c.k]]
        if not at:
            return tokens
        chosen = [where[i] for i in at]
        draft = torch.stack([self._drafted[r, c.t, c.k] for r, _, c in chosen])
        rows, ks, ts = zip(*((r, c.k, c.t) for r, _, c in chosen), strict=True)
        uniform = self._uniform[list(rows), list(ks), list(ts)]
        tokens[at] = textbook(
            guesses[at], logits[at], draft, uniform, _noise(self._residual, chosen)
        )
        if self._margins is not None:
            for r, _, c in chosen:
                self._margins[r, c.k, c.t] = torch.nan
        return tokens

    def margins(self) -> list[Tensor] | None:
        """`[K, T_r]` margins a row, if recorded."""
        if self._margins is None:
            return None
        return [self._margins[r, :, :T] for r, T in enumerate(self._frames)]


def _noise(field: NoiseField, where: Where) -> Tensor:
    return field.at([r for r, _, _ in where], [c for _, _, c in where])
