"""A teacher's guided distributions, worked out once and learnt from many times.

    python -m specgen.training.targets TEACHER OUT [--hours 2.5] [--guidance 3] [--states]

What a drafter has to match is not the verifier's raw output but what is sampled from: after
classifier-free guidance and top-k. That takes two passes of a large model for every crop; a small
student reads each crop several times. So the targets are written to a folder (`codes`, `logp`,
`states` for drafters that read those, `crops.jsonl`), which a student may read while it still
grows. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from specgen.checkpoints.native import LMCheckpoint, load_lm
from specgen.errors import UserError, command
from specgen.training.batches import Crop, CropStyle, TokenItems, draw_crops, write_batch
from specgen.training.objective import head_logits, picked, states


@dataclass(frozen=True)
class TargetMeta:
    """How targets were made; a folder holds targets of one kind.

    Attributes:
        teacher: sha256 of its weights.
        guidance: CFG coefficient.
        top_k: entries kept a coordinate.
        frames: of each crop.
        crops: how many there will be.
        seed: of the crops.
        codebooks: K.
        columns, features: columns of a crop, and numbers a column that are kept of the teacher's
            states, conditional and null; 0: none.
    """

    teacher: str
    guidance: float
    top_k: int
    frames: int
    crops: int
    seed: int = 5
    codebooks: int = 4
    columns: int = 0
    features: int = 0


@dataclass(frozen=True)
class Target:
    """Entries `[K, B, F, k]` int64 and their log-probabilities, float32, summing to 1; `features`
    `[B, n, 2 dim]`: the teacher's states, a column late, so that what stands beside a column is
    what it was drawn from. Empty where none are kept."""

    entries: Tensor
    logp: Tensor
    features: Tensor


class Targets:
    """A folder of targets; made by `write_targets`.

    Raises:
        UserError: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "meta.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no targets: run python -m specgen.training.targets")
        self.meta = TargetMeta(**json.loads(path.read_text()))
        self._codes, self._logp, self._states = _arrays(folder, self.meta, "r")

    def check(self, features: int) -> None:
        """That they keep what a model with such a `feature_dim` reads.

        Raises:
            UserError: they do not.
        """
        if features and self.meta.features != features:
            raise UserError(
                f"{self.folder} keeps {self.meta.features} numbers a column of the teacher's "
                f"states, and the recipe's feature_dim is {features}: make targets with --states, "
                "or set feature_dim to what they keep"
            )

    def finished(self) -> list[Crop]:
        """The crops that are there by now."""
        path = self.folder / "crops.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [Crop(**json.loads(line)) for line in lines]

    def read(self, places: Sequence[int], offsets: Sequence[int], frames: int) -> Target:
        """Targets of `frames` frames from each offset on, of the crops at `places`.

        Raises:
            UserError: a part of a crop, but states are kept for whole crops.
        """
        if self.meta.features and frames < self.meta.frames:
            raise UserError(
                f"{self.folder} keeps states for crops of {self.meta.frames} frames, not {frames}: "
                "let the recipe's phases have that many"
            )
        spans = [slice(offset, offset + frames) for offset in offsets]
        codes = np.stack([self._codes[i, s] for i, s in zip(places, spans, strict=True)])
        logp = np.stack([self._logp[i, s] for i, s in zip(places, spans, strict=True)])
        order = (2, 0, 1, 3)  # [B, F, K, k] to [K, B, F, k]
        return Target(
            torch.from_numpy(codes.astype(np.int64)).permute(order),
            torch.from_numpy(logp.astype(np.float32)).permute(order).log_softmax(dim=-1),
            torch.from_numpy(self._states[list(places)].astype(np.float32)),
        )

    def draw(self, count: int, frames: int, rng: np.random.Generator) -> tuple[list[Crop], Target]:
        """`count` random crops of `frames` frames (or as many as the targets have)."""
        crops = self.finished()
        frames = min(frames, self.meta.frames)
        places = rng.integers(len(crops), size=count).tolist()
        offsets = rng.integers(self.meta.frames - frames + 1, size=count).tolist()
        chosen = [
            replace(crops[i], start=crops[i].start + offset, frames=frames)
            for i, offset in zip(places, offsets, strict=True)
        ]
        return chosen, self.read(places, offsets, frames)


