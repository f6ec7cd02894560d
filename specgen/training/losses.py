"""Distances between waveforms, for training the codec and for judging it."""

import math

import torch
from torch import Tensor, nn


def mel_filters(bins: int, mels: int, sample_rate: int) -> Tensor:
    """Triangular filters `[bins, mels]`, each summing to 1, even in mel (O'Shaughnessy 1987).

    A filter narrower than the bins takes the bin nearest its centre.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    hertz = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    empty = filters.sum(0) == 0
    closest = (hertz - edges[1:-1]).abs().argmin(0)
    filters[closest[empty], empty.nonzero()[:, 0]] = 1.0
    return (filters / filters.sum(0)).float()


class LogMel(nn.Module):
    """The logarithm of the mel power spectrum, with a floor added to the power.

    Powers are scaled so that a full-scale sine's peak bin is about 1 (0 dB).
    """

    window: Tensor
    filters: Tensor

    def __init__(self, size: int, hop: int, mels: int, sample_rate: int, floor: float) -> None:
        super().__init__()
        self.size, self.hop, self.floor = size, hop, floor
        window = torch.hann_window(size)
        self.register_buffer("window", window * (2 / window.sum()), persistent=False)
        self.register_buffer(
            "filters", mel_filters(size // 2 + 1, mels, sample_rate), persistent=False
        )

    def forward(self, wav: Tensor) -> Tensor:
        """`wav [B, N]` to the natural log of mel powers `[B, steps, mels]`."""
        frames = wav.unfold(-1, self.size, self.hop)
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window))
        power = spectrum.square().sum(-1) @ self.filters
        return (power + self.floor).log()


class SpectralLoss(nn.Module):
    """Mean absolute difference of log-mel amplitudes, in nepers, over several window sizes."""

    def __init__(self, sizes: dict[int, int], sample_rate: int, floor: float) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            LogMel(size, size // 4, mels, sample_rate, floor) for size, mels in sizes.items()
        )

    def forward(self, decoded: Tensor, original: Tensor) -> Tensor:
        """`[B, N]` twice to a scalar."""
        total = decoded.new_zeros(())
        for scale in self.scales:
            with torch.no_grad():
                target = scale(original)
            total = total + 0.5 * (scale(decoded) - target).abs().mean()
        return total / len(self.scales)


def waveform_loss(decoded: Tensor, original: Tensor, floor: float) -> Tensor:
    """Mean over clips of log10(error power / signal power): -1 is a 10 dB signal-to-error ratio.

    The logarithm gives every clip the same say, however loud; `floor` (a power) keeps near-silent
    clips quiet. `[B, N]` twice to a scalar.
    """
    error = (decoded - original).square().mean(-1) + floor
    return (error / (original.square().mean(-1) + floor)).log10().mean()


def si_sdr(decoded: Tensor, original: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019): `[B, N]` to `[B]`."""
    scale = (decoded * original).sum(-1, keepdim=True) / original.square().sum(-1, keepdim=True)
    target = scale * original
    return 10 * torch.log10(target.square().sum(-1) / (decoded - target).square().sum(-1))


def log_mel_error(decoded: Tensor, original: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute log-mel difference in dB: `[B, N]` twice to `[B]`.

    80 mel bands to half the sample rate, Hann window of 1024 samples, hop 256, both sides floored
    at -80 dB (0 dB: a full-scale sine in one bin).
    """
    mel = LogMel(1024, 256, 80, sample_rate, 0.0)
    lowest = math.log(1e-8)
    difference: Tensor = mel(decoded).clamp(min=lowest) - mel(original).clamp(min=lowest)
    return (10 / math.log(10)) * difference.abs().mean((1, 2))
