"""Cases as they are run: our own decode, or another package's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specgen.benchmarking import synthetic
from specgen.benchmarking.cases import Case
from specgen.benchmarking.memory import Peak
from specgen.benchmarking.peers import Peer
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.draft_length import Learnt
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.engine import Engine, Request
from specgen.generation import ConditionedModel


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        prompts: run i of a batch B takes B of them from place i x B on, round and round.
        seed: run i gives its clips the seeds from seed + i x B on.
        repeats, warmup: runs a case, timed and not.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of all models; None: as the preset says, or what suits the device.
        threads: CPU threads, None chooses.
        allow_biased: measure rules that change the music, too.
    """

    prompts: tuple[str, ...]
    seed: int = 1
    repeats: int = 5
    warmup: int = 1
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    allow_biased: bool = False

    def requests(self, case: Case, turn: int) -> list[Request]:
        """What a run decodes: the same for every case of one duration and batch."""
        first = max(turn, 0) * case.batch  # warm-up decodes what the first timed run does
        return [
            Request(self.prompts[i % len(self.prompts)], self.seed + i, case.duration)
            for i in range(first, first + case.batch)
        ]


@dataclass
class Trial:
    """One case's runs.

    Attributes:
        drafting: how a pair drafts.
        column: of a synthetic drafter: the acceptance it is set to.
        peer: who decodes instead of us, and
        agreement: what share of a greedy piece's tokens are then ours.
        codes: of each timed run, one grid a row.
        stats: of each timed run, all rows together.
        passes: of each timed run, verifier and drafter passes, a batch counted once.
        condition_seconds: of each run.
        peak_memory: bytes that its first run took at most, its models' weights with them; what
            other rows have loaded is left out. None where the system does not tell.
        learnt: what its runs have taught `auto`, as the clips of one engine do.
        cross_bytes: what both models' cross-attentions read, once `roles` has made it.
    """

    case: Case
    engine: Engine
    drafting: Drafting
    column: int | None = None
    peer: Peer | None = None
    agreement: float | None = None
    codes: list[list[Tensor]] = field(default_factory=list)
    stats: list[DecodeStats] = field(default_factory=list)
    passes: list[tuple[int, int]] = field(default_factory=list)
    condition_seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    cross_bytes: int = 0
    learnt: Learnt = field(default_factory=Learnt)
    _ready: Callable[[bool], None] | None = None
    _peak: Peak | None = None

    @property
    def lead(self) -> LMCheckpoint:
        """The model whose tokens come out."""
        drafter = self.engine.drafter
        if not self.case.drafter_alone:
            return self.engine.verifier
        assert drafter is not None
        return drafter

    @property
    def follow(self) -> LMCheckpoint | None:
        """The model that drafts."""
        return None if self.case.draft is None else self.engine.drafter

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        chosen = self.engine.settings.sampling
        return Sampling(chosen.temperature, chosen.top_k, chosen.top_p)

    @property
    def guidance(self) -> float:
        """CFG coefficient of the model whose tokens come out."""
        cfg = self.engine.settings.sampling.cfg
        return self._draft_guidance or 1.0 if self.case.drafter_alone else cfg

    @property
    def _draft_guidance(self) -> float | None:
        settings = self.engine.settings
        return settings.sampling.cfg if settings.drafter_cfg else None

    def sequences(self, model: LMCheckpoint) -> int:
        """Rows of a model's cache: with guidance, each row has a twin."""
        guidance = self._draft_guidance if model is self.follow else self.guidance
        return self.case.batch * (1 if guidance in (None, 1.0) else 2)

    @property
    def frames(self) -> int:
        return self.engine.frames(self.case.duration)

    def roles(self, prompts: list[str]) -> tuple[Role, Role | None]:
        """Both models with their caches, ready for prompts."""
        if self.column is not None and self.follow is not None:
            synthetic.choose(self.follow.lm, self.column)
        casts = [ConditionedModel.of(self.lead, prompts, self.frames, self.guidance)]
        if self.follow is not None:
            guidance, lead = self._draft_guidance, casts[0]
            casts.append(
                ConditionedModel.of(self.follow, prompts, self.frames, guidance, verifier=lead)
            )
        self.cross_bytes = sum(
            tensor.nbytes
            for memory in (cast.session.memory for cast in casts)
            if memory is not None
            for tensor in memory.keys + memory.values
        )
        return casts[0].role, casts[1].role if len(casts) > 1 else None

    def prepare(self, requests: list[Request]) -> None:
        """Encode the prompts and set up the caches; not part of the time."""
        device = self.engine.device
        # Of the first run alone, which is the warm-up if there is one: looking takes time.
        first = not self.condition_seconds and self.peer is None
        self._peak = Peak(device) if first else None
        began = time.perf_counter()
        prompts = [r.prompt for r in requests]
        if self.peer is not None:
            run = self.peer.ready(self.lead, prompts, self.frames, self.engine.settings.sampling)
            self._ready = lambda keep: self._done(run(requests[0].seed), keep)
        else:
            roles = self.roles(prompts)
            self._ready = lambda keep: self._decode(*roles, [r.seed for r in requests], keep)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.condition_seconds.append(time.perf_counter() - began)

    def run(self, *, keep: bool) -> None:
        """Decode what was prepared."""
        assert self._ready is not None
        self._ready(keep)
        self._ready = None  # what one case held must not count as another's memory

    def _decode(self, lead: Role, follow: Role | None, seeds: list[int], keep: bool) -> None:
        decoded = decode(
            lead,
            follow,
            frames=[self.frames] * len(seeds),
            seeds=seeds,
            sampling=self.sampling,
            drafting=self.drafting,
            learnt=self.learnt,
        )
        self._done(decoded.codes, keep)
        if keep:
            self.stats.append(DecodeStats.total(decoded.stats))
            self.passes.append(
                (
                    max(s.verifier_passes for s in decoded.stats),
                    max(s.drafter_steps for s in decoded.stats),
                )
            )

    def _done(self, codes: list[Tensor], keep: bool) -> None:
        grids = [grid.cpu() for grid in codes]  # waits for the device
        if self._peak is not None:
            grown = self._peak.grown()
            models = [m for m in (self.lead, self.follow) if m is not None]
            weights = {id(m.lm): m.lm.weight_bytes() for m in models}
            self.peak_memory = None if grown is None else grown + sum(weights.values())
            self._peak = None
        if keep:
            self.codes.append(grids)
