"""The native format: a folder with `config.yaml` and `model.safetensors`.

It holds a language model with its text encoder, the pattern it was trained for, and which codec its
tokens belong to. Tensor names start with `lm.` or `conditioner.`. The text encoder is the embedded
models' own (`WordEncoder`), a T5 by reference with the model's projection of it (`kind: t5`), or
none (`kind: none`). A converted checkpoint has its codec in `codec/` and, if it came along, its T5
in `text_encoder/`.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from specgen.checkpoints.base import (
    GUIDANCE,
    CodecId,
    LMCheckpoint,
    NoText,
    Piece,
    build_lm,
    file_sha256,
    is_finite,
)
from specgen.checkpoints.files import SafeTensors, from_plain, load_yaml, to_plain
from specgen.checkpoints.pairing import BORROWED, borrowed, check_follows
from specgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgen.lm.config import LMConfig

__all__ = ["CodecId", "LMCheckpoint", "codec_id", "file_sha256", "load_lm", "save_lm"]

SCHEMA = 1
CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"
TEXT_FOLDER = "text_encoder"


@dataclass(frozen=True)
class NativeConfig:
    """What `config.yaml` of a language model says; `lm`, `pattern` and `conditioner` are the fields
    of `LMConfig`, `PatternSpec` and of the text encoder, checked when the model is built."""

    schema: int
    name: str
    lm: dict[str, Any]
    pattern: dict[str, Any]
    conditioner: dict[str, Any]
    codec: CodecId
    max_frames: int
    training: dict[str, Any] = field(default_factory=dict)
    guidance: float = GUIDANCE

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


@dataclass(frozen=True)
class T5Reference:
    """A T5 and the model's projection of it, as `config.yaml` has them.

    Attributes:
        kind: `t5`.
        name: on the hub.
        dim, t5_dim: width of the condition and of T5.
        projected, bias: whether there is a projection, and whether it has a bias.
        revision: commit on the hub.
        beside: whether its files lie in `text_encoder/`.
        prepended: whether conditions stand before the sequence (else: cross-attention).
        melody: the fields of `ChromaConfig`, for a model that follows melodies.
    """

    kind: str
    name: str
    dim: int
    t5_dim: int
    projected: bool = True
    bias: bool = True
    revision: str | None = None
    beside: bool = False
    prepended: bool = False
    melody: dict[str, Any] | None = None


def embedded_folder(name: str) -> Path:
    """Where the embedded checkpoint `name` lies, installed with the package."""
    return Path(__file__).parent / "embedded" / name


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
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verifier: LMCheckpoint | None = None,
) -> LMCheckpoint:
    """Load a language model in evaluation mode, without gradients; `dtype` None is float32.

    Args:
        verifier: of a drafter; neither packed nor quantised yet.

    Raises:
        UserError: missing, truncated or corrupt files, unknown or missing keys, tensors whose
            names or shapes do not fit the configuration, or a drafter without the verifier whose
            states it reads.
    """
    from specgen.lm.config import LMConfig
    from specgen.patterns import PatternSpec

    config, where, path = read_config(folder), folder / CONFIG_NAME, folder / WEIGHTS_NAME
    lm = from_plain(LMConfig, config.lm, f"{where}: lm")
    pattern = from_plain(PatternSpec, config.pattern, f"{where}: pattern")
    conditioner = _conditioner(config, lm, folder)
    conditioner.to(device=device, dtype=dtype)
    tensors: Mapping[str, Tensor] = SafeTensors([path], "lm.")
    if lm.feature_dim:
        check_follows(config.name, lm, pattern, verifier)
        assert verifier is not None
        tensors = ChainMap(dict(tensors), borrowed(verifier))
    return LMCheckpoint(
        name=config.name,
        lm=build_lm(lm, plan(lm), tensors, path, device, dtype),
        conditioner=conditioner,
        pattern=pattern,
        codec=config.codec,
        max_frames=config.max_frames,
        sha256=file_sha256(path),
        training=config.training,
        guidance=config.guidance,
    )


def plan(config: LMConfig) -> dict[str, list[Piece]]:
    """Every tensor is kept as it is."""
    from specgen.lm.model import MusicLM
    from specgen.tensors import bare

    with bare():
        return {name: [Piece(name)] for name in MusicLM(config).state_dict()}


def _conditioner(config: NativeConfig, lm: LMConfig, folder: Path) -> Any:
    """The text encoder that a configuration names, with its weights."""
    where, path = f"{folder / CONFIG_NAME}: conditioner", folder / WEIGHTS_NAME
    kind = config.conditioner.get("kind", "words")
    if kind == "none":
        return NoText()
    if kind == "t5":
        return _t5(from_plain(T5Reference, config.conditioner, where), lm, folder)
    import torch

    from specgen.lm.conditioning import WordEncoder, WordEncoderConfig

    options = from_plain(WordEncoderConfig, config.conditioner, where)
    _check_width(lm, options.dim, where)
    words = WordEncoder(options)
    given = dict(SafeTensors([path], "conditioner."))
    _fit(words.state_dict(), given, path)
    words.load_state_dict({name: value.to(torch.float32) for name, value in given.items()})
    return words.eval().requires_grad_(False)


def _t5(options: T5Reference, lm: LMConfig, folder: Path) -> Any:
    from specgen.lm.t5 import T5Conditioner

    path = folder / WEIGHTS_NAME
    where = f"{folder / CONFIG_NAME}: conditioner"
    _check_width(lm, options.dim, where, prepended=options.prepended)
    given = dict(SafeTensors([path], "conditioner."))
    shapes = {"weight": (options.dim, options.t5_dim)} if options.projected else {}
    if options.bias and options.projected:
        shapes |= {"bias": (options.dim,)}  # type: ignore[dict-item]
    chroma = None
    if options.melody is not None and options.prepended:
        from specgen.lm.chroma import ChromaConfig

        chroma = from_plain(ChromaConfig, options.melody, f"{where}: melody")
        shapes |= {"melody.weight": (options.dim, chroma.pitches)}
        shapes |= {"melody.bias": (options.dim,)} if "melody.bias" in given else {}  # type: ignore[dict-item]
    if {name: tuple(value.shape) for name, value in given.items()} != shapes:
        raise UserError(
            f"weights {path} do not fit {CONFIG_NAME} beside them (conditioner): use the two files "
            "of one checkpoint"
        )
    for name, value in given.items():
        if not is_finite(value):
            raise UserError(f"weights {path}: conditioner.{name} holds numbers that are not finite")
    weight, bias = given.get("weight"), given.get("bias")
    text = T5Conditioner(
        options.name,
        options.dim,
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        folder=folder / TEXT_FOLDER if options.beside else None,
        revision=options.revision,
    )
    if not options.prepended:
        return text
    from specgen.lm.chroma import ChromaConditioner, PrefixConditioner

    tune = None
    if chroma is not None:
        bias = given.get("melody.bias")
        tune = ChromaConditioner(
            chroma, given["melody.weight"].float(), None if bias is None else bias.float()
        )
    return PrefixConditioner(text, tune)


def _check_width(lm: LMConfig, dim: int, where: str, *, prepended: bool = False) -> None:
    name = "dim" if prepended else "condition_dim"
    if getattr(lm, name) != dim:
        raise UserError(
            f"{where}: lm.{name} {getattr(lm, name)} is not conditioner.dim {dim}: "
            "use the file the weights were saved with"
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


def save_lm(checkpoint: LMCheckpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder; each file appears whole or not at all.

    The configuration is written last, so a folder with a configuration has its weights.

    Args:
        dtype: of the weights; float16 if left out.
    """
    import torch
    from safetensors.torch import save_file

    dtype = dtype or torch.float16
    folder.mkdir(parents=True, exist_ok=True)
    conditioner, said = _described(checkpoint.conditioner, folder)
    tensors: dict[str, Tensor] = {}
    parts = (("lm.", checkpoint.lm.state_dict()), ("conditioner.", conditioner))
    for prefix, state in parts:
        for name, value in state.items():
            if prefix == "lm." and name in BORROWED and checkpoint.lm.config.feature_dim:
                continue  # the verifier's
            tensors[prefix + name] = value.detach().to("cpu", dtype).contiguous()
    partial = folder / (WEIGHTS_NAME + ".tmp")
    save_file(tensors, partial)
    partial.chmod(0o644)
    os.replace(partial, folder / WEIGHTS_NAME)
    config = NativeConfig(
        schema=SCHEMA,
        name=checkpoint.name,
        lm=to_plain(checkpoint.lm.config),
        pattern=to_plain(checkpoint.pattern),
        conditioner=said,
        codec=checkpoint.codec,
        max_frames=checkpoint.max_frames,
        training=to_plain(checkpoint.training),
        guidance=checkpoint.guidance,
    )
    partial = folder / (CONFIG_NAME + ".tmp")
    partial.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, width=100))
    os.replace(partial, folder / CONFIG_NAME)


