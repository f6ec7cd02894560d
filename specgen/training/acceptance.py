"""How often a drafter's guesses will be accepted: an estimate from held-out data.

    python -m specgen.training.acceptance VERIFIER DRAFTER [--guidance 1 3] [--json]

Both models read held-out items teacher-forced; at each coordinate the chance of acceptance is known
in closed form from their two distributions, so nothing is sampled. Decoding differs a little: there
the context is what the verifier wrote, and the drafter sees its own newest guesses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from specgen.checkpoints.native import LMCheckpoint, load_lm
from specgen.decoding.sampling import Sampling, process
from specgen.errors import UserError
from specgen.training.batches import TokenItems
from specgen.training.lm import held_out_crops
from specgen.training.objective import coupled_chance, grid_logits


@dataclass(frozen=True)
class Guided:
    """A model's logits with its condition and without, `[K, M, card]` each."""

    conditional: Tensor
    null: Tensor

    def logits(self, guidance: float) -> Tensor:
        return torch.lerp(self.null, self.conditional, guidance)


@dataclass(frozen=True)
class Estimate:
    """Chance of acceptance of each codebook, under one setting of both models.

    Attributes:
        coupled: with shared Gumbel noise.
        textbook: with the rule min(1, p/q), which is 1 - total variation.
    """

    temperature: float
    guidance: float
    draft_guidance: float
    draft_temperatures: tuple[float, ...]
    coupled: tuple[float, ...]
    textbook: tuple[float, ...]


def coupled_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Chance of acceptance with shared noise (`coupled_chance`).

    Args:
        target, draft: `[..., card]` log-probabilities, -inf where an entry is cut; need not be
            normalised.

    Returns:
        `[...]` float64.
    """
    return coupled_chance(target.double().softmax(dim=-1), draft.double().softmax(dim=-1))


def textbook_acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Chance that the rule min(1, p/q) accepts: sum_i min(p_i, q_i); arguments as above."""
    p, q = target.double().softmax(dim=-1), draft.double().softmax(dim=-1)
    return torch.minimum(p, q).sum(dim=-1)


def estimate(
    verifier: Guided,
    drafter: Guided,
    sampling: Sampling,
    guidance: float,
    draft_guidance: float,
    draft_temperatures: Sequence[float],
) -> Estimate:
    """The mean chances over all coordinates, by codebook."""
    p = process(verifier.logits(guidance), sampling)
    q = process(drafter.logits(draft_guidance), sampling)
    q = q / torch.tensor(list(draft_temperatures))[:, None, None]
    return Estimate(
        sampling.temperature,
        guidance,
        draft_guidance,
        tuple(draft_temperatures),
        tuple(coupled_acceptance(p, q).mean(dim=1).tolist()),
        tuple(textbook_acceptance(p, q).mean(dim=1).tolist()),
    )


@torch.inference_mode()
def teacher_forced(
    model: LMCheckpoint, items: TokenItems, count: int, frames: int, positions: int
) -> Guided:
    """Logits on `count` held-out crops, `positions` frames in all (spread evenly, the same for
    every model)."""
    crops = held_out_crops(items, count, frames)
    each = max(1, positions // count)
    picks = torch.linspace(0, min(crop.frames for crop in crops) - 1, each).long()

    def read(text: str | None) -> Tensor:
        parts = [
            grid_logits(model, items, [crop if text is None else replace(crop, text=text)])
            for crop in crops
        ]
        return torch.cat([part[:, 0, picks] for part in parts], dim=1)

    return Guided(read(None), read(""))


def table(estimates: Sequence[Estimate]) -> str:
    """A Markdown table, one line a setting."""
    lines = [
        "| T | cfg | draft cfg | draft T | coupled, by codebook | mean | textbook | mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in estimates:
        cells = [f"{one.temperature:g}", f"{one.guidance:g}", f"{one.draft_guidance:g}"]
        cells.append(" ".join(f"{t:g}" for t in one.draft_temperatures))
        for rates in (one.coupled, one.textbook):
            cells += [" ".join(f"{r:.2f}" for r in rates), f"{sum(rates) / len(rates):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _temperatures(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main(arguments: Sequence[str]) -> int:
    """The command line in the module's docstring; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m specgen.training.acceptance")
    parser.add_argument("verifier", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("--tokens", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--split", default="valid")
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--positions", type=int, default=800, help="frames measured, in all")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--top-k", type=int, default=250)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--draft-guidance", type=float, nargs="+", help="default: the verifier's")
    parser.add_argument("--draft-temperatures", type=_temperatures, nargs="+")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        items = TokenItems(options.tokens, options.split)
        models = [load_lm(options.verifier), load_lm(options.drafter)]
        if models[0].codec != models[1].codec:
            raise UserError(
                f"{options.drafter} speaks the tokens of another codec than {options.verifier}: "
                "use models trained on the same tokens"
            )
        size = (options.crops, options.frames, options.positions)
        p, q = (teacher_forced(model, items, *size) for model in models)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    even = (1.0,) * models[0].codec.codebooks
    estimates = [
        estimate(p, q, Sampling(temperature, options.top_k), guidance, draft_guidance, taus)
        for temperature in options.temperature
        for guidance in options.guidance
        for draft_guidance in options.draft_guidance or [guidance]
        for taus in options.draft_temperatures or [even]
    ]
    if options.json:
        print(json.dumps([asdict(one) for one in estimates]))
    else:
        print(table(estimates))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
