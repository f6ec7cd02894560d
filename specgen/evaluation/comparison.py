"""A whole comparison: make the clips; then identity, distribution, quality and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from specgen.benchmarking.results import commit, machine_card, versions
from specgen.engine import Engine
from specgen.evaluation import identity, likelihood, quality, two_sample
from specgen.evaluation.embedders import load_embedder
from specgen.evaluation.quality import Recordings
from specgen.evaluation.runs import Made, Run, Side, make_all, make_short, requests_of
from specgen.evaluation.two_sample import bootstrap
from specgen.presets import Preset

SCHEMA = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to make and to look at.

    Attributes:
        prompts: what to play.
        seeds: clips a prompt and side.
        first_seed: of the first clip.
        duration: seconds; None is the first side's default.
        batch: clips decoded together.
        device, threads: see `specgen.engine.load`.
        short_clips, short_frames: of the test of every place's tokens; 0 clips leaves it out.
        embedder: see `specgen.evaluation.embedders.load_embedder`; "" leaves quality out.
        power_runs: simulated runs that the power of a test is stated from.
    """

    prompts: tuple[str, ...]
    seeds: int = 1
    first_seed: int = 1
    duration: float | None = None
    batch: int = 8
    device: str = "auto"
    threads: int | None = None
    short_clips: int = 256
    short_frames: int = 3
    embedder: str = "musicnn"
    power_runs: int = 20


@dataclass
class Outcome:
    """What a comparison found.

    Attributes:
        document: everything as plain data (docs/evaluation.md).
        runs: the clips.
        interrupted: whether Ctrl-C ended the making.
    """

    document: dict[str, Any]
    runs: list[Run]
    interrupted: bool

    @property
    def failures(self) -> list[str]:
        found: list[str] = self.document["failures"]
        return found


def load_sides(sides: Sequence[Side], plan: Plan) -> list[tuple[str, Engine]]:
    """Every side's engine.

    Raises:
        UserError: one cannot be loaded, or two differ in what their clips are made of.
    """
    return [(side.label, side.load(plan.device, plan.threads)) for side in sides]


def run(
    sides: Sequence[tuple[str, Engine]],
    plan: Plan,
    say: Say,
    *,
    recordings: Callable[[float], Recordings] | None = None,
    keep: Callable[[str, Made], None] | None = None,
) -> Outcome:
    """Make and compare.

    Args:
        sides: from `load_sides`; the first is what the others are compared with.
        plan: what to make.
        say: told what happens.
        recordings: reads recordings of a duration, to measure against.
        keep: given every clip as soon as it is made.

    Raises:
        UserError: a request that a side cannot meet (before any work is done).
    """
    first: Preset = sides[0][1].preset
    duration = first.node.duration.default if plan.duration is None else plan.duration
    requests = requests_of(plan.prompts, plan.seeds, plan.first_seed, duration)
    for _, engine in sides:
        for request in requests:
            engine.check(request)
    listener = quality.Listener(load_embedder(plan.embedder)) if plan.embedder else None
    heard_before = recordings(duration) if recordings is not None and listener else None
    say(
        f"{len(requests)} clips of {duration:g} s on each of {len(sides)} sides "
        f"({len(plan.prompts)} prompts x {plan.seeds} seeds)"
    )
    runs, interrupted = make_all(sides, requests, batch=plan.batch, say=say, keep=keep)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_card(torch.get_num_threads(), str(sides[0][1].device)),
        "versions": versions(),
        "commit": commit(),
        "prompts": list(plan.prompts),
        "seeds": plan.seeds,
        "duration_seconds": duration,
        "batch": plan.batch,
        "interrupted": interrupted,
        "sides": [side_row(r) for r in runs],
        "identity": [],
        "likelihood": [row for r in runs if (row := likelihood_of(r, say))],
        "distribution": [],
        "short": [],
        "quality": [],
        "speed": speed(runs),
        "failures": [line for r in runs for line in r.failures],
        "notes": list(heard_before.notes) if heard_before else [],
    }
    if not all(r.clips for r in runs):
        say("some sides made nothing: no comparison")
    for a, b in ((runs[0], other) for other in runs[1:]):
        if not a.clips.keys() & b.clips.keys() or a.engine is None:
            continue
        say(f"comparing tokens: {a.label} and {b.label}")
        found = identity.with_margins(identity.compare(a, b), a.engine, say)
        document["identity"].append(found.as_dict())
        document["distribution"].append(distribution(a, b, plan))
    if plan.short_clips and not interrupted and not document["failures"]:
        document["short"] = short(sides, plan, say)
    if listener is not None:
        say(f"listening with {listener.embedder.name}")
        document["quality"] = hear(runs, listener, heard_before)
    return Outcome(document, runs, interrupted)


def side_row(run: Run) -> dict[str, Any]:
    """What a side is, and what its decoding did."""
    total, engine = run.total(), run.engine
    assert engine is not None
    some = next(iter(run.clips.values()), None)
    about = some.sidecar if some else {}
    drafted = run.over_time[:, 0]
    over_time = [
        None if d == 0 else float(a / d) for d, a in zip(drafted, run.over_time[:, 1], strict=True)
    ]
    return {
        "label": run.label,
        "preset": engine.preset.reference,
        "preset_sha256": engine.preset.sha256,
        "checkpoints": about.get("checkpoints"),
        "sampling": engine.settings.as_dict(),
        "dtype": about.get("dtype"),
        "device": about.get("device"),
        "drafter": engine.drafter is not None,
        "lossless": run.lossless,
        "clips": len(run.clips),
        "failed": len(run.failures),
        "acceptance": total.acceptance if total else None,
        "acceptance_per_codebook": total.acceptance_per_codebook if total else None,
        "tokens_per_pass": total.tokens_per_pass if total else None,
        "acceptance_over_time": over_time if any(drafted) else None,
    }