def _described(conditioner: Any, folder: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """A text encoder's tensors and its part of the configuration; a T5 with files is copied."""
    if isinstance(conditioner, NoText):
        return {}, {"kind": "none"}
    from specgen.lm.conditioning import WordEncoder

    if isinstance(conditioner, WordEncoder):
        return conditioner.state_dict(), to_plain(conditioner.config)
    from specgen.lm.chroma import PrefixConditioner

    tune, prepended = None, isinstance(conditioner, PrefixConditioner)
    if prepended:
        conditioner, tune = conditioner.text, conditioner.melody
    encoder, weight, bias = conditioner.encoder, conditioner.weight, conditioner.bias
    beside = encoder.folder is not None
    if beside:
        encoder.save(folder / TEXT_FOLDER)
    said = T5Reference(
        kind="t5",
        name=conditioner.name,
        dim=conditioner.dim,
        t5_dim=conditioner.dim if weight is None else weight.shape[1],
        projected=weight is not None,
        bias=bias is not None,
        revision=encoder.revision,
        beside=beside,
        prepended=prepended,
        melody=None if tune is None else to_plain(tune.config),
    )
    given = {"weight": weight, "bias": bias}
    if tune is not None:
        given |= {"melody.weight": tune.weight, "melody.bias": tune.bias}
    return {name: v for name, v in given.items() if v is not None}, to_plain(said)
