"""Broken and hostile files: one clear line each, exit 2, no code run, no network."""

from __future__ import annotations

import ast
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import specgen
from specgen.checkpoints import hub, registry
from specgen.checkpoints.pickled import read_pickled
from specgen.cli.app import run
from specgen.errors import UserError
from tests import peers


@pytest.fixture(scope="module")
def good(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound export."""
    folder = tmp_path_factory.mktemp("good")
    peers.write_t5(folder / "text_encoder")
    peers.write_lm(builders, folder, {})
    peers.write_codec(builders, folder)
    return folder


@pytest.fixture
def export(good: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    folder = tmp_path / "export"
    shutil.copytree(good, folder)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """The command line says all of `said` in one line, exits with 2 and writes nothing."""
    target = folder.parent / "made"
    assert run(["convert", str(folder), str(target)]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and err.startswith("specgen: error: ")
    for word in said:
        assert word in err, err
    assert not target.exists() and not list(folder.parent.glob(".made*"))


def edit(
    export: Path, change: Callable[[dict[str, Any]], object], name: str = "state_dict.bin"
) -> None:
    path = export / name
    values = torch.load(path, weights_only=True)
    change(values)
    torch.save(values, path)


def reconfigure(export: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def rewrite(values: dict[str, Any]) -> None:
        cfg = yaml.safe_load(values["xp.cfg"])
        change(cfg)
        values["xp.cfg"] = yaml.safe_dump(cfg)

    edit(export, rewrite)


def test_the_sound_export_is_read(export: Path) -> None:
    """With its launcher's `${oc.env:USER}`, which is never looked at."""
    assert "${oc.env:USER}" in torch.load(export / "state_dict.bin", weights_only=True)["xp.cfg"]
    assert registry.load_lm(export).codec.sample_rate == 320


class Evil:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_in_it(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = export / "ran"
    values = torch.load(export / "state_dict.bin", weights_only=True)
    torch.save({**values, "extra": Evil(mark)}, export / "state_dict.bin")
    refused(export, capsys, "holds code", "not loaded")
    (export / "state_dict.bin").write_bytes(pickle.dumps(Evil(mark)))
    refused(export, capsys, "state_dict.bin")
    assert not mark.exists()


@pytest.mark.parametrize("live", [True, False], ids=["live objects", "plain, but nested"])
def test_a_training_checkpoint(
    export: Path, capsys: pytest.CaptureFixture[str], live: bool
) -> None:
    cfg = OmegaConf.create({"a": 1}) if live else {"a": 1}
    torch.save({"best_state": {"model": {}}, "xp.cfg": cfg}, export / "state_dict.bin")
    refused(export, capsys, "training checkpoint", "audiocraft.utils.export.export_lm")


def test_a_folder_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "xp"
    folder.mkdir()
    (folder / "checkpoint.th").write_bytes(b"")
    refused(folder, capsys, "checkpoint.th", "export_lm")


@pytest.mark.parametrize("kept", [0, 3, 1000, -9])
def test_a_truncated_zip(export: Path, capsys: pytest.CaptureFixture[str], kept: int) -> None:
    path = export / "state_dict.bin"
    path.write_bytes(path.read_bytes()[:kept])
    refused(export, capsys, "truncated", "fetch")


def test_a_pointer_instead_of_the_file(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "state_dict.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(export, capsys, "state_dict.bin", "fetch")


def test_a_zip_bomb(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`torch.save` never compresses: 64 megabytes of zeros in 64 kilobytes."""
    path = export / "state_dict.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**26))
    assert path.stat().st_size < 2**20
    refused(export, capsys, "fill memory")


def test_tensors_that_claim_more_than_the_file_holds(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A view of one number as a trillion, and a storage that is not there."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    edit(export, lambda v: v["best_state"].update({"linears.0.weight": huge}))
    refused(export, capsys, "linears.0.weight", "shape")
    path = export / "state_dict.bin"
    torch.save({"best_state": {"a": torch.zeros(1000)}, "xp.cfg": ""}, path)
    raw = path.read_bytes()
    assert raw.count(b"M\xe8\x03") >= 1  # 1000 as pickle writes it
    path.write_bytes(raw.replace(b"M\xe8\x03", b"M\xff\xff"))
    refused(export, capsys, "state_dict.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("linears.1.weight"), ("linears.1.weight is missing",)),
        (lambda s: s.update({"surprise": torch.zeros(1)}), ("surprise is unknown",)),
        (lambda s: s.update({"emb.2.weight": torch.zeros(65, 31)}), ("emb.2.weight", "shape")),
        (lambda s: s.update({"out_norm.bias": torch.zeros(())}), ("out_norm.bias", "shape")),
        (
            lambda s: s["transformer.layers.1.linear1.weight"].fill_(float("nan")),
            ("layers.1.linear1.weight", "not finite"),
        ),
        (lambda s: s["emb.0.weight"][3].fill_(float("inf")), ("emb.0.weight", "not finite")),
        (
            lambda s: s.pop("condition_provider.conditioners.description.output_proj.weight"),
            ("output_proj.weight is missing",),
        ),
        (lambda s: s.update({"emb.0.weight": "text"}), ("emb.0.weight", "no tensor")),
    ],
    ids=["missing", "extra", "width", "scalar", "nan", "inf", "no projection", "text"],
)
def test_tensors_that_do_not_fit(
    export: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    said: tuple[str, ...],
) -> None:
    edit(export, lambda values: change(values["best_state"]))
    refused(export, capsys, *said)


@pytest.mark.parametrize(
    "value",
    ["${oc.env:HOME}", "a ${oc.env:HOME,x} b", "${${sample_rate}:1}", "${oc.decode:'1'}"],
)
def test_a_resolver_is_not_called(
    export: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    reconfigure(export, lambda cfg: cfg["generate"].update(path=value))
    refused(export, capsys, "resolver", "generate.path")


def test_plain_interpolation_is_resolved(export: Path) -> None:
    def rewrite(cfg: dict[str, Any]) -> None:
        cfg["transformer_lm"]["num_heads"] = "${heads}"
        cfg["heads"] = "${transformer_lm.n_q}"

    reconfigure(export, rewrite)
    assert registry.load_lm(export).lm.config.heads == 4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("transformer_lm.surprise", 1, "transformer_lm.surprise"),
        ("transformer_lm.xpos", True, "transformer_lm.xpos"),
        ("transformer_lm.causal", False, "transformer_lm.causal"),
        ("transformer_lm.norm", "rms", "transformer_lm.norm"),
        ("transformer_lm.activation", "geglu", "geglu"),
        ("transformer_lm.positional_embedding", "alibi", "alibi"),
        ("transformer_lm.num_heads", "${nowhere}", "nowhere"),
        ("transformer_lm.num_layers", None, "num_layers"),
        ("transformer_lm.dim", "wide", "transformer_lm"),
        ("lm_model", "transformer_lm_magnet", "transformer_lm_magnet"),
        ("codebooks_pattern.modeling", "spiral", "spiral"),
        ("codebooks_pattern.delay.jitter", 2, "codebooks_pattern.delay.jitter"),
        ("codebooks_pattern.delay.empty_initial", -1, "codebooks_pattern.delay"),
        ("codebooks_pattern.delay.delays", [0, 1], "codebooks_pattern.delay"),
        ("fuser.sum", ["description"], "fuser.sum"),
        ("fuser.cross_attention_pos_emb", True, "cross_attention_pos_emb"),
        ("fuser.mix", [], "fuser.mix"),
        ("conditioners.description.model", "clap", "clap"),
        ("conditioners.description.t5.finetune", True, "finetune"),
        ("conditioners.description.t5.normalize_text", True, "normalize_text"),
        ("conditioners.description.t5.louder", True, "louder"),
        ("interleave_stereo_codebooks", {"use": True, "per_timestep": True}, "per_timestep"),
        ("interleave_stereo_codebooks", {"use": True, "per_timestep": False}, "codebooks"),
        ("sample_rate", 32000, "32000"),
        ("dataset.segment_duration", None, "segment_duration"),
        ("classifier_free_guidance", None, "classifier_free_guidance"),
    ],
)
def test_options_that_are_unknown_or_not_supported_are_named(
    export: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, said: str
) -> None:
    def rewrite(cfg: dict[str, Any]) -> None:
        *sections, option = key.split(".")
        for section in sections:
            cfg = cfg[section]
        cfg[option] = value

    reconfigure(export, rewrite)
    refused(export, capsys, said)


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1", "a: &x [1]\nb: *x", "a: !!python/object:os.system {}", "x" * 3_000_000]
)
def test_an_unreadable_configuration(
    export: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    edit(export, lambda values: values.update({"xp.cfg": text}))
    refused(export, capsys, "xp.cfg")


def test_a_codec_that_is_named_but_not_here(
    export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of one's own asks no network, not even for what it names."""
    monkeypatch.setattr(hub, "cached", lambda reference: None)
    torch.save(
        {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.3.0"},
        export / "compression_state_dict.bin",
    )
    refused(export, capsys, "facebook/encodec_32khz", "hf download")
    (export / "compression_state_dict.bin").unlink()
    refused(export, capsys, "compression_state_dict.bin", "export_pretrained_compression_model")


def test_a_codec_that_is_named_and_lies_beside(export: Path, tmp_path: Path) -> None:
    """`{pretrained: NAME}` stands for transformers' EnCodec."""
    import transformers

    whole = peers.write_transformers(tmp_path / "whole")
    whole.audio_encoder.save_pretrained(export / "codec")
    torch.save({"pretrained": "facebook/encodec_32khz"}, export / "compression_state_dict.bin")
    model = registry.load_lm(export)
    codec, identity = registry.load_codec(export, model.codec)
    assert identity == model.codec
    codes = torch.randint(64, (1, 4, 20))
    with torch.no_grad():
        expected = whole.audio_encoder.decode(codes[None], [None]).audio_values
    assert (codec.decode(codes) - expected).abs().max() < 1e-4
    assert isinstance(whole, transformers.MusicgenForConditionalGeneration)


def test_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "cached", lambda reference: None)
    commit = "4c8334b02c6ec4e8664a91979669a501ec497792"
    source = f"hub:facebook/musicgen-small@{commit}"
    assert run(["convert", source, str(tmp_path / "made")]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert f"hf download facebook/musicgen-small --revision {commit}" in err
    assert "HF_HUB_OFFLINE" in err


@pytest.mark.parametrize("text", ["hub:", "hub:a b", "hub:../x", "hub:a/b/c", "hub:a/b@../c"])
def test_a_hub_reference_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        registry.locate(text)


def test_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    refused(folder, capsys, "does not exist")
    folder.mkdir()
    refused(folder, capsys, "nothing", "state_dict.bin")
    (folder / "notes.txt").touch()
    refused(folder, capsys, "notes.txt", "config.json")
    (folder / "config.json").write_text('{"model_type": "musicgen"}')
    refused(folder, capsys, "config.json")
    (folder / "pytorch_model.bin").touch()
    refused(folder, capsys, "config.json")


_UNSAFE_MODULES = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def test_nothing_in_the_source_loads_unsafely() -> None:
    """Every load in `specgen/` is of tensors and plain values only."""
    package, seen, wrong = Path(specgen.__file__).parent, 0, []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                bad = {name.split(".")[0] for name in names} & _UNSAFE_MODULES
                # Its exception is what torch raises when it refuses; nothing of it is called.
                if bad and path.name != "pickled.py":
                    wrong.append(f"{path}:{node.lineno} imports {bad}")
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called.endswith("torch.load"):
                seen += 1
                if options.get("weights_only") != "True" or options.get("mmap", "False") != "False":
                    wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
            loose = called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
            # The safe loader by libyaml, named on the spot.
            loose &= [ast.unparse(arg) for arg in node.args[1:]] != ["yaml.CSafeLoader"]
            loose |= called.startswith("pickle.") or called.endswith(".load_state_dict_from_url")
            loose |= options.get("allow_pickle") == "True" or "trust_remote_code" in options
            if loose:
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not wrong
    assert seen >= 1


def test_the_walk_sees_what_it_looks_for() -> None:
    assert "weights_only=True" in ast.unparse(ast.parse("torch.load(p, weights_only=True)"))
    with pytest.raises(UserError, match="missing"):
        read_pickled(Path("/nowhere/state_dict.bin"))
