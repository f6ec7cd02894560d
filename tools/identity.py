"""Are the tokens the verifier's own, whatever drafts, at every draft length, alone and in a batch?

    python tools/identity.py embedded embedded-dual embedded-delay --duration 8

For each preset: one clip by the verifier alone, then with the drafter at every draft length, alone
and as one of a batch of four. Where tokens differ, the margin between the two best perturbed logits
at the first difference (in the verifier's order) tells a rounding tie (below 1e-4) from a fault.
Prints one line a run; exit code 1 if a difference is no tie.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specgen.decoding.loop import decode
from specgen.decoding.sampling import Sampling
from specgen.engine import Engine, Request, load
from specgen.generation import ConditionedModel
from specgen.patterns import Pattern

PROMPT = "a lively jig in D major on the violin"
OTHERS = (
    "a slow air on the flute",
    "a reel on the accordion with guitar chords",
    "a march, trumpet",
)
TIE = 1e-4


def margins_of_plain(engine: Engine, request: Request) -> tuple[Tensor, Tensor, Pattern]:
    """The verifier's own tokens `[K, T]`, their margins, and its pattern."""
    frames, sampling = engine.frames(request.duration or 0.0), engine.settings.sampling
    role = ConditionedModel.of(engine.verifier, [request.prompt], frames, sampling.cfg).role
    made = decode(
        role,
        frames=[frames],
        seeds=[request.seed],
        sampling=Sampling(sampling.temperature, sampling.top_k, sampling.top_p),
        margins=True,
    )
    assert made.margins is not None
    return made.codes[0], made.margins[0], engine.verifier.pattern.of(frames)


def first_difference(a: Tensor, b: Tensor, pattern: Pattern) -> tuple[int, int] | None:
    """The first differing coordinate (t, k) in the verifier's order."""
    for step in pattern.layout:
        for t, k in step:
            if a[k, t] != b[k, t]:
                return t, k
    return None


def check(
    preset: str, duration: float, lengths: list[int | None], batches: list[int | None]
) -> Any:
    engine = load(preset)
    mine = Request(PROMPT, 7, duration)
    own, margins, pattern = margins_of_plain(engine, mine)
    runs = []
    for batch, choices in ((1, lengths), (4, batches)):
        for length in choices:
            engine.settings = replace(engine.settings, draft_frames=length)
            row = [mine, *(Request(p, 100 + i, duration) for i, p in enumerate(OTHERS))][:batch]
            clip = next(iter(engine.generate(row)))
            at = first_difference(own, clip.codes, pattern)
            margin = None if at is None else float(margins[at[1], at[0]])
            runs.append(
                {
                    "batch": batch,
                    "draft_frames": length or "auto",
                    "identical": at is None,
                    "first_difference": at,
                    "margin": margin,
                    "excused": margin is not None and margin < TIE,
                    "acceptance": clip.stats.acceptance,
                }
            )
            print(preset, runs[-1], flush=True)
    return {
        "preset": preset,
        "duration": duration,
        "smallest_margin": margins.min().item(),
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--duration", type=float, default=8.0)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(range(1, 13)))
    parser.add_argument("--batch-lengths", type=int, nargs="*", default=[1, 4, 12])
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        results = [
            check(p, args.duration, [*args.lengths, None], [*args.batch_lengths, None])
            for p in args.presets
        ]
    text = json.dumps(results, indent=1)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")
    every = [run for result in results for run in result["runs"]]
    same = sum(run["identical"] for run in every)
    print(f"{same} of {len(every)} runs identical")
    if any(not run["identical"] and not run["excused"] for run in every):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
