"""Full-size checkpoints: time and memory of loading MusicGen small, shapes of MusicGen large.

    PYTHONPATH=. python tools/full_size.py [--keep FOLDER]

Random weights of musicgen-small's real dimensions are written as audiocraft exports them (float16)
and as transformers saves them (float32, with T5-base and EnCodec), loaded in a process of its own,
and made to generate 2 s. Of musicgen-large every tensor that audiocraft's own model has is compared
with what the readers expect, on the meta device. Needs audiocraft (`make peers`) and 12 GB of disk.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from specgen.checkpoints import audiocraft, hub, huggingface
from specgen.checkpoints.audiocraft_config import describe
from specgen.lm.model import MusicLM
from tests import peers

SIZES = {"small": (1024, 16, 24), "medium": (1536, 24, 48), "large": (2048, 32, 48)}
CODEC = {
    "seanet": {"dimension": 128, "n_filters": 64, "ratios": [8, 5, 4, 4]},
    "rvq": {"n_q": 4, "bins": 2048},
}
PRESET = """\
verifier: {{checkpoint: {folder}}}
codec: {{checkpoint: {folder}}}
duration: {{default: 2.0, max: 30.0}}
"""


def changes(size: str) -> dict[str, Any]:
    """What makes `peers.XP_CFG` a MusicGen of that size."""
    dim, heads, layers = SIZES[size]
    return {
        "sample_rate": 32000,
        "transformer_lm.dim": dim,
        "transformer_lm.num_heads": heads,
        "transformer_lm.num_layers": layers,
        "transformer_lm.card": 2048,
        "conditioners.description.t5.name": "t5-base",
    }


def random_weights(model: MusicLM) -> dict[str, torch.Tensor]:
    """Small random numbers for every tensor of a model on the meta device, norms near 1."""
    made = {}
    for name, tensor in model.state_dict().items():
        value = torch.randn(tensor.shape) * 0.02
        made[name] = value + 1 if "norm" in name and name.endswith("weight") else value
    return made


def taken_apart(plan: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A format's tensors: the inverse of its plan."""
    out: dict[str, torch.Tensor] = {}
    for name in list(weights):
        value, pieces = weights.pop(name), plan[name]
        for piece, part in zip(pieces, value.chunk(len(pieces)), strict=True):
            if piece.rows is None:
                out[piece.name] = part.clone() if len(pieces) > 1 else part
            else:  # the rows of one matrix come in order
                held = out.get(piece.name)
                out[piece.name] = part if held is None else torch.cat([held, part])
    return out


def laid_out(size: str) -> tuple[Any, MusicLM]:
    described = describe(peers.changed(changes(size)), Path("xp.cfg"))
    with torch.device("meta"):
        return described, MusicLM(described.lm)


