"""`xp.cfg` of an audiocraft export, in our terms.

It is the whole configuration of the training run as YAML, its `${key}` interpolations kept. Every
option that decides what the model computes is read or refused by name; what only steers training
is known by name and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.lm.chroma import ChromaConfig
    from specgen.lm.config import LMConfig
    from specgen.patterns import PatternSpec

# Of the machine that trained; audiocraft's own defaults ask for its environment here. Never read.
_LAUNCHER = ("dora", "slurm", "hydra", "wandb", "tensorboard", "logging")
_MAX_YAML = 2_000_000  # characters; a real one has about 10,000

# What `LMModel` and its transformer take where the file does not say (their own defaults).
_LM_DEFAULTS: dict[str, Any] = {
    "n_q": 8,
    "card": 1024,
    "dim": 128,
    "num_heads": 8,
    "hidden_scale": 4,
    "norm": "layer_norm",
    "norm_first": False,
    "bias_proj": True,
    "bias_ff": True,
    "bias_attn": True,
    "activation": "relu",
    "causal": False,
    "past_context": None,
    "layer_scale": None,
    "positional_embedding": "sin",
    "max_period": 10_000,
    "positional_scale": 1.0,
    "xpos": False,
    "cross_attention": False,
    "qk_layer_norm": False,
    "qk_layer_norm_cross": False,
    "kv_repeat": 1,
}
# Options that steer training or choose between equal computations.
_LM_IGNORED = {
    "dropout",
    "attention_dropout",
    "emb_lr",
    "lr",
    "weight_decay",
    "weight_init",
    "depthwise_init",
    "zero_bias_init",
    "checkpointing",
    "custom",
    "memory_efficient",
    "attention_as_float32",
    "two_step_cfg",
    "q_modeling",
}
_FUSER = {"cross_attention_pos_emb", "cross_attention_pos_emb_scale"}
_FUSES = ("sum", "prepend", "input_interpolate", "cross")
_T5_IGNORED = {"word_dropout", "autocast_dtype"}


@dataclass(frozen=True)
class TextCondition:
    """A T5 condition: its name among the conditioners, and the T5 it reads through."""

    key: str
    t5: str


@dataclass(frozen=True)
class MelodyCondition:
    """A chroma condition: its name among the conditioners, and how the chroma is made."""

    key: str
    chroma: ChromaConfig


@dataclass(frozen=True)
class Described:
    """What an `xp.cfg` says of a language model.

    Attributes:
        lm: its dimensions and options; `condition_dim` is `dim`, or 0 without cross-attention.
        pattern: its codebook pattern.
        text, melody: its conditions, None if it has none.
        prepended: whether they stand before the sequence (else: cross-attention).
        sample_rate: of its audio, in hertz.
        channels: 2 where its codec is wrapped in two interleaved streams.
        seconds: longest piece it was trained on.
        guidance: CFG coefficient.
        codec: how the trainer named the codec.
        codec_books: codebooks it uses of it, a channel; None: all.
    """

    lm: LMConfig
    pattern: PatternSpec
    text: TextCondition | None
    sample_rate: int
    channels: int
    seconds: float
    guidance: float
    codec: str
    codec_books: int | None = None
    melody: MelodyCondition | None = None
    prepended: bool = False


def read_xp_cfg(text: str, where: Path) -> dict[str, Any]:
    """The resolved configuration.

    Raises:
        UserError: unreadable YAML, anchors, a call of a resolver (such as `${oc.env:HOME}`), or an
            interpolation that leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if len(text) > _MAX_YAML:
        raise UserError(f"{where}: xp.cfg has {len(text):,} characters: this is no export")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{where}: xp.cfg has YAML anchors, which no export has: do not use it")
        config = OmegaConf.create(text)
        raw = OmegaConf.to_container(config, resolve=False)
        if not isinstance(raw, dict):
            raise UserError(f"{where}: xp.cfg holds no mapping: export the checkpoint again")
        for section in _LAUNCHER:
            raw.pop(section, None)
        _refuse_calls(raw, "", where)
        values = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{where}: xp.cfg is not readable ({reason})") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _refuse_calls(value: Any, at: str, where: Path) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_calls(inner, f"{at}.{key}" if at else str(key), where)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_calls(inner, f"{at}[{i}]", where)
    elif isinstance(value, str) and "${" in value and ":" in value[value.index("${") :]:
        raise UserError(
            f"{where}: xp.cfg calls a resolver at {at} ({value:.60}), which is not done for files "
            "from outside: write the value itself and export again"
        )


