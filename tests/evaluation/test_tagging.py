import numpy as np
import pytest

from specgen.evaluation.musicnn import TAGS, divergences, named, text_agreement, wanted


def test_divergence_is_that_of_independent_tags() -> None:
    p, q = np.array([[0.5, 0.9]]), np.array([[0.25, 0.9]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergences(p, q) == pytest.approx([expected])
    assert divergences(p, p) == pytest.approx([0])
    assert np.isfinite(divergences(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]))).all()


def test_prompts_name_tags_by_whole_words() -> None:
    found = named("A slow air on the fiddle, with guitar chords")
    assert {TAGS[i] for i in np.flatnonzero(found)} == {"slow", "violin", "guitar"}
    assert {TAGS[i] for i in np.flatnonzero(named("a harpsichord jig"))} == {"harpsichord"}


def test_agreement_is_one_for_a_perfect_tagger_and_half_for_a_deaf_one() -> None:
    asked = wanted(["a jig on the flute", "a jig on the violin", "a reel on the flute"])
    assert text_agreement(asked.astype(float), asked) == 1
    assert text_agreement(np.full(asked.shape, 0.3), asked) == 0.5
    assert text_agreement(1 - asked.astype(float), asked) == 0
    assert np.isnan(text_agreement(np.zeros((2, len(TAGS))), wanted(["a", "b"])))
