"""Crops of tokenised items as training batches, the same for every pattern.

A crop is a range of frames. Its sequence is cut out of the whole item's sequence in the model's
pattern, so that only a crop from the item's very start begins with the special column: decoding,
which always begins with it, then begins as the items begin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specgen.errors import UserError
from specgen.lm.conditioning import split_words
from specgen.patterns import PatternSpec


@dataclass(frozen=True)
class Crop:
    """Frames `[start, start + frames)` of an item, and what the model is told of it.

    Attributes:
        row: the item's place in its `TokenItems`.
        text: a caption, or empty for the null condition.
    """

    row: int
    start: int
    frames: int
    text: str


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an index: one JSON object a line.

    Raises:
        UserError: it is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from None
    return [json.loads(line) for line in lines if line]


class TokenItems:
    """The items of one split of a token folder (`codes.npy`, `index.jsonl`), memory-mapped.

    Raises:
        UserError: the folder holds no tokens, or none of this split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        codes, index = folder / "codes.npy", folder / "index.jsonl"
        if not codes.is_file() or not index.is_file():
            raise UserError(
                f"{folder} holds no tokens (codes.npy, index.jsonl): tokenize a data set"
            )
        self.codes = np.load(codes, mmap_mode="r")
        self.rows = [row for row in read_rows(index) if row["split"] == split]
        if not self.rows:
            raise UserError(f"{index} has no {split} items: build a larger data set")

    def grid(self, row: int) -> Tensor:
        """The whole item: `[K, T]` int64."""
        low, length = self.rows[row]["offset"], self.rows[row]["length"]
        return torch.from_numpy(self.codes[low : low + length].T.astype(np.int64))

    def vocabulary(self) -> list[str]:
        """Every word of the split's captions, sorted."""
        return sorted(
            {w for row in self.rows for text in row["captions"] for w in split_words(text)}
        )


@dataclass(frozen=True)
class CropStyle:
    """How crops are drawn: `count` a batch of `frames` frames, a share of them from item starts,
    a share of them with the null condition, each word left out with probability `word_dropout`."""

    count: int
    frames: int
    start_share: float = 0.4
    condition_dropout: float = 0.1
    word_dropout: float = 0.05


def draw_crops(
    items: TokenItems,
    style: CropStyle,
    rng: np.random.Generator,
    rows: Sequence[int] | None = None,
) -> list[Crop]:
    """A batch of crops, of random items or those at `rows`; every item must be long enough (else
    `UserError`)."""
    crops = []
    for row in rng.integers(len(items.rows), size=style.count).tolist() if rows is None else rows:
        item = items.rows[row]
        if item["length"] < style.frames:
            raise UserError(
                f"item {item['id']} has {item['length']} frames, the recipe wants crops of "
                f"{style.frames}: make crop_frames and long_crop_frames smaller"
            )
        room = item["length"] - style.frames + 1
        start = 0 if rng.random() < style.start_share else int(rng.integers(room))
        text = item["captions"][int(rng.integers(len(item["captions"])))]
        kept = [word for word in split_words(text) if rng.random() >= style.word_dropout]
        text = "" if rng.random() < style.condition_dropout else " ".join(kept)
        crops.append(Crop(row, start, style.frames, text))
    return crops


@dataclass
class Batch:
    """Crops written in a pattern.

    Attributes:
        inputs: `[B, K, n]` columns fed to the model.
        places: `[B, K, F]`: the column whose output predicts coordinate (k, frame) of the crop.
        targets: `[B, K, F]` tokens.
    """

    inputs: Tensor
    places: Tensor
    targets: Tensor


@lru_cache(maxsize=32)
def _steps(pattern: PatternSpec, frames: int) -> Tensor:
    return torch.tensor(pattern.of(frames).step_of)  # [K, T]


def write_batch(
    items: TokenItems, crops: Sequence[Crop], pattern: PatternSpec, special: int
) -> Batch:
    """Cut each crop's steps out of its item's sequence: from the step before its first coordinate
    (the special column, when the crop begins the item) up to the one that predicts its last."""
    inputs, places, targets = [], [], []
    for crop in crops:
        codes = items.grid(crop.row)
        steps = _steps(pattern, codes.shape[1])[:, crop.start : crop.start + crop.frames]
        low, high = int(steps.min()) - 1, int(steps.max())
        sequence = pattern.of(codes.shape[1]).build(codes[None], special)[0]
        inputs.append(sequence[:, low:high])
        places.append(steps - 1 - low)
        targets.append(codes[:, crop.start : crop.start + crop.frames])
    widest = max(one.shape[1] for one in inputs)
    padded = [
        torch.nn.functional.pad(one, (0, widest - one.shape[1]), value=special) for one in inputs
    ]
    return Batch(torch.stack(padded), torch.stack(places), torch.stack(targets))
