"""transformers' own MusicGen decoder around specgen's weights, for comparison only."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specgen.benchmarking.synthetic import dense_state
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec

INSTALL = "pip install 'specgen[musicgen]'"


def installed() -> bool:
    """Whether transformers is there."""
    return importlib.util.find_spec("transformers") is not None


def refusal(config: LMConfig, pattern: PatternSpec) -> str | None:
    """Why transformers' decoder cannot hold this model; None if it can."""
    if pattern != PatternSpec("delay", config.codebooks):
        return f"it knows the delay pattern alone, not {pattern.kind}"
    if config.positions != "sin" or config.positional_scale != 1 or config.max_period != 10_000:
        return f"it has no {config.positions} positions"
    if not 0 < config.condition_dim <= config.dim:
        return "it needs a condition no wider than the model"
    odd = (config.bias_attn, config.bias_ff, config.bias_heads, config.qk_norm)
    more = (config.qk_norm_cross, config.layer_scale, config.past_context, not config.norm_first)
    if any(odd) or any(more) or config.kv_repeat > 1:
        return "it lacks an option of this model"
    return None


def state_dict(model: MusicLM) -> dict[str, Tensor]:
    """Our weights under transformers' names; narrow conditions are padded as in audiocraft_peer."""
    config, ours = model.config, dense_state(model)
    decoder = "model.decoder."
    out: dict[str, Tensor] = {}
    for k, table in enumerate(ours["embedding.weight"].chunk(config.codebooks)):
        out[f"{decoder}embed_tokens.{k}.weight"] = table
    for k, part in enumerate(ours["heads.weight"].chunk(config.codebooks)):
        out[f"lm_heads.{k}.weight"] = part
    for kind in ("weight", "bias"):
        out[f"{decoder}layer_norm.{kind}"] = ours[f"out_norm.{kind}"]
    for i in range(config.layers):
        low, there = f"transformer.blocks.{i}.", f"{decoder}layers.{i}."
        block = {n.removeprefix(low): v for n, v in ours.items() if n.startswith(low)}
        for name, value in _layer(block, config.dim).items():
            out[there + name] = value
    return out


_RENAMED = {
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
}


def _layer(block: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    q, k, v = block["attention.qkv.weight"].chunk(3)
    cross_k, cross_v = F.pad(
        block["cross.kv.weight"], (0, dim - block["cross.kv.weight"].shape[1])
    ).chunk(2)
    out = {
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.out_proj.weight": block["attention.out.weight"],
        "encoder_attn.q_proj.weight": block["cross.q.weight"],
        "encoder_attn.k_proj.weight": cross_k,
        "encoder_attn.v_proj.weight": cross_v,
        "encoder_attn.out_proj.weight": block["cross.out.weight"],
        "fc1.weight": block["up.weight"],
        "fc2.weight": block["down.weight"],
    }
    for ours, theirs in _RENAMED.items():
        for kind in ("weight", "bias"):
            out[f"{theirs}.{kind}"] = block[f"{ours}.{kind}"]
    return out


def build(model: MusicLM) -> Any:
    """transformers' `MusicgenForCausalLM` with our weights, on our model's device, in its dtype."""
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = model.config
    options = MusicgenDecoderConfig(
        vocab_size=config.card,
        hidden_size=config.dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        ffn_dim=config.ff_dim,
        num_codebooks=config.codebooks,
        activation_function=config.activation,
        pad_token_id=config.card,
        bos_token_id=config.card,
        dropout=0.0,
    )
    with torch.device(model.device):
        theirs = MusicgenForCausalLM(options)
    theirs.load_state_dict(state_dict(model))
    whole: Any = theirs
    return whole.to(dtype=model.dtype).eval().requires_grad_(False)


def generate(
    theirs: Any, both: Tensor, frames: int, *, guidance: float, sampled: bool, top_k: int
) -> Tensor:
    """Decode with `generate`.

    Args:
        theirs: of `build`.
        both: `[2 B, L, dim]` conditions, the null conditions in the second half.
        frames: T.
        guidance, top_k: as in MusicGen; `sampled` False is greedy.

    Returns:
        `[B, K, T]` tokens.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    K, special = theirs.config.num_codebooks, theirs.config.vocab_size
    rows = both.shape[0] // 2
    start = torch.full((rows * K, 1), special, device=both.device)
    options = {"do_sample": True, "top_k": top_k} if sampled else {"do_sample": False}
    caches = (DynamicCache(config=theirs.config) for _ in range(2))
    codes: Tensor = theirs.generate(
        start,
        # Left to itself, `generate` of the decoder alone (5.23) puts keys of the condition and of
        # the sequence into one cache; within the whole model they have two.
        past_key_values=EncoderDecoderCache(*caches),
        encoder_hidden_states=both,
        attention_mask=torch.ones(rows, 1, dtype=torch.long, device=both.device),
        guidance_scale=guidance,
        max_length=frames + K,
        num_return_sequences=1,
        decoder_start_token_id=special,
        pad_token_id=special,
        **options,
    )
    return codes
