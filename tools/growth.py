r"""How a step grows with the length of the piece and with the batch, and what it takes of memory.

    PYTHONPATH=. OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python tools/growth.py \
        --output FILE.json

SYNTHETIC: random weights of MusicGen small's shape, flatten, guidance 3, 20 condition tokens,
float32 (packed float16 where weights are float16 numbers, as in checkpoints). The decode loop runs
behind a prompt of the wanted length, whose keys and values are random numbers (see
peers_at_length.py). Lengths take turns, and so do batches. What a step grows by is reading keys and
values, so the first and the last length are also timed with weights twice as large (no float16
numbers) and with half the keys and values (no guidance). Memory is the peak of a process of its
own (VmHWM, Linux) over what it held before the model was there, beside what the card of `specgen
bench` counts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers_at_length import CFG, Marks, Timed, conditions, gaps, ours, weights

from specgen.benchmarking import synthetic
from specgen.benchmarking.cases import Sweep, expand, synthetic_preset
from specgen.benchmarking.memory import row_bytes
from specgen.benchmarking.results import commit, machine_card, versions
from specgen.benchmarking.shapes import FRAME_RATE, Pair
from specgen.benchmarking.trials import Trial
from specgen.decoding.lane import Role
from specgen.decoding.loop import Drafting, Piece, decode_pieces, steps_per_frame
from specgen.decoding.sampling import Sampling
from specgen.engine import Engine


def engine_of(shape: str) -> Engine:
    return synthetic.load(synthetic_preset(Pair.parse(shape)), [], device="cpu")


def trial_of(engine: Engine, frames: int, batch: int) -> Trial:
    """The verifier alone, as `specgen bench` would run it."""
    sweep = Sweep(durations=(frames / FRAME_RATE,), batches=(batch,))
    return Trial(expand([engine.preset], sweep)[0], engine, Drafting())


def steps_at(trial: Trial, length: int, steps: int) -> Marks:
    """When one-column passes began, from `length` positions of the cache on."""
    per_frame, batch = steps_per_frame(trial.lead.pattern), trial.case.batch
    given, frames = length // per_frame, -(-(length + steps) // per_frame)
    role, _ = trial.roles(["a piece of music"] * batch)
    codebooks, card = trial.lead.pattern.codebooks, trial.lead.lm.config.card
    marks: Marks = []
    pieces = [Piece(frames, seed, torch.randint(card, (codebooks, given))) for seed in range(batch)]
    timed: Any = Timed(role.scorer, marks)  # type: ignore[arg-type]
    sampling = Sampling(1.0, 250)
    list(decode_pieces(Role(timed, role.pattern), None, pieces, rows=batch, sampling=sampling))
    return marks


def rows(engine: Engine, places: Sequence[tuple[int, int]], steps: int, rounds: int) -> list[Any]:
    """Times of a step at (length, batch), in turn."""
    taken: dict[tuple[int, int], list[tuple[float, float]]] = {place: [] for place in places}
    for turn in range(rounds):
        for length, batch in places[:: 1 if turn % 2 == 0 else -1]:
            frames = -(-(length + steps) // steps_per_frame(engine.verifier.pattern))
            trial = trial_of(engine, frames, batch)
            taken[length, batch] += gaps(steps_at(trial, length, steps))
            print(f"{length}, batch {batch}: {1000 * taken[length, batch][-1][1]:.1f} ms")
    return [
        {
            "length": length,
            "batch": batch,
            "step_ms": 1000 * statistics.median(wall for wall, _ in pairs),
            "step_cpu_ms": 1000 * statistics.median(cpu for _, cpu in pairs),
            "step_cpu_ms_samples": [round(1000 * cpu, 2) for _, cpu in pairs],
        }
        for (length, batch), pairs in taken.items()
    ]


def kinds(shape: str, lengths: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Times of a step with packed weights and float32 ones, with guidance and without, in turn."""
    models = {kind: weights(shape, exact=kind == "packed").pack() for kind in ("packed", "float32")}
    both = conditions(models["packed"].config.dim)
    sides = {
        (kind, guided, length): ours(model, both, "flatten", CFG if guided else None)
        for kind, model in models.items()
        for guided in (True, False)
        for length in lengths
    }
    taken: dict[tuple[str, bool, int], list[float]] = {key: [] for key in sides}
    for turn in range(rounds):
        for key in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            taken[key] += [cpu for _, cpu in gaps(sides[key](key[2], steps))]
            print(f"{key}: {1000 * taken[key][-1]:.1f} ms")
    found = []
    for (kind, guided, length), seconds in taken.items():
        first = statistics.median(taken[kind, guided, lengths[0]])
        middle = statistics.median(seconds)
        head = {"weights": kind, "guidance": guided, "length": length}
        found.append(head | {"step_cpu_ms": 1000 * middle, "times_first": middle / first})
    return found


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def memory(shape: str, length: int, batch: int) -> dict[str, Any]:
    """Peak memory of one decode, in this process, beside what is counted for it."""
    steps_at(trial_of(engine_of("tiny:flatten"), 8, 1), 16, 8)  # what torch itself takes
    before = status("VmRSS")
    engine = engine_of(shape)
    frames = -(-(length + 12) // steps_per_frame(engine.verifier.pattern))
    trial = trial_of(engine, frames, batch)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the weights took and gave back
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    steps_at(trial, length, 12)
    measured, counted = status("VmHWM") - before, row_bytes(trial)
    return {
        "length": length,
        "batch": batch,
        "peak_bytes": measured,
        "counted_bytes": counted,
        "relative_error": counted / measured - 1,
    }


def memory_rows(shape: str, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """`memory` in a process of its own for each place."""
    found = []
    for length, batch in places:
        arguments = ["--shape", shape, "--memory", f"{length},{batch}"]
        command = [sys.executable, __file__, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(f"memory at {length}, batch {batch}: {100 * found[-1]['relative_error']:+.1f} %")
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown of all three parts."""
    lines = ["| cache length | batch | process ms a step | times the first |", "|---" * 4 + "|"]
    for part in ("lengths", "batches"):
        first = found[part][0]["step_cpu_ms"]
        for row in found[part]:
            times = row["step_cpu_ms"] / first
            head = f"| {row['length']} | {row['batch']} "
            lines.append(f"{head}| {row['step_cpu_ms']:.1f} | {times:.2f} |")
    lines += ["", "| weights | guidance | cache length | process ms a step | times the first |"]
    lines += ["|---" * 5 + "|"]
    for row in found["kinds"]:
        head = f"| {row['weights']} | {'yes' if row['guidance'] else 'no'} | {row['length']} "
        lines.append(f"{head}| {row['step_cpu_ms']:.1f} | {row['times_first']:.2f} |")
    lines += ["", "| cache length | batch | peak GB | counted GB | off by |", "|---" * 5 + "|"]
    for row in found["memory"]:
        measured, counted = row["peak_bytes"] / 1e9, row["counted_bytes"] / 1e9
        head = f"| {row['length']} | {row['batch']} | {measured:.2f} | {counted:.2f} "
        lines.append(f"{head}| {100 * row['relative_error']:+.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="small:flatten")
    parser.add_argument("--lengths", default="100,1500,3000,6000")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=14, help="of a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.memory is not None:
        print(json.dumps(memory(args.shape, *map(int, args.memory.split(",")))))
        return
    lengths = [int(n) for n in args.lengths.split(",")]
    batches = [int(n) for n in args.batches.split(",")]
    card, engine = machine_card(torch.get_num_threads()), engine_of(args.shape)
    found = {
        "schema": 1,
        "synthetic": True,
        "shape": args.shape,
        "machine": card,
        "versions": versions(),
        "commit": commit(),
        "lengths": rows(engine, [(n, 1) for n in lengths], args.steps, args.rounds),
        "batches": rows(engine, [(lengths[0], n) for n in batches], args.steps, args.rounds),
    }
    del engine
    shape = args.shape.partition(":")[0]
    found["kinds"] = kinds(shape, [lengths[0], lengths[-1]], args.steps, args.rounds)
    places = [(lengths[0], 1), (lengths[-1], 1), (lengths[1], batches[-1])]
    found["memory"] = memory_rows(args.shape, places)
    print(table(found))
    if args.output is not None:
        partial = args.output.with_name(args.output.name + ".tmp")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, args.output)


if __name__ == "__main__":
    main()
