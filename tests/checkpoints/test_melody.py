"""Melody models: audiocraft's export and transformers' folder, whole, against the original code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from specgen.checkpoints import audiocraft, huggingface, native
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.sampling import Sampling
from specgen.errors import UserError
from specgen.lm.chroma import ChromaConfig, PrefixConditioner
from specgen.lm.session import LMSession
from tests.codec import test_encodec
from tests.lm import test_chroma, test_t5

transformers = pytest.importorskip("transformers")

peer, t5_folder = test_chroma.peer, test_t5.folder
DIM, CARD, FRAMES = 32, 64, 20
CHROMA = {"sample_rate": 320, "n_chroma": 12, "radix2_exp": 6, "argmax": True}
LM = {
    "n_q": 4,
    "card": CARD,
    "dim": DIM,
    "num_heads": 4,
    "hidden_scale": 2,
    "num_layers": 2,
    "dropout": 0.0,
    "norm_first": True,
    "bias_proj": False,
    "bias_ff": False,
    "bias_attn": False,
    "activation": "gelu",
    "causal": True,
    "custom": True,
    "memory_efficient": False,
    "cross_attention": False,
    "positional_embedding": "sin",
}


def configuration(t5: str) -> dict[str, Any]:
    """An `xp.cfg` as audiocraft's `conditioner/chroma2music` makes it."""
    return {
        "lm_model": "transformer_lm",
        "sample_rate": 320,
        "dataset": {"segment_duration": 2.0},
        "transformer_lm": LM,
        "codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3]}},
        "classifier_free_guidance": {"training_dropout": 0.2, "inference_coef": 3.0},
        "conditioners": {
            "args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5},
            "self_wav": {
                "model": "chroma_stem",
                "chroma_stem": {
                    **CHROMA,
                    "sample_rate": "${sample_rate}",
                    "match_len_on_eval": False,
                    "eval_wavs": None,
                    "n_eval_wavs": 100,
                },
            },
            "description": {"model": "t5", "t5": {"name": t5, "finetune": False}},
        },
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": ["self_wav", "description"],
            "cross": [],
            "input_interpolate": [],
        },
    }


def audiocrafts(
    peer: ModuleType, t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, ModuleType]:
    """audiocraft's own melody model, every tensor drawn at random, and its `conditioners`."""
    lm = importlib.import_module("audiocraft.models.lm")
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    patterns = importlib.import_module("audiocraft.modules.codebooks_patterns")
    name = str(t5_folder)
    monkeypatch.setattr(conditioners.T5Conditioner, "MODELS", [name])
    monkeypatch.setattr(conditioners.T5Conditioner, "MODELS_DIMS", {name: test_t5.WIDTH})
    torch.manual_seed(3)
    melody = conditioners.ChromaStemConditioner(output_dim=DIM, duration=2.0, **CHROMA)
    monkeypatch.setattr(melody, "_get_stemmed_wav", lambda wav, _rate: wav)
    text = conditioners.T5Conditioner(name, DIM, finetune=False, device="cpu")
    provider = conditioners.ConditioningProvider({"self_wav": melody, "description": text})
    fuser = conditioners.ConditionFuser(
        {"cross": [], "prepend": ["self_wav", "description"], "sum": [], "input_interpolate": []}
    )
    delays = patterns.DelayedPatternProvider(4, delays=[0, 1, 2, 3])
    model = lm.LMModel(delays, provider, fuser, cfg_coef=3.0, **LM).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.requires_grad_(False), conditioners


def export(model: Any, codec: Any, folder: Path, t5_folder: Path) -> Path:
    """What `audiocraft.utils.export` writes, T5 beside it."""
    folder.mkdir()
    state = dict(model.state_dict())
    window = torch.hann_window(64)  # torchaudio's transform keeps its window in the state
    state["condition_provider.conditioners.self_wav.chroma.spec.window"] = window
    for name, cfg, tensors in (
        ("state_dict.bin", configuration("tiny"), state),
        ("compression_state_dict.bin", test_encodec.CFG, codec.state_dict()),
    ):
        text = yaml.safe_dump(cfg)
        torch.save({"best_state": tensors, "xp.cfg": text, "version": "1.3.0"}, folder / name)
    (folder / "text_encoder").symlink_to(t5_folder)
    return folder


def greedy(found: LMCheckpoint, prompt: str, tune: torch.Tensor | None) -> torch.Tensor:
    """20 frames of guided greedy tokens, `[K, T]`."""
    condition, mask = found.conditioner.encode([prompt], [tune])
    session = LMSession(
        found.lm,
        rows=1,
        capacity=capacity(found.pattern, FRAMES),
        condition=condition,
        mask=mask,
        null=found.conditioner.null(),
        guidance=found.guidance,
        prepend=True,
    )
    sampling = Sampling(temperature=0.0)
    role = Role(session, found.pattern)
    return decode(role, frames=[FRAMES], seeds=[0], sampling=sampling).codes[0]


