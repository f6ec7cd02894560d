"""The project's own codec: its configuration, the module, and its checkpoint folder.

A checkpoint is a folder with `config.yaml` (`CodecConfig`) and `model.safetensors` (float16).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from yaml import YAMLError  # type: ignore[import-untyped,unused-ignore]

from specgen.codec.quantize import ResidualQuantizer
from specgen.codec.seanet import SeanetDecoder, SeanetEncoder
from specgen.codec.spectral import SpectralDecoder, SpectralEncoder
from specgen.errors import UserError
from specgen.tensors import bare

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"


@dataclass
class CodecConfig:
    """Everything needed to build the codec; `kind` is "spectral" or "seanet"."""

    kind: str = "spectral"
    sample_rate: int = 16000
    frame_size: int = 320
    codebooks: int = 4
    card: int = 1024
    dim: int = 64
    # spectral: Fourier steps a frame, window in samples, then width, blocks and kernel (frames)
    steps: int = 2
    window: int = 640
    encoder_width: int = 192
    encoder_blocks: int = 4
    encoder_kernel: int = 3
    decoder_width: int = 256
    decoder_blocks: int = 5
    decoder_kernel: int = 7
    # seanet: channels at the sample rate, strides from slow to fast, and the level brought to one
    base: int = 16
    ratios: list[int] = field(default_factory=lambda: [8, 5, 4, 2])
    scale: float = 10.0


class EmbeddedCodec(nn.Module):
    """Mono residual-quantised codec; satisfies `specgen.codec.base.Codec`."""

    channels = 1

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.frame_size = config.frame_size
        self.frame_rate = config.sample_rate / config.frame_size
        self.codebooks = config.codebooks
        self.card = config.card
        self.encoder, self.decoder = _networks(config)
        self.quantizer = ResidualQuantizer(config.codebooks, config.card, config.dim)

    @property
    def codebook_vectors(self) -> Tensor:
        """`[K, card, dim]`: what each token stands for."""
        return self.quantizer.entries

    def frames(self, samples: int) -> int:
        """How many frames cover that many samples."""
        return -(-samples // self.frame_size)

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """`wav [B, 1, N]` float32 to `codes [B, K, ceil(N / frame_size)]` int64."""
        if wav.dim() != 3 or wav.shape[1] != 1:
            raise ValueError(f"expected mono audio [B, 1, N], not {tuple(wav.shape)}")
        missing = self.frames(wav.shape[-1]) * self.frame_size - wav.shape[-1]
        return self.quantizer.encode(self.encoder(F.pad(wav[:, 0], (0, missing))))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """`codes [B, K, T]` int64 in [0, card) to `wav [B, 1, T * frame_size]` float32."""
        if codes.dim() != 3 or codes.shape[1] != self.codebooks:
            raise ValueError(f"expected codes [B, {self.codebooks}, T], not {tuple(codes.shape)}")
        wav: Tensor = self.decoder(self.quantizer.decode(codes))
        return wav[:, None]

    @property
    def margin(self) -> int:
        """Frames to either side that reach a sample of the decoded audio."""
        config = self.config
        if config.kind != "spectral":
            raise ValueError("the reach of a SEANet codec is not known: decode it whole")
        blocks = config.decoder_blocks * (config.decoder_kernel // 2)
        return blocks + -(-config.window // config.frame_size)

    def stream(self) -> WindowedStream:
        """Decode a piece while it grows."""
        return WindowedStream(self.decode, self.frame_size, self.margin)


def _networks(config: CodecConfig) -> tuple[nn.Module, nn.Module]:
    if config.kind == "seanet":
        shape = (config.ratios, config.base, config.dim, config.scale)
        return SeanetEncoder(*shape), SeanetDecoder(*shape)
    if config.kind == "spectral":
        front = (config.frame_size, config.steps, config.window)
        return (
            SpectralEncoder(
                *front,
                config.encoder_width,
                config.encoder_blocks,
                config.encoder_kernel,
                config.dim,
            ),
            SpectralDecoder(
                *front,
                config.decoder_width,
                config.decoder_blocks,
                config.decoder_kernel,
                config.dim,
            ),
        )
    raise UserError(f"codec kind {config.kind!r} is unknown: use spectral or seanet")


def save_codec(codec: EmbeddedCodec, folder: Path) -> None:
    """Write the checkpoint folder, weights in float16; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in codec.state_dict().items()}
    partial = folder / (WEIGHTS_NAME + ".partial")
    save_file(weights, partial)
    partial.chmod(0o644)  # safetensors leaves it readable by its owner alone
    os.replace(partial, folder / WEIGHTS_NAME)
    partial = folder / (CONFIG_NAME + ".partial")
    OmegaConf.save(OmegaConf.structured(codec.config), partial)
    os.replace(partial, folder / CONFIG_NAME)


def load_codec(folder: Path) -> EmbeddedCodec:
    """The codec of a checkpoint folder, float32, in evaluation mode, without gradients.

    Raises `UserError` for a missing, unreadable, corrupt or ill-fitting file.
    """
    config = read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"codec weights {path} are missing: reinstall specgen or train the codec")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"codec weights {path} are corrupt ({error}): fetch them again") from None
    with bare("cpu"):
        codec = EmbeddedCodec(config)
    expected = codec.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys()) or [
        name for name, value in expected.items() if value.shape != weights[name].shape
    ]
    if wrong:
        raise UserError(
            f"codec weights {path} do not fit {CONFIG_NAME} beside them"
            f" ({wrong[0]} and {len(wrong) - 1} more): use the two files of one checkpoint"
        )
    codec.load_state_dict({name: value.float() for name, value in weights.items()})
    return codec.eval().requires_grad_(False)


def read_config(path: Path) -> CodecConfig:
    """The validated configuration; raises `UserError` for unknown keys or wrong types."""
    if not path.is_file():
        raise UserError(f"codec configuration {path} is missing: name a codec checkpoint folder")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(CodecConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"codec configuration {path} is invalid: {reason}") from None
    assert isinstance(config, CodecConfig)
    return config


class WindowedStream:
    """Decodes a growing piece with a codec whose output reaches `margin` frames to either side.

    Every sample that comes out has seen all that reaches it, so the parts together are what one
    decode of the whole gives; audio follows the tokens `margin` frames behind.

    Args:
        decode: `[1, K, T]` codes to `[1, C, T * frame_size]` audio.
        frame_size: samples a frame.
        margin: frames.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], frame_size: int, margin: int) -> None:
        self._decode, self._size, self.margin = decode, frame_size, margin
        self._held: Tensor | None = None  # codes from frame `_low` on
        self._low = self._out = 0  # frames dropped, and frames given out

    def push(self, codes: Tensor) -> Tensor:
        """More tokens `[1, K, n]`, in order; returns the audio `[1, C, m]` they make possible."""
        self._held = codes if self._held is None else torch.cat([self._held, codes], dim=-1)
        return self._give(self._low + self._held.shape[-1] - self.margin)

    def finish(self) -> Tensor:
        """The rest of the audio, `[1, C, m]`."""
        if self._held is None:
            raise ValueError("nothing was pushed")
        return self._give(self._low + self._held.shape[-1])

    def _give(self, end: int) -> Tensor:
        assert self._held is not None
        if end <= self._out:
            return self._decode(self._held[..., :1])[..., :0]
        wave = self._decode(self._held)
        part = wave[..., (self._out - self._low) * self._size : (end - self._low) * self._size]
        self._out = end
        keep = max(self._low, end - self.margin)
        self._held, self._low = self._held[..., keep - self._low :], keep
        return part
