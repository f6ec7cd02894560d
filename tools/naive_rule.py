"""The naive p/q rule on a real pair of models: is its bias seen, and if not, what would it take?

    python tools/naive_rule.py embedded --clips 960 --frames 25 --draft-frames 3

Makes the same number of clips by each rule, with seeds of their own, and puts both tests of
`specgen compare` to them: the likelihood of the tokens under the verifier, and their statistics
against those of the coupled rule. Where a bias is too small to be seen, the tokens that would show
it in nine runs of ten are given, as if the bias measured were the true one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from specgen.decoding.acceptance import Rule
from specgen.engine import Engine, Request, load
from specgen.evaluation import likelihood as surprise
from specgen.evaluation import two_sample
from specgen.evaluation.runs import read_prompts
from specgen.presets import load_preset
from specgen.requests import Settings

FEW_FRAMES = 4  # up to which every place of a clip is looked at by itself


def make(
    engine: Engine, prompts: list[str], frames: int, first: int, batch: int
) -> two_sample.Codes:
    """`[N, K, frames]` tokens."""
    seconds = frames / engine.codec.frame_rate
    requests = [Request(prompt, first + i, seconds) for i, prompt in enumerate(prompts)]
    clips = engine.generate(requests, batch=batch)
    return torch.stack([clip.codes for clip in clips]).numpy()


def needed(row: dict[str, Any]) -> float:
    """Tokens that show the measured bias with a power of 0.9; infinite for none."""
    ratio = row["detectable_nats"] / max(abs(row["excess_nats"]), 1e-12)
    return float(row["tokens"] * ratio**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("preset", nargs="?", default="embedded")
    parser.add_argument("--rules", nargs="+", default=["coupled", "keep", "rejection"])
    parser.add_argument("--clips", type=int, default=960)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--draft-frames", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="a JSON file with all figures")
    args = parser.parse_args()
    preset = load_preset(args.preset)
    lines = read_prompts().lines
    prompts = [lines[i % len(lines)] for i in range(args.clips)]
    features = (
        two_sample.position_features if args.frames <= FEW_FRAMES else two_sample.clip_features
    )
    rows, first = [], None
    for i, name in enumerate(args.rules):
        settings = replace(
            Settings.of(preset),
            rule=Rule(name).value,
            draft_frames=args.draft_frames,
            allow_biased=True,
        )
        engine = load(preset, settings=settings)
        codes = make(engine, prompts, args.frames, args.seed + i * 10_000_000, args.batch)
        row = surprise.of_clips(engine, prompts, codes, args.batch)
        assert row is not None, "a greedy preset has no law"
        tokens = needed(row)
        if first is None:
            first, p = codes, math.nan
        else:
            p = two_sample.compare(first, codes, features=features).p
        low, high = row["interval_95"]
        each = " ".join(f"{k:+.3f}" for k in row["per_codebook"])
        print(
            f"{name:10} {row['excess_nats']:+.4f} nats ({low:+.4f} to {high:+.4f}), "
            f"p {row['p']:.2g}, by codebook {each}; {row['tokens']:,} tokens, "
            f"{row['detectable_nats']:.4f} would be caught, this bias by {tokens:,.0f} tokens; "
            f"statistics against {args.rules[0]}: p {p:.3g}",
            flush=True,
        )
        rows.append({"rule": name, **row, "needed_tokens": tokens, "two_sample_p": p})
    if args.out is not None:
        args.out.write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
