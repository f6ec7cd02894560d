"""Peak memory of a synthetic pair whose caches are made for a long piece, under a cap.

python benchmarks/capped.py --pair large:flatten,large:delay --seconds 30 --output FILE
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from specgen.benchmarking.cases import Draft, Sweep, expand, synthetic_preset
from specgen.benchmarking.given import Given
from specgen.benchmarking.machine import commit, machine_card, versions
from specgen.benchmarking.memory import row_bytes
from specgen.benchmarking.shapes import Pair
from specgen.benchmarking.synthetic import Wanted, load
from specgen.benchmarking.trials import Trial
from specgen.decoding.loop import Drafting, decode, steps_per_frame
from specgen.decoding.sampling import Sampling

CAP = 16e9
DECODED = 0.5  # seconds that are decoded; the caches are made for all of it


def measure(pair: Pair, seconds: float, device: str) -> dict[str, Any]:
    """Load the pair, make its caches for `seconds`, decode a little of it.

    Returns:
        What gpu-memory.json holds; the peak is null on a CPU.
    """
    given = Given((0.7,) * pair.verifier.config.codebooks, "given")
    preset = synthetic_preset(pair)
    case = expand([preset], Sweep(durations=(seconds,), acceptances=(given,)))[-1]
    assert isinstance(case.draft, Draft)
    on_card = device.startswith("cuda")
    if on_card:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total), device)
    found: dict[str, Any] = {
        "schema": 1,
        "synthetic": True,
        "label": f"{case.label}, caches for {seconds:g} s",
        "machine": machine_card(torch.get_num_threads(), device),
        "versions": versions(),
        "commit": commit(),
        "cap_bytes": round(CAP) if on_card else None,
    }
    engine = load(preset, [Wanted(given.values, "coupled")], device=device)
    steps = 2 * steps_per_frame(engine.verifier.pattern)
    trial = Trial(case, engine, Drafting(steps=steps), 0)
    lead, follow = trial.roles(["a piece of music"])
    frames = max(1, round(min(DECODED, seconds) * engine.codec.frame_rate))
    options = {"sampling": Sampling(), "drafting": trial.drafting}
    try:
        made = decode(lead, follow, frames=[frames], seeds=[1], **options)  # type: ignore[arg-type]
        found |= {"fits": True, "frames": int(made.codes[0].shape[-1])}
    except torch.cuda.OutOfMemoryError as error:
        found |= {"fits": False, "error": " ".join(str(error).split())[:300]}
    found["predicted_bytes"] = row_bytes(trial)
    found["peak_bytes"] = torch.cuda.max_memory_allocated(device) if on_card else None
    found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device) if on_card else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", default="large:flatten,large:delay")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = measure(Pair.parse(args.pair), args.seconds, args.device)
    partial = args.output.with_name(args.output.name + ".tmp")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, args.output)


if __name__ == "__main__":
    main()
