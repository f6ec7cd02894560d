"""Melody conditions against audiocraft's classes, and conditions that stand before a sequence."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from torch import Tensor

import specgen
from specgen.cli.app import run
from specgen.decoding.lane import Role
from specgen.decoding.loop import capacity, decode
from specgen.decoding.sampling import Sampling
from specgen.errors import UserError
from specgen.lm.chroma import ChromaConditioner, ChromaConfig, PrefixConditioner, chromagram
from specgen.lm.config import LMConfig
from specgen.lm.model import MusicLM
from specgen.lm.session import LMSession
from specgen.lm.t5 import T5Conditioner
from specgen.lm.transformer import PositionTables, rotations, sinusoids
from specgen.patterns import PatternSpec
from tests.peers import stand_ins

audio_utils = pytest.importorskip("transformers.audio_utils")

SMALL = ChromaConfig(sample_rate=8000, window=1024, hop=256, length=20)
DIM = 32
DELAY, FLATTEN = PatternSpec("delay", 4), PatternSpec("flatten", 4)


class Spectrogram:
    """torchaudio's power spectrogram as its documentation defines it, in numpy."""

    def __init__(self, n_fft: int, win_length: int, hop_length: int, **options: Any) -> None:
        assert options == {"power": 2, "center": True, "pad": 0, "normalized": True}
        assert n_fft == win_length
        self.size, self.hop = n_fft, hop_length

    def __call__(self, wav: Tensor) -> Tensor:
        """`[..., N]` to `[..., bins, windows]`."""
        half = self.size // 2
        pad = [(0, 0)] * (wav.dim() - 1) + [(half, half)]
        padded = np.pad(wav.double().numpy(), pad, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=-1)
        window = scipy.signal.get_window("hann", self.size)
        spectrum = np.fft.rfft(frames[..., :: self.hop, :] * window) / np.sqrt((window**2).sum())
        return torch.from_numpy(np.abs(spectrum) ** 2).float().transpose(-1, -2)


def filters(sr: int, n_fft: int, tuning: float, n_chroma: int) -> Any:
    """What audiocraft asks librosa for."""
    bank = audio_utils.chroma_filter_bank(
        num_frequency_bins=n_fft, num_chroma=n_chroma, sampling_rate=sr, tuning=tuning
    )
    return bank.astype(np.float32)


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """The module that sets audiocraft up, with stand-ins for librosa, torchaudio and demucs."""
    with stand_ins("demucs") as module:
        chroma: Any = importlib.import_module("audiocraft.modules.chroma")
        chroma.filters = SimpleNamespace(chroma=filters)
        chroma.torchaudio = SimpleNamespace(transforms=SimpleNamespace(Spectrogram=Spectrogram))
        stems: Any = ModuleType("demucs")
        nothing = SimpleNamespace(sources=["vocals", "other"], to=lambda _device: nothing)
        stems.pretrained = SimpleNamespace(get_model=lambda _name: nothing)
        sys.modules["demucs"] = stems
        yield module


def tune(seconds: float, rate: int = 8000) -> Tensor:
    """A rising scale with a little noise."""
    t = torch.arange(round(seconds * rate)) / rate
    torch.manual_seed(0)
    notes = 220 * 2 ** ((t * 8).floor() / 12)
    return 0.3 * torch.sin(2 * torch.pi * notes * t) + 0.01 * torch.randn(len(t))


def test_the_pitch_filters_are_librosas() -> None:
    """Entries of librosa 0.11.0's `filters.chroma` for the melody models' dimensions."""
    bank = filters(32000, 16384, 0, 12)
    assert bank.shape == (12, 8193)
    assert abs(float(bank[11, 4000]) - 0.27670607) < 1e-6
    sums = [318.4501, 321.226, 327.7735, 334.1781, 340.41678, 346.49756]
    sums += [352.3868, 358.08508, 363.61655, 368.9428, 373.5298, 354.83972]
    assert np.abs(bank.sum(axis=1) - sums).max() < 1e-3


