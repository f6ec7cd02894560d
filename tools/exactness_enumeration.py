"""Which rule changes the music? The exact bias of each on toy models; nothing is sampled.

    python tools/exactness_enumeration.py
    python tools/exactness_enumeration.py --models 500 --loop-models 5 --full

Part 1 sums over all that the textbook rule, as it is usually written, can do across patterns.
Part 2 runs specgen's real decode loop once for every sequence of random outcomes, under each rule,
and compares the law of its output with the verifier's own. Run it from a checkout: the machinery is
that of `tests/decoding`. Exit code 1 if an exact rule is off by more than 1e-12, or if the biased
one is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from specgen.decoding.acceptance import Rule, is_biased
from specgen.patterns import PatternSpec
from tests.decoding.enumeration import enumerate_decodes
from tests.decoding.naive import grid_bias, softmax_law, two_tokens

LIMIT = 1e-12


def spec(kind: str, codebooks: int, *delays: int) -> PatternSpec:
    return PatternSpec(kind, codebooks, delays=delays or None)


def name(pattern: PatternSpec) -> str:
    options = pattern.delays or pattern.flattening
    return f"{pattern.kind} {options}" if options else pattern.kind


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def spread_of(distances: Iterable[float]) -> tuple[str, str]:
    values = list(distances)
    return f"{np.mean(values):.4f}", f"{max(values):.4f}"


def textbook_bias(models: int, spreads: list[float]) -> None:
    """Part 1: mean and worst total variation over random toy models."""
    print(f"Part 1: the textbook rule as usually written; total variation over {models} models\n")
    header("models", "logits' scale", "mean", "worst")
    for spread in spreads:
        for keep in (False, True):
            rng = np.random.default_rng(0)
            made = [
                two_tokens(lambda: softmax_law(rng, 4, spread), keep=keep)  # noqa: B023
                for _ in range(models)
            ]
            label = "the same, earlier guess kept" if keep else "two tokens, V 4"
            if keep:
                row(label, spread, f"{np.mean(made):.0e}", f"{max(made):.0e}")
            else:
                row(label, spread, *spread_of(made))
    for spread in spreads:
        delay, flatten = spec("delay", 3), spec("flatten", 3)
        for redraft in (True, False):
            made = [
                grid_bias(delay, flatten, frames=2, seed=i, spread=spread, redraft=redraft)
                for i in range(models)
            ]
            label = (
                "delay (0, 1, 2) to flatten, K 3, T 2, V 2" if redraft else "the same, one draft"
            )
            row(label, spread, *spread_of(made))


def real_loop(models: int, full: bool) -> bool:
    """Part 2: the worst total variation of each rule; whether all are as they should be."""
    flatten = spec("flatten", 2)
    wide = spec("delay", 2, 0, 2)
    cases = [(wide, flatten, steps, 2.0) for steps in (1, 2, 4)]
    cases += [
        (spec("parallel", 2), flatten, 2, 1.0),
        (spec("coarse_first", 2), flatten, 2, 1.0),
        (spec("delay", 2), spec("delay", 2), 2, 1.0),
        (flatten, spec("delay", 2), 2, 1.0),
        (spec("delay", 2), spec("parallel", 2), 2, 1.0),
        (wide, PatternSpec("flatten", 2, flattening=(0, 0)), 2, 1.0),
    ]
    if full:
        cases += [(spec("delay", 3), spec("flatten", 3), steps, 1.0) for steps in (1, 3)]
    print(f"\nPart 2: the real loop; worst total variation of {models} model(s), V 2, T 2\n")
    header("pair", "K", "draft", *(rule.value for rule in Rule), "runs")
    right = True
    for drafter, verifier, steps, spread in cases:
        cells, runs = [], 0
        for rule in Rule:
            if rule is Rule.REJECTION and drafter.codebooks > 2:
                cells.append("part 1")  # far more runs; part 1 sums the same law
                continue
            found = [
                enumerate_decodes(
                    drafter, verifier, rule, frames=2, steps=steps, seed=seed, spread=spread
                )
                for seed in range(models)
            ]
            biased = is_biased(rule, drafter.of(2), verifier.of(2))
            worst = max(distance for distance, _, _ in found)
            assert all(abs(total - 1) < LIMIT for _, total, _ in found)
            right &= (worst > LIMIT) == biased
            runs += sum(count for _, _, count in found)
            cells.append(f"**{worst:.4f}**" if worst > LIMIT else f"{worst:.0e}")
        row(f"{name(drafter)} to {name(verifier)}", drafter.codebooks, steps, *cells, runs)
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=int, default=500, help="toy models of part 1 (500)")
    parser.add_argument(
        "--spread",
        type=float,
        nargs="+",
        default=[1.0, 1.5],
        help="scale of the toy models' logits in part 1: larger is more peaked (1.0 1.5)",
    )
    parser.add_argument("--loop-models", type=int, default=1, help="toy models of part 2 (1)")
    parser.add_argument(
        "--full", action="store_true", help="three codebooks through the real loop too (minutes)"
    )
    options = parser.parse_args()
    if options.models < 1 or options.loop_models < 1 or min(options.spread) <= 0:
        parser.error("numbers of models and spreads must be positive")
    torch.set_num_threads(1)
    began = time.perf_counter()
    textbook_bias(options.models, options.spread)
    right = real_loop(options.loop_models, options.full)
    print(f"\n{'as promised' if right else 'NOT AS PROMISED'}; {time.perf_counter() - began:.0f} s")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
