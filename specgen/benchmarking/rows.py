"""The one schema that every output format of `specgen bench` is made from."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1


@dataclass
class Row:
    """One measurement; None where nothing was measured.

    Attributes:
        label: what it is called, unique with the swept values.
        drafter, verifier: names of the models; no drafter: the verifier alone.
        drafter_pattern, verifier_pattern: kinds of their patterns.
        batch: clips decoded together.
        duration_seconds: of each clip.
        draft_frames: a number or `auto`.
        acceptance_rule: coupled, mixed or rejection.
        synthetic: random weights, and an acceptance that was given.
        lossless: whether the tokens follow the verifier's distribution.
        seconds: `median`, `min`, `max` and `samples` of decoding; conditions and codec are apart.
        audio_seconds_per_second: seconds of audio a second of decoding (x real time).
        tokens_per_second: of all clips.
        acceptance, acceptance_per_codebook: share of judged guesses that stood.
        tokens_per_pass: mean tokens committed a verifier pass.
        speedup: median over the rounds of how many times faster it was than the row labelled
        speedup_reference: measured in the same run, in turn.
        speedup_error: standard error of `speedup`.
        speedup_cpu_time: the same ratio of process time, which a busy machine disturbs less.
        peak_memory_bytes: that the first run took at most: of a card's memory, or on a CPU of this
            process's; weights of this row's models with it, what other rows have loaded without.
        bandwidth_fraction: of a measured copy: moved_bytes / median seconds / its bytes a second.
        identical: share of tokens equal to the reference's in the same runs (coupled rule).
        draft_temperatures, drafter_cfg: how guesses were drawn.
        cpu_seconds: process time of each run.
        condition_seconds: median time to encode the prompts and make the cross-attention's memory.
        stats: counts of all timed runs together.
        package: who decoded: `specgen`, or a peer and its version.
        peer_agreement: of a peer: share of a greedy piece's tokens that are ours.
        moved_bytes: that the passes of a run had to read and write, at least.
        memory_bytes: that weights, caches and noise of this row should take.
        acceptance_given: per codebook, what a synthetic row was run with;
        acceptance_source: where that is from.
        predicted: what the cost model says; never a measurement (see `prediction.Prediction`).
    """

    label: str
    drafter: str | None
    verifier: str
    drafter_pattern: str | None
    verifier_pattern: str
    batch: int
    duration_seconds: float
    draft_frames: float | str | None
    acceptance_rule: str | None
    synthetic: bool
    lossless: bool
    seconds: dict[str, Any]
    audio_seconds_per_second: float
    tokens_per_second: float
    acceptance: float | None
    acceptance_per_codebook: list[float | None] | None
    tokens_per_pass: float | None
    speedup: float | None = None
    speedup_reference: str | None = None
    peak_memory_bytes: int | None = None
    bandwidth_fraction: float | None = None
    speedup_error: float | None = None
    speedup_cpu_time: float | None = None
    identical: float | None = None
    draft_temperatures: list[float] | None = None
    drafter_cfg: bool | None = None
    cpu_seconds: list[float] = field(default_factory=list)
    condition_seconds: float | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    package: str = "specgen"
    peer_agreement: float | None = None
    moved_bytes: int | None = None
    memory_bytes: int | None = None
    acceptance_given: list[float] | None = None
    acceptance_source: str | None = None
    predicted: dict[str, Any] | None = None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the samples; None for a single run."""
        samples = self.seconds["samples"]
        return statistics.stdev(samples) if len(samples) > 1 else None


@dataclass
class Document:
    """All that a run says.

    Attributes:
        machine, versions, commit: what it was measured on.
        models: name -> parameters, bytes, pattern, dtype, and the ceiling that memory sets.
        settings: what was run: repeats, warm-up, seed, prompts, sampling.
        codec_seconds: to turn one clip of the longest duration into sound.
        rows: the measurements.
        warnings: what makes a figure doubtful.
        copy_bytes_per_second: of a plain copy on the device, reads and writes both counted.
        synthetic: whether a row of it is.
    """

    machine: dict[str, Any]
    versions: dict[str, str | None]
    commit: str | None
    models: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    codec_seconds: float | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    copy_bytes_per_second: float | None = None
    synthetic: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What `--output json` prints."""
        return {"schema": SCHEMA, **asdict(self)}

    def json(self) -> str:
        # allow_nan off: a figure that is not a number is a fault, not a null.
        return json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False)
