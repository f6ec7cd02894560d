"""Files that appear whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from specgen.audio import atomic, check_target, tokens_sha256, write_clip
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
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "b.npy").write_text("")
    with pytest.raises(UserError, match=r"b\.npy exists"):
        check_target(tmp_path / "b.wav", overwrite=False)
    check_target(tmp_path / "b.wav", overwrite=True)
    (tmp_path / "c.wav").mkdir()
    with pytest.raises(UserError, match="folder"):
        check_target(tmp_path / "c.wav", overwrite=True)
