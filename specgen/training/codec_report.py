"""Judging a trained codec on held-out clips: figures as JSON, two pictures (needs matplotlib).

python -m specgen.training.codec_report CODEC_FOLDER DATA_FOLDER LOG.jsonl PICTURE_FOLDER
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specgen.codec.embedded import EmbeddedCodec, load_codec
from specgen.errors import UserError
from specgen.training.batches import read_rows
from specgen.training.codec import AudioItems, evaluate
from specgen.training.losses import LogMel


def decode_seconds(codec: EmbeddedCodec, seconds: int = 10, repeats: int = 5) -> float:
    """Median time of decoding a clip of that many seconds, alone, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frames = round(seconds * codec.frame_rate)
    codes = torch.randint(codec.card, (1, codec.codebooks, frames))
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        codec.decode(codes)
        taken.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return float(np.median(taken[1:]))


def repeated_share(codec: EmbeddedCodec, wav: Tensor) -> list[float]:
    """Share of frames whose token is the same as the frame before's, by codebook. `wav [B, N]`."""
    codes = codec.encode(wav[:, None])
    return (codes[..., 1:] == codes[..., :-1]).float().mean((0, 2)).tolist()


def draw_losses(log: Path, picture: Path) -> None:
    """The training losses and the held-out figures against minutes of training."""
    from matplotlib import pyplot

    rows = read_rows(log)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    train = [row for row in rows if "loss" in row]
    for key, label in (("waveform", "waveform, log10"), ("spectral", "log-mel, nepers")):
        left.plot([row["seconds"] / 60 for row in train], [row[key] for row in train], label=label)
    valid = [row for row in rows if "valid_si_sdr" in row]
    for key, label in (
        ("valid_si_sdr", "SI-SDR, dB"),
        ("valid_log_mel_error", "log-mel error, dB"),
    ):
        minutes = [row["seconds"] / 60 for row in valid]
        right.plot(minutes, [row[key] for row in valid], "o-", label=label)
    for axes, title in ((left, "training losses"), (right, "held-out clips")):
        axes.set(title=title, xlabel="minutes of training")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


def draw_spectrograms(codec: EmbeddedCodec, wavs: Tensor, names: list[str], picture: Path) -> None:
    """Mel spectrograms of originals `[B, N]` (above) and what the codec makes of them (below)."""
    from matplotlib import pyplot

    mel = LogMel(1024, 160, 80, codec.sample_rate, 1e-8)
    decoded = codec.decode(codec.encode(wavs[:, None]))[:, 0, : wavs.shape[-1]]
    size = (4 * len(names), 5)
    figure, axes = pyplot.subplots(2, len(names), figsize=size, layout="constrained", squeeze=False)
    for row, (kind, batch) in enumerate((("original", wavs), ("decoded", decoded))):
        for column, (name, wav) in enumerate(zip(names, batch, strict=True)):
            level = 10 / np.log(10) * mel(wav[None])[0].T.numpy()
            duration = wav.shape[-1] / codec.sample_rate
            axes[row, column].imshow(
                level,
                origin="lower",
                aspect="auto",
                vmin=-80,
                vmax=-20,
                extent=(0, duration, 0, 80),
            )
            axes[row, column].set(title=f"{kind}: {name}", xlabel="s", ylabel="mel band")
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


@torch.inference_mode()
def report(codec_folder: Path, data: Path, log: Path, pictures: Path) -> dict[str, Any]:
    """Draw `codec-loss.png` and `codec-spectrograms.png`; return the held-out figures."""
    codec = load_codec(codec_folder)
    pictures.mkdir(parents=True, exist_ok=True)
    draw_losses(log, pictures / "codec-loss.png")
    items = AudioItems(data, "test", 10 * codec.sample_rate)
    picks = np.unique(np.linspace(0, len(items.rows) - 1, 4).astype(int)).tolist()
    wavs = torch.stack([items.clip(row, 0, 4 * codec.sample_rate) for row in picks])
    names = [str(items.rows[row].get("state", {}).get("lead", row)) for row in picks]
    draw_spectrograms(codec, wavs, names, pictures / "codec-spectrograms.png")
    return {
        "test": evaluate(codec, data, "test", len(items.rows)),
        "valid": evaluate(codec, data, "valid", 1000),
        "repeated_share": repeated_share(codec, wavs),
        "decode_seconds_for_10_s": decode_seconds(codec),
        "weights": sum(value.numel() for value in codec.state_dict().values()),
        "bytes": (codec_folder / "model.safetensors").stat().st_size,
    }


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("error: name the codec folder, the data folder, the log and the picture folder")
    try:
        print(json.dumps(report(*map(Path, sys.argv[1:])), indent=1))
    except UserError as error:
        sys.exit(f"error: {error}")
