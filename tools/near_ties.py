"""Is every token of finished clips the verifier's own draw, and how near were those that are not?

    python tools/near_ties.py FOLDER/*.json

For clips of the coupled rule (or no draft): the verifier reads each clip's tokens in one pass and
draws every token again, given the tokens before it, with the clip's own noise. A token that is
drawn differently is told with the gap between the perturbed logits of both: two roundings of one
sum part ways only where that gap is of a rounding's size (docs/exactness.md); a fault parts them
anywhere. Clips of one window, no continuation, no melody.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import specgen
from specgen.decoding.noise import NoiseField, Purpose
from specgen.decoding.sampling import Sampling
from specgen.engine import Engine
from specgen.evaluation.likelihood import laws
from specgen.generation import ConditionedModel


def others(engine: Engine, prompt: str, seed: int, codes: torch.Tensor) -> list[tuple[float, str]]:
    """The tokens of `[K, T]` that the verifier draws otherwise: how near it was, and where."""
    settings = engine.settings.sampling
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    K, T = codes.shape
    role = ConditionedModel.of(engine.verifier, [prompt], T, settings.cfg).role
    noise = NoiseField(1, T, K, role.scorer.card, Purpose.TOKEN, role.scorer.device)
    noise.admit(0, seed)
    found = []
    for rows, ks, ts, law in laws(role, codes[None], sampling):
        scores = law + noise.at(rows, list(zip(ts, ks, strict=True)))
        held = codes[list(ks), list(ts)]
        gap = scores.amax(dim=-1) - scores.gather(-1, held[:, None])[:, 0]
        for i in gap.nonzero()[:, 0].tolist():
            found.append((float(gap[i]), f"frame {ts[i]}, k{ks[i] + 1}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sidecars", type=Path, nargs="+")
    options = parser.parse_args()
    told = [json.loads(path.read_text()) for path in options.sidecars]
    engines = {name: specgen.load(name, threads=1) for name in {one["preset"] for one in told}}
    tokens, gaps = 0, []
    for path, one in zip(options.sidecars, told, strict=True):
        codes = torch.from_numpy(np.load(path.parent / one["tokens"]).astype(np.int64))
        tokens += codes.numel()
        for gap, place in others(engines[one["preset"]], one["prompt"], one["seed"], codes):
            gaps.append(gap)
            print(f"{path.name}: {place}: drawn otherwise by {gap:.1e}", flush=True)
    worst = f", by {max(gaps):.1e} at most" if gaps else ""
    print(f"{len(gaps)} of {tokens} tokens of {len(told)} clips are drawn otherwise{worst}")


if __name__ == "__main__":
    main()
