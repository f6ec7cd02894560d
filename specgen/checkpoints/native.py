"""The native format: a folder with `config.yaml` and `model.safetensors` (float16).

It holds a language model with its word encoder, the pattern it was trained for, and which codec its
tokens belong to. Tensor names start with `lm.` or `conditioner.`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from specgen.checkpoints.plain import from_plain, load_yaml, to_plain
from specgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgen.lm.conditioning import WordEncoder
    from specgen.lm.model import MusicLM
    from specgen.patterns import PatternSpec

SCHEMA = 1
CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class CodecId:
    """Which codec tokens belong to; `fingerprint` is the sha256 of its safetensors file."""

    sample_rate: int
    frame_rate: float
    codebooks: int
    card: int
    fingerprint: str


@dataclass(frozen=True)
class NativeConfig:
    """What `config.yaml` of a language model says; `lm`, `pattern` and `conditioner` are the fields
    of `LMConfig`, `PatternSpec` and `WordEncoderConfig`, checked when the model is built."""

    schema: int
    name: str
    lm: dict[str, Any]
    pattern: dict[str, Any]
    conditioner: dict[str, Any]
    codec: CodecId
    max_frames: int
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema} is not {SCHEMA}, the one this version reads")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        for part in (self.lm, self.pattern):
            if part.get("codebooks") != self.codec.codebooks:
                raise ValueError("lm, pattern and codec do not have the same number of codebooks")
        if self.lm.get("card") != self.codec.card:
            raise ValueError("lm and codec do not have the same card")


@dataclass
class LMCheckpoint:
    """A loaded checkpoint, in evaluation mode.

    Attributes:
        name: as its configuration says.
        lm, conditioner, pattern: the model, its text encoder, its codebook pattern.
        codec: the codec its tokens belong to.
        max_frames: longest sequence it was made for.
        sha256: of its safetensors file.
        training: how it was trained, for model cards.
    """

    name: str
    lm: MusicLM
    conditioner: WordEncoder
    pattern: PatternSpec
    codec: CodecId
    max_frames: int
    sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)


def embedded_folder(name: str) -> Path:
    """Where the embedded checkpoint `name` lies, installed with the package."""
    return Path(__file__).parent / "embedded" / name


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def codec_id(folder: Path) -> CodecId:
    """Identity of a codec checkpoint folder.

    Raises:
        UserError: it has no readable configuration or no weights.
    """
    from specgen.codec.embedded import read_config as read_codec_config

    config = read_codec_config(folder / CONFIG_NAME)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise UserError(f"codec weights {weights} are missing: train or fetch the codec")
    rate = config.sample_rate / config.frame_size
    fingerprint = file_sha256(weights)
    return CodecId(config.sample_rate, rate, config.codebooks, config.card, fingerprint)


def read_config(folder: Path) -> NativeConfig:
    """A checkpoint's configuration, without its weights (and without torch).

    Raises:
        UserError: missing folder or file, unknown or missing keys, wrong types.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise UserError(f"checkpoint {folder} has no {CONFIG_NAME}: name a checkpoint folder")
    return from_plain(NativeConfig, load_yaml(path), str(path))


def load_lm(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LMCheckpoint:
    """Load a language model in evaluation mode, without gradients; `dtype` None is float32.

    Raises:
        UserError: missing, truncated or corrupt files, unknown or missing keys, or tensors whose
            names or shapes do not fit the configuration.
    """
    import torch

    config = read_config(folder)
    built = build(config, str(folder / CONFIG_NAME))
    path = folder / WEIGHTS_NAME
    weights = read_tensors(path)
    for prefix, module in (("lm.", built.lm), ("conditioner.", built.conditioner)):
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        _fit(module.state_dict(), part, path)
        module.load_state_dict({name: value.float() for name, value in part.items()})
        module.to(device=device, dtype=dtype or torch.float32).eval().requires_grad_(False)
    return replace(built, sha256=file_sha256(path))


def build(config: NativeConfig, where: str) -> LMCheckpoint:
    """A checkpoint's modules with fresh weights.

    Raises:
        UserError: options that contradict each other.
    """
    from specgen.lm.conditioning import WordEncoder, WordEncoderConfig
    from specgen.lm.config import LMConfig
    from specgen.lm.model import MusicLM
    from specgen.patterns import PatternSpec

    lm = from_plain(LMConfig, config.lm, f"{where}: lm")
    words = from_plain(WordEncoderConfig, config.conditioner, f"{where}: conditioner")
    if lm.condition_dim != words.dim:
        raise UserError(
            f"{where}: lm.condition_dim {lm.condition_dim} is not conditioner.dim {words.dim}: "
            "use the file the weights were saved with"
        )
    return LMCheckpoint(
        name=config.name,
        lm=MusicLM(lm),
        conditioner=WordEncoder(words),
        pattern=from_plain(PatternSpec, config.pattern, f"{where}: pattern"),
        codec=config.codec,
        max_frames=config.max_frames,
        training=config.training,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: a missing, truncated or corrupt file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"weights {path} are missing: fetch the checkpoint again or train it")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights {path} are corrupt ({reason}): fetch them again") from None


def _fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    wrong = sorted(expected.keys() ^ given.keys())
    wrong += [k for k in expected.keys() & given.keys() if expected[k].shape != given[k].shape]
    if wrong:
        raise UserError(
            f"weights {path} do not fit {CONFIG_NAME} beside them ({wrong[0]} and {len(wrong) - 1} "
            "more): use the two files of one checkpoint"
        )


def save_lm(checkpoint: LMCheckpoint, folder: Path) -> None:
    """Write a checkpoint folder, weights in float16; each file appears whole or not at all.

    The configuration is written last, so a folder with a configuration has its weights.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    parts = (("lm.", checkpoint.lm), ("conditioner.", checkpoint.conditioner))
    for prefix, module in parts:
        for name, value in module.state_dict().items():
            tensors[prefix + name] = value.detach().to("cpu", torch.float16).contiguous()
    partial = folder / (WEIGHTS_NAME + ".tmp")
    save_file(tensors, partial)
    partial.chmod(0o644)
    os.replace(partial, folder / WEIGHTS_NAME)
    config = NativeConfig(
        schema=SCHEMA,
        name=checkpoint.name,
        lm=to_plain(checkpoint.lm.config),
        pattern=to_plain(checkpoint.pattern),
        conditioner=to_plain(checkpoint.conditioner.config),
        codec=checkpoint.codec,
        max_frames=checkpoint.max_frames,
        training=to_plain(checkpoint.training),
    )
    partial = folder / (CONFIG_NAME + ".tmp")
    partial.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, width=100))
    os.replace(partial, folder / CONFIG_NAME)
