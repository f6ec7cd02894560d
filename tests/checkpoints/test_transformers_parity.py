"""transformers' own MusicGen with random weights, saved as it saves itself, read by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specgen.checkpoints import registry
from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.sampling import Sampling
from tests import peers

transformers = pytest.importorskip("transformers")

STEPS = 60


@pytest.fixture(scope="module", params=["mono", "stereo", "relu"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("saved") / request.param
    channels = 2 if request.param == "stereo" else 1
    options = {"activation_function": "relu"} if request.param == "relu" else {}
    return folder, peers.write_transformers(folder, channels, **options)


@torch.no_grad()
def test_logits_equal_transformers(saved: tuple[Path, Any]) -> None:
    folder, theirs = saved
    model = registry.load_lm(folder)
    K, card = model.lm.config.codebooks, model.lm.config.card
    torch.manual_seed(1)
    sequence = model.pattern.of(STEPS).build(torch.randint(card, (1, K, STEPS)), card)[..., :STEPS]
    ids = torch.tensor([model.conditioner.tokenize(peers.PROMPT).ids])
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=sequence.reshape(K, STEPS),
    ).logits.transpose(0, 1)  # [S, K, card]
    assert expected.std() > 0.3
    for block in (1, 7, STEPS):
        ours, found = peers.session(model, STEPS, None), []
        for start in range(0, STEPS, block):
            hidden = ours.feed(sequence[:, :, start : start + block], [start])
            n = hidden.shape[1]
            places = [place for place in range(n) for _ in range(K)]
            logits = ours.logits(hidden, [0] * len(places), places, list(range(K)) * n)
            found.append(logits.view(n, K, card))
        assert (torch.cat(found) - expected).abs().max() < 1e-4, block


def test_greedy_tokens_equal_transformers(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its `generate` hands to its codec; stereo codes come in two halves there."""
    folder, theirs = saved
    model = registry.load_lm(folder)
    heard: list[Tensor] = []

    def listen(codes: Tensor, **_: Any) -> Any:
        heard.append(codes[0])
        return type("Decoded", (), {"audio_values": torch.zeros(1, 1, 16)})()

    monkeypatch.setattr(theirs.audio_encoder, "decode", listen)
    ids = torch.tensor([model.conditioner.tokenize(peers.PROMPT).ids])
    theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        guidance_scale=3.0,
        max_new_tokens=56,
    )
    expected = (
        heard[0][0] if len(heard) == 1 else torch.stack([h[0] for h in heard], 1).flatten(0, 1)
    )
    frames = expected.shape[-1]
    found = decode(
        Role(peers.session(model, capacity(model.pattern, frames), 3.0), model.pattern),
        frames=[frames],
        seeds=[0],
        sampling=Sampling(temperature=0.0),
    )
    assert expected.numel() >= 200
    assert torch.equal(found.codes[0], expected)
    assert len(expected.unique()) > 3


@torch.no_grad()
def test_the_codec_equals_transformers(saved: tuple[Path, Any]) -> None:
    folder, theirs = saved
    model = registry.load_lm(folder)
    codec, identity = registry.load_codec(folder, model.codec)
    assert identity == model.codec
    codes = torch.randint(64, (1, identity.codebooks, 30))
    found = codec.decode(codes)
    for channel in range(identity.channels):
        half = codes[:, channel :: identity.channels]
        expected = theirs.audio_encoder.decode(half[None], [None]).audio_values
        assert (found[:, channel] - expected[:, 0]).abs().max() < 1e-4


def test_what_the_files_say(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    model = registry.load_lm(folder)
    stereo = folder.name == "stereo"
    assert model.pattern.delays == ((0, 0, 1, 1, 2, 2, 3, 3) if stereo else (0, 1, 2, 3))
    assert (model.guidance, model.max_frames) == (3.0, 500)
    assert model.codec.channels == (2 if stereo else 1)
    assert model.lm.config.activation == ("relu" if folder.name == "relu" else "gelu")


def test_shards_are_read_like_one_file(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, part in parts.items():
        save_file({n: tensors[n] for n in part}, tmp_path / name)
    index = {"weight_map": {n: name for name, part in parts.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole, sharded = registry.load_lm(folder), registry.load_lm(tmp_path)
    for name, value in whole.lm.state_dict().items():
        assert torch.equal(value, sharded.lm.state_dict()[name])
    assert whole.sha256 != sharded.sha256
