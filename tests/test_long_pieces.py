"""Pieces longer than a model makes at once, sections, and audio that is heard while it is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from specgen.decoding.loop import Piece, Progress, decode_pieces
from specgen.decoding.sampling import Sampling
from specgen.engine import Clip, Request, load
from specgen.errors import UserError
from specgen.generation import ConditionedModel

LONG = Request(
    "a slow air on the flute", 5, 4.3, id="long"
)  # windows of 2 s that start 1.2 s apart


def made(preset: str, *requests: Request, draft: bool = True, batch: int = 16) -> list[Clip]:
    return list(load(preset, draft=draft).generate(requests, batch=batch))


@pytest.mark.parametrize("name", ["dual", "delay"])
def test_drafting_changes_no_window(tiny_folder: Path, name: str) -> None:
    preset = str(tiny_folder / f"{name}.yaml")
    (plain,) = made(preset, LONG, draft=False)
    (drafted,) = made(preset, LONG)
    assert plain.codes.shape == (4, 215)
    assert torch.equal(plain.codes, drafted.codes)
    assert drafted.stats.rounds > 0 and drafted.audio.shape[-1] == 215 * 320
    among = made(preset, Request("a jig", 1, 0.4), LONG, Request("a reel", 2, 3.1), batch=2)
    assert torch.equal(among[1].codes, plain.codes)


def test_the_windows_are_continuations(tiny: str) -> None:
    """The first is the short piece; the second goes on from its last 0.8 s, by the plain model."""
    engine = load(tiny, draft=False)
    (clip,) = engine.generate([LONG])
    (short,) = engine.generate([Request(LONG.prompt, LONG.seed, 2.0)])
    assert torch.equal(clip.codes[:, :100], short.codes)
    sampling = engine.settings.sampling
    role = ConditionedModel.of(engine.verifier, [LONG.prompt], 100, sampling.cfg).role
    piece = Piece(100, LONG.seed, short.codes[:, 60:], origin=60)
    drawn = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
    (second,) = decode_pieces(role, None, [piece], rows=1, sampling=drawn)
    assert torch.equal(clip.codes[:, 60:160], second.codes)


def test_progress_counts_from_the_beginning_of_the_piece(tiny: str) -> None:
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.extend(settled.frames for settled in progress.running.values())

    list(load(tiny).generate([LONG], on_round=watch))
    assert seen == sorted(seen) and seen[-1] == 215


def test_a_section_begins_with_its_prompt(tiny: str) -> None:
    engine = load(tiny)
    plain = Request("a slow air on the flute", 3, 1.6)
    turned = Request(plain.prompt, 3, 1.6, sections=((0.8, "a lively jig on the fiddle"),))
    same = Request(plain.prompt, 3, 1.6, sections=((0.8, plain.prompt),))
    one, two, three = engine.generate([plain, turned, same])
    assert torch.equal(one.codes[:, :40], two.codes[:, :40])
    assert not torch.equal(one.codes[:, 40:], two.codes[:, 40:])
    assert torch.equal(two.codes[:, :40], three.codes[:, :40])
    assert not torch.equal(two.codes[:, 40:], three.codes[:, 40:])
    assert engine.sidecar(two)["sections"] == [[0.8, "a lively jig on the fiddle"]]


def test_a_later_window_may_be_the_longest(tiny: str) -> None:
    """The first section is short, so the second window, with what it sees, is longer."""
    request = Request("a jig", 3, 1.5, sections=((0.4, "a reel"),))
    (drafted,) = made(tiny, request)
    (plain,) = made(tiny, request, draft=False)
    assert torch.equal(drafted.codes, plain.codes) and drafted.codes.shape[1] == 75


@pytest.mark.parametrize("seconds", [1.7, 4.3])
def test_what_is_heard_is_the_clip(tiny: str, seconds: float) -> None:
    engine = load(tiny)
    request = Request("a slow air on the flute", 5, seconds)
    (silent,) = engine.generate([request])
    heard: list[Tensor] = []
    done: list[int] = []

    def listen(which: Request, part: Tensor) -> None:
        assert which.seed == request.seed
        heard.append(part)

    def watch(progress: object) -> None:
        done.append(sum(part.shape[-1] for part in heard))

    (clip,) = engine.generate([request], on_audio=listen, on_round=watch)
    joined = torch.cat(heard, dim=-1)
    assert torch.equal(joined, clip.audio) and torch.equal(clip.codes, silent.codes)
    assert (joined - silent.audio).abs().max() < 1e-5
    assert 0 < done[len(done) // 2] < joined.shape[-1]  # heard half-way through


def test_a_codec_that_cannot_stream_says_so(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(tiny)
    monkeypatch.delattr(type(engine.codec), "stream")
    with pytest.raises(UserError, match="whole pieces"):
        list(engine.generate([Request("a jig", 1, 0.4)], on_audio=lambda *_: None))
