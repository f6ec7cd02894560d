"""A verifier with noise added to its weights: a control that the quality figures must catch.

    python tools/noisy_verifier.py runs/noisy --noise 0.2
    specgen compare embedded-flatten runs/noisy/preset.yaml --seeds 4 -d 4

Every weight gets Gaussian noise of `--noise` times the standard deviation of its own matrix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from specgen.checkpoints.native import embedded_folder, load_lm, save_lm

PRESET = """\
schema: 1
description: {name} with noise of {noise:g} standard deviations in its weights
verifier: {{checkpoint: {name}, dtype: float32}}
codec: {{checkpoint: "embedded:codec"}}
sampling: {{temperature: 1.0, top_k: 250, top_p: 0.0, cfg: 3.0}}
duration: {{default: 8.0, max: 12.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="base-flatten")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    checkpoint = load_lm(embedded_folder(args.model))
    generator = torch.Generator().manual_seed(args.seed)
    with torch.no_grad():
        for weight in checkpoint.lm.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * weight.std() * args.noise)
    save_lm(checkpoint, args.out / args.model)
    preset = args.out / "preset.yaml"
    preset.write_text(PRESET.format(name=args.model, noise=args.noise))
    print(preset)


if __name__ == "__main__":
    main()
