"""A decoding session on a language model: its cache, its conditions, its guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import add

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.lm.cache import KVCache, Span
from specgen.lm.features import Features
from specgen.lm.given import Given
from specgen.lm.graphs import GraphedPass, Recordings, recorder
from specgen.lm.model import MusicLM
from specgen.lm.reread import reread
from specgen.lm.step import Stepper, norm
from specgen.lm.traced import Column, traced_column
from specgen.lm.turned import cache_for
from specgen.tensors import upload

# The scores of a float32 pass are off by 5e-6 (root mean square) to 1e-4 (worst of 24,000) on the
# embedded models; two passes swap two scores that lie further apart than this 3 times in 1e9 draws.
TIE = 5e-5


class LMSession:
    """One batch of sequences being decoded on one model: its cache, its conditions, its guidance.

    This is what the decode loop sees of a model (`specgen.decoding.loop.Scorer`); it knows neither
    patterns nor sampling. With classifier-free guidance the batch is doubled here and nowhere else:
    behind each row comes its twin with the null condition.

    Args:
        model: the language model, in evaluation mode.
        condition: `[B, L, condition_dim]`, or None for a model without cross-attention.
        mask: `[B, L]` bool of real places, or None.
        null: null condition, needed for guidance: `[1, 1, condition_dim]`; before the sequence
            (`prepend`), the beginning of it, `[1, n, dim]`.
        guidance: CFG coefficient; None or 1 runs the conditional half alone.
        rows: B.
        capacity: longest sequence, in steps.
        prepend: the condition stands before the sequence, `[B, P, dim]`, instead of being read by
            cross-attention; the null condition is filled up with zeros to its length.
        verifier: whose states a drafter with a `feature_dim` reads; None: it does without.
    """

    def __init__(
        self,
        model: MusicLM,
        *,
        rows: int,
        capacity: int,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        null: Tensor | None = None,
        guidance: float | None = None,
        prepend: bool = False,
        verifier: LMSession | None = None,
    ) -> None:
        self.model = model
        self.rows = rows
        self.guidance = None if guidance is None or guidance == 1.0 or null is None else guidance
        if condition is not None and mask is None:
            mask = torch.ones(condition.shape[:2], dtype=torch.bool, device=condition.device)
        beside = null[0] if null is not None and self.guidance is not None else None
        if beside is not None and not prepend and len(beside) != 1:
            raise ValueError(f"a null condition of {len(beside)} places, not of one")
        self._given = (
            []
            if condition is None or mask is None
            else [Given(*one, beside) for one in zip(condition, mask, strict=True)]
        )
        self._prepend = prepend
        prefix = condition if prepend else None
        condition = None if prepend else condition
        self.memory = (
            None
            if condition is None
            else model.transformer.memory(
                condition.to(model.dtype),
                mask,
                fold=model.transformer.folds(*condition.shape[:2]),
                null=None if beside is None else beside[0].to(model.dtype),
            )
        )
        self._length = 0 if condition is None else condition.shape[1]
        self._doubled = 2 if self.guidance is not None else 1
        total, before = rows * self._doubled, 0 if prefix is None else prefix.shape[1]
        self._kept: Features | None = None  # what a drafter reads of this session
        self._read: Features | None = None  # what this session reads of its verifier
        if verifier is not None and model.config.feature_dim:
            self._read = verifier.keep(model.config.feature_dim, model.dtype)
        # Behind a prefix, places in the cache do not tell which states to read.
        unplaced = self._read is not None and before > 0
        record = None if unplaced else recorder(model.device)
        self.cache = cache_for(
            model.config, total, before + capacity, model.device, model.dtype, record is not None
        )
        self._run = Stepper(model.transformer, self.memory, self.cache)
        self._finish = norm(model.out_norm)
        self._books = list(range(model.config.codebooks))
        self.recordings: Recordings | None = None
        self._graphs: GraphedPass | None = None
        if record is not None:
            self.recordings = Recordings(record)
            self._graphs = GraphedPass(
                self._pass_anywhere,
                self.recordings,
                codebooks=model.config.codebooks,
                special=model.config.card,
                capacity=self.cache.capacity,
                device=model.device,
            )
        self._column: Column | None = None
        if self._read is not None and record is None and self._doubled == 1:
            self._column = traced_column(model)
        self._said: Tensor | None = None  # logits that the last pass has made already
        self._before = [0] * rows  # positions that each row's prefix takes
        if prefix is not None:
            for row in range(rows):
                self._begin(row)

    @property
    def card(self) -> int:
        return self.model.config.card

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    def keep(self, width: int, dtype: torch.dtype) -> Features:
        """Keep this session's states for a drafter that reads `width` numbers of a column."""
        capacity = self.cache.capacity
        self._kept = Features(self.rows, capacity, width, self._doubled, self.device, dtype)
        return self._kept

    @property
    def listens(self) -> bool:
        """Whether this drafter reads its verifier's states."""
        return self._read is not None

    @property
    def remembers(self) -> bool:
        """Whether what a column predicts depends on the columns before it."""
        return self.model.config.attention

    @torch.inference_mode()
    def hear(self, known: Sequence[int]) -> None:
        """How many columns of each row the verifier has read that are final (`Features`)."""
        if self._read is not None:
            self._read.hear(known)
            if self.recordings is not None:
                self._read.settle()

    @torch.inference_mode()
    def admit(self, row: int, condition: Tensor, mask: Tensor | None = None) -> None:
        """Give a row another condition, for a new sequence.

        Args:
            condition: `[L', condition_dim]`, no longer than the session's.
            mask: `[L']` bool of real places, or None.
        """
        memory = self.memory
        if mask is None:
            mask = torch.ones(condition.shape[:1], dtype=torch.bool, device=condition.device)
        if self._given:
            self._given[row] = replace(self._given[row], condition=condition, mask=mask)
        if self._before[row]:
            self._begin(row)
        if memory is None:
            return
        missing = self._length - condition.shape[0]
        condition = F.pad(condition.to(self.model.dtype), (0, 0, 0, missing))[None]
        mask = F.pad(mask, (0, missing))[None]
        fresh = self.model.transformer.memory(condition, mask, fold=memory.folded)
        assert fresh is not None
        pairs = zip(memory.keys + memory.values, fresh.keys + fresh.values, strict=True)
        for held, given in pairs:
            held[row] = given[0]
        if memory.mask is None and fresh.mask is not None:
            memory.mask = fresh.mask.new_zeros(self.rows, *fresh.mask.shape[1:])
            if self.recordings is not None:
                self.recordings.forget()  # they were recorded without a mask
        if memory.mask is not None:
            memory.mask[row] = 0 if fresh.mask is None else fresh.mask[0]

    @torch.inference_mode()
    def _begin(self, row: int) -> None:
        """Keep keys and values of a row's prefix and its null twin, for a new sequence.

        By itself, so that a row does not depend on its neighbours.
        """
        model, d = self.model, self._doubled
        pair = self._given[row].prefix().to(model.dtype)
        size = pair.shape[1]
        own = KVCache(model.config, d, size, model.device, model.dtype)
        past = model.config.past_context
        span = Span.of((0,) * d, size, model.device, model.dtype, past)
        Stepper(model.transformer, None, own)(pair, span)
        self.cache.fill(slice(d * row, d * row + d), own)
        self._before[row] = size

    @property
    def tie(self) -> float:
        """How near two scores may be for rounding to swap them; 0 where `reread` cannot help,
        since rounding swaps too many (16 bit), or none (float64)."""
        return TIE if self.model.dtype == torch.float32 else 0.0

    @torch.inference_mode()
    def reread(self, row: int, columns: Tensor, codebook: int) -> Tensor:
        """What follows a sequence in a row, in float64, whatever passes came before.

        Args:
            row: whose condition it has.
            columns: `[K, n]` tokens, all of the sequence.
            codebook: whose logits.

        Returns:
            `[card]` guided logits.
        """
        condition = mask = prefix = None
        if self._given and self._prepend:
            prefix = self._given[row].prefix()
        elif self._given:
            condition, mask = self._given[row].pair()
        out = reread(self.model, columns, codebook, condition=condition, mask=mask, prefix=prefix)
        return self._guide(out.expand(self._doubled, -1))

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Let row `target` be what row `source` is."""
        d = self._doubled
        self._before[target] = self._before[source]
        if self._kept is not None:
            self._kept.move(source, target)
        if self._given:
            self._given[target] = self._given[source]
        old, new = slice(d * source, d * source + d), slice(d * target, d * target + d)
        self.cache.move(old, new)
        if self.memory is not None:
            for held in self.memory.keys + self.memory.values:
                held[target] = held[source]
            if self.memory.mask is not None:
                self.memory.mask[target] = self.memory.mask[source]

    @torch.inference_mode()
    def feed(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """Run a block of columns and keep its keys and values.

        Args:
            tokens: `[B', K, n]` token ids of the first B' rows.
            starts: the position of the first column, a row; what the cache holds from there on is
                forgotten.

        Returns:
            `[N', n', dim]` hidden states for `logits`, n' >= n; good until the next call.
        """
        model, d, size = self.model, self._doubled, tokens.shape[-1]
        self._said = None
        if self._column is not None and self._read is not None and tokens.shape[0] == size == 1:
            hidden, self._said = self._column(tokens, self._read.beside(starts, 1))
            self._read.foresee(hidden, starts)
            return hidden
        places = self.positions(starts)
        if self._graphs is not None:
            hidden = self._graphs(tokens, places)
        else:
            places = tuple(place for place in places for _ in range(d))
            past = model.config.past_context
            span = Span.of(places, size, model.device, model.dtype, past)
            read = None if self._read is None else self._read.beside(starts, size)
            hidden = self._pass(tokens, span, read)
            if self._read is not None:
                self._read.foresee(hidden[::d], starts)
        if self._kept is not None:
            halves = hidden.view(-1, d, *hidden.shape[1:])[:, :, :size]
            self._kept.keep(halves.transpose(1, 2).flatten(2), starts)
        return hidden

    def positions(self, starts: Sequence[int]) -> tuple[int, ...]:
        """Where columns lie in the cache: behind each row's prefix."""
        return tuple(map(add, starts, self._before))

    @torch.inference_mode()
    def columns(self, tokens: Tensor, starts: Tensor, places: Tensor, reach: int) -> Tensor:
        """`feed` and `logits` of one whole column a row, as one function of tensors.

        Args:
            tokens: `[B', K, n]`.
            starts: `[B']` position of each row's first column in the cache (see `positions`).
            places: `[B']` place in the block of the column whose prediction is wanted.
            reach: positions that the pass reads, at least the last start + n.

        Returns:
            `[B', K, card]` guided logits.
        """
        hidden = self._pass_anywhere(tokens, starts, reach)
        picked = hidden.gather(
            1, places.repeat_interleave(self._doubled)[:, None, None].expand(-1, 1, hidden.shape[2])
        )
        out = self.model.all_heads(picked[:, 0])
        return self._guide(out.view(-1, self._doubled, *out.shape[1:]).transpose(0, 1))

    def _pass_anywhere(self, tokens: Tensor, starts: Tensor, reach: int) -> Tensor:
        """A pass that knows where its columns lie from `starts` `[B]` on the device alone."""
        model, config = self.model, self.model.config
        size = tokens.shape[-1]
        features = None if self._read is None else self._read.at(starts, size)
        places = starts.repeat_interleave(self._doubled)
        span = Span.at(places, size, reach, model.dtype, config.past_context)
        hidden = self._pass(tokens, span, features)
        if self._read is not None:
            self._read.foresee_at(hidden[:: self._doubled], starts)
        return hidden

    def _pass(self, tokens: Tensor, span: Span, features: Tensor | None = None) -> Tensor:
        x = self.model.embed(tokens, features)
        if self._doubled == 2:
            x = x.repeat_interleave(2, dim=0)
        return self._finish(self._run(x, span))

    @torch.inference_mode()
    def logits(
        self, hidden: Tensor, rows: Sequence[int], places: Sequence[int], codebooks: Sequence[int]
    ) -> Tensor:
        """Guided logits of chosen coordinates, in float32 (float64 stays).

        Args:
            hidden: what `feed` returned.
            rows, places, codebooks: for each of M coordinates, its batch row, the place of its
                predicting column within the block, and its codebook.

        Returns:
            `[M, card]`.
        """
        model = self.model
        K, n = model.config.codebooks, hidden.shape[1]
        every = len(hidden) == self._doubled and codebooks == self._books * n
        if every and (n == 1 or list(places) == [p for p in range(n) for _ in range(K)]):
            # All that one row's block predicts, in order.
            out = model.all_heads(hidden).flatten(1, 2) if self._said is None else self._said
            return self._guide(out)
        # Whole columns (all of delay but its ends) take all K heads in one product.
        columns = list(zip(rows, places, strict=True))
        whole = list(codebooks) == list(range(K)) * (len(codebooks) // K) and all(
            columns[i] == columns[i + K - 1] for i in range(0, len(columns), K)
        )
        index = [r * n + p for r, p in columns[:: K if whole else 1]]
        twins = hidden.view(-1, self._doubled, n, hidden.shape[-1]).transpose(0, 1)
        halves = twins.reshape(self._doubled, -1, hidden.shape[-1])
        picked = halves[:, _regular(index, hidden.device)]
        if whole:
            out = model.all_heads(picked).flatten(1, 2)
        else:
            out = picked.new_empty(*picked.shape[:2], model.config.card)
            for k in set(codebooks):
                at = _regular([i for i, c in enumerate(codebooks) if c == k], hidden.device)
                out[:, at] = model.head(picked[:, at], k)
        return self._guide(out)

    def _guide(self, out: Tensor) -> Tensor:
        """Guided logits in float32 (float64 stays) from those of both halves, `[1 or 2, ...]`."""
        out = out if out.dtype == torch.float64 else out.float()
        if self.guidance is None:
            return out[0]
        return torch.lerp(out[1], out[0], self.guidance)


def _regular(index: Sequence[int], device: torch.device) -> slice | Tensor:
    """An index as a slice where it has one stride (most have: a view costs nothing)."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if step > 0 and list(index) == list(range(index[0], index[-1] + 1, step)):
        return slice(index[0], index[-1] + 1, step)
    return upload(index, device)
