"""`specgen convert`, and clips of checkpoints as users hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from specgen.checkpoints import registry
from specgen.cli.app import run
from tests import peers

PAIR = """\
verifier: {{checkpoint: {verifier}}}
drafter: {{checkpoint: {drafter}}}
codec: {{checkpoint: {verifier}}}
sampling: {{top_k: 20}}
speculation: {{draft_frames: 2}}
duration: {{default: 2.0, max: 30.0}}
"""
LARGER = {"transformer_lm.num_layers": 3, "transformer_lm.num_heads": 8}


@pytest.fixture(scope="module")
def builders() -> Iterator[ModuleType]:
    pytest.importorskip("transformers")
    with peers.audiocraft() as module:
        yield module


@pytest.fixture(scope="module")
def shelf(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small and a large export of one codec, a flatten one, a small one of transformers."""
    root = tmp_path_factory.mktemp("shelf")
    variants = {
        "small": {},
        "large": LARGER,
        "flatten": {**LARGER, "codebooks_pattern.modeling": "unroll"},
    }
    for seed, (name, changes) in enumerate(variants.items()):
        folder = root / name
        peers.write_t5(folder / "text_encoder")
        peers.write_lm(builders, folder, changes, seed)
        peers.write_codec(builders, folder)
    peers.write_transformers(root / "hf")
    return root


@pytest.mark.parametrize(("verifier", "drafter"), [("large", "small"), ("flatten", "small")])
def test_a_clip_of_two_exports_is_the_same_with_and_without_drafter(
    shelf: Path, tmp_path: Path, verifier: str, drafter: str
) -> None:
    preset = tmp_path / "pair.yaml"
    preset.write_text(PAIR.format(verifier=shelf / verifier, drafter=shelf / drafter))
    for name, options in (("with", []), ("without", ["--no-draft"])):
        out = str(tmp_path / f"{name}.wav")
        command = ["generate", "slow jig", "--preset", str(preset), "--seed", "3", "--out", out]
        assert run([*command, "--dtype", "float32", *options]) == 0
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("with", "without"))
    assert first["tokens_sha256"] == second["tokens_sha256"]
    assert first["lossless"] and first["stats"]["accepted"] > 0
    codes = np.load(tmp_path / "with.npy")
    assert codes.shape == (4, 40) and len(np.unique(codes)) > 10
    wave, rate = soundfile.read(tmp_path / "with.wav")
    assert rate == 320 and wave.shape == (640,) and np.abs(wave).max() > 0


@pytest.mark.parametrize("source", ["small", "flatten", "hf"])
def test_what_is_converted_is_the_same_model(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    target = tmp_path / "made"
    assert run(["convert", str(shelf / source), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    names = sorted(p.name for p in target.iterdir())
    assert names == ["codec", "config.yaml", "model.safetensors", "text_encoder"]
    before, after = registry.load_lm(shelf / source), registry.load_lm(target)
    for field in ("name", "pattern", "codec", "max_frames", "guidance"):
        assert getattr(before, field) == getattr(after, field)
    assert before.lm.config == after.lm.config
    for name, value in before.lm.state_dict().items():
        assert torch.equal(value, after.lm.state_dict()[name])
    vectors, mask = before.conditioner.encode(peers.PROMPTS)
    ours, real = after.conditioner.encode(peers.PROMPTS)
    assert torch.equal(mask, real) and torch.equal(vectors, ours)
    codes = torch.randint(64, (1, 4, 20))
    (theirs, theirs_id), (codec, codec_id) = (
        registry.load_codec(folder, before.codec) for folder in (shelf / source, target)
    )
    assert theirs_id == codec_id == before.codec
    assert torch.equal(theirs.decode(codes), codec.decode(codes))


def test_a_dtype_is_chosen(shelf: Path, tmp_path: Path) -> None:
    """float16 where it loses nothing, float32 else, or what is asked for."""
    for name, options, expected in (
        ("as it is", [], torch.float32),
        ("halved", ["--dtype", "float16"], torch.float16),
        ("brain", ["--dtype", "bfloat16"], torch.bfloat16),
    ):
        assert run(["convert", str(shelf / "small"), str(tmp_path / name), *options]) == 0
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert {value.dtype for value in tensors.values()} == {expected}
    assert run(["convert", str(tmp_path / "halved"), str(tmp_path / "again")]) == 0
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("halved", "again"))
    assert second["lm.heads.weight"].dtype == torch.float16
    assert torch.equal(first["lm.heads.weight"], second["lm.heads.weight"])


def test_nothing_is_overwritten_unasked(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    for options in ([], ["--overwrite"]):
        assert run(["convert", str(shelf / "small"), str(target), *options]) == 2
        assert "made" in capsys.readouterr().err
    assert (target / "letter.txt").read_text() == "dear"
    (target / "letter.txt").unlink()
    assert run(["convert", str(shelf / "small"), str(target)]) == 0
    assert run(["convert", str(shelf / "large"), str(target)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["convert", str(shelf / "large"), str(target), "--overwrite"]) == 0
    assert registry.load_lm(target).lm.config.layers == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "made"], "nowhere"),
        (["{shelf}/small", "a/b/made"], "a/b"),
        (["{shelf}/small", "made", "--dtype", "int4"], "int4"),
        (["{shelf}/small/state_dict.bin", "made"], "folder"),
    ],
)
def test_what_is_refused(
    shelf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["convert", *(a.format(shelf=shelf) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_models_of_two_codecs_are_refused_together(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same shape of codec, but other entries: told by the codebooks themselves."""
    preset = tmp_path / "pair.yaml"
    preset.write_text(PAIR.format(verifier=shelf / "large", drafter=shelf / "hf"))
    assert run(["presets", "check", str(preset)]) == 2
    assert "another codec" in capsys.readouterr().err
    assert run(["generate", "slow jig", "--preset", str(preset)]) == 2
    assert "another codec" in capsys.readouterr().err
