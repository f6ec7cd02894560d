"""EnCodec (Défossez et al. 2022), the codec of the MusicGen models.

The network (SEANet, LSTM, residual quantiser) is transformers' `EncodecModel` with its weight norms
multiplied out; this module reads audiocraft's and transformers' tensors into it, and decodes piece
by piece in bounded memory.

The stereo models code left and right by one mono network each and interleave the tokens:
codebook 2k is the left channel's k, codebook 2k + 1 the right channel's (audiocraft's
`InterleaveStereoCompressionModel`).

In its native form a codec is a folder with `config.yaml` (`kind: encodec` and the fields of
`EncodecConfig`) and `model.safetensors` (float32).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from specgen.checkpoints.files import from_plain, load_yaml, to_plain
from specgen.codec.encodec_config import (
    audiocraft_fields,
    fold_weight_norm,
    from_audiocraft_names,
    transformers,
    transformers_fields,
)
from specgen.codec.encodec_stream import EncodecStream
from specgen.errors import UserError

KIND = "encodec"
CONFIG_NAME, WEIGHTS_NAME = "config.yaml", "model.safetensors"
PIECE = 256  # frames decoded at once: about 0.3 GB at 32 kHz
_PAD_MODES = ("constant", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class EncodecConfig:
    """Everything that an `EncodecCodec` is built from.

    Attributes:
        sample_rate: in hertz.
        codebooks: of the network, a channel.
        card: entries a codebook, a power of two.
        ratios: strides of the decoder, in its order; their product is a frame's samples.
        dim, filters: channels of the latents, and of the widest stage divided by its stage.
        residual_layers, kernel, last_kernel, residual_kernel, dilation_base, compress: of SEANet.
        lstm: its layers.
        causal, pad_mode, trim_right_ratio: of the convolutions.
        conv_shortcut: whether residual blocks have a convolution beside them.
        renormalize: whether a clip is brought to one volume before it is encoded.
        network_channels: channels that the network itself reads, 1 or 2.
        interleaved: whether left and right are coded by a mono network each.

    Raises:
        ValueError: an option out of range, or options that contradict each other.
    """

    sample_rate: int
    codebooks: int
    card: int
    ratios: tuple[int, ...]
    dim: int = 128
    filters: int = 32
    residual_layers: int = 1
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation_base: int = 2
    compress: int = 2
    lstm: int = 2
    causal: bool = False
    pad_mode: str = "reflect"
    trim_right_ratio: float = 1.0
    conv_shortcut: bool = False
    renormalize: bool = False
    network_channels: int = 1
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_rate", "codebooks", "dim", "filters", "residual_layers", "lstm"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.card < 2 or self.card & (self.card - 1):
            raise ValueError(f"card must be a power of two, got {self.card}")
        if not self.ratios or min(self.ratios) < 1:
            raise ValueError(f"ratios must be positive strides, got {self.ratios}")
        if self.pad_mode not in _PAD_MODES:
            raise ValueError(f"pad_mode {self.pad_mode!r} is unknown: {', '.join(_PAD_MODES)}")
        if self.trim_right_ratio != 1.0 and not self.causal:
            raise ValueError("trim_right_ratio other than 1 is for causal models")
        if self.network_channels not in (1, 2) or (self.interleaved and self.network_channels > 1):
            raise ValueError("network_channels must be 1, or 2 without interleaving")

    @property
    def frame_size(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)


class EncodecCodec(nn.Module):
    """EnCodec in evaluation mode; satisfies `specgen.codec.base.Codec`.

    Args:
        config: its dimensions.
        state: its tensors: transformers' names, weight norms multiplied out.

    Raises:
        UserError: tensors that do not fit the configuration, or transformers is not installed.
    """

    def __init__(self, config: EncodecConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        self.frame_size = config.frame_size
        self.frame_rate = config.sample_rate / config.frame_size
        self.streams = 2 if config.interleaved else 1
        self.channels = self.streams * config.network_channels
        self.codebooks = self.streams * config.codebooks
        self.card = config.card
        self.network = _network(config)
        _fill(self.network, state)
        self.margin = _margin(self.network.decoder.layers[2:])
        self.eval().requires_grad_(False)

    @classmethod
    def from_audiocraft(
        cls,
        cfg: Mapping[str, Any],
        state: Mapping[str, Tensor],
        *,
        channels: int | None = None,
        codebooks: int | None = None,
    ) -> EncodecCodec:
        """From a compression model of audiocraft (its resolved `xp.cfg` and its state).

        Args:
            cfg: the compression model's configuration.
            state: tensors under audiocraft's names, weight norm in the old or new form.
            channels: 2 wraps a mono network in two interleaved streams (the language model's
                `interleave_stereo_codebooks.use`); None takes the network's own.
            codebooks: a channel, where the language model uses fewer (`compression_model_n_q`).

        Raises:
            UserError: an option that is not supported, or tensors that do not fit.
        """
        config = _configured(audiocraft_fields(cfg), channels, codebooks)
        tensors = fold_weight_norm(from_audiocraft_names(state))
        if codebooks is not None:
            unused = tuple(
                f"quantizer.layers.{k}." for k in range(codebooks, int(cfg["rvq"]["n_q"]))
            )
            tensors = {n: v for n, v in tensors.items() if not n.startswith(unused)}
        return cls(config, tensors)

    @classmethod
    def from_transformers(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], channels: int | None = None
    ) -> EncodecCodec:
        """From transformers' `EncodecModel` (its `config.json` as a mapping, and its tensors).

        Args:
            config: of the model, or the `audio_encoder` part of a MusicGen one.
            state: tensors, without the `audio_encoder.` in front.
            channels: 2 wraps a mono network in two interleaved streams (MusicGen's
                `decoder.audio_channels`); None takes the network's own.

        Raises:
            UserError: an option that is not supported, or tensors that do not fit.
        """
        return cls(
            _configured(transformers_fields(config), channels, None), fold_weight_norm(state)
        )

    def frames(self, samples: int) -> int:
        """How many frames cover that many samples."""
        return -(-samples // self.frame_size)

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """`wav [B, C, N]` float32 to `codes [B, K, ceil(N / frame_size)]` int64.

        Raises:
            ValueError: another number of channels.
        """
        if wav.dim() != 3 or wav.shape[1] != self.channels:
            raise ValueError(f"expected audio [B, {self.channels}, N], not {tuple(wav.shape)}")
        rows = wav.flatten(0, 1)[:, None] if self.config.interleaved else wav
        if self.config.renormalize:
            volume = rows.mean(dim=1, keepdim=True).square().mean(dim=2, keepdim=True).sqrt()
            rows = rows / (1e-8 + volume)
        residual: Tensor = self.network.encoder(rows)
        codes = []
        for layer in self.network.quantizer.layers:
            codes.append(layer.encode(residual))
            residual = residual - layer.decode(codes[-1])
        grid = torch.stack(codes, dim=1)  # [B * streams, K / streams, T]
        if not self.config.interleaved:
            return grid
        pairs = grid.view(len(wav), 2, *grid.shape[1:])
        return pairs.transpose(1, 2).flatten(1, 2)

    def decode(self, codes: Tensor, piece: int = PIECE) -> Tensor:
        """`codes [B, K, T]` int64 in [0, card) to `wav [B, C, T * frame_size]` float32.

        Beside the waveform this takes the memory of `piece` frames, however long the clip. A
        renormalised clip comes back at its one volume, as in audiocraft's generation.

        Raises:
            ValueError: another number of codebooks.
        """
        stream = self.stream()
        parts = [stream.push(part) for part in torch.split(codes, piece, dim=-1)]
        return torch.cat([*parts, stream.finish()], dim=-1)

    def stream(self) -> EncodecStream:
        """A decoder for a piece that grows."""
        return EncodecStream(self)

    def split(self, codes: Tensor) -> Tensor:
        """`[B, K, T]` to the network's own `[B * streams, K / streams, T]`.

        Raises:
            ValueError: another number of codebooks.
        """
        if codes.dim() != 3 or codes.shape[1] != self.codebooks:
            raise ValueError(f"expected codes [B, {self.codebooks}, T], not {tuple(codes.shape)}")
        if self.streams == 1:
            return codes
        pairs = codes.reshape(len(codes), -1, 2, codes.shape[-1])
        return pairs.transpose(1, 2).flatten(0, 1)

    def latents(self, codes: Tensor) -> Tensor:
        """The network's own codes `[N, k, n]` to the sum of their entries `[N, dim, n]`."""
        latents: Tensor = self.network.quantizer.decode(codes.transpose(0, 1))
        return latents

    def save(self, folder: Path) -> None:
        """Write the native folder; each file appears whole or not at all, configuration last."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.cpu().contiguous() for k, v in _lasting(self.network.state_dict()).items()}
        partial = folder / (WEIGHTS_NAME + ".partial")
        save_file(state, partial)
        partial.chmod(0o644)
        os.replace(partial, folder / WEIGHTS_NAME)
        partial = folder / (CONFIG_NAME + ".partial")
        partial.write_text(yaml.safe_dump({"kind": KIND, **to_plain(self.config)}, sort_keys=False))
        os.replace(partial, folder / CONFIG_NAME)


def read_config(folder: Path) -> EncodecConfig:
    """The configuration of a native folder.

    Raises:
        UserError: missing or unreadable file, unknown keys, wrong types or values.
    """
    path = folder / CONFIG_NAME
    values = load_yaml(path)
    if values.pop("kind", None) != KIND:
        raise UserError(f"{path} is not of an EnCodec ('kind: {KIND}'): name another folder")
    return from_plain(EncodecConfig, values, str(path))


def load(folder: Path) -> EncodecCodec:
    """The codec of a native folder.

    Raises:
        UserError: missing, corrupt or ill-fitting files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = read_config(folder), folder / WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"codec weights {path} are missing: fetch or convert the codec again")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"codec weights {path} are corrupt ({reason}): fetch them again") from None
    return EncodecCodec(config, state)


