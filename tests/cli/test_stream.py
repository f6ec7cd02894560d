"""`--stream` and `--prompt-at`: what is heard is what is written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from specgen.cli.app import run

LONG = ["generate", "a jig", "--seed", "4", "--duration", "3.1"]


def samples(path: Path) -> np.ndarray:
    wave, rate = soundfile.read(path, dtype="int16")
    assert rate == 16000
    return wave.astype(int)


def test_a_growing_file_becomes_the_clip(tiny: str, tmp_path: Path) -> None:
    heard, clip = tmp_path / "heard.wav", tmp_path / "clip.wav"
    arguments = [*LONG, "--preset", tiny, "--out", str(clip), "--stream", str(heard)]
    assert run([*arguments, "--prompt-at", "1.5:a slow air on the flute"]) == 0
    assert samples(heard).shape == samples(clip).shape == (155 * 320,)
    # decoded in parts and whole, the audio differs by rounding, which may tip a 16-bit step
    assert np.abs(samples(heard) - samples(clip)).max() <= 1
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["sections"] == [[1.5, "a slow air on the flute"]]
    again = tmp_path / "again.wav"
    assert (
        run(["generate", "--from-sidecar", str(tmp_path / "clip.json"), "--out", str(again)]) == 0
    )
    assert np.array_equal(np.load(tmp_path / "again.npy"), np.load(tmp_path / "clip.npy"))


@pytest.mark.parametrize("kind", ["wav", "raw"])
def test_a_pipe_gets_playable_audio(tiny: str, tmp_path: Path, kind: str) -> None:
    clip = tmp_path / "clip.wav"
    command = [sys.executable, "-m", "specgen.cli.app", *LONG, "--preset", tiny]
    command += ["--out", str(clip), "--stream", "-", "--stream-format", kind]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"first audio after" in done.stderr and str(clip).encode() not in done.stdout
    data = done.stdout
    if kind == "wav":
        data = data[44:]  # a pipe's header has no length in it
        wave, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int16", frames=155 * 320)
        assert rate == 16000 and np.array_equal(wave, np.frombuffer(data, "<i2"))
    assert np.abs(np.frombuffer(data, "<i2").astype(int) - samples(clip)).max() <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--stream", "x.wav", "--count", "2"], "one clip"),
        (["--stream", "-", "--json"], "both write to stdout"),
        (["--stream", "x.mp3", "--stream-format", "mp3"], "wav, raw"),
        (["--stream", "there.wav"], "exists"),
        (["--stream", "no/folder/x.wav"], "cannot write"),
        (["--prompt-at", "a reel"], "SECONDS:PROMPT"),
        (["--prompt-at", "-1:a reel"], "SECONDS:PROMPT"),
        (["--prompt-at", "9:a reel"], "one after the other"),
        (["--prompt-at", "2:a reel", "--prompt-at", "1:a jig"], "one after the other"),
        (["--prompt-at", "1: "], "empty"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.wav").write_text("mine")
    assert run([*LONG, "--preset", tiny, *change]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.wav"]
    assert Path("there.wav").read_text() == "mine"
