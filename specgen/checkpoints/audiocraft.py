"""audiocraft's export (`audiocraft.utils.export`): `state_dict.bin`, `compression_state_dict.bin`.

Each is a `torch.save` of a mapping: the model's tensors (`best_state`), its configuration as YAML
(`xp.cfg`) and audiocraft's version. The codec's file may instead name a pretrained model
(`{pretrained: NAME}`). T5's weights are in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.checkpoints.audiocraft_config import Described, describe, read_xp_cfg
from specgen.checkpoints.base import (
    CodecId,
    Conditioner,
    LMCheckpoint,
    NoText,
    Piece,
    Plan,
    build_lm,
    codebooks_fingerprint,
    file_sha256,
    is_finite,
)
from specgen.checkpoints.pickled import read_pickled, training_checkpoint
from specgen.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from specgen.codec.encodec import EncodecCodec
    from specgen.lm.config import LMConfig

LM_NAME, CODEC_NAME = "state_dict.bin", "compression_state_dict.bin"
TEXT_FOLDER = "text_encoder"  # where a T5 may lie beside the export, so that no hub is asked
# Commits of the T5 models that the public checkpoints were trained with.
T5_REVISIONS = {"t5-base": "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"}
_CODEBOOK = "quantizer.vq.layers.{}._codebook.embed"

# Ours -> audiocraft's, in a block; weights and, where the model has them, biases.
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "norm_cross": "norm_cross",
    "up": "linear1",
    "down": "linear2",
    "attention.qkv": "self_attn.in_proj_",
    "attention.out": "self_attn.out_proj",
    "attention.q_norm": "self_attn.q_layer_norm",
    "attention.k_norm": "self_attn.k_layer_norm",
    "cross.out": "cross_attention.out_proj",
    "cross.q_norm": "cross_attention.q_layer_norm",
    "cross.k_norm": "cross_attention.k_layer_norm",
}
SCALES = {"scale1": "layer_scale_1", "scale2": "layer_scale_2", "scale_cross": "layer_scale_cross"}


def load_lm(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LMCheckpoint:
    """The language model of an export, in evaluation mode; `dtype` None is float32.

    Raises:
        UserError: missing, corrupt or unsafe files, options that are unknown or not supported,
            tensors that do not fit them.
    """
    path = folder / LM_NAME
    state, cfg = read_export(path)
    said = describe(cfg, path)
    codec = codec_id(folder, said)
    conditioner = _conditioner(said, state, folder)
    conditioner.to(device=device, dtype=dtype)  # type: ignore[attr-defined]
    tensors = _lm_tensors(state)
    del state  # so that each tensor is freed once it has been taken over
    lm = build_lm(said.lm, plan(said.lm), tensors, path, device, dtype)
    return LMCheckpoint(
        name=folder.resolve().name,
        lm=lm,
        conditioner=conditioner,
        pattern=said.pattern,
        codec=codec,
        max_frames=round(said.seconds * codec.frame_rate),
        sha256=file_sha256(path),
        guidance=said.guidance,
    )


def load_codec(folder: Path, wanted: CodecId | None = None) -> EncodecCodec:
    """The codec of an export, wrapped and cut as the language model wants it.

    Raises:
        UserError: see `load_lm`; or a codec that is named but not here.
    """
    from specgen.codec.encodec import EncodecCodec

    cfg, state, named = _read_codec(folder)
    channels = wanted.channels if wanted is not None else None
    if named is not None:
        from specgen.checkpoints import huggingface

        return huggingface.load_codec(_pretrained(named, folder), wanted)
    books = None if wanted is None else wanted.codebooks // wanted.channels
    return EncodecCodec.from_audiocraft(cfg, state, channels=channels, codebooks=books)


def codec_id(folder: Path, said: Described) -> CodecId:
    """Which codec a language model's tokens belong to: the one whose file lies beside it.

    Raises:
        UserError: there is none, or it does not have the codebooks that the model writes.
    """
    from specgen.codec.encodec_config import audiocraft_fields

    cfg, state, named = _read_codec(folder)
    if named is not None:
        from specgen.checkpoints import huggingface

        where = _pretrained(named, folder)
        found = huggingface.codec_id(where)
        rate, sample_rate, card = found.frame_rate, found.sample_rate, found.card
        books, tables = found.codebooks, huggingface.tables(where)
    else:
        fields = audiocraft_fields(cfg)
        hop = 1
        for ratio in fields["ratios"]:
            hop *= ratio
        sample_rate, card, books = fields["sample_rate"], fields["card"], fields["codebooks"]
        rate = sample_rate / hop
        tables = [state[_CODEBOOK.format(k)] for k in range(books) if _CODEBOOK.format(k) in state]
    K = said.lm.codebooks
    each = said.codec_books or books
    if each > books or each * said.channels != K or card != said.lm.card:
        raise UserError(
            f"{folder}: the language model writes {K} codebooks of {said.lm.card} entries for "
            f"{said.channels} channels, {CODEC_NAME} has {books} of {card}: use the codec it was "
            "trained with"
        )
    if sample_rate != said.sample_rate:
        raise UserError(
            f"{folder}: the language model is for {said.sample_rate} Hz, {CODEC_NAME} for "
            f"{sample_rate} Hz: use the codec it was trained with"
        )
    marks = codebooks_fingerprint(tables[:each])
    return CodecId(sample_rate, rate, K, card, marks, said.channels)


def read_export(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and resolved configuration of an export.

    Raises:
        UserError: a file that is missing, corrupt, unsafe, or no export.
    """
    import torch

    values = read_pickled(path)
    state, text = values.get("best_state"), values.get("xp.cfg")
    if isinstance(state, dict) and "model" in state and not isinstance(text, str):
        raise training_checkpoint(path)
    if not isinstance(state, dict) or not isinstance(text, str):
        raise UserError(
            f"{path} lacks best_state or xp.cfg: this is no export of audiocraft; make one with "
            "audiocraft.utils.export"
        )
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name} of best_state is no tensor: export it again")
    return state, read_xp_cfg(text, path)


