"""The word encoder: what it reads, what it reports, and that neighbours do not matter."""

from __future__ import annotations

import pytest
import torch

from specgen.errors import UserError
from specgen.lm.conditioning import WordEncoder, WordEncoderConfig, close_synonyms, split_words

VOCABULARY = ("a", "jig", "melody", "major", "on", "reeds", "the", "violin", "6/8", "120")
SYNONYMS = {"fiddle": "violin", "gigue": "jig", "119": "120"}


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(WordEncoderConfig(VOCABULARY, SYNONYMS, dim=16, max_words=12)).eval()


def said(encoder: WordEncoder, text: str) -> list[str]:
    return [VOCABULARY[i] for i in encoder.tokenize(text).ids]


def test_reads_words_in_order_whatever_their_case(encoder: WordEncoder) -> None:
    assert said(encoder, "A JIG, on the Violin; 6/8!") == ["a", "jig", "on", "the", "violin", "6/8"]


def test_reads_synonyms_plurals_and_singulars(encoder: WordEncoder) -> None:
    assert said(encoder, "gigues jigs fiddles melodies reed 119") == [
        "jig",
        "jig",
        "violin",
        "melody",
        "reeds",
        "120",
    ]


def test_unknown_words_are_named_once_in_order(encoder: WordEncoder) -> None:
    words = encoder.tokenize("a zydeco jig on the kazoo, zydeco")
    assert words.unknown == ["zydeco", "kazoo"]
    assert said(encoder, "a zydeco jig on the kazoo, zydeco") == ["a", "jig", "on", "the"]


def test_too_long_a_prompt_is_refused(encoder: WordEncoder) -> None:
    with pytest.raises(UserError, match="10000 words"):
        encoder.encode(["violin " * 10_000])


def test_words_are_those_of_the_captions() -> None:
    captions = pytest.importorskip("specgen.training.data.captions")
    text = "A lively jig in B-flat major, 6/8 time; 120 bpm (fiddle's)"
    assert split_words(text) == captions.words(text)


def test_a_prompt_does_not_feel_its_neighbours(encoder: WordEncoder) -> None:
    texts = ["a jig", "a jig on the violin", "zydeco"]
    vectors, mask = encoder.encode(texts)
    assert mask.sum(1).tolist() == [2, 5, 1]
    for row, text in enumerate(texts):
        alone, _ = encoder.encode([text])
        assert torch.equal(vectors[row, : alone.shape[1]], alone[0])
        assert not vectors[row, alone.shape[1] :].any()


def test_the_training_pass_equals_encode(encoder: WordEncoder) -> None:
    texts = ["a jig on the violin", "jig", ""]
    vectors, mask = encoder.encode(texts)
    with torch.inference_mode():
        trained, trained_mask = encoder([encoder.tokenize(text).ids for text in texts])
    assert torch.equal(mask, trained_mask)
    assert torch.allclose(vectors[mask], trained[mask], atol=1e-6)


def test_no_known_word_is_the_null_condition(encoder: WordEncoder) -> None:
    vectors, mask = encoder.encode(["zydeco kazoo"])
    assert vectors.shape == encoder.null().shape and mask.all()
    assert torch.equal(vectors, encoder.null())


def test_order_matters_only_nearby(encoder: WordEncoder) -> None:
    near, _ = encoder.encode(["violin jig"])
    swapped, _ = encoder.encode(["jig violin"])
    assert not torch.allclose(near[0, 0], swapped[0, 1])
    first, _ = encoder.encode(["violin a a a jig"])
    second, _ = encoder.encode(["violin a a a major"])
    assert torch.allclose(first[0, 0], second[0, 0], atol=1e-6)


def test_synonyms_are_closed_over_the_vocabulary() -> None:
    table = {"gigue": "jigg", "jigg": "jig", "lute": "guitar", "jig": "reel", "x": "y", "y": "x"}
    assert close_synonyms(table, ["jig", "reel"]) == {"gigue": "jig", "jigg": "jig"}


@pytest.mark.parametrize(
    "options",
    [
        {"vocabulary": ()},
        {"vocabulary": ("a", "a")},
        {"vocabulary": ("a",), "synonyms": {"b": "c"}},
        {"vocabulary": ("a",), "kernel": 4},
        {"vocabulary": ("a",), "max_words": 0},
    ],
)
def test_senseless_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        WordEncoderConfig(**options)  # type: ignore[arg-type]


def test_words_of_any_script_are_seen() -> None:
    assert split_words("Ein fröhlicher Jig, 6/8: ジグ!") == [
        *("ein", "fröhlicher", "jig", "6/8", "ジグ")
    ]
