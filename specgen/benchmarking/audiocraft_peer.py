"""audiocraft's own language model around specgen's weights, for comparison only.

audiocraft 1.3.0 pins an old torch and imports far more than its language model needs, so it is
installed with `--no-deps` and what the model never calls is stood in for here: importing this
module alters `sys.modules`. Nothing in specgen imports it.

    pip install --no-deps audiocraft==1.3.0 && pip install einops
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specgen.benchmarking.synthetic import dense_state
from specgen.checkpoints.audiocraft import BLOCK, SCALES
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec

INSTALL = "pip install --no-deps audiocraft==1.3.0 && pip install einops"
ABSENT = (
    "av",
    "flashy",
    "flashy.distrib",
    "julius",
    "librosa",
    "librosa.filters",
    "num2words",
    "spacy",
    "torchaudio",
    "transformers",
)


class _Missing(ModuleType):
    """A stand-in whose every attribute is a class that nobody makes an object of."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # transformers asks whether torchaudio has one

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _package(name: str, folder: Path) -> None:
    """Make `name` importable from `folder` without running its `__init__`."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)  # for whoever asks if it is installed
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def _stand_in_for_xformers() -> None:
    """The one function the model calls, and a profiler that is off (asked for at every step)."""
    xformers, ops, profiler = (
        ModuleType(n) for n in ("xformers", "xformers.ops", "xformers.profiler")
    )
    xformers.__path__ = []
    ops.unbind = torch.unbind  # type: ignore[attr-defined]
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})  # type: ignore[attr-defined]
    ops.memory_efficient_attention = None  # type: ignore[attr-defined]
    profiler.profiler = type(  # type: ignore[attr-defined]
        "profiler",
        (),
        {"_Profiler": type("_Profiler", (), {"_CURRENT_PROFILER": None})},
    )
    xformers.ops, xformers.profiler = ops, profiler  # type: ignore[attr-defined]
    sys.modules |= {
        "xformers": xformers,
        "xformers.ops": ops,
        "xformers.profiler": profiler,
    }


def installed() -> bool:
    """Whether audiocraft and einops are there."""
    return all(importlib.util.find_spec(name) for name in ("audiocraft", "einops"))


def load() -> tuple[ModuleType, ModuleType, ModuleType]:
    """audiocraft's `models.lm`, `modules.conditioners` and `modules.codebooks_patterns`.

    Raises:
        ImportError: audiocraft or einops is not installed.
    """
    if "audiocraft.models.lm" not in sys.modules:
        spec = importlib.util.find_spec("audiocraft")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"audiocraft is not installed: {INSTALL}")
        root = Path(next(iter(spec.submodule_search_locations)))
        for name in ("", ".models", ".modules", ".data", ".utils"):
            _package("audiocraft" + name, root / name[1:])
        roots = {name.split(".")[0] for name in ABSENT}
        absent = {root for root in roots if importlib.util.find_spec(root) is None}
        for name in ABSENT:
            if name.split(".")[0] in absent:
                sys.modules[name] = _Missing(name)
        if importlib.util.find_spec("xformers") is None:
            _stand_in_for_xformers()
        sys.modules["audiocraft.quantization"] = _Missing("audiocraft.quantization")
    names = ("models.lm", "modules.conditioners", "modules.codebooks_patterns")
    lm, conditioners, patterns = (importlib.import_module("audiocraft." + n) for n in names)
    return lm, conditioners, patterns


def state_dict(model: MusicLM) -> dict[str, Tensor]:
    """Our weights under audiocraft's names and in its shapes.

    audiocraft reads conditions as wide as the model, so narrower ones are padded with zeros, and so
    are the columns of the weights that would read the padding.

    Raises:
        ValueError: a condition wider than the model.
    """
    config = model.config
    if config.condition_dim > config.dim:
        raise ValueError("a condition wider than the model does not fit audiocraft's classes")
    ours = dense_state(model)
    out: dict[str, Tensor] = {}
    for k, table in enumerate(ours["embedding.weight"].chunk(config.codebooks)):
        out[f"emb.{k}.weight"] = table
    for kind in ("weight", "bias"):
        if f"heads.{kind}" in ours:
            for k, part in enumerate(ours[f"heads.{kind}"].chunk(config.codebooks)):
                out[f"linears.{k}.{kind}"] = part
        if f"out_norm.{kind}" in ours:
            out[f"out_norm.{kind}"] = ours[f"out_norm.{kind}"]
    for i in range(config.layers):
        low = f"transformer.blocks.{i}."
        block = {n.removeprefix(low): v for n, v in ours.items() if n.startswith(low)}
        out |= {f"transformer.layers.{i}.{n}": v for n, v in _layer(block, config.dim).items()}
    return out


def _layer(block: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for ours, theirs in BLOCK.items():
            if f"{ours}.{kind}" in block:
                name = theirs + kind if theirs.endswith("_") else f"{theirs}.{kind}"
                out[name] = block[f"{ours}.{kind}"]
        if f"cross.q.{kind}" in block:
            q, kv = block[f"cross.q.{kind}"], block[f"cross.kv.{kind}"]
            if kind == "weight":
                kv = F.pad(kv, (0, dim - kv.shape[1]))
            out[f"cross_attention.in_proj_{kind}"] = torch.cat([q, kv])
    for ours, theirs in SCALES.items():
        if ours in block:
            out[f"{theirs}.scale"] = block[ours]
    return out


class FixedConditions(nn.Module):
    """Stands where audiocraft has its condition provider: the same tensor at every call.

    Args:
        condition: `[N, L, dim]`; with guidance the null conditions are the second half.
    """

    def __init__(self, condition: Tensor) -> None:
        super().__init__()
        self.condition = condition

    def tokenize(self, conditions: list[Any]) -> int:
        return len(conditions)

    def forward(self, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
        condition = self.condition[:rows]
        mask = torch.ones(condition.shape[:2], device=condition.device)
        return {"description": (condition, mask)}


def provider(pattern: PatternSpec) -> Any:
    """audiocraft's provider of a delay, parallel or plain flatten pattern."""
    patterns = load()[2]
    K = pattern.codebooks
    if pattern.kind == "flatten" and pattern.flattening is None and pattern.delays is None:
        return patterns.UnrolledPatternProvider(K, flattening=list(range(K)))
    if pattern.kind in ("delay", "parallel"):
        start = list(range(K)) if pattern.kind == "delay" else [0] * K
        return patterns.DelayedPatternProvider(K, delays=list(pattern.delays or start))
    raise ValueError(f"no audiocraft provider is set up for pattern {pattern}")