def describe(cfg: Mapping[str, Any], where: Path) -> Described:
    """A language model as its resolved configuration has it.

    Raises:
        UserError: an option that is unknown, not supported, or missing.
    """
    kind = cfg.get("lm_model")
    if kind != "transformer_lm":
        raise UserError(f"{where}: lm_model {kind!r} is not supported, only transformer_lm is")
    options = _section(cfg, "transformer_lm", where)
    text, melody, prepended = _conditions(cfg, where)
    stereo = dict(cfg.get("interleave_stereo_codebooks") or {})
    if stereo.get("use") and stereo.get("per_timestep"):
        raise _unsupported(where, "interleave_stereo_codebooks.per_timestep", True)
    guidance = _section(cfg, "classifier_free_guidance", where)
    seconds = _section(cfg, "dataset", where).get("segment_duration")
    if not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
        raise UserError(f"{where}: dataset.segment_duration must be seconds, got {seconds!r}")
    return Described(
        lm=_lm(options, text is not None and not prepended, where),
        pattern=_pattern(cfg, options, where),
        text=text,
        sample_rate=int(_value(cfg, "sample_rate", "", where)),
        channels=2 if stereo.get("use") else 1,
        seconds=float(seconds),
        guidance=float(_value(guidance, "inference_coef", "classifier_free_guidance.", where)),
        codec=str(cfg.get("compression_model_checkpoint") or ""),
        codec_books=cfg.get("compression_model_n_q"),
        melody=melody,
        prepended=prepended,
    )


