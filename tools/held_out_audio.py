"""The held-out recordings of the training data as WAV files, for `specgen compare --reference`.

    python tools/held_out_audio.py runs/data runs/held-out --seconds 8

One file an item of the splits that no model was trained on (docs/data.md), from its start.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    audio = np.memmap(args.data / "audio.i16", dtype=np.int16, mode="r")
    count = 0
    for line in (args.data / "index.jsonl").read_text().splitlines():
        item = json.loads(line)
        length = int(args.seconds * RATE)
        if item["split"] == "train" or item["length"] < length:
            continue
        part = np.asarray(audio[item["offset"] : item["offset"] + length])
        soundfile.write(args.out / f"{item['id']}.wav", part, RATE, subtype="PCM_16")
        count += 1
    print(f"{count} files in {args.out}")


if __name__ == "__main__":
    main()
