"""A drafter's step as one recorded call: columns in, guesses written, nothing for the host to do.

On a CUDA card a small drafter's step takes less time than the launching of its parts. Where the
rule lets it, its pass, its heads, the draw and the writing of the guesses are one graph
(`specgen.lm.graphs`), and a draft is a row of replays that the host queues without waiting. All
that differs from step to step is a handful of integers: where columns start, which of them
predicts, where its noise lies, where its guesses go. One upload a step brings them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.decoding.draws import Draws
from specgen.decoding.lane import Lane, Recordable, Where
from specgen.lm.graphs import bucket, recorded_width
from specgen.tensors import upload


class RecordedDraft:
    """The drafter's steps of one batch.

    Args:
        lead, follow: the verifier's lane and the drafter's.
        draws: of the batch; `draws.recordable`.
        scorer: the drafter.
    """

    def __init__(self, lead: Lane, follow: Lane, draws: Draws, scorer: Recordable) -> None:
        self._lead, self._follow, self._draws, self._scorer = lead, follow, draws, scorer
        self._buffers: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def of(cls, lead: Lane, follow: Lane | None, draws: Draws) -> RecordedDraft | None:
        """None where steps are not recorded: on this device, under this rule, in this pattern."""
        if follow is None or not isinstance(follow.scorer, Recordable):
            return None
        if follow.scorer.recordings is None or not (follow.whole_columns and draws.recordable):
            return None
        return cls(lead, follow, draws, follow.scorer)

    def step(self, starts: Sequence[int], size: int, where: Where) -> bool:
        """Feed a block and guess.

        Args:
            starts, size: of the block, as `Lane.ahead` tells.
            where: what to guess.

        Returns:
            Whether it was done; False, and nothing has happened, if the block is too large.
        """
        lead, follow, scorer = self._lead, self._follow, self._scorer
        at, width = scorer.positions(starts), recorded_width(size)
        recordings = scorer.recordings
        if width is None or max(at) + width > scorer.capacity or recordings is None:
            return False
        B, K = len(starts), follow.codebooks
        places = [0] * B
        noise = [[0] * K for _ in starts]
        own = [[follow.cell(r, None, k) for k in range(K)] for r in range(B)]
        theirs = [[lead.cell(r, None, k) for k in range(K)] for r in range(B)]
        for (r, place, c), index in zip(where, self._draws.noise_places(where), strict=True):
            places[r], noise[r][c.k] = place, index
            own[r][c.k], theirs[r][c.k] = follow.cell(r, c, c.k), lead.cell(r, c, c.k)
        rows = zip(starts, at, places, noise, own, theirs, strict=True)
        table = upload([[s, a, p, *n, *o, *t] for s, a, p, n, o, t in rows], follow.device)
        held = self._buffers.setdefault((B, width), table)
        if held is not table:
            held.copy_(table)
        reach = bucket(max(at) + width, scorer.capacity)
        recordings((self, B, width, reach), lambda: self._run(held, width, reach))
        return True

    @torch.inference_mode()
    def _run(self, table: Tensor, width: int, reach: int) -> Tensor:
        """The step as a function of its table `[B, 3 + 3 K]`; writes both lanes."""
        K = self._follow.codebooks
        starts, at, places, noise, own, theirs = torch.split(table, [1, 1, 1, K, K, K], dim=1)
        tokens = self._follow.columns(starts[:, 0], width)
        logits = self._scorer.columns(tokens, at[:, 0], places[:, 0], reach)
        guesses = self._draws.column(logits, noise)
        self._follow.flat.index_copy_(0, own.flatten(), guesses.flatten())
        self._lead.flat.index_copy_(0, theirs.flatten(), guesses.flatten())
        return guesses
