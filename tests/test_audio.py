"""Files that appear whole or not at all."""

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from specgen.audio.files import atomic, check_target, tokens_sha256, write_clip
from specgen.errors import UserError


def test_a_failure_leaves_neither_file_nor_rest(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
    assert target.read_bytes() == b"old"
    with atomic(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_clip_reads_back(tmp_path: Path, kind: str, channels: int) -> None:
    wave = np.sin(np.linspace(0, 300, 3200 * channels, dtype=np.float32)).reshape(channels, -1)
    wave[:, 0] = 1.7  # clipped, not wrapped round
    codes = np.arange(40, dtype=np.int16).reshape(4, 10)
    target = tmp_path / f"clip.{kind}"
    written = write_clip(target, wave, 16000, codes, {"prompt": "é"})
    back, rate = soundfile.read(target, always_2d=True)
    assert rate == 16000 and back.shape == (3200, channels)
    assert np.abs(back.T - wave.clip(-1, 1)).max() < 1e-4
    assert np.array_equal(np.load(tmp_path / "clip.npy"), codes)
    assert json.loads((tmp_path / "clip.json").read_text(encoding="utf-8")) == written
    assert written["tokens_sha256"] == tokens_sha256(codes)


@given(st.lists(st.integers(0, 2047), min_size=1, max_size=20))
def test_the_hash_is_of_the_tokens_not_of_their_layout(values: list[int]) -> None:
    codes = np.array([values, values[::-1]], dtype=np.int16)
    assert tokens_sha256(codes) == tokens_sha256(np.asfortranarray(codes))
    assert tokens_sha256(codes) == tokens_sha256(codes.astype(">i2"))
    changed = codes.copy()
    changed[0, 0] += 1
    assert tokens_sha256(codes) != tokens_sha256(changed)


def test_a_target_is_checked_before_any_work(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "a.wav", overwrite=False)
    assert list(tmp_path.iterdir()) == []  # no folder is made for work that may be refused
    (tmp_path / "b.npy").write_text("")
    with pytest.raises(UserError, match=r"b\.npy exists"):
        check_target(tmp_path / "b.wav", overwrite=False)
    check_target(tmp_path / "b.wav", overwrite=True)
    (tmp_path / "c.wav").mkdir()
    with pytest.raises(UserError, match="folder"):
        check_target(tmp_path / "c.wav", overwrite=True)
    with pytest.raises(UserError, match="cannot write"):
        check_target(tmp_path / ("x" * 300 + ".wav"), overwrite=False)


CODES = np.arange(40, dtype=np.int16).reshape(4, 10)
SILENCE = np.zeros((1, 3200), dtype=np.float32)


def test_a_clips_three_files_appear_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "new" / "clip.wav"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space"):
            write_clip(target, SILENCE, 16000, CODES, {})
    assert list(target.parent.iterdir()) == []
    write_clip(target, SILENCE, 16000, CODES, {})
    before = {path: path.read_bytes() for path in target.parent.iterdir()}
    assert len(before) == 3
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)
        with pytest.raises(OSError, match="No space"):
            write_clip(target, SILENCE + 0.5, 16000, CODES + 1, {})
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before


def test_an_interrupt_while_a_file_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there, and nobody knew its name yet: one of some thousand killed workers left it."""
    make = tempfile.mkstemp

    def interrupted(**options: Any) -> tuple[int, str]:
        made = make(**options)
        os.kill(os.getpid(), signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, "mkstemp", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "x.bin") as file:
        file.write(b"never")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_between_two_files_waits_for_the_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def interrupted(source: str, target: Path) -> None:
        real(source, target)
        if target.suffix == ".wav":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "clip.wav", SILENCE, 16000, CODES, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clip.json", "clip.npy", "clip.wav"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
