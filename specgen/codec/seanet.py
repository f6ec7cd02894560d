"""Waveform convolution encoder and decoder in the manner of SEANet (Tagliasacchi et al. 2020).

Strided convolutions with one residual unit a stage, as SoundStream and EnCodec use them, without
their normalisation: the weights start variance-preserving instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specgen.codec.spectral import variance_preserving


class Residual(nn.Module):
    """`x + conv1(elu(conv3(elu(x))))`, dilated, half as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ELU(),
            nn.Conv1d(width, width // 2, 3, padding=1),
            nn.ELU(),
            nn.Conv1d(width // 2, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, N]` to the same."""
        # The sum of two independent unit variances, brought back to one.
        change: Tensor = self.body(x)
        return (x + change) * 2**-0.5


class SeanetEncoder(nn.Module):
    """Waveform to latents by strided convolutions."""

    def __init__(self, ratios: Sequence[int], width: int, dim: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for ratio in reversed(ratios):
            layers += [
                Residual(width),
                nn.ELU(),
                nn.Conv1d(width, 2 * width, 2 * ratio, ratio, padding=(ratio + 1) // 2),
            ]
            width *= 2
        layers += [nn.ELU(), nn.Conv1d(width, dim, 7, padding=3)]
        self.layers = nn.Sequential(*layers)
        variance_preserving(self)

    def forward(self, wav: Tensor) -> Tensor:
        """`wav [B, N]` to latents `[B, T, dim]`."""
        latents: Tensor = self.layers(wav[:, None] * self.scale)
        return latents.transpose(1, 2)


class SeanetDecoder(nn.Module):
    """Latents to waveform by transposed convolutions."""

    def __init__(self, ratios: Sequence[int], width: int, dim: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.hop = int(torch.tensor(list(ratios)).prod())
        channels = width * 2 ** len(ratios)
        layers: list[nn.Module] = [nn.Conv1d(dim, channels, 7, padding=3)]
        for ratio in ratios:
            layers += [
                nn.ELU(),
                nn.ConvTranspose1d(
                    channels,
                    channels // 2,
                    2 * ratio,
                    ratio,
                    padding=(ratio + 1) // 2,
                    output_padding=ratio % 2,
                ),
                Residual(channels // 2),
            ]
            channels //= 2
        layers += [nn.ELU(), nn.Conv1d(width, 1, 7, padding=3)]
        self.layers = nn.Sequential(*layers)
        variance_preserving(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents `[B, T, dim]` to `wav [B, N]`."""
        wav: Tensor = self.layers(latents.transpose(1, 2))
        return wav[:, 0] / self.scale
