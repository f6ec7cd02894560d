"""Run cases in turn and make their rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch

from specgen.benchmarking import costs, peers, synthetic
from specgen.benchmarking.cases import Case, is_synthetic, sampling_dict
from specgen.benchmarking.results import (
    commit,
    compare,
    identical,
    machine_card,
    make_row,
    title,
    versions,
)
from specgen.benchmarking.roofline import copy_bandwidth, pass_bytes
from specgen.benchmarking.rows import Document
from specgen.benchmarking.timing import Samples, alternate, busy, far_off
from specgen.benchmarking.trials import Plan, Trial
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.acceptance import Rule
from specgen.decoding.loop import Drafting, draft_steps, steps_per_frame
from specgen.engine import Engine, check_settings, load
from specgen.errors import UserError

__all__ = ["Plan", "Trial", "identical", "measure"]

Say = Callable[[str], None]


def measure(
    cases: Sequence[Case], plan: Plan, say: Say, on_start: Callable[[Document], None] | None = None
) -> Document:
    """Run all cases and make the document.

    Args:
        cases: from `expand`; cases of one duration and batch are run in turn.
        plan: how.
        say: told what is going on.
        on_start: given the document when its static card is known, before anything is timed.

    Raises:
        UserError: a preset that cannot be loaded, a duration, prompt or rule that does not fit it,
            a peer that is not installed.
    """
    engines = _engines(cases, plan, say)
    trials = [_trial(case, cases, engines[_key(case)], plan) for case in cases]
    for trial in trials:
        if trial.case.duration > trial.engine.max_seconds:
            raise UserError(
                f"duration {trial.case.duration:g} s is beyond the {trial.engine.max_seconds:g} s "
                f"that {trial.case.preset.name} makes at once; ask for less"
            )
        for request in plan.requests(trial.case, 0):
            trial.engine.check(request)
    _add_peers(trials, plan.prompts[0], say)
    some = next(iter(engines.values()))
    say("measuring the copy bandwidth")
    copied = copy_bandwidth(some.device)
    document = Document(
        machine_card(torch.get_num_threads(), str(some.device)),
        versions(),
        commit(),
        _models(engines.values(), copied),
        {
            "repeats": plan.repeats,
            "warmup": plan.warmup,
            "seed": plan.seed,
            "prompts": list(plan.prompts),
            "sampling": {
                e.preset.name: sampling_dict(e.settings.sampling) for e in engines.values()
            },
        },
        copy_bytes_per_second=copied,
        synthetic=any(is_synthetic(case.preset) for case in cases),
    )
    document.versions |= {t.peer.name.split()[0]: t.peer.name.split()[-1] for t in trials if t.peer}
    if on_start is not None:
        on_start(document)
    trials.sort(key=lambda t: t.case.group)  # a stable sort: alone stays before pairs
    taken: list[Samples] = []
    for _, members in groupby(trials, key=lambda t: t.case.group):
        taken += _measure_group(list(members), plan, document, say)
    disturbed = busy(taken, torch.get_num_threads())
    document.warnings += [disturbed] if disturbed else []
    heard = [t for t in trials if not is_synthetic(t.case.preset)]
    if heard:
        document.codec_seconds = _codec_seconds(max(heard, key=lambda t: t.case.duration))
    return document


def _key(case: Case) -> tuple[str, str]:
    return case.preset.name, case.preset.sha256


def _engines(cases: Sequence[Case], plan: Plan, say: Say) -> dict[tuple[str, str], Engine]:
    """One engine a preset; presets that name the same checkpoint share its weights."""
    engines: dict[tuple[str, str], Engine] = {}
    models: dict[tuple[str, torch.dtype, str], LMCheckpoint] = {}

    def shared(model: LMCheckpoint) -> LMCheckpoint:
        return models.setdefault((model.sha256, model.lm.dtype, model.quantize), model)

    for case in cases:
        key = _key(case)
        if key in engines:
            continue
        say(f"loading {case.preset.name}")
        options: dict[str, Any] = {
            "device": plan.device,
            "dtype": plan.dtype,
            "threads": plan.threads,
        }
        if is_synthetic(case.preset):
            engine = synthetic.load(case.preset, _wanted(case, cases), **options)
        else:
            engine = load(case.preset, **options)
        engine.verifier = shared(engine.verifier)
        engine.drafter = engine.drafter and shared(engine.drafter)
        engines[key] = engine
    return engines


def _wanted(case: Case, cases: Sequence[Case]) -> list[synthetic.Wanted]:
    """The acceptances that a synthetic preset's rows are run with, each once."""
    drafts = [c.draft for c in cases if _key(c) == _key(case) and c.draft is not None]
    found = [synthetic.Wanted(d.given.values, d.rule) for d in drafts if d.given is not None]
    return list(dict.fromkeys(found))


