"""audiocraft's and transformers' own classes, tiny, with random weights, saved as users have them.

audiocraft is installed without what it pins; what its language model never calls is stood in for
while a test module runs (`stand_ins`).
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from specgen.checkpoints.base import LMCheckpoint
from specgen.lm.chroma import prepends
from specgen.lm.session import LMSession

WIDTH = 16  # of the tiny T5
PROMPT = "slow jig on a fiddle"
PROMPTS = ["slow jig", "a reel on the fiddle, in D", "x"]


@contextmanager
def stand_ins(*more: str) -> Iterator[ModuleType]:
    """`specgen.benchmarking.audiocraft_peer` with audiocraft loaded, what that lacks stood in for.

    Skips where it is missing. Afterwards none of it is left for other tests.

    Args:
        more: other modules that the test stands in for.
    """
    from specgen.benchmarking import audiocraft_peer

    if not audiocraft_peer.installed():
        pytest.skip(f"audiocraft is not installed: {audiocraft_peer.INSTALL}")
    before = dict(sys.modules)
    ours = {"audiocraft", "xformers", *audiocraft_peer.ABSENT, *more} - {"transformers"}
    audiocraft_peer.load()
    try:
        yield audiocraft_peer
    finally:
        for name in [n for n in sys.modules if n not in before]:
            if name.split(".")[0] in ours:
                del sys.modules[name]


def with_real_codec() -> None:
    """Within `stand_ins`: let audiocraft's quantiser be imported, not stood in for."""
    for name in [n for n in sys.modules if n.startswith("audiocraft.quantization")]:
        del sys.modules[name]


@contextmanager
def audiocraft() -> Iterator[ModuleType]:
    """audiocraft's `models.builders`, with everything it builds from; skips where it is missing."""
    with stand_ins():
        with_real_codec()
        builders = importlib.import_module("audiocraft.models.builders")
        seanet = importlib.import_module("audiocraft.modules.seanet")
        modules = sys.modules["audiocraft.modules"]
        modules.SEANetEncoder, modules.SEANetDecoder = seanet.SEANetEncoder, seanet.SEANetDecoder
        sys.modules["audiocraft"].modules = modules
        yield builders


