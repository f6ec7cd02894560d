"""The melody models' condition: a chromagram that stands before the sequence, then the text.

The arithmetic is that of audiocraft's `ChromaExtractor` and `ChromaStemConditioner`
(`modules/chroma.py`, `modules/conditioners.py`; Copet et al. 2023, section 3.2): the energy of each
of twelve pitch classes over overlapping windows, of which only the strongest is kept. What
audiocraft does before it, parting the mix into stems with Demucs and keeping vocals and "other", is
left to the user: give a file that holds the melody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.errors import UserError
from specgen.lm.conditioning import Words
from specgen.lm.t5 import T5Conditioner


@dataclass(frozen=True)
class ChromaConfig:
    """How a chromagram is made; the defaults are the melody models'.

    Attributes:
        sample_rate: of the audio, in hertz.
        pitches: classes an octave.
        window: samples of a window and of its transform.
        hop: samples from window to window.
        argmax: keep the strongest class of each window alone, as 1.
        length: windows of a condition: what is shorter is repeated, what is longer is cut.

    Raises:
        ValueError: an option out of range.
    """

    sample_rate: int = 32000
    pitches: int = 12
    window: int = 16384
    hop: int = 4096
    argmax: bool = True
    length: int = 235

    def __post_init__(self) -> None:
        for name in ("sample_rate", "pitches", "window", "hop", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_audiocraft(cls, options: dict[str, Any], duration: float) -> ChromaConfig:
        """From a `chroma_stem` section of `xp.cfg` and `dataset.segment_duration`, in seconds.

        Raises:
            UserError: an option that is unknown or not supported.
        """
        known = {"sample_rate", "n_chroma", "radix2_exp", "nfft", "winlen", "winhop", "argmax"}
        # How it is evaluated and cached there; generation always matches the length.
        elsewhere = {"match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path", "norm"}
        for name in options:
            if name not in known | elsewhere:
                raise UserError(f"melody option chroma_stem.{name} is unknown to this version")
        if float(options.get("norm", math.inf)) != math.inf:
            raise UserError(f"melody option chroma_stem.norm {options['norm']} is not supported")
        window = options.get("winlen") or 2 ** int(options.get("radix2_exp", 12))
        if (options.get("nfft") or window) != window:
            raise UserError(f"melody option chroma_stem.nfft {options['nfft']} is not supported")
        rate, hop = int(options["sample_rate"]), options.get("winhop") or window // 4
        return cls(
            sample_rate=rate,
            pitches=int(options.get("n_chroma", 12)),
            window=window,
            hop=hop,
            argmax=bool(options.get("argmax", False)),
            length=max(int(rate * duration), window) // hop + 1,
        )


def chromagram(wav: Tensor, config: ChromaConfig) -> Tensor:
    """The chroma of mono audio `[N]` at `config.sample_rate`: `[windows, pitches]` float32.

    Raises:
        UserError: transformers, which has the pitch filters, is not installed.
    """
    try:
        from transformers.audio_utils import chroma_filter_bank
    except ImportError:
        raise UserError(
            "melodies are read through transformers, which is not installed: "
            "pip install 'specgen[musicgen]'"
        ) from None
    filters = chroma_filter_bank(
        num_frequency_bins=config.window,
        num_chroma=config.pitches,
        sampling_rate=config.sample_rate,
        tuning=0,
    )
    missing = max(0, config.window - len(wav))
    wav = F.pad(wav.float(), (missing // 2, missing - missing // 2))
    shape = torch.hann_window(config.window)
    spectrum = torch.stft(
        wav, config.window, config.hop, window=shape, center=True, return_complex=True
    )
    power = (spectrum / shape.square().sum().sqrt()).abs().square()  # [bins, windows]
    chroma = torch.from_numpy(filters).float() @ power
    chroma = F.normalize(chroma, p=math.inf, dim=0, eps=1e-6).T
    if config.argmax:
        chroma = F.one_hot(chroma.argmax(dim=-1), config.pitches).float()
    return chroma


class ChromaConditioner:
    """Melodies to conditions.

    Args:
        config: of the chromagram.
        weight, bias: the projection, `[dim, pitches]` and `[dim]`.
    """

    def __init__(self, config: ChromaConfig, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.dim() != 2 or weight.shape[1] != config.pitches:
            raise ValueError(f"projection of shape {tuple(weight.shape)} reads no {config.pitches}")
        self.config, self.weight, self.bias = config, weight, bias

    @torch.inference_mode()
    def encode(self, wav: Tensor | None) -> Tensor:
        """The condition `[length, dim]` of mono audio `[N]`, float32 on the CPU.

        None is the null condition, which is silence: there the first class is the strongest one.
        """
        chroma = chromagram(torch.zeros(1) if wav is None else wav, self.config)
        length = self.config.length
        chroma = chroma.repeat(-(-length // len(chroma)), 1)[:length]
        bias = None if self.bias is None else self.bias.float().cpu()
        return F.linear(chroma, self.weight.float().cpu(), bias)


class PrefixConditioner:
    """Conditions that stand before the sequence: the melody, if the model knows any, then the text.

    The model reads them as if they were columns (audiocraft's `prepend`), at positions from 0 on.
    The null condition has the same length: silence, then a zero vector for each of the text's.

    Args:
        text: the text encoder.
        melody: the melody encoder, or None.
    """

    def __init__(self, text: T5Conditioner, melody: ChromaConditioner | None) -> None:
        self.text, self.melody, self.dim = text, melody, text.dim
        if melody is not None and len(melody.weight) != text.dim:
            raise ValueError(f"melody of {len(melody.weight)} numbers, text of {text.dim}")

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PrefixConditioner:
        """Where conditions go and in which dtype."""
        self.text.to(device, dtype)
        return self

    def tokenize(self, text: str) -> Words:
        """See `T5Conditioner.tokenize`."""
        return self.text.tokenize(text)

    def null(self) -> Tensor:
        """The beginning of the null condition, `[1, n, dim]`; zeros follow."""
        if self.melody is None:
            return self.text.null()
        return self.melody.encode(None)[None].to(self.text.device, self.text.dtype)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], melodies: Sequence[Tensor | None] = ()
    ) -> tuple[Tensor, Tensor]:
        """Conditions of a batch.

        Args:
            texts: prompts.
            melodies: for each, mono audio `[N]` at `melody.config.sample_rate`, or None; none at
                all is None for each.

        Returns:
            Vectors `[B, P, dim]`, zero where padded at the end, and mask `[B, P]` bool.

        Raises:
            UserError: see `T5Conditioner.encode`.
        """
        words, mask = self.text.encode(texts)
        if self.melody is None:
            return words, mask
        tunes = melodies or [None] * len(texts)
        chroma = torch.stack([self.melody.encode(tune) for tune in tunes]).to(words)
        ones = torch.ones(chroma.shape[:2], dtype=torch.bool, device=mask.device)
        return torch.cat([chroma, words], dim=1), torch.cat([ones, mask], dim=1)


def prepends(conditioner: object) -> bool:
    """Whether a text encoder's conditions stand before the sequence (else: cross-attention)."""
    return isinstance(conditioner, PrefixConditioner)


def melody_rate(conditioner: object) -> int | None:
    """Sample rate of the melodies that an encoder reads, in hertz; None if it reads none."""
    if isinstance(conditioner, PrefixConditioner) and conditioner.melody is not None:
        return conditioner.melody.config.sample_rate
    return None