def _lm(options: Mapping[str, Any], conditioned: bool, where: Path) -> LMConfig:
    from specgen.lm.config import LMConfig

    for name in options:
        if name not in _LM_DEFAULTS and name not in _LM_IGNORED and name != "num_layers":
            raise UserError(f"{where}: option transformer_lm.{name} is unknown to this version")
    full = {**_LM_DEFAULTS, **options}
    fixed = {"norm": "layer_norm", "causal": True, "xpos": False}
    for name, only in fixed.items():
        if full[name] != only:
            raise _unsupported(where, f"transformer_lm.{name}", full[name])
    if full["cross_attention"] and not conditioned:
        raise UserError(f"{where}: transformer_lm.cross_attention is on, but fuser.cross is empty")
    layers = _value(options, "num_layers", "transformer_lm.", where)
    try:
        return LMConfig(
            codebooks=full["n_q"],
            card=full["card"],
            dim=full["dim"],
            heads=full["num_heads"],
            layers=layers,
            ff_dim=int(full["hidden_scale"] * full["dim"]),
            condition_dim=full["dim"] if conditioned else 0,
            activation=full["activation"],
            norm_first=full["norm_first"],
            bias_attn=full["bias_attn"],
            bias_ff=full["bias_ff"],
            bias_heads=full["bias_proj"],
            positions=full["positional_embedding"],
            max_period=float(full["max_period"]),
            positional_scale=float(full["positional_scale"]),
            qk_norm=full["qk_layer_norm"],
            qk_norm_cross=full["qk_layer_norm_cross"] and conditioned,
            kv_repeat=full["kv_repeat"],
            layer_scale=full["layer_scale"] is not None,
            past_context=full["past_context"],
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: transformer_lm: {error}: not supported") from None


def _pattern(cfg: Mapping[str, Any], options: Mapping[str, Any], where: Path) -> PatternSpec:
    from specgen.patterns import PatternSpec

    books = {**_LM_DEFAULTS, **options}["n_q"]
    section = _section(cfg, "codebooks_pattern", where)
    name = section.get("modeling")
    if name is None:  # early models; audiocraft then takes the plain delays, whatever the section
        name = options.get("q_modeling")
        section = {"delay": {"delays": list(range(books))}}
    # audiocraft's name -> ours, and its options -> ours
    kinds: dict[Any, tuple[str, dict[str, str]]] = {
        "parallel": ("parallel", {"empty_initial": "empty_initial"}),
        "delay": (
            "delay",
            {
                "delays": "delays",
                "flatten_first": "flatten_first",
                "empty_initial": "empty_initial",
            },
        ),
        "unroll": ("flatten", {"flattening": "flattening", "delays": "delays"}),
        "coarse_first": ("coarse_first", {"delays": "delays"}),
        "musiclm": ("stack", {"group_by": "group"}),
    }
    if name not in kinds:
        raise _unsupported(where, "codebooks_pattern.modeling", name)
    kind, names = kinds[name]
    given = dict(section.get(str(name)) or {})
    for option in given:
        if option not in names:
            raise UserError(
                f"{where}: option codebooks_pattern.{name}.{option} is unknown to this version"
            )
    fields = {
        ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None
    }
    try:
        return PatternSpec(kind, books, **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: codebooks_pattern.{name}: {error}: not supported") from None


def _conditions(
    cfg: Mapping[str, Any], where: Path
) -> tuple[TextCondition | None, MelodyCondition | None, bool]:
    """Text, melody, and whether they are prepended."""
    fuser = dict(cfg.get("fuser") or {})
    for name in fuser:
        if name not in _FUSER and name not in _FUSES:
            raise UserError(f"{where}: option fuser.{name} is unknown to this version")
    for name in ("sum", "input_interpolate"):
        if fuser.get(name):
            raise _unsupported(where, f"fuser.{name}", fuser[name])
    if fuser.get("cross_attention_pos_emb"):
        raise _unsupported(where, "fuser.cross_attention_pos_emb", True)
    crossed, prepended = list(fuser.get("cross") or []), list(fuser.get("prepend") or [])
    conditioners = dict(cfg.get("conditioners") or {})
    conditioners.pop("args", None)
    if sorted(crossed + prepended) != sorted(conditioners):
        raise UserError(
            f"{where}: fuser.cross {crossed}, fuser.prepend {prepended} and conditioners "
            f"{sorted(conditioners)} differ: not supported"
        )
    parts = {str(key): dict(part or {}) for key, part in conditioners.items()}
    kinds = {part.get("model"): key for key, part in parts.items()}
    for key, part in parts.items():
        if part.get("model") not in ("t5", "chroma_stem"):
            raise _unsupported(where, f"conditioners.{key}.model", part.get("model"))
    if not parts:
        return None, None, False
    # A melody is prepended, and the text with it; audiocraft puts the melody first in any case.
    melodies = "chroma_stem" in kinds
    both = bool(crossed and prepended)
    if both or len(kinds) < len(parts) or "t5" not in kinds or (melodies and crossed):
        raise _unsupported(where, "fuser", fuser)
    text = _text(kinds["t5"], parts[kinds["t5"]], where)
    if not melodies:
        return text, None, bool(prepended)
    key = kinds["chroma_stem"]
    return text, _melody(key, parts[key], cfg, where), True


def _melody(
    key: str, part: Mapping[str, Any], cfg: Mapping[str, Any], where: Path
) -> MelodyCondition:
    from specgen.lm.chroma import ChromaConfig

    seconds: Any = _section(cfg, "dataset", where).get("segment_duration")
    try:
        options = dict(part.get("chroma_stem") or {})
        return MelodyCondition(key, ChromaConfig.from_audiocraft(options, float(seconds)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: conditioners.{key}: {error}: not supported") from None


def _text(key: str, part: Mapping[str, Any], where: Path) -> TextCondition:
    t5 = dict(part.get("t5") or {})
    for option in t5:
        if option not in _T5_IGNORED | {"name", "finetune", "normalize_text"}:
            raise UserError(
                f"{where}: option conditioners.{key}.t5.{option} is unknown to this version"
            )
    for option in ("finetune", "normalize_text"):
        if t5.get(option):
            raise _unsupported(where, f"conditioners.{key}.t5.{option}", True)
    return TextCondition(key, str(_value(t5, "name", f"conditioners.{key}.t5.", where)))


def _section(cfg: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    section = cfg.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: xp.cfg has no section {name}: this is no audiocraft LM export")
    return {str(key): value for key, value in section.items()}


def _value(section: Mapping[str, Any], name: str, prefix: str, where: Path) -> Any:
    if section.get(name) is None or section[name] == "???":
        raise UserError(f"{where}: xp.cfg lacks {prefix}{name}: export the checkpoint again")
    return section[name]


def _unsupported(where: Path, option: str, value: Any) -> UserError:
    return UserError(
        f"{where}: option {option} {value!r:.80} is not supported: see docs/checkpoints.md"
    )
