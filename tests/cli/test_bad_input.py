"""Every mistake a user can make: one clear line, exit 2, no traceback, nothing half-written."""

from pathlib import Path

import pytest

from specgen.cli.app import run

GOOD = ["a jig", "--seed", "1", "--duration", "0.2"]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *said: str) -> str:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("specgen: error: ") and err.count("\n") == 1
    assert "Traceback" not in err
    for word in said:
        assert word in err
    return err


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a jig", "--preset", "embeded"], ["embeded", "did you mean embedded"]),
        (["a jig", "--preset", "nowhere/x.yaml"], ["nowhere/x.yaml", "does not exist"]),
        ([], ["no prompt"]),
        ([" "], ["empty"]),
        (["jig " * 10_000], ["10000 words"]),
        (["a jig", "--duration", "0"], ["positive"]),
        (["a jig", "--duration", "-1"], ["positive"]),
        (["a jig", "--duration", "nan"], ["positive"]),
        (["a jig", "--duration", "4000"], ["4000", "beyond 3600"]),
        (["a jig", "--duration", "long"], ["--duration"]),
        (["a jig", "--seed", "-4"], ["seed"]),
        (["a jig", "--count", "0"], ["count"]),
        (["a jig", "--format", "mp3"], ["mp3", "wav"]),
        (["a jig", "--device", "tpu"], ["tpu"]),
        (["a jig", "--dtype", "float8"], ["float8", "bfloat16"]),
        (["a jig", "--rule", "lucky"], ["lucky", "coupled"]),
        (["a jig", "--rule", "rejection"], ["--allow-biased"]),
        (["a jig", "--draft-frames", "0"], ["1 to 12"]),
        (["a jig", "--draft-frames", "many"], ["1 to 12"]),
        (["a jig", "--draft-temperature", "1,0,1,1"], ["positive"]),
        (["a jig", "--draft-temperature", "1,1"], ["4 are needed"]),
        (["a jig", "--temperature", "-1"], ["temperature"]),
        (["a jig", "--top-p", "1.5"], ["top_p"]),
        (["a jig", "--cfg", "nan"], ["cfg"]),
        (["a jig", "--bogus"], ["bogus"]),
        (["--from-sidecar", "none.json"], ["none.json"]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_wrong_arguments(
    tiny: str,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: list[str],
) -> None:
    if "--preset" not in arguments and "--from-sidecar" not in arguments:
        arguments = [*arguments, "--preset", tiny]
    refused(capsys, ["generate", *arguments, "--out", str(out)], *said)
    assert files(out) == []


def test_no_cuda(tiny: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = ["generate", *GOOD, "--preset", tiny, "--out", str(out), "--device", "cuda"]
    refused(capsys, arguments, "cuda", "--device cpu")
    assert files(out) == []


@pytest.mark.parametrize("name", ["clip.wav", "clip.json", "clip.npy"])
def test_an_existing_file_is_kept(
    tiny: str, out: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (out / name).write_text("mine")
    arguments = ["generate", *GOOD, "--preset", tiny, "--out", str(out / "clip.wav")]
    refused(capsys, arguments, name, "--overwrite")
    assert files(out) == [name] and (out / name).read_text() == "mine"


def test_a_folder_that_cannot_be_written(
    tiny: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "file").write_text("")
    target = out / "file" / "sub" / "clip.wav"  # works for root too, whom no mode bits stop
    refused(capsys, ["generate", *GOOD, "--preset", tiny, "--out", str(target)], "cannot write")
    assert files(out) == ["file"]


def test_one_file_for_two_clips(tiny: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", *GOOD, "--count", "2", "--preset", tiny, "--out", str(out / "a.wav")]
    refused(capsys, arguments, "2 clips")
    assert files(out) == []


def edited(tiny: str, folder: Path, old: str, new: str) -> str:
    """The tiny preset with a change, beside links to its checkpoints."""
    source = Path(tiny)
    for part in ("codec", "flatten", "drafter"):
        (folder / part).symlink_to(source.parent / part)
    text = source.read_text()
    assert old in text
    (folder / "edited.yaml").write_text(text.replace(old, new))
    return str(folder / "edited.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sampling:", "samplign:", "samplign"),
        ("top_k: 20", "top_k: twenty", "top_k"),
        ("top_k: 20", "topk: 20", "topk"),
        ("cfg: 2.0", "cfg: .nan", "cfg"),
        ("rule: coupled", "rule: lucky", "lucky"),
        ("draft_frames: 2", "draft_frames: 99", "draft_frames"),
        ("checkpoint: flatten", "checkpoint: nowhere", "nowhere"),
        ("description: tiny random models", "description: ${oc.env:HOME}", "interpolation"),
        ("schema: 1", "schema: 7", "schema 7"),
        ("default: 0.4", "default: 5", "duration"),
        ("schema: 1", "schema: [1", "YAML"),
        ("schema: 1", "schema: !!python/name:os.system 1", "YAML"),
    ],
)
def test_a_wrong_preset(
    tiny: str,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    said: str,
) -> None:
    preset = edited(tiny, tmp_path, old, new)
    refused(capsys, ["generate", *GOOD, "--preset", preset, "--out", str(out)], said)
    assert files(out) == []


def test_a_preset_that_is_a_folder(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", *GOOD, "--preset", str(tmp_path), "--out", str(out)]
    refused(capsys, arguments, "folder")


@pytest.mark.parametrize("part", ["flatten", "codec"])
@pytest.mark.parametrize("damage", ["truncated", "corrupt", "missing", "garbage header"])
def test_damaged_weights(
    tiny: str,
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    damage: str,
) -> None:
    preset = edited(tiny, tmp_path, "schema: 1", "schema: 1")
    source = Path(tiny).parent / part
    (tmp_path / part).unlink()
    (tmp_path / part).mkdir()
    (tmp_path / part / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    weights = (source / "model.safetensors").read_bytes()
    new = {
        "truncated": weights[: len(weights) // 2],
        "corrupt": b"\x00" * len(weights),
        "garbage header": weights[:8] + b"{" * 64 + weights[72:],
    }
    if damage in new:
        (tmp_path / part / "model.safetensors").write_bytes(new[damage])
    said = "missing" if damage == "missing" else "corrupt"
    refused(capsys, ["generate", *GOOD, "--preset", preset, "--out", str(out)], said)
    assert files(out) == []


@pytest.mark.parametrize("change", [["--seed", "3"], ["--count", "2"], ["-d", "1"], ["a jig"]])
def test_a_sidecar_says_it_all(
    out: Path, capsys: pytest.CaptureFixture[str], change: list[str]
) -> None:
    arguments = ["generate", "--from-sidecar", "x.json", *change, "--out", str(out)]
    refused(capsys, arguments, "leave them out")


def test_no_folder_is_made_for_what_is_refused(
    tiny: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a jig", "--preset", tiny, "--out", str(out / "a" / "b" / "c.wav")]
    refused(capsys, [*arguments, "--duration", "9999"], "beyond 3600")
    assert files(out) == []


def test_a_fault_of_ours_is_one_line_too(
    tiny: str,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from specgen import engine

    def broken(*_: object, **__: object) -> None:
        raise IndexError("off by one")

    monkeypatch.setattr(engine, "load", broken)
    arguments = ["generate", *GOOD, "--preset", tiny, "--out", str(out)]
    assert run(arguments) == 1
    err = capsys.readouterr().err
    assert (
        err.startswith("specgen: internal error: IndexError: off by one") and err.count("\n") == 1
    )
    assert run([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], tiny: str, out: Path
) -> None:
    assert run(["generate", " ", "--preset", tiny, "--out", str(out), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_are_answered_by_the_help_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    printed = capsys.readouterr()
    assert "Commands" in printed.out and not printed.err


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["nope"], "specgen"),
        (["generate", "--nope"], "specgen generate"),
        (["presets", "show"], "specgen presets show"),
    ],
)
def test_a_usage_error_names_the_help_that_helps(
    arguments: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().err.endswith(f". See {where} --help.\n")