@pytest.mark.parametrize("argmax", [True, False])
@pytest.mark.parametrize("seconds", [0.05, 0.6, 3.0])
def test_chromagrams_equal_audiocrafts(peer: ModuleType, argmax: bool, seconds: float) -> None:
    extractor = importlib.import_module("audiocraft.modules.chroma").ChromaExtractor
    theirs = extractor(sample_rate=8000, n_chroma=12, radix2_exp=10, argmax=argmax)
    wav = tune(seconds)
    expected = theirs(wav[None, None])[0]
    found = chromagram(wav, replace(SMALL, argmax=argmax))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4
    if seconds > 1:
        assert len(found.argmax(dim=-1).unique()) > 6


@pytest.mark.parametrize("seconds", [None, 0.3, 0.64, 3.0], ids=str)
def test_conditions_equal_audiocrafts(
    peer: ModuleType, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated or cut to the trained length; no melody is silence, and silence is class 0."""
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    options = {"sample_rate": 8000, "n_chroma": 12, "radix2_exp": 10, "argmax": True}
    duration = 0.61
    theirs = conditioners.ChromaStemConditioner(output_dim=DIM, duration=duration, **options)
    # Parting the mix is left out of ours.
    monkeypatch.setattr(theirs, "_get_stemmed_wav", lambda wav, _rate: wav)
    config = ChromaConfig.from_audiocraft(options, duration)
    assert config == SMALL
    projection = theirs.output_proj.requires_grad_(False)
    ours = ChromaConditioner(config, projection.weight, projection.bias)
    wav = torch.zeros(1) if seconds is None else tune(seconds)
    given = conditioners.WavCondition(wav[None, None], torch.tensor([len(wav)]), [8000], [None], [])
    expected, mask = theirs(given)
    assert bool(mask.all())
    found = ours.encode(None if seconds is None else wav)
    assert found.shape == (20, DIM)
    assert (found - expected[0]).abs().max() < 1e-5
    if seconds is None:
        assert torch.equal(found, (projection.weight[:, 0] + projection.bias).expand(20, -1))


def test_the_melody_models_length_is_235() -> None:
    options = {"sample_rate": 32000, "n_chroma": 12, "radix2_exp": 14, "argmax": True}
    extra = {"match_len_on_eval": False, "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None}
    assert ChromaConfig.from_audiocraft(options | extra, 30.0) == ChromaConfig()


@pytest.mark.parametrize("option", [{"norm": 2}, {"nfft": 512}, {"stems": 1}])
def test_options_that_are_not_supported_are_named(option: dict[str, Any]) -> None:
    base = {"sample_rate": 32000, "n_chroma": 12, "radix2_exp": 14}
    with pytest.raises(UserError, match=f"chroma_stem.{next(iter(option))}"):
        ChromaConfig.from_audiocraft(base | option, 30.0)


# Conditions before the sequence


def model(dtype: torch.dtype = torch.float64, **options: Any) -> MusicLM:
    torch.manual_seed(0)
    lm = MusicLM(LMConfig(4, 32, DIM, 4, 3, 80, **options)).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.normal_(std=0.3)
    return lm.to(dtype)


class Fixed(torch.nn.Module):
    """audiocraft's condition provider with given tensors; the text first, as there."""

    def __init__(self, chroma: Tensor, text: Tensor) -> None:
        super().__init__()
        self.conditions = {"description": text, "self_wav": chroma}

    def tokenize(self, conditions: list[Any]) -> int:
        return len(conditions)

    def forward(self, rows: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (value[:rows], torch.ones(value[:rows].shape[:2]))
            for name, value in self.conditions.items()
        }


def same_tables(lm: MusicLM, theirs: Any, length: int) -> None:
    """Position codes in float64 on both sides, as in `test_against_audiocraft`."""
    config, every = lm.config, torch.arange(length)
    sines = turns = None
    if config.positions == "sin":
        sines = sinusoids(every, config.dim, config.max_period, torch.float64)
    else:
        turn = rotations(every, config.head_dim, config.max_period, 1.0)
        turns = turn.to(torch.complex128)
        theirs.transformer.rope.dtype, theirs.transformer.rope.rotation = torch.float64, turns
    lm.transformer._tables = PositionTables(sines, turns, length, torch.device("cpu"))


@pytest.mark.parametrize("positions", ["sin", "rope"])
@pytest.mark.parametrize("pattern", [DELAY, FLATTEN], ids=["delay", "flatten"])
def test_greedy_generation_with_a_prefix_equals_audiocrafts(
    peer: ModuleType, pattern: PatternSpec, positions: str
) -> None:
    """Chroma, text, tokens, all at running positions; the null twin as long, its text zeros."""
    lm = model(positions=positions)
    chroma, null = torch.randn(2, 7, DIM, dtype=torch.float64)
    text = torch.randn(1, 4, DIM, dtype=torch.float64)
    theirs = peer.build(lm, pattern, None, fused_attention=False)
    conditioners = importlib.import_module("audiocraft.modules.conditioners")
    names = ["self_wav", "description"]
    theirs.fuser = conditioners.ConditionFuser(
        {"cross": [], "prepend": names, "sum": [], "input_interpolate": []}
    )
    theirs.condition_provider = Fixed(
        torch.stack([chroma, null]), torch.cat([text, torch.zeros_like(text)])
    )
    frames = 20
    room = capacity(pattern, frames)
    same_tables(lm, theirs, room + 11)
    expected = theirs.generate(
        conditions=peer.described(1), max_gen_len=frames, use_sampling=False, cfg_coef=3.0
    )
    session = LMSession(
        lm,
        rows=1,
        capacity=room,
        condition=torch.cat([chroma[None], text], dim=1),
        null=null[None],
        guidance=3.0,
        prepend=True,
    )
    sampling = Sampling(temperature=0.0)
    found = decode(Role(session, pattern), frames=[frames], seeds=[0], sampling=sampling)
    assert torch.equal(torch.stack(found.codes), expected)
    assert len(expected.unique()) > 3  # not one token over and over


def prefixed(lm: MusicLM, prefixes: Sequence[Tensor], guidance: float | None = 3.0) -> LMSession:
    lengths = torch.tensor([len(one) for one in prefixes])
    condition = torch.nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
    mask = torch.arange(condition.shape[1])[None] < lengths[:, None]
    null = torch.ones(1, 3, DIM, dtype=condition.dtype)
    return LMSession(
        lm,
        rows=len(prefixes),
        capacity=80,
        condition=condition,
        mask=mask,
        null=null,
        guidance=guidance,
        prepend=True,
    )


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_row_does_not_depend_on_the_length_of_its_neighbours_prefix(
    guidance: float | None,
) -> None:
    lm = model(positions="sin")
    prefixes = [torch.randn(n, DIM, dtype=torch.float64) for n in (5, 9, 3)]
    tokens = torch.randint(33, (3, 4, 12))
    coordinates = [(r, n, k) for r in range(3) for n in range(12) for k in range(4)]
    rows, places, codebooks = (list(one) for one in zip(*coordinates, strict=True))
    together = prefixed(lm, prefixes, guidance)
    logits = together.logits(together.feed(tokens, [0] * 3), rows, places, codebooks)
    assert logits.std() > 0.1
    for r, prefix in enumerate(prefixes):
        alone = prefixed(lm, [prefix], guidance)
        at = [i for i, row in enumerate(rows) if row == r]
        hidden = alone.feed(tokens[r : r + 1], [0])
        one = alone.logits(hidden, [0] * len(at), places[: len(at)], codebooks[: len(at)])
        assert (logits[at] - one).abs().max() < 1e-10
    # Another sequence takes a row: its own prefix, shorter than the one before.
    together.admit(1, prefixes[2])
    swapped = together.logits(together.feed(tokens, [0] * 3), rows, places, codebooks)
    alone = prefixed(lm, [prefixes[2]], guidance)
    hidden = alone.feed(tokens[1:2], [0])
    one = alone.logits(hidden, [0] * 48, places[:48], codebooks[:48])
    assert (swapped[48:96] - one).abs().max() < 1e-10
    together.move(1, 0)
    moved = together.logits(together.feed(tokens[1:2], [0]), [0] * 48, places[:48], codebooks[:48])
    assert (moved - one).abs().max() < 1e-10


@pytest.mark.parametrize("block", [1, 7, 60])
def test_blocks_after_a_prefix(block: int) -> None:
    """Fed 1, 7 or 60 columns at a time, and fed again after a rewind, the output is the same."""
    lm = model(torch.float32, positions="sin")
    session = prefixed(lm, [torch.randn(6, DIM)])
    tokens = torch.randint(33, (1, 4, 60))
    whole = session.feed(tokens, [0])
    for _ in range(2):
        parts = [session.feed(tokens[..., i : i + block], [i]) for i in range(0, 60, block)]
        assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


class Text:
    """A text encoder that gives a vector a letter."""

    def __init__(self) -> None:
        self.dim, self.device, self.dtype = DIM, torch.device("cpu"), torch.float32
        self.table = torch.randn(256, DIM)

    def tokenize(self, text: str) -> Any:
        return SimpleNamespace(ids=list(text.encode()), unknown=[])

    def null(self) -> Tensor:
        return torch.zeros(1, 1, DIM)

    encode = T5Conditioner.encode

    def _encode(self, text: str) -> Tensor:
        return self.table[list(text.encode())]


def conditioner() -> PrefixConditioner:
    torch.manual_seed(2)
    melody = ChromaConditioner(SMALL, torch.randn(DIM, 12), torch.randn(DIM))
    return PrefixConditioner(Text(), melody)  # type: ignore[arg-type]


def test_the_melody_comes_before_the_text() -> None:
    both = conditioner()
    assert both.melody is not None
    wav = tune(0.5)
    vectors, mask = both.encode(["slow", "a jig"], [wav, None])
    assert vectors.shape == (2, 20 + 5, DIM)
    assert mask.sum(dim=1).tolist() == [24, 25]
    assert torch.equal(vectors[0, :20], both.melody.encode(wav))
    assert torch.equal(vectors[1, :20], both.null()[0])
    assert torch.equal(vectors[0, 20:24], Text.encode(both.text, ["slow"])[0][0])  # type: ignore[arg-type]
    assert not vectors[0, 24:].any()
    assert torch.equal(both.encode(["slow"])[0][0, :20], both.null()[0])


def test_clips_follow_a_melody(tiny: str, tmp_path: Path) -> None:
    """Through the engine: another melody is another clip, and no clip depends on its batch."""
    song = tmp_path / "song.wav"
    soundfile.write(song, tune(0.6, 16000).numpy(), 16000)
    engine = specgen.load(tiny, draft=False)
    lm = model(torch.float32, positions="sin")
    engine.verifier = replace(engine.verifier, lm=lm, conditioner=conditioner())
    requests = [
        specgen.Request("slow", seed=1, duration=0.4, melody=song),
        specgen.Request("slow", seed=1, duration=0.4),
        specgen.Request("a jig", seed=2, duration=0.3, melody=song),
    ]
    clips = list(engine.generate(requests, batch=2))
    alone = [next(iter(engine.generate([request]))) for request in requests]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(clips, alone, strict=True))
    assert not torch.equal(clips[0].codes, clips[1].codes)
    record = engine.sidecar(clips[0])["melody"]
    assert record["path"] == str(song) and len(record["sha256"]) == 64
    assert engine.sidecar(clips[1])["melody"] is None


def test_a_melody_for_a_model_that_follows_none_is_one_line(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, tune(0.5).numpy(), 8000)
    arguments = ["a jig", "--preset", tiny, "-d", "0.4", "-o", str(tmp_path / "x.wav")]
    assert run(["generate", *arguments, "--melody", str(song)]) == 2
    _, err = capsys.readouterr()
    assert "follows no melody" in err and err.count("\n") == 1
    assert not (tmp_path / "x.wav").exists()