def write_text(folder: Path) -> Any:
    """T5-base's dimensions; returns the model."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    peers.write_tokenizer(folder)
    config = transformers.T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12
    )
    model = transformers.T5EncoderModel(config)
    model.save_pretrained(folder)
    return model


def write_audiocraft(folder: Path) -> None:
    from omegaconf import OmegaConf

    described, model = laid_out("small")
    write_text(folder / "text_encoder")
    state = taken_apart(audiocraft.plan(described.lm), random_weights(model))
    prefix = "condition_provider.conditioners.description.output_proj."
    state |= {prefix + "weight": torch.randn(1024, 768) * 0.03, prefix + "bias": torch.zeros(1024)}
    export = {
        "best_state": {name: value.half() for name, value in state.items()},
        "xp.cfg": OmegaConf.to_yaml(peers.changed(changes("small"))),
        "version": "1.3.0",
        "exported": True,
    }
    torch.save(export, folder / "state_dict.bin")
    codec = copy.deepcopy(peers.CODEC_CFG)
    codec["sample_rate"] = 32000
    for section, options in CODEC.items():
        codec[section] |= options
    with peers.audiocraft() as builders:
        built = OmegaConf.create({k: v for k, v in codec.items() if k != "dora"})
        state = builders.get_compression_model(built).state_dict()
    cfg = OmegaConf.to_yaml(OmegaConf.create(codec))
    torch.save({"best_state": state, "xp.cfg": cfg}, folder / "compression_state_dict.bin")


def write_transformers(folder: Path) -> None:
    import transformers
    from safetensors.torch import save_file

    described, model = laid_out("small")
    text = write_text(folder)
    encodec = transformers.EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32000,
        audio_channels=1,
        normalize=False,
        hidden_size=128,
        num_filters=64,
        num_residual_layers=1,
        upsampling_ratios=[8, 5, 4, 4],
        norm_type="weight_norm",
        use_causal_conv=False,
        codebook_size=2048,
        use_conv_shortcut=False,
    )
    codec = transformers.EncodecModel(encodec)
    config = {
        "model_type": "musicgen",
        "text_encoder": text.config.to_dict(),
        "audio_encoder": encodec.to_dict(),
        "decoder": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    }
    tensors = {f"text_encoder.{n}": v.clone() for n, v in text.state_dict().items()}
    tensors |= {f"audio_encoder.{n}": v.clone() for n, v in codec.state_dict().items()}
    lm = taken_apart(huggingface.plan(described.lm), random_weights(model))
    tensors |= {f"decoder.{n}": v.contiguous() for n, v in lm.items()}
    tensors["enc_to_dec_proj.weight"] = torch.randn(1024, 768) * 0.03
    tensors["enc_to_dec_proj.bias"] = torch.zeros(1024)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"guidance_scale": 3.0, "max_length": 1500}')


def peak() -> int:
    """Most memory that this process ever held (not getrusage, which counts the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status: this needs Linux")


def measure(folder: Path) -> dict[str, float]:
    """Load a folder through the engine and generate 2 s; run in a fresh process."""
    import transformers

    import specgen
    from specgen.engine import load

    # Imports are no part of loading.
    assert transformers.T5EncoderModel and transformers.EncodecModel
    preset = folder / "preset.yaml"
    preset.write_text(PRESET.format(folder=folder))
    before, began, busy = peak(), time.perf_counter(), time.process_time()
    engine = load(str(preset), dtype="float32")
    loaded, busy = time.perf_counter() - began, time.process_time() - busy
    memory = peak() - before
    began = time.perf_counter()
    clip = next(iter(engine.generate([specgen.Request("a slow jig", seed=1)])))
    return {
        "load_seconds": loaded,
        "load_cpu_seconds": busy,
        "load_bytes": memory,
        "generate_seconds": time.perf_counter() - began,
        "audio_seconds": clip.seconds,
        "tokens": clip.codes.numel(),
    }


def check_large() -> None:
    """Every tensor of audiocraft's own large model against the plan, without memory."""
    from omegaconf import OmegaConf

    described, ours = laid_out("large")
    cfg = OmegaConf.create(peers.changed({**changes("large"), **peers.NO_TEXT}))
    cfg.transformer_lm.cross_attention = True  # without a T5, which would be fetched
    cfg.device = "meta"
    del cfg["dora"]
    with peers.audiocraft() as builders, torch.device("meta"):
        theirs = builders.get_lm_model(cfg).state_dict()
    plan = audiocraft.plan(described.lm)
    names = {piece.name for pieces in plan.values() for piece in pieces}
    assert names == set(theirs), sorted(names ^ set(theirs))[:5]
    for name, tensor in ours.state_dict().items():
        parts = [theirs[p.name] if p.rows is None else theirs[p.name][p.rows] for p in plan[name]]
        assert torch.cat(parts).shape == tensor.shape, name
    count = sum(p.numel() for p in ours.parameters())
    print(f"large: {len(theirs)} tensors of {count:,} parameters fit", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="write here and keep")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    check_large()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        for name, write in (("audiocraft", write_audiocraft), ("transformers", write_transformers)):
            folder = root / name
            if not hub.complete(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write(folder)
            # What is loaded: audiocraft's export has no T5, which is read with the first prompt.
            files = [p for p in folder.iterdir() if p.suffix in (".bin", ".safetensors")]
            size = sum(p.stat().st_size for p in files)
            command = [sys.executable, __file__, "--measure", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                print(done.stderr[-3000:])
                raise SystemExit(1)
            said = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name}: {size / 1e9:.2f} GB, loaded in {said['load_seconds']:.1f} s "
                f"({said['load_cpu_seconds']:.1f} s of CPU) with "
                f"{said['load_bytes'] / 1e9:.2f} GB ({said['load_bytes'] / size:.2f} of its size), "
                f"{said['audio_seconds']:.1f} s of audio in {said['generate_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
