"""The training curves of language-model runs, as a figure.

python -m specgen.training.curves OUT.png NAME=runs/base-delay/log.jsonl [NAME=...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specgen.errors import UserError, command


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.

    Raises:
        UserError: it does not exist.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: train the model first")
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def draw(logs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Training loss (thin) and held-out cross-entropy (points) against minutes, a run a colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for i, (name, lines) in enumerate(logs.items()):
        colour = f"C{i}"
        train = [(row["seconds"] / 60, row["loss"]) for row in lines if "loss" in row]
        held = [
            (row["seconds"] / 60, row["held_out_mean_nats"])
            for row in lines
            if "held_out_mean_nats" in row
        ]
        axes.plot(*zip(*train, strict=True), color=colour, alpha=0.4, linewidth=0.8)
        axes.plot(*zip(*held, strict=True), "o-", color=colour, label=name, markersize=4)
    unigram = [
        row["unigram_nats"] for rows in logs.values() for row in rows if "unigram_nats" in row
    ]
    if unigram:
        mean = sum(unigram[0]) / len(unigram[0])
        axes.axhline(mean, color="grey", linestyle="--", label="unigram entropy")
    axes.set(xlabel="training minutes, one core", ylabel="nats a token, mean of codebooks")
    axes.legend()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line in the module's docstring."""
    if len(arguments) < 2 or not all("=" in one for one in arguments[1:]):
        raise UserError("usage: python -m specgen.training.curves OUT.png NAME=LOG.jsonl ...")
    pairs = [one.split("=", 1) for one in arguments[1:]]
    draw({name: read_log(Path(path)) for name, path in pairs}, Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