def build(
    model: MusicLM,
    pattern: PatternSpec,
    condition: Tensor | None,
    *,
    fused_attention: bool = True,
) -> Any:
    """audiocraft's `LMModel` with our weights.

    Args:
        model: without biases in one place and not in another that audiocraft cannot express.
        pattern: delay, parallel or flatten.
        condition: `[N, L, condition_dim]`, or None for a model without cross-attention.
        fused_attention: audiocraft's `memory_efficient`, as in all MusicGen configurations. With
            RoPE it is right for whole sequences only: while streaming, audiocraft reads the
            position off the wrong axis of its cache.
    """
    lm, conditioners, _ = load()
    config = model.config
    names = ["description"] if config.condition_dim else []
    fuser = conditioners.ConditionFuser(
        {"cross": names, "prepend": [], "sum": [], "input_interpolate": []}
    )
    if condition is None:
        condition = torch.zeros(0, 1, config.dim)
    condition = F.pad(condition, (0, config.dim - condition.shape[-1]))
    with torch.device(model.device):
        theirs = _model(lm, model, pattern, condition, fuser, fused_attention)
    named = dict(theirs.named_buffers(remove_duplicate=False))
    theirs.load_state_dict(named | state_dict(model))
    return theirs.to(dtype=model.dtype).eval().requires_grad_(False)


def _model(
    lm: ModuleType,
    model: MusicLM,
    pattern: PatternSpec,
    condition: Tensor,
    fuser: Any,
    fused_attention: bool,
) -> Any:
    config = model.config
    return lm.LMModel(
        provider(pattern),
        FixedConditions(condition),
        fuser,
        n_q=config.codebooks,
        card=config.card,
        dim=config.dim,
        num_heads=config.heads,
        hidden_scale=config.ff_dim / config.dim,
        norm_first=config.norm_first,
        bias_proj=config.bias_heads,
        num_layers=config.layers,
        dropout=0.0,
        activation=config.activation,
        bias_ff=config.bias_ff,
        bias_attn=config.bias_attn,
        causal=True,
        custom=True,
        memory_efficient=fused_attention,
        cross_attention=bool(config.condition_dim),
        layer_scale=1e-4 if config.layer_scale else None,
        positional_embedding=config.positions,
        max_period=config.max_period,
        positional_scale=config.positional_scale,
        qk_layer_norm=config.qk_norm,
        qk_layer_norm_cross=config.qk_norm_cross,
        kv_repeat=config.kv_repeat,
    )


def described(rows: int) -> list[Any]:
    """`rows` conditions for `LMModel.generate`; `FixedConditions` says what they stand for."""
    attributes = load()[1].ConditioningAttributes
    return [attributes(text={"description": "music"}) for _ in range(rows)]
