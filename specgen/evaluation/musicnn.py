"""musicnn: 50 tags and a 200-dimensional embedding of three seconds of music.

The network of Pons and Serra (2019), "musicnn: pre-trained convolutional neural networks for music
audio tagging", with the weights of its package (MTT_musicnn: trained on MagnaTagATune), turned into
safetensors by tools/convert_musicnn.py. They lie in `musicnn/` beside this file, under the
ISC licence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.errors import UserError

WEIGHTS = Path(__file__).parent / "musicnn" / "model.safetensors"
SAMPLE_RATE, HOP, WINDOW, BANDS = 16_000, 256, 512, 96
PATCH = 187  # spectrogram frames of three seconds
STRIDE = 62  # frames from patch to patch: one second
TAGS = (
    "guitar",
    "classical",
    "slow",
    "techno",
    "strings",
    "drums",
    "electronic",
    "rock",
    "fast",
    "piano",
    "ambient",
    "beat",
    "violin",
    "vocal",
    "synth",
    "female",
    "indian",
    "opera",
    "male",
    "singing",
    "vocals",
    "no vocals",
    "harpsichord",
    "loud",
    "quiet",
    "flute",
    "woman",
    "male vocal",
    "no vocal",
    "pop",
    "soft",
    "sitar",
    "solo",
    "man",
    "classic",
    "choir",
    "voice",
    "new age",
    "dance",
    "male voice",
    "female vocal",
    "beats",
    "harp",
    "cello",
    "no voice",
    "weird",
    "country",
    "metal",
    "female voice",
    "choral",
)


@lru_cache(maxsize=4)
def mel_filters(bands: int, window: int, sample_rate: int) -> Tensor:
    """Slaney's mel filters of unit area `[bands, window // 2 + 1]`, as librosa's default.

    The scale is linear up to 1 kHz and logarithmic above (Slaney 1998, Auditory Toolbox).
    """
    knee, step = 15.0, math.log(6.4) / 27

    def hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < knee, mel * 200 / 3, 1000 * torch.exp(step * (mel - knee)))

    top = knee + math.log(sample_rate / 2 / 1000) / step
    edges = hertz(torch.linspace(0, top, bands + 2, dtype=torch.float64))
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    up = (bins - edges[:-2, None]) / edges.diff()[:-1, None]
    down = (edges[2:, None] - bins) / edges.diff()[1:, None]
    triangles = torch.minimum(up, down).clamp_min(0)
    return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).float()


def log_mel(wave: Tensor) -> Tensor:
    """`[N]` samples at 16 kHz to `[frames, 96]`: log10(1 + 10000 * mel power)."""
    spectrum = torch.stft(
        wave,
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW, device=wave.device),
        pad_mode="constant",
        return_complex=True,
    )
    bank = mel_filters(BANDS, WINDOW, SAMPLE_RATE).to(wave.device)
    return (1 + 10_000 * (bank @ spectrum.abs().square())).log10().T


class _Front(nn.Module):
    """A convolution over the spectrogram, of which the best place in frequency counts."""

    def __init__(self, filters: int, time: int, bands: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, filters, (time, bands))
        self.norm = nn.BatchNorm2d(filters, eps=1e-3)
        self.pad = ((time - 1) // 2, time // 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 1, T, 96]` to `[B, filters, T]`."""
        made: Tensor = self.norm(F.relu(self.conv(F.pad(x, (0, 0, *self.pad)))))
        return made.amax(dim=-1)


