"""Long pieces: memory, seams, drafting, and hearing them while they are made.

    python tools/long_pieces.py [--short 30] [--long 180] [--longest 300] [--no-plain]

Each piece is made by a `specgen generate` of its own. The long one's peak memory must be within
20 % of the short one's; its tokens the same without the drafter; its stream, heard from the first
two seconds on, the samples of its file. Where a window joins the one before, neither level nor
spectral flux may jump more often than anywhere else: printed too is how many of the grids of joins
shifted by up to a stride have as high a median.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

import specgen

FRAME = 0.05  # seconds
PROMPT = "a slow air on the flute"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", type=float, default=30.0)
    parser.add_argument("--long", type=float, default=180.0)
    parser.add_argument(
        "--longest", type=float, default=0.0, help="memory of one more, such as 300"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave out the verifier alone")
    parser.add_argument("--preset", default="embedded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, _ = make(folder / "short.wav", options.short, options.preset)
        print(f"{options.short:g} s: peak {base:.0f} MB", flush=True)
        heard = folder / "heard.wav"
        clip = folder / "long.wav"
        peak, told = make(clip, options.long, options.preset, "--stream", str(heard))
        print(f"{options.long:g} s: peak {peak:.0f} MB, {peak / base - 1:+.0%}", flush=True)
        assert peak <= 1.2 * base
        (first,) = re.findall(r"first audio after ([0-9.]+) s", told)
        one, two = (soundfile.read(path, dtype="int16")[0].astype(int) for path in (heard, clip))
        apart = int(np.abs(one - two).max())
        print(f"stream: first audio after {first} s; furthest from the file: {apart} of 32768")
        assert one.shape == two.shape and apart <= 1
        check_seams(clip, options.preset, options.long)
        if not options.no_plain:
            make(folder / "plain.wav", options.long, options.preset, "--no-draft")
            drafted, plain = (np.load(folder / f"{n}.npy") for n in ("long", "plain"))
            assert np.array_equal(drafted, plain)
            print(f"the verifier alone: the same {plain.size} tokens", flush=True)
        if options.longest:
            peak, _ = make(folder / "longest.wav", options.longest, options.preset)
            print(f"{options.longest:g} s: peak {peak:.0f} MB, {peak / base - 1:+.0%}")


def make(clip: Path, seconds: float, preset: str, *extra: str) -> tuple[float, str]:
    """Peak memory in MB and what was told, of a command that makes a piece."""
    command = [sys.executable, "-m", "specgen.cli.app", "generate", PROMPT, "--seed", "5"]
    command += ["-d", str(seconds), "--preset", preset, "--out", str(clip), *extra]
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        told.seek(0)
        text = told.read()
    assert os.waitstatus_to_exitcode(status) == 0, text
    return usage.ru_maxrss / 1024, text


def check_seams(clip: Path, preset: str, seconds: float) -> None:
    """Jumps of level and spectral flux where windows join, among those everywhere."""
    engine = specgen.load(preset)
    plan = engine.windows(specgen.Request(PROMPT, 5, seconds))
    joins = np.array([window.start for window in plan[1:]]) / engine.codec.frame_rate
    wave, rate = soundfile.read(clip, always_2d=True)
    size = int(FRAME * rate)
    frames = wave[: len(wave) // size * size].mean(1).reshape(-1, size)
    spectra = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))
    flux = np.maximum(0, np.diff(spectra, axis=0)).sum(1) / (spectra[:-1].sum(1) + 1e-9)
    level = 20 * np.log10(np.sqrt((frames**2).mean(1)) + 1e-5)
    for what, jumps in (("level, dB", np.abs(np.diff(level))), ("spectral flux", flux)):
        # The join lies within or between two frames: the larger of the steps around it counts,
        # there as everywhere.
        steps = np.maximum(jumps[:-1], jumps[1:])
        at = np.clip(np.rint(joins / FRAME).astype(int) - 1, 0, len(steps) - 1)
        high, median = np.quantile(steps, 0.95), np.median(steps[at])
        above = int((steps[at] > high).sum())
        stride = int(np.diff(at).max(initial=1))
        grids = [np.median(steps[at - by]) for by in range(2, stride - 1) if by <= at[0]]
        print(
            f"{what}: median at {len(at)} joins {median:.2f}, anywhere {np.median(steps):.2f}; "
            f"above the 95 % of anywhere ({high:.2f}): {above}; shifted grids with as high a "
            f"median: {np.mean(grids >= median):.0%}",
            flush=True,
        )
        assert above <= max(2, len(at) // 5)


if __name__ == "__main__":
    main()
