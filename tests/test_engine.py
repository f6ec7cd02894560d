"""The engine on tiny random models: the same tokens whatever drafts, and refusals in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specgen.decoding.draft_length import Learnt
from specgen.engine import Request, load
from specgen.errors import UserError
from specgen.presets import SamplingNode
from specgen.requests import Settings
from tests.conftest import make_codec, make_lm


def requests(*seconds: float) -> list[Request]:
    return [Request("a slow air on the flute", 5 + i, s) for i, s in enumerate(seconds)]


@pytest.mark.parametrize("name", ["dual", "delay"])
def test_tokens_do_not_depend_on_drafter_length_or_batch(tiny_folder: Path, name: str) -> None:
    preset = str(tiny_folder / f"{name}.yaml")
    alone = [
        next(load(preset, draft=False).generate([request])).codes for request in requests(0.5, 0.3)
    ]
    for frames in (1, 2, 5, None):
        engine = load(preset)
        engine.settings = replace(engine.settings, draft_frames=frames)
        together = [clip.codes for clip in engine.generate(requests(0.5, 0.3))]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("rule", ["mixed", "keep"])
@pytest.mark.parametrize("frames", [None, 2])
def test_a_sample_does_not_depend_on_its_batch(tiny: str, rule: str, frames: int | None) -> None:
    engine = load(tiny)
    engine.settings = replace(engine.settings, rule=rule, draft_frames=frames)
    asked = requests(1.6, 0.8, 1.0)
    together = [clip.codes for clip in engine.generate(asked)]
    alone = [next(engine.generate([request])).codes for request in asked]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("rule", ["coupled", "mixed"])
def test_a_warm_engine_makes_the_same_clips(tiny: str, rule: str) -> None:
    """`auto` goes on learning from clip to clip, which no token may show."""
    settings = replace(load(tiny).settings, rule=rule, draft_frames=None)
    fresh = [
        next(load(tiny, settings=settings).generate([request])).codes
        for request in requests(1.6, 0.8, 1.0)
    ]
    warm = load(tiny, settings=settings)
    for _ in range(2):
        for request, codes in reversed(list(zip(requests(1.6, 0.8, 1.0), fresh, strict=True))):
            assert torch.equal(next(warm.generate([request])).codes, codes)
    judged = warm.learnt.judged
    assert warm.with_settings(settings).learnt is warm.learnt
    assert judged == Learnt().judged if rule == "mixed" else judged > Learnt().judged


def test_a_clip_says_how_it_was_made(tiny: str) -> None:
    engine = load(tiny)
    (clip,) = engine.generate([Request("a jig on the zither", 3)])
    assert clip.codes.shape == (4, 20) and clip.audio.shape == (1, 20 * 320)
    assert clip.seconds == pytest.approx(0.4)
    assert clip.unknown_words == ["zither"]
    assert clip.lossless
    assert clip.stats.tokens == 80
    sidecar = engine.sidecar(clip)
    assert sidecar["seed"] == 3 and sidecar["prompt"] == "a jig on the zither"
    assert sidecar["checkpoints"]["verifier"] == engine.verifier.sha256
    assert Settings.from_dict(sidecar["sampling"]) == engine.settings


def test_a_synonym_is_the_word_it_stands_for(tiny: str) -> None:
    engine = load(tiny)
    fiddle, violin = engine.generate(
        [Request(f"a jig on the {w}", 3) for w in ("fiddle", "violin")]
    )
    assert torch.equal(fiddle.codes, violin.codes)
    assert fiddle.unknown_words == []


def test_greedy_needs_no_seed(tiny: str) -> None:
    settings = Settings(SamplingNode(temperature=0.0, cfg=2.0), draft_frames=2)
    engine = load(tiny, settings=settings)
    one, two = engine.generate([Request("a jig", 1, 0.2), Request("a jig", 2, 0.2)])
    assert torch.equal(one.codes, two.codes)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("  ", 1), "empty"),
        (Request("air " * 10_000, 1), "10000 words"),
        (Request("air", 1, 0.0), "positive"),
        (Request("air", 1, -3.0), "positive"),
        (Request("air", 1, float("nan")), "positive"),
        (Request("air", 1, 3601), "3601 s is beyond 3600"),
        (Request("air", 1, 2.0, sections=((3.0, "a reel"),)), "one after the other"),
        (Request("air", 1, 2.0, sections=((1.0, " "),)), "empty"),
        (Request("air", -1), "seed"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    tiny: str, request_: Request, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list(load(tiny).generate([request_]))


def test_a_biased_rule_is_refused_unless_asked_for(tiny: str) -> None:
    biased = Settings(SamplingNode(top_k=20), rule="rejection", draft_frames=2)
    with pytest.raises(UserError, match="allow-biased"):
        load(tiny, settings=biased)
    engine = load(tiny, settings=replace(biased, allow_biased=True))
    (clip,) = engine.generate([Request("a jig", 1, 0.2)])
    assert not clip.lossless


def test_rejection_between_equal_patterns_is_exact(tiny_folder: Path) -> None:
    settings = Settings(SamplingNode(top_k=20), rule="rejection", draft_frames=2)
    engine = load(str(tiny_folder / "delay.yaml"), settings=settings)
    (clip,) = engine.generate([Request("a jig", 1, 0.2)])
    assert clip.lossless


def test_models_of_another_codec_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for part in ("codec", "flatten"):
        (tmp_path / part).symlink_to(tiny_folder / part)
    preset = tmp_path / "other.yaml"
    text = (tiny_folder / "dual.yaml").read_text()
    preset.write_text(text)
    make_codec(tmp_path / "codec2", seed=9)
    make_lm(tmp_path / "drafter", "delay", 3, tmp_path / "codec2", dim=16)
    with pytest.raises(UserError, match="another codec"):
        load(str(preset))
    make_codec(tmp_path / "codec3", codebooks=2)
    preset.write_text(text.replace("checkpoint: drafter", "checkpoint: drafter3"))
    make_lm(tmp_path / "drafter3", "delay", 3, tmp_path / "codec3", dim=16)
    with pytest.raises(UserError, match="codebooks 2"):
        load(str(preset))


def test_a_wrong_number_of_draft_temperatures_is_refused(tiny: str) -> None:
    with pytest.raises(UserError, match="4 are needed"):
        load(tiny, settings=Settings(SamplingNode(), draft_temperatures=(1.0, 0.5)))


def test_the_lazy_names_of_the_package_are_the_engines() -> None:
    import specgen
    from specgen import engine

    assert specgen.load is engine.load and specgen.Request is engine.Request
    with pytest.raises(AttributeError):
        _ = specgen.nothing


def test_rows_enter_and_leave_a_running_batch(tiny: str) -> None:
    """Seven clips in three places: each is what it is alone; they come in order, or as done."""
    engine = load(tiny)
    words = ("a jig", "a slow air on the flute", "a lively reel in D major on the accordion")
    asked = [
        Request(words[i % 3], i, duration, id=str(i))
        for i, duration in enumerate((0.9, 0.2, 0.5, 0.3, 0.2, 0.7, 0.4))
    ]
    alone = [next(engine.generate([request])).codes for request in asked]
    ordered = list(engine.generate(asked, batch=3))
    assert [clip.request.id for clip in ordered] == [request.id for request in asked]
    loose = list(engine.generate(asked, batch=3, in_order=False))
    assert [clip.request.id for clip in loose] != [request.id for request in asked]
    for clips in (ordered, loose):
        for clip in clips:
            assert torch.equal(clip.codes, alone[int(clip.request.id or 0)])