def _arrays(
    folder: Path, meta: TargetMeta, mode: Literal["r", "r+", "w+"]
) -> tuple[NDArray[np.int16], NDArray[np.float16], NDArray[np.float16]]:
    each = (meta.crops, meta.frames, meta.codebooks, meta.top_k)
    states = (meta.crops, meta.columns, meta.features)
    parts = {"codes": (np.int16, each), "logp": (np.float16, each), "states": (np.float16, states)}
    made = []
    for name, (dtype, shape) in parts.items():
        path = folder / f"{name}.npy"
        if not all(shape):
            made.append(np.zeros(shape, dtype))
        elif mode == "w+":
            made.append(np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape))
        else:
            made.append(np.load(path, mmap_mode=mode))
    codes, logp, kept = made
    return codes, logp, kept


@torch.inference_mode()
def guided(teacher: LMCheckpoint, items: TokenItems, crop: Crop, meta: TargetMeta) -> Target:
    """One crop's target: logits with the caption and without, guided, and cut to the top k."""
    pair = [crop, replace(crop, text="")]
    batch = write_batch(items, pair, teacher.pattern, teacher.lm.config.special)
    hidden = states(teacher, batch, [one.text for one in pair])
    both = head_logits(teacher, picked(hidden, batch))
    logits = torch.lerp(both[:, 1:], both[:, :1], meta.guidance)
    best = logits.topk(meta.top_k, dim=-1)
    late = F.pad(hidden.transpose(0, 1).flatten(1), (0, 0, 1, -1))  # [n, 2 dim]
    return Target(best.indices, best.values.log_softmax(dim=-1), late[None, :, : meta.features])


def write_targets(teacher: LMCheckpoint, items: TokenItems, folder: Path, meta: TargetMeta) -> None:
    """Write (or go on writing) the targets of `meta.crops` crops.

    Raises:
        UserError: the folder holds targets of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "meta.json"
    if path.is_file() and json.loads(path.read_text()) != asdict(meta):
        raise UserError(f"{folder} holds other targets: choose another folder")
    if not path.is_file():
        _arrays(folder, meta, "w+")
        path.write_text(json.dumps(asdict(meta)))
    codes, logp, kept = _arrays(folder, meta, "r+")
    style = CropStyle(count=1, frames=meta.frames, condition_dropout=0.0)
    done = len(Targets(folder).finished())
    with (folder / "crops.jsonl").open("a", buffering=1) as index:
        for number in range(done, meta.crops):
            rng = np.random.default_rng([meta.seed, number])
            crop = draw_crops(items, style, rng, [number % len(items.rows)])[0]
            target = guided(teacher, items, crop, meta)
            codes[number] = target.entries[:, 0].permute(1, 0, 2).numpy()
            logp[number] = target.logp[:, 0].permute(1, 0, 2).numpy()
            if meta.features:
                kept[number] = target.features[0].numpy()
            index.write(json.dumps(asdict(crop)) + "\n")


@command
def main(arguments: Sequence[str]) -> None:
    """The command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m specgen.training.targets")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--hours", type=float, default=2.5)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--top-k", type=int, default=250)
    parser.add_argument("--states", action="store_true", help="keep the teacher's states")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    teacher = load_lm(options.teacher)
    crops = round(options.hours * 3600 * teacher.codec.frame_rate / options.frames)
    meta = TargetMeta(
        teacher.sha256,
        options.guidance,
        options.top_k,
        options.frames,
        crops,
        codebooks=teacher.codec.codebooks,
        columns=teacher.pattern.of(options.frames).steps - 1 if options.states else 0,
        features=2 * teacher.lm.config.dim if options.states else 0,
    )
    write_targets(teacher, TokenItems(options.tokens, "train"), options.out, meta)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
