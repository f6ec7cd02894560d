"""Peak memory of a synthetic pair whose caches are made for a long piece, under a cap.

python benchmarks/capped.py --pair large:flatten,large:delay --seconds 10,30 --output FILE
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from specgen.benchmarking.cases import Sweep, expand, synthetic_preset
from specgen.benchmarking.given import Given
from specgen.benchmarking.memory import row_bytes
from specgen.benchmarking.results import commit, machine_card, versions
from specgen.benchmarking.shapes import Pair
from specgen.benchmarking.synthetic import Wanted, load
from specgen.benchmarking.trials import Trial
from specgen.decoding.loop import Drafting, decode, steps_per_frame
from specgen.decoding.sampling import Sampling

CAP = 16e9
DECODED = 25  # frames that are decoded; the caches are made for the whole piece


def measure(pair: Pair, lengths: Sequence[float], device: str) -> dict[str, Any]:
    """Load the pair; for each length, make its caches and decode a little of it.

    Returns:
        What gpu-memory.json holds; peaks are null on a CPU.
    """
    given = Given((0.7,) * pair.verifier.config.codebooks, "given")
    preset = synthetic_preset(pair)
    on_card = device.startswith("cuda")
    if on_card:
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.device(device).index or 0  # this call takes no bare "cuda"
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total), index)
    engine = load(preset, [Wanted(given.values, "coupled")], device=device)
    pieces = []
    for seconds in lengths:
        case = expand([preset], Sweep(durations=(seconds,), acceptances=(given,)))[-1]
        steps = 2 * steps_per_frame(engine.verifier.pattern)
        trial = Trial(case, engine, Drafting(steps=steps), 0)
        if on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        fits, error = _decode_some(trial)
        pieces.append(
            {
                "duration_seconds": seconds,
                "fits": fits,
                "error": error,
                "predicted_bytes": row_bytes(trial),
                "peak_bytes": torch.cuda.max_memory_allocated(device) if on_card else None,
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(device) if on_card else None,
            }
        )
    return {
        "schema": 1,
        "synthetic": True,
        "label": preset.name,
        "machine": machine_card(torch.get_num_threads(), device),
        "versions": versions(),
        "commit": commit(),
        "cap_bytes": round(CAP) if on_card else None,
        "pieces": pieces,
    }


def _decode_some(trial: Trial) -> tuple[bool, str | None]:
    """Make a trial's caches and decode the start of its piece: whether that fits, or why not."""
    frames = min(DECODED, trial.frames)
    try:
        lead, follow = trial.roles(["a piece of music"])
        made = decode(
            lead,
            follow,
            frames=[frames],
            seeds=[1],
            sampling=Sampling(),
            drafting=trial.drafting,
        )
    except torch.cuda.OutOfMemoryError as error:
        return False, " ".join(str(error).split())[:300]
    assert made.codes[0].shape[-1] == frames
    return True, None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", default="large:flatten,large:delay")
    parser.add_argument("--seconds", default="10,30")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    lengths = [float(part) for part in args.seconds.split(",")]
    found = measure(Pair.parse(args.pair), lengths, args.device)
    partial = args.output.with_name(args.output.name + ".tmp")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, args.output)


if __name__ == "__main__":
    main()
