"""Encoder and decoder that work at the frame rate, between two short-time Fourier transforms.

After Vocos (Siuzdak 2023) and ConvNeXt (Liu et al. 2022): all layers run at 50 frames a second, the
transforms do the resampling, so a second of audio costs a hundredth of a waveform convolution net.
Differences: the encoder reads the complex spectrum with its magnitude's square root taken, and the
decoder's bins are a free complex number times a gain, which keeps the waveform's phase learnable.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Transform(nn.Module):
    """Windowed Fourier transform and its inverse, `hop` samples a step, aligned to sample 0.

    Step j's window is centred on the middle of samples `[j * hop, (j + 1) * hop)`, so no sample
    before the clip's start is invented and a clip of n hops gives n steps.
    """

    window: Tensor

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        if size % hop or (size - hop) % 2 or size < 3 * hop:
            raise ValueError("the window must be a whole number (3 or more) of hops")
        self.size, self.hop = size, hop
        self.margin = (size - hop) // 2
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        # Squared Hann windows at 3 or more overlaps sum to a constant.
        self.overlap_gain = 0.375 * size / hop

    def forward(self, wav: Tensor) -> Tensor:
        """`wav [B, N]`, N a multiple of the hop, to complex `[B, N / hop, size / 2 + 1]`."""
        frames = F.pad(wav, (self.margin, self.margin)).unfold(-1, self.size, self.hop)
        spectrum: Tensor = torch.fft.rfft(frames * self.window)
        return spectrum

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Complex `[B, S, size / 2 + 1]` to `wav [B, S * hop]` by weighted overlap-add."""
        frames = torch.fft.irfft(spectrum, self.size) * (self.window / self.overlap_gain)
        batch, steps, _ = frames.shape
        overlap = self.size // self.hop
        parts = frames.view(batch, steps, overlap, self.hop)
        wav = sum(F.pad(parts[:, :, i], (0, 0, i, overlap - 1 - i)) for i in range(overlap))
        assert isinstance(wav, Tensor)
        return wav.reshape(batch, -1)[:, self.margin : self.margin + steps * self.hop]


class Block(nn.Module):
    """ConvNeXt block, channels last: depthwise convolution over frames, then two pointwise."""

    def __init__(self, width: int, kernel: int, hidden: int, gain: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.depthwise = nn.Parameter(torch.randn(kernel, width) / math.sqrt(kernel))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.gain = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, width]` to the same."""
        frames = x.shape[1]
        half = self.kernel // 2
        padded = F.pad(x, (0, 0, half, half))
        # A handful of shifted products: on a CPU as fast as conv1d, without the transpositions.
        mixed = padded[:, :frames] * self.depthwise[0]
        for i in range(1, self.kernel):
            mixed = mixed + padded[:, i : i + frames] * self.depthwise[i]
        change: Tensor = self.gain * self.down(F.silu(self.up(self.norm(mixed))))
        return x + change


def variance_preserving(module: nn.Module) -> None:
    """Weights of variance 1 / fan-in and zero biases in every linear layer and convolution."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose1d):
                fan_in = layer.in_channels * layer.kernel_size[0] // layer.stride[0]
            nn.init.normal_(layer.weight, std=fan_in**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SpectralEncoder(nn.Module):
    """Waveform to latents: compressed complex spectrum, then ConvNeXt blocks at the frame rate."""

    level: Tensor

    def __init__(
        self,
        frame_size: int,
        steps: int,
        window: int,
        width: int,
        blocks: int,
        kernel: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.transform = Transform(window, frame_size // steps)
        self.steps = steps
        self.bins = window // 2 + 1
        self.register_buffer("level", torch.ones(self.bins))
        self.embed = nn.Linear(2 * self.bins * steps, width)
        self.blocks = nn.Sequential(
            *(Block(width, kernel, 4 * width, 1 / blocks) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, dim)
        variance_preserving(self)

    def forward(self, wav: Tensor) -> Tensor:
        """`wav [B, N]` to latents `[B, T, dim]`."""
        spectrum = torch.view_as_real(self.transform(wav)) / self.level[:, None]
        power = spectrum.square().sum(-1, keepdim=True)
        compressed = spectrum * (power + 1e-6).pow(-0.25)
        features = compressed.reshape(len(wav), -1, 2 * self.bins * self.steps)
        latents: Tensor = self.project(self.norm(self.blocks(self.embed(features))))
        return latents


class SpectralDecoder(nn.Module):
    """Latents to waveform: ConvNeXt blocks at the frame rate, then an inverse Fourier transform."""

    level: Tensor

    def __init__(
        self,
        frame_size: int,
        steps: int,
        window: int,
        width: int,
        blocks: int,
        kernel: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.transform = Transform(window, frame_size // steps)
        self.steps = steps
        self.bins = window // 2 + 1
        self.register_buffer("level", torch.ones(self.bins))
        self.embed = nn.Linear(dim, width)
        self.blocks = nn.Sequential(
            *(Block(width, kernel, 4 * width, 1 / blocks) for _ in range(blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * self.bins * steps)
        variance_preserving(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents `[B, T, dim]` to `wav [B, N]`."""
        out = self.project(self.norm(self.blocks(self.embed(latents))))
        out = out.view(len(latents), -1, 3, self.bins)
        gain = out[:, :, 0].clamp(max=5.0).exp() * self.level
        return self.transform.inverse(torch.complex(out[:, :, 1] * gain, out[:, :, 2] * gain))
