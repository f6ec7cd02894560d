"""A verifier's own music as training tokens, for the models that are to draft for it.

    python -m specgen.training.samples PRESET OUT [--captions runs/tokens/index.jsonl] [--hours 2.5]

A drafter guesses what comes after the verifier's own tokens, which are not those of recordings. So
it learns on what the verifier writes (Zhou et al. 2024, "DistillSpec": data from the target raise
acceptance). Clips are made for captions of a tokenised data set, split by split, and written as a
token folder of the same format; `specgen.training.targets --tokens OUT` works out the
distributions. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from specgen.engine import Engine, Request, load
from specgen.errors import UserError, command
from specgen.training.batches import read_rows

HELD_OUT = 0.03  # share of the clips that go to each of the splits valid and test


def plan(rows: Sequence[Mapping[str, Any]], clips: int, seconds: float) -> list[Request]:
    """Requests for `clips` clips: captions of the training split, then of valid and of test.

    Raises:
        UserError: a split without captions.
    """
    held_out = max(1, round(HELD_OUT * clips))
    counts = {"train": max(1, clips - 2 * held_out), "valid": held_out, "test": held_out}
    return list(_requests(rows, counts, seconds))


def _requests(
    rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], seconds: float
) -> Iterator[Request]:
    for split, count in counts.items():
        captions = [row["captions"] for row in rows if row["split"] == split]
        if not captions:
            raise UserError(f"no {split} captions: build a larger data set")
        for number in range(count):
            takes, item = divmod(number, len(captions))
            choices = captions[item]
            text = choices[(item + takes) % len(choices)]
            yield Request(text, seed=number, duration=seconds, id=f"{split}-{number:05d}")


def write_samples(engine: Engine, requests: Sequence[Request], folder: Path, batch: int) -> None:
    """Decode (or go on decoding) the requests into a token folder.

    Raises:
        UserError: the folder holds clips of other requests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index, codes = folder / "index.jsonl", folder / "codes.npy"
    lengths = [engine.frames(request.duration or 0.0) for request in requests]
    shape = (sum(lengths), engine.verifier.pattern.codebooks)
    done = read_rows(index) if index.is_file() else []
    if [row["id"] for row in done] != [request.id for request in requests[: len(done)]] or (
        done and np.load(codes, mmap_mode="r").shape != shape
    ):
        raise UserError(f"{folder} holds other clips: choose another folder")
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    tokens = np.lib.format.open_memmap(codes, mode=mode, dtype=np.int16, shape=shape)
    low = sum(row["length"] for row in done)
    with index.open("a", buffering=1) as lines:
        for clip in engine.generate(requests[len(done) :], batch=batch):
            length = clip.codes.shape[1]
            tokens[low : low + length] = clip.codes.numpy().T
            request = clip.request
            row = {
                "id": request.id,
                "split": str(request.id).split("-")[0],
                "offset": low,
                "length": length,
                "captions": [request.prompt],
            }
            lines.write(json.dumps(row) + "\n")
            low += length


@command
def main(arguments: Sequence[str]) -> None:
    """The command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m specgen.training.samples")
    parser.add_argument("preset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=Path, default=Path("runs/tokens/index.jsonl"))
    parser.add_argument("--hours", type=float, default=2.5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args(arguments)
    engine = load(options.preset, draft=False, threads=1)
    clips = max(3, round(options.hours * 3600 / options.seconds))
    requests = plan(read_rows(options.captions), clips, options.seconds)
    write_samples(engine, requests, options.out, options.batch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
