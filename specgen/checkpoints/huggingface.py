"""transformers' folders: `config.json` with safetensors, in one file or in shards.

`MusicgenForConditionalGeneration` holds language model, T5 encoder and EnCodec together;
`EncodecModel` is a codec by itself. transformers' MusicGen has fewer options than audiocraft's: no
biases, pre-norm, sinusoids, and the delays 0, 1, 2, ... (both channels of a pair together).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.checkpoints.base import (
    GUIDANCE,
    CodecId,
    Conditioner,
    LMCheckpoint,
    Piece,
    Plan,
    build_lm,
    codebooks_fingerprint,
    files_sha256,
    is_finite,
)
from specgen.checkpoints.files import SafeTensors
from specgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgen.codec.encodec import EncodecCodec
    from specgen.lm.config import LMConfig
    from specgen.patterns import PatternSpec

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
FEATURES_NAME = "preprocessor_config.json"
INDEX_NAME, GENERATION_NAME = "model.safetensors.index.json", "generation_config.json"
_DECODER = "decoder.model.decoder."
_PARTS = ("decoder.", "text_encoder.", "audio_encoder.", "enc_to_dec_proj.")
_LAYER = {
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "attention.out": "self_attn.out_proj",
    "cross.q": "encoder_attn.q_proj",
    "cross.out": "encoder_attn.out_proj",
}
_DECODER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "activation_function": "gelu",
    "hidden_size": 1024,
    "num_codebooks": 4,
    "audio_channels": 1,
}
# Options of the decoder of which one value is what the arithmetic here does.
_FIXED = {"scale_embedding": False, "tie_word_embeddings": False, "layerdrop": 0.0}


def load_lm(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LMCheckpoint:
    """The language model of a MusicGen folder, in evaluation mode; `dtype` None is float32.

    Raises:
        UserError: missing or corrupt files, options that are unknown or not supported, tensors that
            do not fit them.
    """
    where = folder / CONFIG_NAME
    config = read_config(folder)
    if config.get("model_type") not in ("musicgen", "musicgen_melody"):
        raise UserError(
            f"{where}: model_type {config.get('model_type')!r} is no MusicGen: name another folder"
        )
    melodic = config["model_type"] == "musicgen_melody"
    decoder = {**_DECODER_DEFAULTS, **_part(config, "decoder", where)}
    lm, pattern = describe(decoder, where, crossed=not melodic)
    generation = (
        _read_json(folder / GENERATION_NAME) if (folder / GENERATION_NAME).is_file() else {}
    )
    files = shards(folder)
    everything = SafeTensors(files)
    extra = sorted(
        n
        for n in everything
        if not n.startswith(_PARTS + (("audio_enc_to_dec_proj.",) if melodic else ()))
    )
    if extra:
        raise UserError(f"weights {files[0]} do not fit {CONFIG_NAME} ({extra[0]} is unknown)")
    conditioner: Any = _conditioner(_part(config, "text_encoder", where), files, folder, lm.dim)
    if melodic:
        conditioner = _prefix(conditioner, config, files, where)
    conditioner.to(device=device, dtype=dtype)
    frames = generation.get("max_length") or decoder["max_position_embeddings"] - lm.codebooks
    return LMCheckpoint(
        name=folder.resolve().name,
        lm=build_lm(lm, plan(lm), _Decoder(files), files[0], device, dtype),
        conditioner=conditioner,
        pattern=pattern,
        codec=codec_id(folder, lm.codebooks, decoder["audio_channels"]),
        max_frames=int(frames),
        sha256=files_sha256(files),
        guidance=float(generation.get("guidance_scale") or GUIDANCE),
    )


class _Decoder(SafeTensors):
    """The decoder's tensors, without the table of sinusoids that old files carry along."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(files, "decoder.")
        self._files.pop("model.decoder.embed_positions.weights", None)


