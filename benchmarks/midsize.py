"""A mid-size pair, trained on the spot, so that acceptance is real where no large weights are.

python benchmarks/midsize.py --device cuda --work runs/bench-gpu --output FILE

The tokens are made here: the embedded delay model decodes prompts in one large batch. On them a
flatten verifier and a smaller delay drafter are trained for a few seconds each, both reading the
embedded models' word encoder. The music is poor; what counts is that both have learnt the same data
in the two patterns, as real pairs have. Their acceptance is that of such models, no more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.benchmarking.results import commit, machine_card, versions
from specgen.checkpoints.base import LMCheckpoint
from specgen.checkpoints.native import embedded_folder, load_lm, save_lm
from specgen.decoding.loop import decode
from specgen.decoding.sampling import Sampling
from specgen.generation import ConditionedModel
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec
from specgen.training.optimise import initialise, optimizers, rate_at, set_rate

GUIDANCE = 3.0
DANCES = ("jig", "reel", "waltz", "march", "hornpipe", "air", "polka", "slow air")
PLAYERS = ("violin", "flute", "piano", "accordion", "trumpet", "guitar")
KEYS = ("D major", "G major", "A minor", "E minor", "C major")
DROPPED = 0.15  # share of crops that see the null condition
CROPS, CROP_FRAMES = 48, 128


@dataclass(frozen=True)
class Scale:
    """Shapes of the pair, and how many clips are made at a time."""

    verifier: dict[str, int]
    drafter: dict[str, int]
    batch: int
    dtype: str


SCALES = {
    "full": Scale(
        {"dim": 768, "heads": 12, "layers": 12, "ff_dim": 3072},
        {"dim": 384, "heads": 6, "layers": 4, "ff_dim": 1536},
        96,
        "bfloat16",
    ),
    "tiny": Scale(
        {"dim": 32, "heads": 2, "layers": 2, "ff_dim": 64},
        {"dim": 32, "heads": 2, "layers": 1, "ff_dim": 64},
        2,
        "float32",
    ),
}
PRESET = """\
schema: 1
description: trained on the spot by benchmarks/midsize.py, on tokens the embedded models made
verifier: {{checkpoint: midsize-flatten, dtype: {dtype}}}
drafter: {{checkpoint: midsize-delay, dtype: {dtype}, cfg: true}}
codec: {{checkpoint: "embedded:codec"}}
sampling: {{temperature: 1.0, top_k: 250, top_p: 0.0, cfg: 3.0}}
speculation: {{rule: coupled, draft_frames: auto}}
duration: {{default: {default}, max: {longest}}}
"""


def prompts(count: int) -> list[str]:
    """Prompts that the embedded models know every word of, round and round."""
    every = [f"a {d} in {k} on the {p}" for d, p, k in itertools.product(DANCES, PLAYERS, KEYS)]
    return [every[(i * 7) % len(every)] for i in range(count)]


@torch.inference_mode()
def make_tokens(
    teacher: LMCheckpoint, texts: Sequence[str], frames: int, batch: int, budget: float
) -> Tensor:
    """Decode prompts in batches until all are done or the budget is spent: `[N, K, T]` int64."""
    made: list[Tensor] = []
    began = time.monotonic()
    for first in range(0, len(texts), batch):
        part = list(texts[first : first + batch])
        role = ConditionedModel.of(teacher, part, frames, GUIDANCE).role
        seeds = list(range(first, first + len(part)))
        done = decode(role, frames=[frames] * len(part), seeds=seeds, sampling=Sampling())
        made += done.codes
        # The next batch takes as long as the mean of those before.
        spent = time.monotonic() - began
        if spent * (1 + batch / len(made)) > budget:
            break
    return torch.stack(made).to(teacher.lm.device)


def loss_of(
    lm: MusicLM, spec: PatternSpec, codes: Tensor, condition: Tensor, mask: Tensor
) -> Tensor:
    """Mean cross-entropy of every token of crops `[B, K, F]`, in nats."""
    pattern = spec.of(codes.shape[-1])
    special = lm.config.special
    sequence = pattern.build(codes, special)
    memory = lm.transformer.memory(condition, mask)
    hidden = lm.hidden(sequence[..., :-1], memory)
    steps = torch.tensor(pattern.step_of, device=codes.device) - 1
    parts = [
        F.cross_entropy(
            lm.head(hidden[:, steps[k]], k).flatten(0, 1).float(), codes[:, k].flatten()
        )
        for k in range(spec.codebooks)
    ]
    return torch.stack(parts).mean()


def train(
    name: str,
    shape: dict[str, int],
    kind: str,
    teacher: LMCheckpoint,
    codes: Tensor,
    texts: Sequence[str],
    seconds: float,
) -> tuple[LMCheckpoint, dict[str, Any]]:
    """Train one model for some seconds; returns it with what a record needs."""
    device, config = codes.device, teacher.lm.config
    torch.manual_seed(1)
    options: dict[str, Any] = {"condition_dim": config.condition_dim, "positions": "rope"}
    lm = MusicLM(LMConfig(config.codebooks, config.card, **shape, **options))
    initialise(lm, shape["layers"])
    lm.to(device).train()
    spec = PatternSpec(kind, config.codebooks)
    with torch.no_grad():
        condition, mask = teacher.conditioner.encode(list(texts))
        null = teacher.conditioner.null()
    condition, mask = condition.clone().to(device), mask.to(device)
    null = null.clone().to(device)
    held, frames = max(1, len(codes) // 16), min(CROP_FRAMES, codes.shape[-1])
    rng = torch.Generator().manual_seed(2)
    rate, kinds = 4e-3 * math.sqrt(256 / max(256, shape["dim"])), "muon"
    tools = optimizers([lm], kinds, rate, 0.05, 12.0)
    began, step, shown = time.monotonic(), 0, math.nan

    def crops(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = int(torch.randint(codes.shape[-1] - frames + 1, (), generator=rng))
        start = 0 if float(torch.rand((), generator=rng)) < 0.5 else start
        rows = rows.to(device)
        told, real = condition[rows], mask[rows]
        blank = (torch.rand(len(rows), generator=rng) < DROPPED).to(device)
        first = torch.arange(told.shape[1], device=device) == 0
        told = torch.where(blank[:, None, None], null, told)
        real = torch.where(blank[:, None], first, real)
        return codes[rows][..., start : start + frames], told, real

    while (spent := time.monotonic() - began) < seconds:
        rows = torch.randint(held, len(codes), (min(CROPS, len(codes)),), generator=rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(lm, spec, *crops(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for tool in tools:
            set_rate(tool, rate * rate_at(spent / seconds, step, 40))
            tool.step()
            tool.zero_grad(set_to_none=True)
        step += 1
        if step % 10 == 1:
            shown = float(loss.detach())  # waits for the device, so that the clock is right
    lm.eval().requires_grad_(False)
    with torch.inference_mode():
        out = loss_of(lm, spec, codes[:held, :, :frames], condition[:held], mask[:held])
    record = {
        "parameters": lm.parameter_count(),
        "pattern": kind,
        "steps": step,
        "seconds": time.monotonic() - began,
        "training_nats": shown,
        "held_out_nats": float(out),
        **shape,
    }
    return replace(teacher, name=name, lm=lm, pattern=spec, sha256="", training=record), record


def run(
    device: str, work: Path, scale: Scale, clips: int, clip_seconds: float, seconds: float
) -> Any:
    """Make tokens, train both models, write them with a preset; returns the record."""
    place = torch.device(device)
    teacher = load_lm(embedded_folder("base-delay"), place)
    frames = round(clip_seconds * teacher.codec.frame_rate)
    texts = prompts(clips)
    began = time.monotonic()
    codes = make_tokens(teacher, texts, frames, scale.batch, seconds)
    spent = time.monotonic() - began
    texts = texts[: len(codes)]
    work.mkdir(parents=True, exist_ok=True)
    records = {}
    plans = (
        ("midsize-flatten", scale.verifier, "flatten"),
        ("midsize-delay", scale.drafter, "delay"),
    )
    for name, shape, kind in plans:
        model, records[name] = train(name, shape, kind, teacher, codes, texts, seconds)
        save_lm(model, work / name)
    text = PRESET.format(dtype=scale.dtype, default=clip_seconds / 2, longest=clip_seconds)
    (work / "midsize.yaml").write_text(text)
    return {
        "schema": 1,
        "machine": machine_card(torch.get_num_threads(), device),
        "versions": versions(),
        "commit": commit(),
        "tokens": {
            "made_by": "embedded base-delay, here",
            "clips": len(codes),
            "frames": frames,
            "seconds": spent,
        },
        "models": records,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--scale", choices=tuple(SCALES), default="full")
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--clip-seconds", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=45.0, help="of each of the three parts")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = run(
        args.device, args.work, SCALES[args.scale], args.clips, args.clip_seconds, args.seconds
    )
    partial = args.output.with_name(args.output.name + ".tmp")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, args.output)


if __name__ == "__main__":
    main()
