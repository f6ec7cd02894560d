"""Plain decoding, ours against audiocraft's own `LMModel.generate`: same weights, same machine.

    python benchmarks/audiocraft_step.py [--checkpoint FOLDER] [--output FILE]

Both sides decode the same number of frames of the same pattern, batch 1, float32, guidance 3,
top-k 250, from the same weights and the same condition, in turn. Without a checkpoint the weights
are random, of the embedded base model's shape: time does not depend on their values. First both
decode a short greedy piece, whose tokens must agree. Needs audiocraft (see audiocraft_peer.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import audiocraft_peer as peer

from specgen.benchmarking.machine import commit, machine_card, versions
from specgen.benchmarking.timing import Samples, alternate, busy, ratio
from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.sampling import Sampling
from specgen.lm.config import LMConfig
from specgen.lm.model import LMSession, MusicLM
from specgen.patterns import PatternSpec

GUIDANCE, TOP_K, WORDS, FRAME_RATE = 3.0, 250, 12, 50.0
EMBEDDED = {"dim": 256, "heads": 4, "layers": 5, "ff_dim": 1024, "condition_dim": 128}


def subject(args: argparse.Namespace) -> tuple[MusicLM, PatternSpec, str]:
    """The model to time, its pattern, and what to call it."""
    if args.checkpoint:
        from specgen.checkpoints.native import load_lm

        loaded = load_lm(args.checkpoint)
        return loaded.lm, loaded.pattern, loaded.name
    torch.manual_seed(0)
    config = LMConfig(4, 1024, positions=args.positions, **EMBEDDED)
    model = MusicLM(config).eval().requires_grad_(False)
    return model, PatternSpec(args.pattern, 4), f"random weights, {args.positions}"


def sides(
    model: MusicLM, pattern: PatternSpec, theirs: Any, condition: Tensor, null: Tensor
) -> tuple[Any, Any]:
    """Two functions of (frames, sampling or greedy) that return `[K, T]` tokens."""

    def ours(frames: int, sampled: bool) -> Tensor:
        session = LMSession(
            model,
            rows=1,
            capacity=capacity(pattern, frames),
            condition=condition,
            null=null,
            guidance=GUIDANCE,
        )
        sampling = Sampling(1.0 if sampled else 0.0, TOP_K)
        done = decode(Role(session, pattern), frames=[frames], seeds=[0], sampling=sampling)
        return done.codes[0]

    def audiocrafts(frames: int, sampled: bool) -> Tensor:
        codes: Tensor = theirs.generate(
            conditions=peer.described(1),
            max_gen_len=frames,
            use_sampling=sampled,
            top_k=TOP_K,
            cfg_coef=GUIDANCE,
        )
        return codes[0]

    return ours, audiocrafts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a native checkpoint folder")
    parser.add_argument("--pattern", default="delay", choices=("delay", "flatten"))
    parser.add_argument("--positions", default="sin", choices=("sin", "rope"))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model, pattern, label = subject(args)
    frames = round(args.seconds * FRAME_RATE)
    steps = pattern.of(frames).steps - 1
    condition, null = torch.randn(2, 1, WORDS, model.config.condition_dim)
    both = torch.cat([condition, null])

    # With RoPE audiocraft's fused attention streams with wrong positions, so only the other is held
    # to equal tokens; the fused one is what MusicGen's configurations use, and is timed as well.
    attentions = {"audiocraft": True, "audiocraft (einsum attention)": False}
    theirs = {n: peer.build(model, pattern, both, fused_attention=f) for n, f in attentions.items()}
    run = {n: sides(model, pattern, m, condition, null)[1] for n, m in theirs.items()}
    run["specgen"] = sides(model, pattern, None, condition, null)[0]

    expected = run["audiocraft (einsum attention)"](32, False)
    agree = (run["specgen"](32, False) == expected).float().mean().item()
    samples: dict[str, Samples] = alternate(
        {name: (lambda side=side: side(frames, True)) for name, side in run.items()},
        repeats=args.repeats,
        before=lambda name, turn: print(f"{name}, run {turn}", file=sys.stderr),
    )
    rows = []
    for name, taken in samples.items():
        speedup, error = ratio(samples["audiocraft"].wall, taken.wall)
        on_cpu, _ = ratio(samples["audiocraft"].cpu, taken.cpu)
        rows.append(
            {
                "label": name,
                "model": label,
                "pattern": pattern.kind,
                "steps": steps,
                "seconds": taken.summary(),
                "cpu_seconds": taken.cpu,
                "milliseconds_per_step": 1000 * taken.median / steps,
                "speedup": speedup,
                "speedup_error": error,
                "speedup_cpu_time": on_cpu,
                "speedup_reference": "audiocraft",
            }
        )
        print(
            f"{name:32} {1000 * taken.median / steps:7.2f} ms a step "
            f"({1000 * taken.cpu_median / steps:.2f} of CPU time)   {speedup:.2f} times audiocraft"
        )
    disturbed = busy(samples.values(), args.threads)
    if disturbed:
        print(f"warning: {disturbed}", file=sys.stderr)
    print(f"greedy tokens equal to audiocraft's: {100 * agree:.1f} % of 32 frames")
    if args.output:
        document = {
            "schema": 1,
            "machine": machine_card(args.threads),
            "versions": versions() | {"audiocraft": "1.3.0"},
            "commit": commit(),
            "greedy_tokens_identical": agree,
            "rows": rows,
        }
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
