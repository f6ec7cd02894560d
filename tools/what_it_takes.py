"""What a pair's rows would need for a speed-up, by the cost model at the prices a bench has found.

    python tools/what_it_takes.py docs/benchmarks/cpu.json --goal 1.2

For every pair and duration: the acceptance, the same shift for every codebook, that reaches the
goal at the measured prices; and the price of a draft step that reaches it at the measured
acceptance. Predictions, from measured figures.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specgen.benchmarking.prediction import Prices, predict
from specgen.patterns import PatternSpec


def least(reaches: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least value between `low` and `high` for which `reaches` holds; None if none does."""
    if not reaches(high):
        return None
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def line(row: dict[str, Any], alone: float, goal: float, rate: float) -> str:
    """What one measured pair would need to decode `goal` times as fast as its verifier alone."""
    found, accepted = row["predicted"], row["acceptance_per_codebook"]
    verify = {int(n): s for n, s in found["verify_pass_seconds"].items()}
    price, mean = found["draft_step_seconds"], sum(accepted) / len(accepted)
    lead, follow = (PatternSpec(row[f"{who}_pattern"], 4) for who in ("verifier", "drafter"))

    def speedup(shift: float, scale: float) -> float:
        made = predict(
            lead,
            follow,
            Prices(verify, price * scale),
            frames=round(row["duration_seconds"] * rate),
            steps=[4] if lead.kind == "flatten" else [1],
            chance=[min(1.0, a + shift) for a in accepted],
        )
        return alone / made.seconds

    more = least(lambda shift: speedup(shift, 1.0) >= goal, 0.0, 0.4)
    less = least(lambda cut: speedup(0.0, 1.0 - cut) >= goal, 0.0, 1.0)
    needed = "no acceptance" if more is None else f"acceptance {mean + more:.2f}"
    cheap = (
        "no draft step" if less is None else f"a draft step of {price * (1 - less) * 1e3:.2f} ms"
    )
    return (
        f"{row['label']}, {row['duration_seconds']:g} s: {row['speedup']:.2f} measured, "
        f"{speedup(0.0, 1.0):.2f} predicted; {goal:g} takes {needed} (is {mean:.2f}) or {cheap} "
        f"(is {price * 1e3:.2f}; a verify pass of one column {verify[1] * 1e3:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--goal", type=float, default=1.2)
    parser.add_argument("--frame-rate", type=float, default=50.0)
    options = parser.parse_args()
    rows = json.loads(options.results.read_text())["rows"]
    alone = {
        (row["verifier"], row["duration_seconds"]): row["seconds"]["median"]
        for row in rows
        if row["drafter"] is None
    }
    for row in rows:
        if row["drafter"] is not None and row["draft_frames"] == 1:
            base = alone[row["verifier"], row["duration_seconds"]]
            print(line(row, base, options.goal, options.frame_rate))


if __name__ == "__main__":
    main()
