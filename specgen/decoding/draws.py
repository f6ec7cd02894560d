"""Every random choice of a decode: guesses, final tokens, and the noise behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.decoding.acceptance import Rule, textbook, textbook_codebooks
from specgen.decoding.lane import Lane, Where
from specgen.decoding.lossy import Lenient
from specgen.decoding.noise import NoiseField, Purpose, acceptance_uniforms, gumbels
from specgen.decoding.sampling import Sampling, draw, perturbed_argmax, process
from specgen.decoding.ties import Referee, close_calls, settle
from specgen.patterns import Coord
from specgen.tensors import upload


class Draws:
    """The draws of a batch; the result for a coordinate depends on its row's seed and logits alone.

    What is kept for a grid lies in a slot; rows that move take their slots along. With `lenient`
    set, guesses that it lets pass stand although the verifier drew otherwise (lossy). `called`
    holds the row of each close call (`specgen.decoding.ties`) that the last `judge` decided.

    Args:
        lead: the verifier's lane.
        follow: the drafter's, or None.
        rows: B.
        frames: T of the longest grid.
        sampling: of both models' distributions.
        rule: how guesses are judged.
        temperatures: per codebook, of the guesses; () is 1 everywhere.
        record: keep the margins of coupled and greedy tokens.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    lenient: Lenient | None = None
    called: Sequence[int] = ()

    def __init__(
        self,
        lead: Lane,
        follow: Lane | None,
        rows: int,
        frames: int,
        sampling: Sampling,
        rule: Rule,
        temperatures: Sequence[float],
        *,
        record: bool = False,
    ) -> None:
        K = lead.codebooks
        if temperatures and (len(temperatures) != K or min(temperatures) <= 0):
            raise ValueError(f"draft temperatures must be {K} positive numbers, got {temperatures}")
        if follow is not None and (follow.codebooks, follow.card) != (K, lead.card):
            raise ValueError("drafter and verifier differ in codebooks or card")
        self._sampling, self._rule, self._lanes = sampling, rule, (lead, follow)
        self._tau = (
            torch.tensor(temperatures, device=lead.device)
            if temperatures and set(temperatures) != {1.0}
            else None
        )
        self._slot = list(range(rows))
        self._seeds, self._origins = [0] * rows, [0] * rows
        self._margins: Tensor | None = None
        if record:
            self._margins = torch.full((rows, K, frames), torch.nan, dtype=torch.float64)
        # Close calls are decided where the final tokens are the verifier's own draws.
        own = follow is None or rule is Rule.COUPLED
        self._referee: Referee | None = None
        if own and isinstance(lead.scorer, Referee) and lead.scorer.tie > 0:
            self._referee = lead.scorer
        self._textbook = [(False,) * K] * rows
        # Whether a correction voids every open guess; such guesses are drawn anew, with new noise.
        self.forgetful = rule is Rule.REJECTION
        self._fields: dict[Purpose, NoiseField] = {}
        if sampling.greedy:
            return

        def field(purpose: Purpose) -> NoiseField:
            return NoiseField(rows, frames, K, lead.card, purpose, lead.device)

        self._fields[Purpose.TOKEN] = field(Purpose.TOKEN)
        if follow is None or rule is Rule.COUPLED:
            return
        for purpose in (Purpose.DRAFT, Purpose.RESIDUAL):
            self._fields[purpose] = field(purpose)
        self._uniform = torch.zeros(rows, K, frames, dtype=torch.float64, device=lead.device)
        self._drafted: list[dict[Coord, Tensor]] = [{} for _ in range(rows)]
        self._attempts: list[dict[Coord, int]] = [{} for _ in range(rows)]

    def admit(self, row: int, seed: int, origin: int = 0) -> None:
        """Another grid takes the row; the lanes have it already. `origin` is the frame of its piece
        that it starts at: noise belongs to the frames of the piece."""
        slot = self._slot[row]
        self._seeds[slot], self._origins[slot] = seed, origin
        for field in self._fields.values():
            field.admit(slot, seed, origin)
        if self._margins is not None:
            self._margins[slot] = torch.nan
        lead, follow = self._lanes
        if Purpose.RESIDUAL not in self._fields or follow is None:
            return
        frames = lead.patterns[row].frames
        self._textbook[slot] = textbook_codebooks(
            self._rule, follow.patterns[row], lead.patterns[row]
        )
        uniform = acceptance_uniforms(seed, frames, lead.codebooks, origin)
        self._uniform[slot, :, :frames] = uniform.to(self._uniform.device)
        self._drafted[slot], self._attempts[slot] = {}, {}

    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        slots = self._slot
        slots[source], slots[target] = slots[target], slots[source]

    def _at(self, purpose: Purpose, where: Where) -> Tensor:
        """Noise of coordinates, `[M, card]`."""
        return self._fields[purpose].at(*self._noise_of(where))

    def _noise_of(self, where: Where) -> tuple[list[int], list[Coord]]:
        return [self._slot[r] for r, _, _ in where], [c for _, _, c in where]

    def _by_textbook(self, row: int, coord: Coord) -> bool:
        return self._textbook[self._slot[row]][coord.k]

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
        if self.recordable and self._tau is None:
            return draw(logits, self._at(Purpose.TOKEN, where), self._sampling)
        books = None if self._tau is None else upload([c.k for _, _, c in where], logits.device)
        logits = self._drafting(logits, books)
        private = [i for i, (r, _, c) in enumerate(where) if self._by_textbook(r, c)]
        if not private:
            return perturbed_argmax(logits, self._at(Purpose.TOKEN, where))
        for i in private:
            r, _, c = where[i]
            self._drafted[self._slot[r]][c] = logits[i]
        noise = torch.empty_like(logits)
        noise[private] = self._private([where[i] for i in private]).to(noise.dtype)
        shared = [i for i, (r, _, c) in enumerate(where) if not self._by_textbook(r, c)]
        if shared:
            noise[shared] = self._at(Purpose.TOKEN, [where[i] for i in shared]).to(noise.dtype)
        return perturbed_argmax(logits, noise)

    @property
    def recordable(self) -> bool:
        """Whether every guess is drawn with its coordinate's own noise, or none (`column`)."""
        return self._sampling.greedy or Purpose.DRAFT not in self._fields

    def noise_places(self, where: Where) -> list[int]:
        """Where the shared noise of coordinates lies, for `column`."""
        if self._sampling.greedy:
            return [0] * len(where)
        return self._fields[Purpose.TOKEN].places(*self._noise_of(where))

    def column(self, logits: Tensor, places: Tensor) -> Tensor:
        """`guess` for whole columns, as a function of tensors alone.

        Args:
            logits: `[B, K, card]` guided logits of the drafter.
            places: `[B, K]` from `noise_places`.

        Returns:
            `[B, K]` tokens.
        """
        if self._sampling.greedy:
            return logits.argmax(dim=-1)
        logits = self._drafting(logits)
        noise = self._fields[Purpose.TOKEN].flat[places.flatten()]
        return perturbed_argmax(logits, noise.view(logits.shape))

    def _drafting(self, logits: Tensor, books: Tensor | None = None) -> Tensor:
        """The law of guesses, from logits `[M, card]` of codebooks `books`, or of all
        (`[..., K, card]`)."""
        logits = process(logits, self._sampling)
        if self._tau is None:
            return logits
        return logits / (self._tau if books is None else self._tau[books])[:, None]

    def _private(self, where: Where) -> Tensor:
        """Noise of guesses for the textbook test: `[M, card]`."""
        if not self.forgetful:
            return self._at(Purpose.DRAFT, where)
        rows = []
        card, codebooks = self._lanes[0].card, self._lanes[0].codebooks
        for r, _, c in where:
            slot = self._slot[r]
            attempt = self._attempts[slot][c] = self._attempts[slot].get(c, -1) + 1
            stream = c.k + codebooks * attempt
            frame = self._origins[slot] + c.t
            noise = gumbels(self._seeds[slot], Purpose.DRAFT, stream, frame, 1, card)
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
        noise = None if self._sampling.greedy else self._at(Purpose.TOKEN, where)
        self.called = ()
        if self._referee is not None and self._margins is None and self.lenient is None:
            return self._decide(self._referee, logits, noise, where, guesses)
        logits = logits if noise is None else process(logits, self._sampling)
        scores = logits if noise is None else logits + noise
        tokens = scores.argmax(dim=-1)
        if self._margins is not None:
            best = scores.double().topk(2, dim=-1).values
            for (r, _, c), gap in zip(where, (best[:, 0] - best[:, 1]).tolist(), strict=True):
                self._margins[self._slot[r], c.k, c.t] = gap
        if self.lenient is not None:
            at = [i for i, flag in enumerate(guessed) if flag]
            books = [where[i][2].k for i in at]
            fine = self.lenient.stands(guesses[at], tokens[at], logits[at], books)
            tokens[at] = guesses[at].where(fine, tokens[at])
            return tokens
        at = [i for i, (r, _, c) in enumerate(where) if guessed[i] and self._by_textbook(r, c)]
        if not at:
            return tokens
        chosen = [where[i] for i in at]
        draft = torch.stack([self._drafted[self._slot[r]][c] for r, _, c in chosen])
        rows, ks, ts = zip(*((self._slot[r], c.k, c.t) for r, _, c in chosen), strict=True)
        uniform = self._uniform[list(rows), list(ks), list(ts)]
        tokens[at] = textbook(
            guesses[at], logits[at], draft, uniform, self._at(Purpose.RESIDUAL, chosen)
        )
        if self._margins is not None:
            for r, _, c in chosen:
                self._margins[self._slot[r], c.k, c.t] = torch.nan
        return tokens

    def _decide(
        self,
        referee: Referee,
        logits: Tensor,
        noise: Tensor | None,
        where: Where,
        guesses: Tensor,
    ) -> Tensor:
        """The verifier's own draws, close calls read again; arguments as for `judge`."""
        tokens, close = close_calls(logits, noise, self._sampling, referee.tie)
        calls = close.tolist()
        if True not in calls:
            return tokens
        lead, _ = self._lanes
        same, called = (tokens == guesses).tolist(), []
        for i in (i for i, call in enumerate(calls) if call):
            row, place, coord = where[i]
            if not all(same[j] for j in range(i) if where[j][0] == row and where[j][1] < place):
                continue  # read behind a refused guess: it will be drawn again
            called.append(row)
            again = referee.reread(row, lead.before(row, coord), coord.k)
            tokens[i] = settle(again, None if noise is None else noise[i], self._sampling)
            same[i] = bool(tokens[i] == guesses[i])
        self.called = called
        return tokens

    def margins(self, row: int) -> Tensor | None:
        """`[K, T]` margins, if recorded."""
        if self._margins is None:
            return None
        return self._margins[self._slot[row], :, : self._lanes[0].patterns[row].frames].clone()
