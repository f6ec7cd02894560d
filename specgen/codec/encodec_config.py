"""The fields of `EncodecConfig` read from audiocraft's and transformers' configurations.

Every option that decides the output is either read or refused by name; none is guessed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specgen.errors import UserError

# audiocraft's option -> ours, in its `seanet` section.
_SEANET = {
    "dimension": "dim",
    "channels": "network_channels",
    "causal": "causal",
    "n_filters": "filters",
    "n_residual_layers": "residual_layers",
    "ratios": "ratios",
    "kernel_size": "kernel",
    "residual_kernel_size": "residual_kernel",
    "last_kernel_size": "last_kernel",
    "dilation_base": "dilation_base",
    "pad_mode": "pad_mode",
    "compress": "compress",
    "lstm": "lstm",
}
# Its options of which one value is supported, because transformers' network knows no other.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation": ("ELU",),
    "activation_params": ({"alpha": 1.0}, {}, None),
    "final_activation": (None,),
    "final_activation_params": (None, {}),
    "norm_params": ({}, None),
}
# Values they take in audiocraft where they are left out.
_SEANET_DEFAULTS = {
    "channels": 1,
    "dimension": 128,
    "n_filters": 32,
    "n_residual_layers": 3,
    "ratios": [8, 5, 4, 2],
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_base": 2,
    "causal": False,
    "pad_mode": "reflect",
    "compress": 2,
    "lstm": 0,
    "norm": "none",
    "true_skip": True,
    "disable_norm_outer_blocks": 0,
    "trim_right_ratio": 1.0,
}
# Of the quantiser: how it is trained, which decides nothing any more.
_RVQ_TRAINING = {
    "q_dropout",
    "decay",
    "kmeans_init",
    "kmeans_iters",
    "threshold_ema_dead_code",
    "orthogonal_reg_weight",
    "orthogonal_reg_active_codes_only",
    "orthogonal_reg_max_codes",
}


def audiocraft_fields(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from the resolved `xp.cfg` of an audiocraft compression model.

    Raises:
        UserError: an option that is unknown or not supported.
    """
    _only(cfg, "compression_model", ("encodec",))
    encodec, rvq = _part(cfg, "encodec"), _part(cfg, "rvq")
    _only(encodec, "autoencoder", ("seanet",), "encodec")
    _only(encodec, "quantizer", ("rvq",), "encodec")
    known = {"autoencoder", "quantizer", "sample_rate", "channels", "causal"}
    _known(encodec, known | {"renormalize", "renorm"}, "encodec")
    _known(rvq, {"n_q", "bins"} | _RVQ_TRAINING, "rvq")
    seanet = _seanet(_part(cfg, "seanet"))
    fields = {ours: seanet[theirs] for theirs, ours in _SEANET.items()}
    fields["ratios"] = [int(ratio) for ratio in seanet["ratios"]]
    return fields | {
        "sample_rate": _value(encodec, "sample_rate", "encodec"),
        "codebooks": _value(rvq, "n_q", "rvq"),
        "card": _value(rvq, "bins", "rvq"),
        "trim_right_ratio": float(seanet["trim_right_ratio"]),
        "conv_shortcut": not seanet["true_skip"],
        "renormalize": bool(encodec.get("renormalize", False)),
    }


def _seanet(section: dict[str, Any]) -> dict[str, Any]:
    """The section with audiocraft's defaults, its decoder's own options merged in."""
    encoder = section.pop("encoder", None) or {}
    decoder = section.pop("decoder", None) or {}
    values = _SEANET_DEFAULTS | section | decoder
    for name, value in encoder.items():
        if values.get(name, value) != value:
            raise UserError(
                f"codec option seanet.encoder.{name} differs from the decoder's; that is not "
                "supported"
            )
    _known(values, set(_SEANET_DEFAULTS) | set(_FIXED), "seanet")
    for name, allowed in _FIXED.items():
        if name in values:
            _only(values, name, allowed, "seanet")
    # Norms of these kinds are part of the weights; the others would have to be computed.
    _only(values, "norm", ("weight_norm", "none"), "seanet")
    return values


def transformers() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise UserError(
            "MusicGen's codec runs on transformers, which is not installed: "
            "pip install 'specgen[musicgen]'"
        ) from None


def transformers_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from the `config.json` of transformers' `EncodecModel`.

    Raises:
        UserError: an option that is not supported.
    """
    EncodecConfig = transformers().EncodecConfig
    _only(config, "model_type", ("encodec",))
    try:
        full = EncodecConfig(**dict(config))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the codec's configuration is no EnCodec's ({reason})") from None
    if full.chunk_length_s is not None:
        raise UserError(
            f"codec option chunk_length_s {full.chunk_length_s} is not supported: the MusicGen "
            "models use EnCodec at 16 or 32 kHz, which has none"
        )
    if full.norm_type != "weight_norm":
        raise UserError(f"codec option norm_type {full.norm_type!r} is not supported")
    if full.codebook_dim != full.hidden_size:
        raise UserError(f"codec option codebook_dim {full.codebook_dim} is not supported")
    return {
        "sample_rate": full.sampling_rate,
        "codebooks": full.num_quantizers,
        "card": full.codebook_size,
        "ratios": [int(ratio) for ratio in full.upsampling_ratios],
        "dim": full.hidden_size,
        "filters": full.num_filters,
        "residual_layers": full.num_residual_layers,
        "kernel": full.kernel_size,
        "last_kernel": full.last_kernel_size,
        "residual_kernel": full.residual_kernel_size,
        "dilation_base": full.dilation_growth_rate,
        "compress": full.compress,
        "lstm": full.num_lstm_layers,
        "causal": full.use_causal_conv,
        "pad_mode": full.pad_mode,
        "trim_right_ratio": float(full.trim_right_ratio),
        "conv_shortcut": full.use_conv_shortcut,
        "renormalize": full.normalize,
        "network_channels": full.audio_channels,
    }


def _part(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = cfg.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"the codec's configuration has no section {name!r}: check the file")
    return dict(section)


def _value(section: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in section:
        raise UserError(f"the codec's configuration lacks {where}.{name}: check the file")
    return section[name]


def _only(section: Mapping[str, Any], name: str, allowed: tuple[Any, ...], where: str = "") -> None:
    if name in section and section[name] not in allowed:
        option = f"{where}.{name}" if where else name
        raise UserError(f"codec option {option} {section[name]!r} is not supported")


def _known(section: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in section:
        if name not in known:
            raise UserError(f"codec option {where}.{name} is unknown to this version")


# The two parts of a weight-normed tensor: the old form, and that of torch's parametrisations.
_PARTS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# audiocraft wraps a convolution twice and keeps layers in `model`, codebooks in `vq`.
_RENAMED = (
    (re.compile(r"^(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.(conv|convtr)\.\1\."), ".conv."),
    (re.compile(r"^quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.layers.\1.codebook."),
)


def from_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audiocraft's `EncodecModel` state under transformers' names."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every pair of magnitude and direction as the one weight they stand for.

    Either part without the other is left as it is: it will not fit, and be named.
    """
    folded = dict(state)
    for magnitude, direction in _PARTS:
        for name in [n for n in folded if n.endswith("." + magnitude)]:
            stem = name.removesuffix(magnitude)
            if stem + direction in folded:
                g, v = folded.pop(name), folded.pop(stem + direction)
                # In float32 whatever the file holds, by torch's own function.
                folded[stem + "weight"] = torch._weight_norm(v.float(), g.float(), 0)
    return folded
