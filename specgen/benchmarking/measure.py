"""Run cases in turn and make their rows."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from specgen.benchmarking.cases import Case, sampling_dict
from specgen.benchmarking.machine import commit, machine_card, versions
from specgen.benchmarking.rows import Document, Row
from specgen.benchmarking.timing import Samples, alternate, busy, far_off, ratio
from specgen.checkpoints.native import LMCheckpoint
from specgen.decoding.acceptance import Rule, is_biased
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, decode, steps_per_frame
from specgen.decoding.sampling import Sampling
from specgen.decoding.stats import DecodeStats
from specgen.engine import Engine, Request, check_settings, load
from specgen.lm.model import MusicLM


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        prompts: run i of a batch B takes B of them from place i x B on, round and round.
        seed: run i gives its clips the seeds from seed + i x B on.
        repeats, warmup: runs a case, timed and not.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads, None chooses.
        allow_biased: measure rules that change the music, too.
    """

    prompts: tuple[str, ...]
    seed: int = 1
    repeats: int = 5
    warmup: int = 1
    device: str = "auto"
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
        codes: of each timed run, one grid a row.
        stats: of each timed run, all rows together.
        condition_seconds: of each run.
        peak_memory: bytes on the device; None on a CPU.
    """

    case: Case
    engine: Engine
    drafting: Drafting
    codes: list[list[Tensor]] = field(default_factory=list)
    stats: list[DecodeStats] = field(default_factory=list)
    condition_seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    _ready: tuple[Role, Role | None, list[Request]] | None = None

    def prepare(self, requests: list[Request]) -> None:
        """Encode the prompts and set up the caches; not part of the time."""
        engine, prompts = self.engine, [r.prompt for r in requests]
        began = time.perf_counter()
        frames, cfg = engine.frames(self.case.duration), engine.settings.sampling.cfg
        lead = engine.cast(engine.verifier, prompts, frames, cfg).role
        follow = None
        if self.case.draft is not None and engine.drafter is not None:
            guidance = cfg if engine.settings.drafter_cfg else None
            follow = engine.cast(engine.drafter, prompts, frames, guidance).role
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
            torch.cuda.reset_peak_memory_stats(engine.device)
        self.condition_seconds.append(time.perf_counter() - began)
        self._ready = (lead, follow, requests)

    def run(self, *, keep: bool) -> None:
        """Decode what was prepared."""
        assert self._ready is not None
        lead, follow, requests = self._ready
        sampling = self.engine.settings.sampling
        decoded = decode(
            lead,
            follow,
            frames=[self.engine.frames(self.case.duration)] * len(requests),
            seeds=[r.seed for r in requests],
            sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
            drafting=self.drafting,
        )
        codes = [grid.cpu() for grid in decoded.codes]  # waits for the device
        if self.engine.device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self.engine.device)
        if keep:
            self.codes.append(codes)
            self.stats.append(DecodeStats.total(decoded.stats))


def measure(cases: Sequence[Case], plan: Plan, say: Callable[[str], None]) -> Document:
    """Run all cases and make the document.

    Args:
        cases: from `expand`; cases of one duration and batch are run in turn.
        plan: how.
        say: told what is going on.

    Raises:
        UserError: a preset that cannot be loaded, a duration, prompt or rule that does not fit it.
    """
    engines = _engines(cases, plan, say)
    trials = [_trial(case, engines[case.preset.name, case.preset.sha256], plan) for case in cases]
    for trial in trials:
        for request in plan.requests(trial.case, 0):
            trial.engine.check(request)
    some = next(iter(engines.values()))
    document = Document(
        machine_card(torch.get_num_threads(), str(some.device)),
        versions(),
        commit(),
        _models(engines.values()),
        {
            "repeats": plan.repeats,
            "warmup": plan.warmup,
            "seed": plan.seed,
            "prompts": list(plan.prompts),
            "sampling": {
                e.preset.name: sampling_dict(e.settings.sampling) for e in engines.values()
            },
        },
    )
    trials.sort(key=lambda t: t.case.group)  # a stable sort: alone stays before pairs
    taken: list[Samples] = []
    for _, members in groupby(trials, key=lambda t: t.case.group):
        taken += _measure_group(list(members), plan, document, say)
    disturbed = busy(taken, torch.get_num_threads())
    document.warnings += [disturbed] if disturbed else []
    longest = max(trials, key=lambda t: t.case.duration)
    document.codec_seconds = _codec_seconds(longest)
    return document


def _engines(
    cases: Sequence[Case], plan: Plan, say: Callable[[str], None]
) -> dict[tuple[str, str], Engine]:
    """One engine a preset; presets that name the same checkpoint share its weights."""
    engines: dict[tuple[str, str], Engine] = {}
    models: dict[tuple[str, torch.dtype], LMCheckpoint] = {}

    def shared(model: LMCheckpoint) -> LMCheckpoint:
        return models.setdefault((model.sha256, model.lm.dtype), model)

    for case in cases:
        key = case.preset.name, case.preset.sha256
        if key in engines:
            continue
        say(f"loading {case.preset.name}")
        engine = load(case.preset, device=plan.device, threads=plan.threads)
        engine.verifier = shared(engine.verifier)
        engine.drafter = engine.drafter and shared(engine.drafter)
        engines[key] = engine
    return engines


def _trial(case: Case, engine: Engine, plan: Plan) -> Trial:
    if case.draft is None:
        return Trial(case, engine, Drafting())
    draft = case.draft
    settings = replace(
        engine.settings,
        rule=draft.rule,
        draft_frames=draft.frames,
        draft_temperatures=draft.temperatures,
        allow_biased=plan.allow_biased,
    )
    check_settings(settings, engine.verifier, engine.drafter)
    steps = draft.frames and draft.frames * steps_per_frame(engine.verifier.pattern)
    return Trial(case, engine, Drafting(Rule(draft.rule), steps, draft.temperatures))


def _measure_group(
    trials: list[Trial], plan: Plan, document: Document, say: Callable[[str], None]
) -> list[Samples]:
    turn = 0

    def before(place: int, this: int) -> None:
        nonlocal turn
        turn = this
        trial = trials[place]
        kind = "warm-up" if turn < 0 else f"run {turn + 1} of {plan.repeats}"
        say(f"{kind}: {_title(trial.case)}")
        trial.prepare(plan.requests(trial.case, turn))

    def run(place: int) -> None:
        trials[place].run(keep=turn >= 0)

    samples = alternate(
        {place: partial(run, place) for place in range(len(trials))},
        repeats=plan.repeats,
        warmup=plan.warmup,
        before=before,
    )
    alone = {t.case.reference: i for i, t in enumerate(trials) if t.case.draft is None}
    for i, trial in enumerate(trials):
        row = _row(trial, samples[i])
        at = alone.get(trial.case.reference)
        if trial.case.draft is not None and at is not None:
            _compare(row, trial, samples[i], trials[at], samples[at])
        document.rows.append(row)
        doubt = far_off(_title(trial.case), samples[i])
        document.warnings += [doubt] if doubt else []
        if row.identical is not None and row.identical < 1:
            document.warnings.append(
                f"{_title(trial.case)}: only {100 * row.identical:.2f} % of the tokens are the "
                "verifier's own; specgen compare shows where they part"
            )
    return list(samples.values())


def _title(case: Case) -> str:
    """The case in words, for progress and warnings."""
    words = [case.label, f"{case.duration:g} s", f"batch {case.batch}"]
    if case.draft is not None:
        frames = "auto" if case.draft.frames is None else str(case.draft.frames)
        words += [case.draft.rule, f"draft frames {frames}"]
        if case.draft.temperatures:
            words.append(
                "draft temperatures " + " ".join(f"{t:g}" for t in case.draft.temperatures)
            )
    return ", ".join(words)


def _row(trial: Trial, samples: Samples) -> Row:
    case, engine, draft = trial.case, trial.engine, trial.case.draft
    drafter = engine.drafter if draft is not None else None
    stats = DecodeStats.total(trial.stats)
    frames, K = engine.frames(case.duration), engine.codec.codebooks
    lossless = True
    if draft is not None and drafter is not None:
        shapes = drafter.pattern.of(64), engine.verifier.pattern.of(64)
        lossless = not is_biased(Rule(draft.rule), *shapes)
    return Row(
        label=case.label,
        drafter=None if drafter is None else drafter.name,
        verifier=engine.verifier.name,
        drafter_pattern=None if drafter is None else drafter.pattern.kind,
        verifier_pattern=engine.verifier.pattern.kind,
        batch=case.batch,
        duration_seconds=frames / engine.codec.frame_rate,
        draft_frames=None if draft is None else draft.frames or "auto",
        acceptance_rule=None if draft is None else draft.rule,
        synthetic=False,
        lossless=lossless,
        seconds=samples.summary(),
        audio_seconds_per_second=case.batch * frames / engine.codec.frame_rate / samples.median,
        tokens_per_second=case.batch * frames * K / samples.median,
        acceptance=stats.acceptance,
        acceptance_per_codebook=None if draft is None else stats.acceptance_per_codebook,
        tokens_per_pass=stats.tokens_per_pass,
        peak_memory_bytes=trial.peak_memory,
        draft_temperatures=None if draft is None else list(draft.temperatures or (1.0,) * K),
        drafter_cfg=None if draft is None else engine.settings.drafter_cfg,
        cpu_seconds=samples.cpu,
        condition_seconds=statistics.median(trial.condition_seconds),
        stats=stats.as_dict(),
    )


def _compare(row: Row, trial: Trial, samples: Samples, alone: Trial, reference: Samples) -> None:
    """Fill in what a pair's row says against its verifier alone."""
    row.speedup, row.speedup_error = ratio(reference.wall, samples.wall)
    row.speedup_cpu_time, _ = ratio(reference.cpu, samples.cpu)
    row.speedup_reference = alone.case.label
    if row.acceptance_rule == Rule.COUPLED or trial.engine.settings.sampling.temperature == 0:
        row.identical = identical(trial.codes, alone.codes)


def identical(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> float:
    """Share of equal tokens among runs of grids."""
    counts: dict[str, int] = defaultdict(int)
    for run, other in zip(ours, theirs, strict=True):
        for a, b in zip(run, other, strict=True):
            counts["same"] += int((a == b).sum())
            counts["all"] += a.numel()
    return counts["same"] / counts["all"]


def _models(engines: Iterable[Engine]) -> dict[str, dict[str, Any]]:
    """The static card of every language model."""
    cards: dict[str, dict[str, Any]] = {}
    for engine in engines:
        for model in (engine.verifier, engine.drafter):
            if model is not None:
                cards[model.name] = {
                    **_size(model.lm),
                    "pattern": model.pattern.kind,
                    "dtype": str(model.lm.dtype).removeprefix("torch."),
                    "sha256": model.sha256,
                }
    return cards


def _size(model: MusicLM) -> dict[str, int]:
    count = model.parameter_count()
    return {"parameters": count, "bytes": model.weight_bytes()}


def _codec_seconds(trial: Trial) -> float:
    """Median time of the codec for one clip that was decoded."""
    codes = trial.codes[-1][0][None].to(trial.engine.device)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        trial.engine.codec.decode(codes).cpu()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])  # the first one warms up