def _trial(case: Case, cases: Sequence[Case], engine: Engine, plan: Plan) -> Trial:
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
    steps = draft_steps(draft.frames, engine.verifier.pattern)
    column = None
    if draft.given is not None:
        column = _wanted(case, cases).index(synthetic.Wanted(draft.given.values, draft.rule))
    return Trial(case, engine, Drafting(Rule(draft.rule), steps, draft.temperatures), column)


def _add_peers(trials: Iterable[Trial], prompt: str, say: Say) -> None:
    """Give every peer's trial its peer; trials of one model share it.

    That a peer does the same arithmetic is tried on a greedy piece; not on synthetic models, which
    answer alike whatever is done to them.
    """
    made: dict[tuple[str, int], tuple[peers.Peer, float | None]] = {}
    for trial in trials:
        name = trial.case.peer
        if name is None:
            continue
        if trial.lead.quantize != "none":
            raise UserError(f"{name} decodes unquantised weights only; leave out --peer")
        key = name, id(trial.lead)
        if key not in made:
            say(f"handing the weights of {trial.lead.name} to {name}")
            sampling, real = trial.engine.settings.sampling, not is_synthetic(trial.case.preset)
            peer = peers.make(name, trial.lead, sampling)
            made[key] = peer, peers.agreement(peer, trial.lead, prompt, sampling) if real else None
        trial.peer, trial.agreement = made[key]


def _measure_group(trials: list[Trial], plan: Plan, document: Document, say: Say) -> list[Samples]:
    turn, book = 0, costs.Book(plan)

    def before(place: int, this: int) -> None:
        nonlocal turn
        turn = this
        trial = trials[place]
        kind = "warm-up" if turn < 0 else f"run {turn + 1} of {plan.repeats}"
        say(f"{kind}: {title(trial.case)}")
        if turn >= 0 and trial.case.draft is not None:
            book.look(trial)
        trial.prepare(plan.requests(trial.case, turn))

    def run(place: int) -> None:
        trials[place].run(keep=turn >= 0)

    samples = alternate(
        {place: partial(run, place) for place in range(len(trials))},
        repeats=plan.repeats,
        warmup=plan.warmup,
        before=before,
    )
    alone: dict[tuple[object, ...] | None, int] = {
        t.case.key: i for i, t in enumerate(trials) if t.case.key is not None
    }
    for i, trial in enumerate(trials):
        case = trial.case
        assert document.copy_bytes_per_second is not None
        row = make_row(trial, samples[i], document.copy_bytes_per_second)
        at = alone.get(case.reference)
        if at is not None and (case.draft is not None or trial.peer is not None):
            compare(row, trial, samples[i], trials[at], samples[at])
        if case.draft is not None and at is not None:
            chance = [a or 0.0 for a in row.acceptance_per_codebook or []]
            row.predicted = book.predict(
                trial,
                (trials[at], samples[at]),
                row.acceptance_given or chance,
                samples[i].median,
            )
        document.rows.append(row)
        doubt = far_off(title(case), samples[i])
        document.warnings += [doubt] if doubt else []
        if trial.agreement is not None and trial.agreement < 1:
            document.warnings.append(
                f"{title(case)}: only {100 * trial.agreement:.1f} % of a greedy piece's tokens are "
                "ours; rounding may part two greedy paths at a near-tie, and they stay apart"
            )
        if row.identical is not None and row.identical < 1:
            document.warnings.append(
                f"{title(case)}: only {100 * row.identical:.2f} % of the tokens are the "
                "verifier's own; specgen compare shows where they part"
            )
    return list(samples.values())


def _models(engines: Iterable[Engine], copied: float) -> dict[str, dict[str, Any]]:
    """The static card of every language model, and the pace that reading its weights allows."""
    cards: dict[str, dict[str, Any]] = {}
    for engine in engines:
        for model in (engine.verifier, engine.drafter):
            if model is None:
                continue
            per_second = steps_per_frame(model.pattern) * model.codec.frame_rate
            least = pass_bytes(model.lm, model.pattern.codebooks / steps_per_frame(model.pattern))
            cards[model.name] = {
                "parameters": model.lm.parameter_count(),
                "bytes": model.lm.weight_bytes(),
                "pattern": model.pattern.kind,
                "dtype": str(model.lm.dtype).removeprefix("torch."),
                "sha256": model.sha256,
                "pass_bytes": round(least),
                "ceiling_audio_seconds_per_second": copied / least / per_second,
            }
    return cards


def _codec_seconds(trial: Trial) -> float:
    """Median time of the codec for one clip that was decoded."""
    codes = trial.codes[-1][0][None].to(trial.engine.device)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        trial.engine.codec.decode(codes).cpu()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])  # the first one warms up
