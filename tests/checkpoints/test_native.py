"""The native checkpoint format: what is written is read again, and everything else is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from specgen.checkpoints import native
from specgen.checkpoints.files import load_yaml
from specgen.checkpoints.native import CodecId, LMCheckpoint, load_lm, read_config, save_lm
from specgen.errors import UserError
from specgen.lm.conditioning import WordEncoder, WordEncoderConfig
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.patterns import PatternSpec

CODEC = CodecId(16000, 50.0, 2, 8, "f" * 64)


def made() -> LMCheckpoint:
    torch.manual_seed(0)
    lm = LMConfig(codebooks=2, card=8, dim=16, heads=2, layers=1, ff_dim=8, condition_dim=6)
    words = WordEncoderConfig(("a", "no", "on", "120"), {"upon": "on"}, dim=6)
    return LMCheckpoint(
        name="tiny",
        lm=MusicLM(lm),
        conditioner=WordEncoder(words),
        pattern=PatternSpec("delay", 2, delays=(0, 2)),
        codec=CODEC,
        max_frames=30,
        training={"steps": 3, "held_out_nats": [1.5, 2.5]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_lm(made(), tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_what_is_saved_is_loaded(folder: Path) -> None:
    before, after = made(), load_lm(folder)
    assert after.lm.config == before.lm.config
    assert after.conditioner.config == before.conditioner.config
    assert (after.pattern, after.codec, after.max_frames) == (before.pattern, CODEC, 30)
    assert (after.name, after.training) == ("tiny", before.training)
    assert after.sha256 == native.file_sha256(folder / "model.safetensors")
    for module, other in ((after.lm, before.lm), (after.conditioner, before.conditioner)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, other.state_dict()[name].half().float())
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_weights_are_half_precision_and_nothing_else_is_left(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "model.safetensors"]


def test_the_dtype_is_the_callers(folder: Path) -> None:
    assert load_lm(folder, dtype=torch.float64).lm.dtype == torch.float64
    assert load_lm(folder, dtype=torch.bfloat16).conditioner.null().dtype == torch.bfloat16


def test_the_configuration_reads_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    config = read_config(folder)
    assert config.codec == CODEC and config.pattern["kind"] == "delay"
    with pytest.raises(UserError, match="missing"):
        load_lm(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_lm(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 5, 100, -7])
def test_a_truncated_file(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="corrupt"):
        load_lm(folder)


def test_a_file_of_noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError, match="corrupt"):
        load_lm(folder)


def test_tensors_of_another_shape_or_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm.heads.weight": torch.zeros(3, 16)}, path)
    with pytest.raises(UserError, match=r"heads\.weight"):
        load_lm(folder)
    save_file({**tensors, "lm.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="extra"):
        load_lm(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise"),
        ({"schema": 2}, "schema"),
        ({"max_frames": "many"}, "max_frames"),
        ({"max_frames": True}, "max_frames"),
        ({"max_frames": 0}, "max_frames"),
        ({"codec": {"sample_rate": 16000}}, "missing"),
        ({"lm": {"codebooks": 2, "card": 8}}, "missing"),
        ({"lm": {"codebooks": 4, "card": 8}}, "codebooks"),
        ({"pattern": {"kind": "spiral", "codebooks": 2}}, "spiral"),
        ({"pattern": {"kind": "delay", "codebooks": 2, "turns": 3}}, "turns"),
        ({"conditioner": {"vocabulary": ["a", 3]}}, "vocabulary"),
        ({"conditioner": {"vocabulary": ["a"], "dim": 5}}, "condition_dim"),
        ({"lm": "big"}, "lm"),
    ],
)
def test_a_wrong_configuration(folder: Path, changes: dict[str, object], said: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=said) as caught:
        load_lm(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1\n- 2\n", "", "a: !!python/object:os.system {}", "\x00"]
)
def test_an_unreadable_configuration(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value)


def test_interpolations_are_mere_text(folder: Path) -> None:
    edit(folder, name="${oc.env:HOME}")
    assert read_config(folder).name == "${oc.env:HOME}"


def test_embedded_folders_lie_in_the_package() -> None:
    folder = native.embedded_folder("base-delay")
    assert folder.parts[-4:] == ("specgen", "checkpoints", "embedded", "base-delay")


def test_loading_imports_no_compiler() -> None:
    """torch's compiler takes longer to import than the embedded models to load."""
    code = (
        "import sys, specgen; specgen.load('embedded');"
        "heavy = [m for m in ('torch._dynamo', 'sympy', 'transformers') if m in sys.modules];"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("text", ["[" * 1_000_000, "{a: " * 300_000, "- " * 200_000])
def test_yaml_nested_out_of_all_reason_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="not readable YAML"):
        load_yaml(path)
