"""Does the text matter? A simple probe tells generated clips apart by instrument family.

    python tools/text_probe.py runs/data --preset embedded --clips 84

The probe is a linear classifier on the mean, spread and mean absolute change of 64 log-mel bands.
It is fitted on recordings of the training split after a trip through the codec, checked on the
held-out recordings, and then asked about clips generated from held-out captions that name the
instrument. Chance is one in the number of families. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specgen.engine import Request, load

RATE = 16_000


def mel_bank(bands: int = 64, size: int = 1024) -> Tensor:
    """Triangular mel filters `[bands, size // 2 + 1]` from 40 Hz to 8 kHz."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (40, RATE / 2))
    edges = 700 * (10 ** (torch.linspace(low, high, bands + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, size // 2 + 1)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(up, down).clamp_min(0)


BANK = mel_bank()


def features(wave: Tensor) -> Tensor:
    """Statistics of a mono clip `[samples]`: `[192]`."""
    spectrum = torch.stft(wave, 1024, 320, window=torch.hann_window(1024), return_complex=True)
    bands = (BANK @ spectrum.abs().square() + 1e-6).log()
    bands = bands - bands.mean()  # level must not matter
    change = bands.diff(dim=1).abs().mean(dim=1)
    return torch.cat([bands.mean(dim=1), bands.std(dim=1), change])


def fit(x: Tensor, y: Tensor, classes: int, weight: float = 3e-2) -> Tensor:
    """Multinomial logistic regression with a ridge: `[features + 1, classes]`."""
    w = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=300, line_search_fn="strong_wolfe")
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ones @ w, y) + weight * w[:-1].square().mean() * 10
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


def wilson(hits: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--clips", type=int, default=84)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--train-items", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    items: list[dict[str, Any]] = [
        json.loads(line) for line in (args.data / "index.jsonl").read_text().splitlines()
    ]
    audio = np.memmap(args.data / "audio.i16", dtype=np.int16, mode="r")
    families = sorted({item["state"]["family"] for item in items})
    engine = load(args.preset)
    samples = int(args.seconds * RATE)

    def recorded(item: dict[str, Any]) -> Tensor:
        part = audio[item["offset"] : item["offset"] + samples].astype(np.float32) / 32768
        with torch.inference_mode():
            codec = engine.codec
            return features(codec.decode(codec.encode(torch.from_numpy(part)[None, None]))[0, 0])

    def table(chosen: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        x = torch.stack([recorded(item) for item in chosen])
        return x, torch.tensor([families.index(item["state"]["family"]) for item in chosen])

    train = [item for item in items if item["split"] == "train"]
    x, y = table(rng.sample(train, min(args.train_items, len(train))))
    mean, spread = x.mean(dim=0), x.std(dim=0)
    w = fit((x - mean) / spread, y, len(families))

    def guess(rows: Tensor) -> Tensor:
        return ((rows - mean) / spread @ w[:-1] + w[-1]).argmax(dim=-1)

    held = [item for item in items if item["split"] != "train"]
    hx, hy = table(held)
    by_family: dict[str, list[tuple[str, str]]] = {}
    for item in held:
        lead, family = item["state"]["lead"], item["state"]["family"]
        named = [c for c in item["captions"] if lead in c.split()]
        if named:
            by_family.setdefault(family, []).append((rng.choice(named), lead))
    each = args.clips // len(families)
    prompts = [(f, *by_family[f][i % len(by_family[f])]) for f in families for i in range(each)]
    generated: list[Tensor] = []
    for at in range(0, len(prompts), args.batch):
        requests = [
            Request(prompt=p, seed=args.seed * 1000 + at + i, duration=args.seconds)
            for i, (_, p, _) in enumerate(prompts[at : at + args.batch])
        ]
        generated += [features(clip.audio[0].float()) for clip in engine.generate(requests)]
    guesses = guess(torch.stack(generated)).tolist()
    confusion = {f: dict.fromkeys(families, 0) for f in families}
    for (family, _, _), g in zip(prompts, guesses, strict=True):
        confusion[family][families[g]] += 1
    hits = sum(confusion[f][f] for f in families)
    print(
        json.dumps(
            {
                "preset": args.preset,
                "seconds": args.seconds,
                "families": families,
                "chance": 1 / len(families),
                "recorded_held_out": {
                    "clips": len(held),
                    "accuracy": (guess(hx) == hy).float().mean().item(),
                },
                "generated": {
                    "clips": len(prompts),
                    "accuracy": hits / len(prompts),
                    "interval_95": wilson(hits, len(prompts)),
                    "confusion": confusion,
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