def test_an_export_writes_what_audiocraft_writes(
    peer: ModuleType, t5_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From prompt and melody to greedy tokens with guidance, and again in the native format."""
    model, conditioners = audiocrafts(peer, t5_folder, monkeypatch)
    codec = test_encodec.hugging_face()
    renamed = {}
    for name, value in codec.state_dict().items():
        name = name.replace(".layers.", ".model.") if name[:2] in ("en", "de") else name
        if name.startswith("quantizer."):
            name = name.replace("quantizer.layers", "quantizer.vq.layers")
            name = name.replace(".codebook.", "._codebook.")
        else:
            inner = "convtr.convtr." if ".convtr" in name else "conv.conv."
            name = name.replace(".conv.", f".{inner}")
        renamed[name] = value
    holder = type("Codec", (), {"state_dict": lambda _self: renamed})()
    folder = export(model, holder, tmp_path / "melody", t5_folder)
    found = audiocraft.load_lm(folder)
    assert isinstance(found.conditioner, PrefixConditioner) and found.conditioner.melody
    assert found.conditioner.melody.config == ChromaConfig(
        sample_rate=320, window=64, hop=16, length=41
    )
    native.save_lm(found, tmp_path / "native", torch.float32)
    again = native.load_lm(tmp_path / "native")
    for tune in (test_chroma.tune(1.3, 320), None):
        wav = torch.zeros(1) if tune is None else tune
        attributes = conditioners.ConditioningAttributes(
            text={"description": "slow jig"},
            wav={
                "self_wav": conditioners.WavCondition(
                    wav[None, None], torch.tensor([0 if tune is None else len(wav)]), [320], [None]
                )
            },
        )
        expected = model.generate(
            conditions=[attributes], max_gen_len=FRAMES, use_sampling=False, cfg_coef=3.0
        )[0]
        assert len(expected.unique()) > 3
        assert torch.equal(greedy(found, "slow jig", tune), expected)
        assert torch.equal(greedy(again, "slow jig", tune), expected)


def transformers_folder(folder: Path, t5_folder: Path) -> Any:
    """A tiny melody model of transformers, saved."""
    t5 = json.loads((t5_folder / "config.json").read_text())
    torch.manual_seed(0)
    config = transformers.MusicgenMelodyConfig(
        text_encoder=transformers.T5Config(**t5),
        audio_encoder=test_encodec.hugging_face().config,
        decoder=transformers.MusicgenMelodyDecoderConfig(
            vocab_size=CARD,
            max_position_embeddings=512,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=4,
            hidden_size=DIM,
            num_codebooks=4,
            pad_token_id=CARD,
            bos_token_id=CARD,
        ),
        chroma_length=9,
    )
    model = transformers.MusicgenMelodyForConditionalGeneration(config).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and "inited" not in name and "positions" not in name:
            tensor.data.normal_(std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((t5_folder / "tokenizer.json").read_bytes())
    return model.requires_grad_(False)


def test_a_transformers_folder_gives_its_logits(t5_folder: Path, tmp_path: Path) -> None:
    theirs = transformers_folder(tmp_path / "hf", t5_folder)
    found = huggingface.load_lm(tmp_path / "hf")
    assert isinstance(found.conditioner, PrefixConditioner) and found.conditioner.melody
    assert found.conditioner.melody.config == ChromaConfig(sample_rate=320, length=9)
    chroma = torch.nn.functional.one_hot(torch.arange(6) % 12, 12).float()[None]
    tokens = torch.randint(CARD + 1, (1, 4, 30))
    ids = torch.tensor([found.conditioner.tokenize("slow jig").ids])
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        input_features=chroma,
        decoder_input_ids=tokens[0],
    ).logits[:, -30:]
    melody, text = found.conditioner.melody, found.conditioner.text
    assert melody.bias is not None
    tune = torch.nn.functional.linear(chroma[0].repeat(2, 1)[:9], melody.weight, melody.bias)
    condition = torch.cat([tune[None], text.encode(["slow jig"])[0]], dim=1)
    session = LMSession(found.lm, rows=1, capacity=40, condition=condition, prepend=True)
    where = [(n, k) for n in range(30) for k in range(4)]
    places, books = [n for n, _ in where], [k for _, k in where]
    hidden = session.feed(tokens, [0])
    logits = session.logits(hidden, [0] * 120, places, books).view(30, 4, CARD).transpose(0, 1)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fuser": {"prepend": ["self_wav"], "cross": ["description"]}}, "fuser"),
        ({"fuser": {"cross": ["self_wav", "description"]}}, "fuser"),
        ({"fuser": {"prepend": ["description"]}}, "fuser.prepend"),
        ({"fuser": {"prepend": ["self_wav", "description"], "sum": ["x"]}}, "fuser.sum"),
    ],
)
def test_other_ways_to_fuse_a_melody_are_refused(change: dict[str, Any], named: str) -> None:
    from specgen.checkpoints.audiocraft_config import describe

    with pytest.raises(UserError, match=named):
        describe(configuration("t5-base") | {"sample_rate": 320} | change, Path("x.bin"))


def test_a_melody_of_another_kind_is_named() -> None:
    from specgen.checkpoints.audiocraft_config import describe

    cfg = configuration("t5-base")
    cfg["conditioners"]["self_wav"] = {"model": "style"}
    with pytest.raises(UserError, match=r"conditioners.self_wav.model 'style'"):
        describe(cfg, Path("x.bin"))
