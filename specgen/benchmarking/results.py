"""Trials become rows."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from specgen.benchmarking.cases import Case, is_synthetic
from specgen.benchmarking.memory import row_bytes
from specgen.benchmarking.roofline import moved_bytes
from specgen.benchmarking.rows import Row
from specgen.benchmarking.timing import Samples, ratio
from specgen.benchmarking.trials import Trial
from specgen.decoding.acceptance import Rule, is_biased
from specgen.decoding.stats import DecodeStats


def title(case: Case) -> str:
    """The case in words, for progress and warnings."""
    words = [case.label, f"{case.duration:g} s", f"batch {case.batch}"]
    if case.draft is not None:
        frames = "auto" if case.draft.frames is None else str(case.draft.frames)
        words += [case.draft.rule, f"draft frames {frames}"]
        if case.draft.temperatures:
            words.append(
                "draft temperatures " + " ".join(f"{t:g}" for t in case.draft.temperatures)
            )
        if case.draft.given is not None:
            words.append(f"acceptance {case.draft.given}")
    return ", ".join(words)


def make_row(trial: Trial, samples: Samples, copied: float) -> Row:
    """What a trial says by itself; `copied` are the bytes a second of a plain copy."""
    case, engine, draft = trial.case, trial.engine, trial.case.draft
    lead, drafter = trial.lead, trial.follow
    stats = DecodeStats.total(trial.stats) if trial.stats else None
    frames, K = trial.frames, lead.pattern.codebooks
    lossless = True
    if draft is not None and drafter is not None:
        shapes = drafter.pattern.of(64), lead.pattern.of(64)
        lossless = not is_biased(Rule(draft.rule), *shapes)
    moved = _moved(trial) if stats is not None else None
    given = None if draft is None else draft.given
    return Row(
        label=case.label,
        drafter=None if drafter is None else drafter.name,
        verifier=lead.name,
        drafter_pattern=None if drafter is None else drafter.pattern.kind,
        verifier_pattern=lead.pattern.kind,
        batch=case.batch,
        duration_seconds=frames / engine.codec.frame_rate,
        draft_frames=None if draft is None else draft.frames or "auto",
        acceptance_rule=None if draft is None else draft.rule,
        synthetic=is_synthetic(case.preset),
        lossless=lossless,
        seconds=samples.summary(),
        audio_seconds_per_second=case.batch * frames / engine.codec.frame_rate / samples.median,
        tokens_per_second=case.batch * frames * K / samples.median,
        acceptance=None if stats is None else stats.acceptance,
        acceptance_per_codebook=(
            None if draft is None or stats is None else stats.acceptance_per_codebook
        ),
        tokens_per_pass=None if stats is None else stats.tokens_per_pass,
        peak_memory_bytes=trial.peak_memory,
        bandwidth_fraction=None if moved is None else moved / samples.median / copied,
        draft_temperatures=None if draft is None else list(draft.temperatures or (1.0,) * K),
        drafter_cfg=None if draft is None else engine.settings.drafter_cfg,
        cpu_seconds=samples.cpu,
        condition_seconds=statistics.median(trial.condition_seconds),
        stats={} if stats is None else stats.as_dict(),
        package="specgen" if trial.peer is None else trial.peer.name,
        peer_agreement=trial.agreement,
        moved_bytes=None if moved is None else round(moved),
        memory_bytes=None if trial.peer is not None else row_bytes(trial),
        acceptance_given=None if given is None else list(given.values),
        acceptance_source=None if given is None else given.source,
    )


def _moved(trial: Trial) -> float:
    """Bytes that a run's passes move at least, the mean of the timed runs."""
    verify, draft = (statistics.fmean(column) for column in zip(*trial.passes, strict=True))
    tokens = trial.frames * trial.lead.pattern.codebooks
    total = 0.0
    for model, passes in ((trial.lead, verify), (trial.follow, draft)):
        if model is not None and passes:
            total += moved_bytes(
                model,
                passes=passes,
                tokens=tokens / passes,
                steps=model.pattern.of(trial.frames).steps,
                sequences=trial.sequences(model),
            )
    return total


def compare(row: Row, trial: Trial, samples: Samples, alone: Trial, reference: Samples) -> None:
    """Fill in what a row says against its verifier alone."""
    row.speedup, row.speedup_error = ratio(reference.wall, samples.wall)
    row.speedup_cpu_time, _ = ratio(reference.cpu, samples.cpu)
    row.speedup_reference = alone.case.label
    if trial.peer is not None:
        return
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


def machine_card(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The machine, as a results file names it: host, processor, cores, load, device, threads."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": _cores(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "device": device,
        "gpu": _gpu(device),
    }


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu(device: str) -> dict[str, Any] | None:
    if not device.startswith("cuda"):
        return None
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    """Version of NVIDIA's driver; None where it does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.split("\n")[0].strip() or None


def versions() -> dict[str, str | None]:
    """Versions of what the figures rest on; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("specgen", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the source tree this runs from, with `-dirty` if tracked files differ from it.

    None where specgen is not in a git work tree (installed from a package).
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