class _Middle(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, 64, 7, padding=3)
        self.norm = nn.BatchNorm1d(64, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, features, T]` to `[B, 64, T]`."""
        made: Tensor = self.norm(F.relu(self.conv(x)))
        return made


class Musicnn(nn.Module):
    """The network; `forward` takes `log_mel` patches."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, eps=1e-3)
        shapes = [(204, 7, 38), (204, 7, 67), (51, 128, 1), (51, 64, 1), (51, 32, 1)]
        self.front = nn.ModuleList(_Front(*shape) for shape in shapes)
        self.middle = nn.ModuleList(_Middle(n) for n in (561, 64, 64))
        self.pool_norm = nn.BatchNorm1d(1506, eps=1e-3)
        self.dense = nn.Linear(1506, 200)
        self.dense_norm = nn.BatchNorm1d(200, eps=1e-3)
        self.tags = nn.Linear(200, len(TAGS))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, 96]` to the penultimate layer `[B, 200]` and tag probabilities `[B, 50]`."""
        x = self.input_norm(patches[:, None])
        layers = [torch.cat([front(x) for front in self.front], dim=1)]
        layers.append(self.middle[0](layers[0]))
        for middle in self.middle[1:]:
            layers.append(layers[-1] + middle(layers[-1]))
        y = torch.cat(layers, dim=1)
        pooled = torch.stack([y.amax(dim=-1), y.mean(dim=-1)], dim=-1).flatten(1)
        hidden = self.dense_norm(F.relu(self.dense(self.pool_norm(pooled))))
        return hidden, self.tags(hidden).sigmoid()


def load(path: Path = WEIGHTS) -> Musicnn:
    """The trained network, float32, in evaluation mode.

    Raises:
        UserError: the weights are missing or corrupt.
    """
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the musicnn weights {path} cannot be read ({error}); reinstall specgen"
        ) from None
    network = Musicnn()
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    network.load_state_dict(weights | counters)
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def analyse(network: Musicnn, wave: Tensor) -> tuple[Tensor, Tensor]:
    """A clip's embedding `[200]` and tag probabilities `[50]`: means over patches a second apart.

    Args:
        network: from `load`.
        wave: `[N]` samples at 16 kHz; a clip under three seconds is one shorter patch.
    """
    spectrum = log_mel(wave)
    patches = spectrum.unfold(0, PATCH, STRIDE).mT if len(spectrum) >= PATCH else spectrum[None]
    hidden, tags = network(patches)
    return hidden.mean(dim=0), tags.mean(dim=0)


# Words of a prompt that a tag of the tagger stands for; the others say nothing it could hear.
HEARD = {
    "violin": ("violin", "fiddle"),
    "cello": ("cello",),
    "flute": ("flute", "recorder", "whistle"),
    "guitar": ("guitar",),
    "harp": ("harp",),
    "harpsichord": ("harpsichord",),
    "piano": ("piano",),
    "drums": ("drums", "percussion"),
    "slow": ("slow", "adagio"),
    "fast": ("fast", "quick", "presto"),
}


def divergences(p: NDArray[Any], q: NDArray[Any]) -> NDArray[np.float64]:
    """KL(p || q) of every clip in nats, summed over independent tags: `[N, tags]` twice to `[N]`.

    The tags are not exclusive, so each is a yes-or-no variable of its own.
    """
    p, q = (np.clip(np.asarray(x, np.float64), 1e-6, 1 - 1e-6) for x in (p, q))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    total: NDArray[np.float64] = each.sum(axis=1)
    return total


def named(prompt: str) -> NDArray[np.bool_]:
    """`[tags]`: which tags the prompt asks for."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    return np.array([any(word in words for word in HEARD.get(tag, ())) for tag in TAGS])


def text_agreement(tags: NDArray[Any], wanted: NDArray[np.bool_]) -> float:
    """How well posteriors fit the prompts: 1 is perfect, 0.5 is chance.

    The chance that a clip whose prompt names a tag scores higher on it than one whose prompt does
    not (area under the ROC curve), over all such pairs of clips, averaged over tags that some
    prompts name and some do not. NaN if there is no such tag.

    Args:
        tags: `[N, tags]` posteriors.
        wanted: `[N, tags]`, from `named`.
    """
    areas = []
    for column, asked in zip(np.asarray(tags).T, wanted.T, strict=True):
        if asked.all() or not asked.any():
            continue
        yes, no = column[asked, None], column[~asked]
        areas.append(float(((yes > no) + 0.5 * (yes == no)).mean()))
    return float(np.mean(areas)) if areas else float("nan")


def wanted(prompts: Sequence[str]) -> NDArray[np.bool_]:
    """`[N, tags]`: `named` for every prompt."""
    return np.stack([named(prompt) for prompt in prompts])