def _configured(
    fields: dict[str, Any], channels: int | None, codebooks: int | None
) -> EncodecConfig:
    """Fields read from a foreign file, with the stereo and codebooks that the LM asks for."""
    own = fields["network_channels"]
    if channels is not None and channels != own:
        if (own, channels) != (1, 2):
            raise UserError(f"a codec of {own} channels cannot be used for {channels}: check both")
        fields["interleaved"] = True
    if codebooks is not None:
        if codebooks > fields["codebooks"]:
            raise UserError(
                f"the language model wants {codebooks} codebooks of a codec that has "
                f"{fields['codebooks']}: use the codec it was trained with"
            )
        fields["codebooks"] = codebooks
    return from_plain(EncodecConfig, fields, "codec configuration")


def _network(config: EncodecConfig) -> Any:
    """transformers' model without weight norm, its weights still to be filled in."""
    package = transformers()
    bits = int(math.log2(config.card))
    rate = math.ceil(config.sample_rate / config.frame_size)
    network = package.EncodecModel(
        package.EncodecConfig(
            target_bandwidths=[(config.codebooks + 0.5) * rate * bits / 1000],
            sampling_rate=config.sample_rate,
            audio_channels=config.network_channels,
            normalize=config.renormalize,
            hidden_size=config.dim,
            num_filters=config.filters,
            num_residual_layers=config.residual_layers,
            upsampling_ratios=list(config.ratios),
            norm_type="weight_norm",
            kernel_size=config.kernel,
            last_kernel_size=config.last_kernel,
            residual_kernel_size=config.residual_kernel,
            dilation_growth_rate=config.dilation_base,
            use_causal_conv=config.causal,
            pad_mode=config.pad_mode,
            compress=config.compress,
            num_lstm_layers=config.lstm,
            trim_right_ratio=config.trim_right_ratio,
            codebook_size=config.card,
            use_conv_shortcut=config.conv_shortcut,
        )
    )
    for module in network.modules():
        if nn.utils.parametrize.is_parametrized(module):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return network