def plan(config: LMConfig) -> Plan:
    """How our tensors are put together from audiocraft's."""
    books = range(config.codebooks)
    made: dict[str, list[Piece]] = {"embedding.weight": [Piece(f"emb.{k}.weight") for k in books]}
    for kind in ("weight", "bias") if config.bias_heads else ("weight",):
        made[f"heads.{kind}"] = [Piece(f"linears.{k}.{kind}") for k in books]
    if config.norm_first:
        made |= {f"out_norm.{kind}": [Piece(f"out_norm.{kind}")] for kind in ("weight", "bias")}
    for i in range(config.layers):
        ours, theirs = f"transformer.blocks.{i}.", f"transformer.layers.{i}."
        for name, pieces in _block(config).items():
            made[ours + name] = [Piece(theirs + piece.name, piece.rows) for piece in pieces]
    return made


def _block(config: LMConfig) -> dict[str, list[Piece]]:
    made: dict[str, list[Piece]] = {}
    crossed = config.condition_dim > 0
    for ours, theirs in BLOCK.items():
        if ("cross" in ours and not crossed) or not _has(config, ours):
            continue
        for kind in ("weight", "bias") if _biased(config, ours) else ("weight",):
            name = theirs + kind if theirs.endswith("_") else f"{theirs}.{kind}"
            made[f"{ours}.{kind}"] = [Piece(name)]
    if crossed:  # one matrix there; queries apart here, since keys and values are made once
        for kind in ("weight", "bias") if config.bias_attn else ("weight",):
            name = f"cross_attention.in_proj_{kind}"
            made[f"cross.q.{kind}"] = [Piece(name, slice(0, config.dim))]
            made[f"cross.kv.{kind}"] = [Piece(name, slice(config.dim, None))]
    if config.layer_scale:
        for ours, theirs in SCALES.items():
            if ours != "scale_cross" or crossed:
                made[ours] = [Piece(f"{theirs}.scale")]
    return made