def likelihood_of(run: Run, say: Say) -> dict[str, Any] | None:
    """Whether a side draws from its own verifier's law; None if that cannot be told."""
    if not run.clips or run.engine is None:
        return None
    say(f"{run.label}: the verifier scores {len(run.clips)} clips")
    made = list(run.clips.values())
    codes = np.stack([clip.codes for clip in made])
    found = likelihood.of_clips(run.engine, [clip.request.prompt for clip in made], codes)
    return None if found is None else {"label": run.label, "lossless": run.lossless, **found}


def distribution(a: Run, b: Run, plan: Plan) -> dict[str, Any]:
    """The two-sample test on whole clips, with its power."""
    shared = sorted(a.clips.keys() & b.clips.keys())
    codes = [np.stack([side.clips[i].codes for i in shared]) for side in (a, b)]
    found = two_sample.compare(codes[0], codes[1])
    if plan.power_runs:
        found = two_sample.with_power(found, codes[0], codes[1], runs=plan.power_runs)
    return {"a": a.label, "b": b.label, "frames": codes[0].shape[2], **found.as_dict()}


def short(sides: Sequence[tuple[str, Engine]], plan: Plan, say: Say) -> list[dict[str, Any]]:
    """The test of every place's tokens, on many very short clips of the first prompt.

    The sides draw with different seeds, so that even sides that are equal token for token are
    compared as strangers.
    """
    made = []
    for i, (label, engine) in enumerate(sides):
        say(f"{label}: {plan.short_clips} clips of {plan.short_frames} frames")
        first = plan.first_seed + 1_000_000 * (i + 1)
        codes = make_short(
            engine,
            plan.prompts[0],
            clips=plan.short_clips,
            frames=plan.short_frames,
            first=first,
        )
        made.append((label, codes))
    rows = []
    for label, codes in made[1:]:
        features = two_sample.position_features
        found = two_sample.compare(made[0][1], codes, features=features)
        if plan.power_runs:
            found = two_sample.with_power(
                found, made[0][1], codes, features=features, runs=plan.power_runs
            )
        frames = plan.short_frames
        rows.append({"a": made[0][0], "b": label, "frames": frames, **found.as_dict()})
    return rows


def speed(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Seconds of the rounds that all sides finished, and how many times faster than the first."""
    rows = []
    base = np.array(runs[0].seconds)
    for side in runs:
        spent = np.array(side.seconds)
        row: dict[str, Any] = {
            "label": side.label,
            "rounds": len(spent),
            "seconds": float(spent.sum()) if len(spent) else None,
            "audio_seconds_per_second": None,
            "speedup": None,
        }
        if len(spent):
            row["audio_seconds_per_second"] = side.timed_audio / float(spent.sum())
        if len(spent) > 1:
            figure = bootstrap(lambda x, y: float(x.sum() / y.sum()), base, spent, paired=True)
            row["speedup"] = {"value": figure.value, "interval_95": [figure.low, figure.high]}
        rows.append(row)
    return rows


def hear(
    runs: Sequence[Run], listener: quality.Listener, recordings: Recordings | None
) -> list[dict[str, Any]]:
    """A row a side: distances to the recordings if there are some, and to the first side."""
    rows: list[dict[str, Any]] = []
    base = None
    if recordings is not None and runs[0].engine is not None:
        codec = runs[0].engine.codec
        base = listener.hear("recordings", recordings.reference)
        codes = quality.tokens_of(recordings.others, codec)
        ends = {
            "recordings, through the codec": codes,
            "tokens at random": quality.shuffled(codes, len(codes)),
        }
        for label, tokens in ends.items():
            heard = listener.hear(label, quality.sounds_of(tokens, codec))
            rows.append(_heard_row(heard, base, None, None))
    first = None
    for side in (r for r in runs if r.clips):
        clips = [side.clips[i] for i in sorted(side.clips)]
        prompts = [clip.request.prompt for clip in clips]
        heard = listener.hear(side.label, [(clip.wave, clip.rate) for clip in clips], prompts)
        rows.append(_heard_row(heard, base, first, (runs[0], side)))
        first = heard if side is runs[0] else first
    return rows


def _heard_row(
    side: quality.SideFeatures,
    base: quality.SideFeatures | None,
    first: quality.SideFeatures | None,
    pair: tuple[Run, Run] | None,
) -> dict[str, Any]:
    floor = quality.kl_floor(side)
    row: dict[str, Any] = {
        "label": side.label,
        "clips": len(side),
        **quality.describe(side),
        "to_recordings": quality.distance(base, side, paired=False) if base else None,
        "to_first": None,
        "tag_kl_between_seeds": floor.as_dict() if floor else None,
    }
    if first is not None and pair is not None:
        a, b = (sorted(r.clips) for r in pair)
        both = [i for i in a if i in pair[1].clips]
        x, y = first.take([a.index(i) for i in both]), side.take([b.index(i) for i in both])
        row["to_first"] = quality.distance(x, y, paired=True)
    return row
