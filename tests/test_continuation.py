"""Going on from audio: the file's tokens stand at the clip's start, and nothing else changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

import specgen
from specgen.audio.reading import read_audio, read_start
from specgen.cli.app import run
from specgen.codec.embedded import load_codec
from specgen.errors import UserError

RATE = 16000


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> NDArray[np.float32]:
    """A chord, a little different in each channel: `[N, channels]`."""
    t = np.arange(round(seconds * rate)) / rate
    columns = [
        0.2 * np.sin(2 * np.pi * (220 + 110 * c) * t) + 0.1 * np.sin(2 * np.pi * 1000 * t)
        for c in range(channels)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """0.21 s: ten frames and a half."""
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(0.21), RATE, subtype="FLOAT")
    return path


def generate(arguments: list[str]) -> None:
    assert run(["generate", "a jig", *arguments]) == 0


def test_the_clip_begins_with_the_files_tokens(
    tiny: str, tiny_folder: Path, song: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clip.wav"
    generate(
        ["--preset", tiny, "-d", "0.6", "--seed", "5", "-o", str(out), "--continue-from", str(song)]
    )
    codec = load_codec(tiny_folder / "codec")
    wav = torch.from_numpy(soundfile.read(song, dtype="float32")[0])
    expected = codec.encode(wav[None, None, : 10 * codec.frame_size])[0].numpy()
    codes = np.load(out.with_suffix(".npy"))
    assert expected.shape == (4, 10)
    assert codes.shape == (4, 30)  # the duration counts the whole clip
    assert np.array_equal(codes[:, :10], expected)
    assert soundfile.info(out).frames == 30 * codec.frame_size
    sidecar = json.loads(out.with_suffix(".json").read_text())
    assert sidecar["continue_from"]["path"] == str(song)
    assert len(sidecar["continue_from"]["sha256"]) == 64
    assert sidecar["duration_seconds"] == 0.6


@pytest.mark.parametrize("pattern", ["dual", "delay"])
def test_drafting_changes_no_token(tiny_folder: Path, song: Path, pattern: str) -> None:
    preset = str(tiny_folder / f"{pattern}.yaml")
    request = specgen.Request("a slow air", seed=3, duration=0.6, continue_from=song)
    codes = [
        next(iter(specgen.load(preset, draft=draft).generate([request]))).codes
        for draft in (True, False)
    ]
    assert torch.equal(*codes)


def test_clips_of_one_batch_go_on_from_different_audio(
    tiny: str, song: Path, tmp_path: Path
) -> None:
    """Each is what it is alone, whatever the others begin with."""
    longer = tmp_path / "longer.wav"
    soundfile.write(longer, tone(0.4)[::-1], RATE)
    engine = specgen.load(tiny)
    requests = [
        specgen.Request("a jig", seed=1, duration=0.6, continue_from=song),
        specgen.Request("a jig", seed=1, duration=0.6),
        specgen.Request("a slow air", seed=2, duration=0.5, continue_from=longer),
        specgen.Request("a slow air", seed=3, duration=0.6, continue_from=song),
    ]
    together = [clip.codes for clip in engine.generate(requests)]
    alone = [next(iter(engine.generate([request]))).codes for request in requests]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert torch.equal(together[0][:, :10], together[3][:, :10])
    assert not torch.equal(together[0], together[1])


def test_a_sidecar_makes_the_clip_again(
    tiny: str, song: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.wav"
    generate(
        ["--preset", tiny, "-d", "0.6", "--seed", "5", "-o", str(out), "--continue-from", str(song)]
    )
    again = ["generate", "--from-sidecar", str(out.with_suffix(".json"))]

    def remade(name: str, *options: str) -> int:
        capsys.readouterr()
        return run([*again, *options, "-o", str(tmp_path / name)])

    assert remade("again.wav") == 0
    assert "the same tokens" in capsys.readouterr().err
    # Moved together with its clip, then moved elsewhere.
    folder = tmp_path / "moved"
    folder.mkdir()
    here = song.rename(folder / song.name)
    sidecar = out.with_suffix(".json").rename(folder / "clip.json")
    again[-1] = str(sidecar)
    assert remade("beside.wav") == 0
    elsewhere = here.rename(tmp_path / "elsewhere.wav")
    assert remade("lost.wav") == 2
    assert "does not exist" in capsys.readouterr().err
    assert remade("found.wav", "--continue-from", str(elsewhere)) == 0
    soundfile.write(elsewhere, tone(0.2), RATE)
    assert remade("other.wav", "--continue-from", str(elsewhere)) == 2
    assert "is not the one that made this clip" in capsys.readouterr().err


def test_a_sidecar_without_audio_takes_none(
    tiny: str, song: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.wav"
    generate(["--preset", tiny, "-d", "0.4", "-o", str(out)])
    assert json.loads(out.with_suffix(".json").read_text())["continue_from"] is None
    capsys.readouterr()
    arguments = ["--from-sidecar", str(out.with_suffix(".json")), "--continue-from", str(song)]
    assert run(["generate", *arguments, "-o", str(tmp_path / "x.wav")]) == 2
    assert "without --continue-from" in capsys.readouterr().err


def bad_files(folder: Path) -> dict[str, Path]:
    made = {name: folder / f"{name}.wav" for name in ("short", "silent", "nan", "empty", "long")}
    soundfile.write(made["short"], tone(0.01), RATE)
    soundfile.write(made["silent"], np.zeros(8000, np.float32), RATE)
    soundfile.write(made["nan"], np.full(8000, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(made["empty"], np.zeros(0, np.float32), RATE)
    soundfile.write(made["long"], tone(0.7), RATE)
    made["text"] = folder / "text.wav"
    made["text"].write_text("no audio")
    made["cut"] = folder / "cut.wav"
    made["cut"].write_bytes(made["long"].read_bytes()[:30])
    made["missing"], made["folder"] = folder / "missing.wav", folder
    return made


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "shorter than one frame (20 ms)"),
        ("silent", "is silent"),
        ("nan", "not numbers"),
        ("empty", "holds no sound"),
        ("long", "0.70 s, but the clip is to have 0.6 s in all"),
        ("text", "cannot read"),
        ("cut", "cannot read"),
        ("missing", "does not exist"),
        ("folder", "does not exist"),
    ],
)
def test_audio_that_cannot_be_gone_on_from_is_one_line(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    path = bad_files(tmp_path)[name]
    before = sorted(os.listdir(tmp_path))
    arguments = ["a jig", "--preset", tiny, "-d", "0.6", "-o", str(tmp_path / "clip.flac")]
    assert run(["generate", *arguments, "--continue-from", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("specgen: error: ")
    assert said in err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (RATE, 2)])
def test_files_are_resampled_and_mixed_down(
    tmp_path: Path, kind: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"song.{kind}"
    soundfile.write(path, tone(0.5, rate, channels), rate)
    wav = read_audio(path, RATE, 1)
    assert wav.shape[0] == 1 and abs(wav.shape[1] - 0.5 * RATE) < 2500  # mp3 pads
    window = np.hanning(4000)
    turn = np.exp(2j * np.pi * 1000 * np.arange(4000) / RATE)
    level = 2 * abs((wav[0, 2000:6000].numpy() * window * turn).sum()) / window.sum()
    assert abs(level - 0.1) < 0.02  # the partial that all channels have keeps its level


def test_channels_of_a_stereo_codec(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    for channels in (1, 2, 4):
        sound = tone(0.1, RATE, channels)
        soundfile.write(path, sound, RATE, subtype="FLOAT")
        wav = read_audio(path, RATE, 2).numpy()
        assert wav.shape == (2, 1600)
        assert np.array_equal(wav[1], sound[:, min(1, channels - 1)])


def test_a_file_is_refused_before_it_is_read(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(1.0), RATE)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(soundfile, "read", read)
    with pytest.raises(UserError, match="cut the file"):
        read_start(path, load_codec(tiny_folder / "codec"), 0.5)


def test_a_stereo_encodec_takes_both_channels(tmp_path: Path) -> None:
    """Left and right of the file become the even and the odd codebooks of the clip's start."""
    pytest.importorskip("transformers")
    from specgen.audio.reading import continuations
    from specgen.codec.encodec import EncodecCodec
    from tests.codec.test_encodec import hugging_face

    network = hugging_face()
    codec = EncodecCodec.from_transformers(
        network.config.to_dict(), network.state_dict(), channels=2
    )
    path = tmp_path / "song.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * 394, 2))
    soundfile.write(path, noise, 2 * codec.sample_rate)
    first, none, same = continuations([path, None, path], codec, torch.device("cpu"))
    assert first is not None and first is same and none is None
    assert first.codes.shape == (8, 24)  # 1.23 s at 20 frames a second, cut to whole frames
    wav = read_audio(path, codec.sample_rate, 2)[None, :, : 24 * codec.frame_size]
    assert torch.equal(first.codes, codec.encode(wav)[0])
    assert not torch.equal(first.codes[::2], first.codes[1::2])