def _has(config: LMConfig, layer: str) -> bool:
    if layer.startswith("attention.") and layer.endswith("_norm"):
        return config.qk_norm
    if layer.startswith("cross.") and layer.endswith("_norm"):
        return config.qk_norm_cross
    return True


def _biased(config: LMConfig, layer: str) -> bool:
    if "norm" in layer:
        return True
    return config.bias_ff if layer in ("up", "down") else config.bias_attn


def _lm_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The language model's own tensors: no conditioners, no tables that follow from options.

    Models trained without audiocraft's own attention class keep it one level deeper (`mha`).
    """
    return {
        name.replace(".mha.", "."): value
        for name, value in state.items()
        if not name.startswith("condition_provider.") and not name.endswith("rope.frequencies")
    }


def _conditioner(said: Described, state: Mapping[str, Tensor], folder: Path) -> Conditioner:
    prefix = "condition_provider.conditioners."
    given = {n.removeprefix(prefix) for n in state if n.startswith(prefix)}
    if said.text is None:
        if given:
            raise UserError(f"{folder / LM_NAME}: {min(given)} belongs to no conditioner")
        return NoText()
    from specgen.lm.chroma import ChromaConditioner, PrefixConditioner
    from specgen.lm.t5 import T5Conditioner

    path, keys = folder / LM_NAME, [said.text.key]
    keys += [said.melody.key] if said.melody is not None else []
    known = {f"{key}.output_proj.{kind}" for key in keys for kind in ("weight", "bias")}
    unknown = sorted(given - known - {f"{key}.chroma.spec.window" for key in keys[1:]})
    missing = sorted({f"{key}.output_proj.weight" for key in keys} - given)
    if unknown or missing:
        wrong = f"{unknown[0]} is unknown" if unknown else f"{missing[0]} is missing"
        raise UserError(f"{path} does not fit its configuration ({prefix}{wrong})")

    def projection(key: str) -> tuple[Tensor, Tensor | None]:
        names = [f"{key}.output_proj.weight", f"{key}.output_proj.bias"]
        for name in names:
            if name in given and not is_finite(state[prefix + name]):
                raise UserError(f"{path}: {name} holds numbers that are not finite")
        weight, bias = (state.get(prefix + name) for name in names)
        assert weight is not None
        return weight.float(), None if bias is None else bias.float()

    beside = folder / TEXT_FOLDER
    try:
        text = T5Conditioner(
            said.text.t5,
            said.lm.dim,
            *projection(said.text.key),
            folder=beside if beside.is_dir() else None,
            revision=T5_REVISIONS.get(said.text.t5),
        )
        if not said.prepended:
            return text
        melody = None
        if said.melody is not None:
            melody = ChromaConditioner(said.melody.chroma, *projection(said.melody.key))
        return PrefixConditioner(text, melody)
    except ValueError as error:
        raise UserError(f"{path}: {prefix}*.output_proj: {error}") from None


def _read_codec(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """Configuration and tensors of the codec's file, or the name of the codec it stands for."""
    path = folder / CODEC_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} has no {CODEC_NAME}: make it with "
            "audiocraft.utils.export.export_pretrained_compression_model"
        )
    values = read_pickled(path)
    if "pretrained" in values:
        return {}, {}, str(values["pretrained"])
    del values
    state, cfg = read_export(path)
    return cfg, state, None


def _pretrained(name: str, folder: Path) -> Path:
    """The folder of a codec that an export names instead of holding it.

    It is looked for beside the export and in the hub's local cache; a local folder asks no network.
    """
    from specgen.checkpoints import hub

    beside = folder / "codec"
    if beside.is_dir():
        return beside
    found = hub.cached(hub.Reference(name))
    if found is None:
        raise UserError(
            f"{folder / CODEC_NAME} stands for the codec {name}, which is not here: fetch it with "
            f"'hf download {name}', or put its folder at {beside}"
        )
    return found