def _lasting(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What decides the output: all but the quantiser's training averages."""
    training = ("inited", "cluster_size", "embed_avg")
    return {name: v for name, v in state.items() if name.rpartition(".")[2] not in training}


def _fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    ours, given = _lasting(network.state_dict()), _lasting(state)
    wrong = sorted(ours.keys() ^ given.keys())
    wrong += [n for n in ours.keys() & given.keys() if ours[n].shape != given[n].shape]
    if wrong:
        raise UserError(
            f"the codec's weights do not fit its configuration ({wrong[0]} and {len(wrong) - 1} "
            "more): use the files of one checkpoint"
        )
    broken = next((n for n, v in given.items() if not bool(v.isfinite().all())), None)
    if broken is not None:
        raise UserError(f"the codec's weights hold numbers that are not finite ({broken})")
    network.load_state_dict({n: v.detach().float() for n, v in given.items()}, strict=False)


def _margin(tail: Any) -> int:
    """Frames to either side that the layers after the decoder's LSTM reach, rounded up."""
    reach = 0
    for layer in reversed(list(tail)):
        for module in reversed(list(layer.modules())):
            if isinstance(module, nn.ConvTranspose1d):
                reach = -(-reach // module.stride[0]) + 2
            elif isinstance(module, nn.Conv1d):
                reach += (module.kernel_size[0] - 1) * module.dilation[0]
    return reach