# What audiocraft's own configuration files make of a MusicGen, but for its sizes.
XP_CFG = """\
device: cpu
dtype: float32
seed: 2036
dora:
  dir: /checkpoint/${oc.env:USER}/experiments/audiocraft/outputs
solver: musicgen
sample_rate: 320
channels: 1
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
compression_model_n_q: null
interleave_stereo_codebooks:
  use: false
  per_timestep: false
lm_model: transformer_lm
codebooks_pattern:
  modeling: delay
  delay:
    delays: [0, 1, 2, 3]
    flatten_first: 0
    empty_initial: 0
  unroll:
    flattening: [0, 1, 2, 3]
    delays: [0, 0, 0, 0]
  music_lm:
    group_by: 2
  coarse_first:
    delays: [0, 0, 0]
transformer_lm:
  dim: 32
  num_heads: 4
  num_layers: 2
  hidden_scale: 4
  n_q: 4
  card: 64
  dropout: 0.0
  emb_lr: null
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  past_context: null
  causal: true
  custom: false
  memory_efficient: true
  attention_as_float32: false
  layer_scale: null
  positional_embedding: sin
  xpos: false
  checkpointing: none
  weight_init: gaussian
  depthwise_init: current
  zero_bias_init: true
  norm: layer_norm
  cross_attention: false
  qk_layer_norm: false
  qk_layer_norm_cross: false
  attention_dropout: null
  kv_repeat: 1
  two_step_cfg: false
classifier_free_guidance:
  training_dropout: 0.3
  inference_coef: 3.0
attribute_dropout: {}
fuser:
  cross_attention_pos_emb: false
  cross_attention_pos_emb_scale: 1
  sum: []
  prepend: []
  cross: [description]
  input_interpolate: []
conditioners:
  description:
    model: t5
    t5:
      name: t5-tiny
      finetune: false
      word_dropout: 0.3
      normalize_text: false
dataset:
  batch_size: 192
  segment_duration: 30
generate:
  audio:
    sample_rate: ${sample_rate}
optim:
  updates_per_epoch: 2000
  ema:
    updates: ${optim.updates_per_epoch}
"""
CODEC_CFG: dict[str, Any] = {
    "device": "cpu",
    "dora": {"dir": "/checkpoint/${oc.env:USER}"},
    "compression_model": "encodec",
    "sample_rate": 320,
    "channels": 1,
    "encodec": {
        "autoencoder": "seanet",
        "quantizer": "rvq",
        "sample_rate": "${sample_rate}",
        "channels": "${channels}",
        "causal": False,
        "renormalize": False,
    },
    "seanet": {
        "dimension": 16,
        "channels": "${channels}",
        "causal": False,
        "n_filters": 4,
        "n_residual_layers": 1,
        "ratios": [4, 2, 2],
        "activation": "ELU",
        "activation_params": {"alpha": 1.0},
        "norm": "weight_norm",
        "norm_params": {},
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 7,
        "dilation_base": 2,
        "pad_mode": "constant",
        "true_skip": True,
        "compress": 2,
        "lstm": 2,
        "disable_norm_outer_blocks": 0,
        "encoder": {},
        "decoder": {
            "trim_right_ratio": 1.0,
            "final_activation": None,
            "final_activation_params": None,
        },
    },
    "rvq": {"n_q": 4, "bins": 64, "q_dropout": False, "kmeans_init": False},
}
NO_TEXT: dict[str, Any] = {
    "fuser": {"sum": [], "prepend": [], "cross": [], "input_interpolate": []},
    "conditioners": None,
    "classifier_free_guidance": {"training_dropout": 0, "inference_coef": 1},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """`XP_CFG` with `section.option` (or whole sections) changed."""
    cfg: dict[str, Any] = yaml.safe_load(XP_CFG)
    for key, value in changes.items():
        *sections, option = key.split(".")
        part = cfg
        for section in sections:
            part = part[section]
        part[option] = copy.deepcopy(value)
    return cfg


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn at random, norms and scales too, so that nothing cancels out."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=1.0 if "emb" in name else 0.25)
        else:
            parameter.data.uniform_(0.5, 1.5) if "bias" not in name else parameter.data.normal_()
    return model.eval().requires_grad_(False)


def write_lm(builders: ModuleType, folder: Path, changes: dict[str, Any], seed: int = 0) -> Any:
    """audiocraft's own model of a changed configuration, exported to `state_dict.bin`.

    `folder/text_encoder` must hold the T5, which an export never does.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.create(changed(changes))
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    text = str(folder / "text_encoder")
    local = copy.deepcopy(config)
    if config.conditioners and "description" in config.conditioners:
        local.conditioners.description.t5.name = text
        conditioners.T5Conditioner.MODELS = [text]
        conditioners.T5Conditioner.MODELS_DIMS = {text: WIDTH}
    del local["dora"]
    model = randomise(builders.get_lm_model(local), seed)
    export = {
        "best_state": model.state_dict(),
        "xp.cfg": OmegaConf.to_yaml(config),
        "version": "1.3.0",
        "exported": True,
    }
    folder.mkdir(exist_ok=True)
    torch.save(export, folder / "state_dict.bin")
    return model


def codec_cfg() -> dict[str, Any]:
    """`CODEC_CFG` as a reader resolves it."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({k: v for k, v in CODEC_CFG.items() if k != "dora"})
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return resolved


def write_codec(builders: ModuleType, folder: Path, seed: int = 0) -> Any:
    """audiocraft's own EnCodec, exported to `compression_state_dict.bin`."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(CODEC_CFG)
    local = copy.deepcopy(config)
    del local["dora"]
    torch.manual_seed(seed)
    model = builders.get_compression_model(local).eval()
    for name, tensor in model.named_buffers():
        if name.endswith("embed"):
            tensor.data.normal_()
    export = {
        "best_state": model.state_dict(),
        "xp.cfg": OmegaConf.to_yaml(config),
        "version": "1.3.0",
        "exported": True,
    }
    torch.save(export, folder / "compression_state_dict.bin")
    return model


def write_t5(folder: Path) -> None:
    """A tiny T5 with a tokenizer of letters and a few words, in the files of a hub repository."""
    import transformers

    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = transformers.T5EncoderModel(config)
    for tensor in model.parameters():
        tensor.data.normal_(std=0.3)
    model.save_pretrained(folder)


def write_tokenizer(folder: Path) -> int:
    """`tokenizer.json`; returns its number of tokens."""
    import transformers

    words = [("▁jig", -1.0), ("▁slow", -1.5), ("▁reel", -1.2)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *words]
    vocabulary += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyzD,"]
    tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def write_transformers(folder: Path, channels: int = 1, seed: int = 0, **decoder: Any) -> Any:
    """transformers' own MusicGen with random weights, saved; returns the model."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder)
    torch.manual_seed(seed)
    text = transformers.T5Config(
        vocab_size=vocabulary, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    codec = transformers.EncodecConfig(
        target_bandwidths=[0.48],
        sampling_rate=320,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        hidden_size=16,
        num_filters=4,
        num_residual_layers=1,
        upsampling_ratios=[4, 2, 2],
        norm_type="weight_norm",
        use_causal_conv=False,
        codebook_size=64,
        use_conv_shortcut=False,
    )
    options = {
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "num_codebooks": 4 * channels,
        "audio_channels": channels,
        "pad_token_id": 64,
        "bos_token_id": 64,
    }
    config = transformers.MusicgenConfig(
        text_encoder=text.to_dict(),
        audio_encoder=codec.to_dict(),
        decoder=transformers.MusicgenDecoderConfig(**{**options, **decoder}).to_dict(),
    )
    model = transformers.MusicgenForConditionalGeneration(config)
    for part in (model.decoder, model.text_encoder, model.enc_to_dec_proj):
        randomise(part, seed)
    for name, tensor in model.audio_encoder.named_buffers():
        if name.endswith("embed"):
            tensor.data.normal_()
    model.generation_config.guidance_scale = 3.0
    model.generation_config.max_length = 500
    model.eval().save_pretrained(folder)
    return model


def session(model: LMCheckpoint, steps: int, guidance: float | None) -> LMSession:
    """Our session of one row with `PROMPT`."""
    condition, mask = model.conditioner.encode([PROMPT])
    return LMSession(
        model.lm,
        rows=1,
        capacity=steps,
        condition=condition,
        mask=mask,
        null=model.conditioner.null(),
        guidance=guidance,
        prepend=prepends(model.conditioner),
    )
