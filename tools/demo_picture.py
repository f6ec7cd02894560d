"""Draw a clip: its waveform, its spectrogram, and its token grid.

python tools/demo_picture.py demo/jig.wav docs/figures/demo.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import soundfile


def main(audio: Path, target: Path) -> None:
    wave, rate = soundfile.read(audio)
    codes = np.load(audio.with_suffix(".npy"))
    sidecar = json.loads(audio.with_suffix(".json").read_text())
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, 5.6), sharex=True, height_ratios=[1, 2.4, 1], layout="constrained"
    )
    seconds = np.arange(len(wave)) / rate
    top.plot(seconds, wave, linewidth=0.3, color="#345")
    top.set_ylabel("level")
    top.set_title(f"{sidecar['prompt']} (seed {sidecar['seed']})", fontsize=10)
    middle.specgram(wave, NFFT=1024, Fs=rate, noverlap=768, vmin=-140, vmax=-40, cmap="magma")
    middle.set_ylim(0, 6000)
    middle.set_ylabel("Hz")
    extent = (0, len(wave) / rate, codes.shape[0] - 0.5, -0.5)
    bottom.imshow(codes, aspect="auto", extent=extent, cmap="viridis", interpolation="nearest")
    bottom.set_yticks(range(codes.shape[0]))
    bottom.set_ylabel("codebook")
    bottom.set_xlabel("seconds")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=90)
    rms = float(np.sqrt(np.mean(wave**2)))
    print(
        f"{len(wave) / rate:.2f} s, {20 * np.log10(rms):.1f} dBFS RMS, "
        f"peak {np.abs(wave).max():.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