def describe(
    decoder: Mapping[str, Any], where: Path, *, crossed: bool = True
) -> tuple[LMConfig, PatternSpec]:
    """Dimensions and pattern of the `decoder` part of a configuration.

    Args:
        crossed: whether it has cross-attention (all but the melody models).

    Raises:
        UserError: an option that is not supported.
    """
    from specgen.lm.config import LMConfig
    from specgen.patterns import PatternSpec

    for name, only in _FIXED.items():
        if decoder.get(name, only) != only:
            raise UserError(f"{where}: option decoder.{name} {decoder[name]!r} is not supported")
    channels, books = decoder["audio_channels"], decoder["num_codebooks"]
    if channels not in (1, 2) or not isinstance(books, int) or books % channels:
        raise UserError(f"{where}: decoder.audio_channels {channels!r} is not supported")
    try:
        lm = LMConfig(
            codebooks=books,
            card=decoder["vocab_size"],
            dim=decoder["hidden_size"],
            heads=decoder["num_attention_heads"],
            layers=decoder["num_hidden_layers"],
            ff_dim=decoder["ffn_dim"],
            condition_dim=decoder["hidden_size"] if crossed else 0,
            activation=decoder["activation_function"],
        )
        return lm, PatternSpec("delay", books, delays=tuple(k // channels for k in range(books)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: decoder: {error}: not supported") from None


def plan(config: LMConfig) -> Plan:
    """How our tensors are put together from transformers' (without the `decoder.` in front)."""
    books = range(config.codebooks)
    inner = _DECODER.removeprefix("decoder.")
    made = {
        "embedding.weight": [Piece(f"{inner}embed_tokens.{k}.weight") for k in books],
        "heads.weight": [Piece(f"lm_heads.{k}.weight") for k in books],
        "out_norm.weight": [Piece(f"{inner}layer_norm.weight")],
        "out_norm.bias": [Piece(f"{inner}layer_norm.bias")],
    }
    for i in range(config.layers):
        ours, theirs = f"transformer.blocks.{i}.", f"{inner}layers.{i}."
        for name, other in _LAYER.items():
            if "cross" in name and not config.condition_dim:
                continue
            for kind in ("weight", "bias") if "norm" in name else ("weight",):
                made[f"{ours}{name}.{kind}"] = [Piece(f"{theirs}{other}.{kind}")]
        made[f"{ours}attention.qkv.weight"] = [
            Piece(f"{theirs}self_attn.{x}_proj.weight") for x in "qkv"
        ]
        if config.condition_dim:
            made[f"{ours}cross.kv.weight"] = [
                Piece(f"{theirs}encoder_attn.{x}_proj.weight") for x in "kv"
            ]
    return made


def load_codec(folder: Path, wanted: CodecId | None = None) -> EncodecCodec:
    """The codec of a MusicGen or EnCodec folder, wrapped as the language model wants it.

    Raises:
        UserError: see `load_lm`.
    """
    from specgen.codec.encodec import EncodecCodec

    config, prefix = _codec_config(folder)
    channels = wanted.channels if wanted is not None else _channels(folder)
    return EncodecCodec.from_transformers(
        config, dict(SafeTensors(shards(folder), prefix)), channels=channels
    )


def codec_id(folder: Path, codebooks: int | None = None, channels: int = 1) -> CodecId:
    """Identity of a folder's codec, as a language model of `codebooks` codebooks uses it.

    Raises:
        UserError: the codec does not have as many.
    """
    from specgen.codec.encodec_config import transformers_fields

    config, _ = _codec_config(folder)
    fields = transformers_fields(config)
    has = fields["codebooks"]
    K = has * channels if codebooks is None else codebooks
    if has * channels != K:
        raise UserError(
            f"{folder}: the language model writes {K} codebooks for {channels} channels, its codec "
            f"has {has}: use the files of one checkpoint"
        )
    rate = fields["sample_rate"] / math.prod(fields["ratios"])
    marks = codebooks_fingerprint(tables(folder)[:has])
    return CodecId(fields["sample_rate"], rate, K, fields["card"], marks, channels)


def tables(folder: Path) -> list[Tensor]:
    """The codec's entries, `[card, dim]` a codebook."""
    tensors = SafeTensors(shards(folder), _codec_config(folder)[1])
    names = [f"quantizer.layers.{k}.codebook.embed" for k in range(len(tensors))]
    return [tensors[name] for name in names if name in tensors]


def _codec_config(folder: Path) -> tuple[dict[str, Any], str]:
    """The codec's configuration, and what its tensors' names start with."""
    config = read_config(folder)
    if config.get("model_type") == "encodec":
        return config, ""
    return _part(config, "audio_encoder", folder / CONFIG_NAME), "audio_encoder."


def _channels(folder: Path) -> int | None:
    decoder = read_config(folder).get("decoder")
    return decoder.get("audio_channels", 1) if isinstance(decoder, dict) else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`.

    Raises:
        UserError: it is missing or no JSON mapping.
    """
    return _read_json(folder / CONFIG_NAME)


def shards(folder: Path) -> list[Path]:
    """The weight files of a folder.

    Raises:
        UserError: none in safetensors, or an index that is broken or leads out of the folder.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        if not (folder / WEIGHTS_NAME).is_file() and (folder / "pytorch_model.bin").is_file():
            raise UserError(
                f"{folder} holds its weights as pickle (pytorch_model.bin), which is not read: "
                "fetch the repository's safetensors, or save it again with safe_serialization"
            )
        return [folder / WEIGHTS_NAME]
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map: fetch it again")
    files = sorted({str(name) for name in names.values()})
    if any(Path(name).name != name for name in files):
        raise UserError(f"{index} names files of other folders: do not use it")
    return [folder / name for name in files]


def _conditioner(
    config: Mapping[str, Any], files: list[Path], folder: Path, dim: int
) -> Conditioner:
    from specgen.lm.t5 import T5Conditioner

    if config.get("model_type") != "t5":
        raise UserError(
            f"{folder / CONFIG_NAME}: text_encoder.model_type {config.get('model_type')!r} is not "
            "supported, only t5 is"
        )
    projection = SafeTensors(files, "enc_to_dec_proj.")
    weight, bias = projection.get("weight"), projection.get("bias")
    width = config.get("d_model")
    if (weight is None and width != dim) or (
        weight is not None and list(weight.shape) != [dim, width]
    ):
        raise UserError(
            f"{folder}: enc_to_dec_proj does not lead from the text encoder's {width} numbers to "
            f"the decoder's {dim}: use the files of one checkpoint"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and not is_finite(value):
            raise UserError(f"{folder}: enc_to_dec_proj.{name} holds numbers that are not finite")
    state = SafeTensors(files, "text_encoder.")
    return T5Conditioner.from_transformers(
        config,
        state,
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        folder,
    )


def _prefix(text: Any, config: Mapping[str, Any], files: list[Path], where: Path) -> Conditioner:
    """The conditions of a melody model, which stand before the sequence."""
    from specgen.lm.chroma import ChromaConditioner, ChromaConfig, PrefixConditioner

    projection = SafeTensors(files, "audio_enc_to_dec_proj.")
    weight, bias = projection.get("weight"), projection.get("bias")
    pitches = config.get("num_chroma", 12)
    if weight is None or list(weight.shape) != [text.dim, pitches]:
        raise UserError(
            f"{where}: audio_enc_to_dec_proj does not lead from {pitches} pitches to the decoder's "
            f"{text.dim} numbers: use the files of one checkpoint"
        )
    for value in (weight, bias):
        if value is not None and not is_finite(value):
            raise UserError(f"{where.parent}: audio_enc_to_dec_proj holds numbers not finite")
    # The windows are its feature extractor's, which transformers keeps in a file of its own.
    beside = where.with_name(FEATURES_NAME)
    said = _read_json(beside) if beside.is_file() else {}
    try:
        chroma = ChromaConfig(
            sample_rate=_part(config, "audio_encoder", where).get("sampling_rate", 32000),
            pitches=pitches,
            window=said.get("n_fft", 16384),
            hop=said.get("hop_length", 4096),
            length=config.get("chroma_length", 235),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: the melody's options: {error}: not supported") from None
    melody = ChromaConditioner(chroma, weight.float(), None if bias is None else bias.float())
    return PrefixConditioner(text, melody)


def _part(config: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    part = config.get(name)
    if not isinstance(part, dict):
        raise UserError(f"{where} has no section {name}: this is no MusicGen of transformers")
    return part


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: fetch the checkpoint again") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not readable JSON ({reason}): fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping: fetch it again")
    return values
