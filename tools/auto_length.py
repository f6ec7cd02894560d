"""`auto` against fixed draft lengths, piece by piece in turn, in process time.

    python tools/auto_length.py embedded-dual [--frames 0.25,0.5,1] [--duration 4]

A bench row is the median of five pieces, each with an acceptance of its own, on a machine whose
pace changes by the second. Here every side makes each piece, one right after the other, and what
counts is the ratio of its own times: their mean on a logarithmic scale, with its standard error.
`auto` keeps what it learns, as in any engine; the first piece does not count.
"""

import argparse
import math
import statistics
from dataclasses import replace
from functools import partial

from specgen.benchmarking.timing import alternate
from specgen.cli.bench import PROMPTS
from specgen.engine import Request, load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("--frames", default="0.25,0.5,1")
    parser.add_argument("--duration", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    engine, turn = load(options.preset, threads=1), 0

    def begin(_: float | None, number: int) -> None:
        nonlocal turn
        turn = number

    def decode(frames: float | None) -> None:
        engine.settings = replace(engine.settings, draft_frames=frames)
        prompt = PROMPTS[turn % len(PROMPTS)]
        next(engine.generate([Request(prompt, seed=turn + 1, duration=options.duration)]))

    lengths = [float(text) for text in options.frames.split(",")]
    sides = {frames: partial(decode, frames) for frames in [None, *lengths]}
    samples = alternate(sides, repeats=options.repeats, before=begin)
    for frames in lengths:
        pairs = zip(samples[None].cpu, samples[frames].cpu, strict=True)
        logs = [math.log(auto / fixed) for auto, fixed in pairs]
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        print(
            f"{options.preset}, {options.duration:g} s: auto {100 * statistics.fmean(logs):+.1f} "
            f"+- {100 * error:.1f} % against {frames:g} frames ({len(logs)} pieces)"
        )


if __name__ == "__main__":
    main()
