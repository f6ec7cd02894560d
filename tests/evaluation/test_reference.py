from pathlib import Path

import numpy as np
import pytest
import soundfile

from specgen.codec.embedded import load_codec
from specgen.errors import UserError
from specgen.evaluation.embedders import load_embedder, resample
from specgen.evaluation.quality import (
    Listener,
    distance,
    kl_floor,
    read_recordings,
    shuffled,
    sounds_of,
    tag_shift,
    tokens_of,
)
from tests.evaluation.clips import chord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(18):
        wave = chord(0.5, seconds=1)[: 8_000 if i == 17 else 16_000]
        soundfile.write(tmp_path / f"{i:02d}.wav", wave + 0.01 * rng.normal(size=len(wave)), 16_000)
    (tmp_path / "notes.txt").write_text("no audio")
    return tmp_path


def test_recordings_are_cut_and_split(folder: Path) -> None:
    found = read_recordings(folder, 0.75)
    assert len(found.waves) == 17 and len(found.reference) == 9 and len(found.others) == 8
    assert all(len(wave) == 12_000 and rate == 16_000 for wave, rate in found.waves)
    assert found.notes == (f"{folder}: 1 files are shorter than 0.75 s, left out",)


def test_too_few_or_damaged_recordings_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="has 0 audio files"):
        read_recordings(folder, 5)
    (folder / "00.wav").write_bytes(b"RIFF and nothing")
    with pytest.raises(UserError, match=r"00\.wav"):
        read_recordings(folder, 0.5)
    with pytest.raises(UserError, match="not a folder"):
        read_recordings(folder / "no", 0.5)


def test_shuffled_tokens_keep_their_frequencies_and_nothing_else(
    tiny_folder: Path, folder: Path
) -> None:
    codec = load_codec(tiny_folder / "codec")
    codes = tokens_of(read_recordings(folder, 0.5).waves, codec)
    assert codes.shape == (18, 4, 25)
    made = shuffled(codes, 200)
    assert made.shape == (200, 4, 25)
    for k in range(4):
        was, now = (
            np.bincount(x[:, k].ravel(), minlength=32) / x[:, k].size for x in (codes, made)
        )
        assert np.abs(was - now).max() < 0.05
    wave, rate = sounds_of(made[:1], codec)[0]
    assert rate == codec.sample_rate and len(wave) == 25 * 320


class Loudness:
    """An embedder of a user's own: two numbers a clip."""

    name, sample_rate = "loudness", 8_000

    def embed(self, wave: np.ndarray) -> np.ndarray:
        return np.array([np.abs(wave).mean(), len(wave)])


def test_an_embedder_of_ones_own() -> None:
    embedder = load_embedder("tests.evaluation.test_reference:Loudness")
    heard = Listener(embedder).hear("side", [(chord(0.5), 16_000)], ["a flute"])
    assert heard.embeddings.shape == (1, 2) and heard.tags.shape == (1, 50)
    assert heard.embeddings[0, 1] == 32_000  # it got its own sample rate
    with pytest.raises(UserError, match="embed"):
        load_embedder("builtins:object")
    with pytest.raises(UserError, match="has no nothing"):
        load_embedder("tests.evaluation.test_reference:nothing")


def test_resampling_keeps_a_tone() -> None:
    t = np.arange(32_000) / 32_000
    down = resample(np.sin(2 * np.pi * 440 * t).astype(np.float32), 32_000, 16_000)
    assert down.shape == (16_000,) and down.dtype == np.float32
    assert np.abs(np.fft.rfft(down)).argmax() == 440


def test_noise_is_heard_by_every_measure() -> None:
    """Clips with noise at -10 dB against the same without: all tests reject, floors stay apart."""
    rng = np.random.default_rng(1)
    clean = [chord(0.2 + 0.05 * i, seconds=1) for i in range(10)]
    noisy = [w + 0.3 * np.abs(w).max() * rng.normal(size=len(w)).astype(np.float32) for w in clean]
    listener = Listener(load_embedder("musicnn"))
    prompts = [f"prompt {i // 2}" for i in range(10)]
    a, b = (
        listener.hear(name, [(w, 16_000) for w in waves], prompts)
        for name, waves in (("clean", clean), ("noisy", noisy))
    )
    found = distance(a, b, paired=True)
    assert found is not None and all(p <= 0.01 for p in found["p"].values())
    floor = kl_floor(a)
    assert floor is not None and found["tag_kl"]["interval_95"][0] > floor.high
    assert found["frechet"]["interval_95"][0] > 0 and found["frechet_infinity"] is None
    assert tag_shift(a.tags, a.tags) == 0
    assert distance(a.take([0, 1]), b, paired=False) is None
