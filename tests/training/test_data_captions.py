"""Captions: true to the arrangement, of small vocabulary; the lexicon's mapping holds together."""

from __future__ import annotations

from collections import Counter

from specgen.training.data.arrange import ACCOMPANISTS, INSTRUMENTS, TEMPI, seeded
from specgen.training.data.captions import captions, lexicon, round_bpm, synonyms, words
from tests.training.test_data_arrange import many


def _corpus() -> list[tuple[dict[str, object], list[str]]]:
    return [
        (item.state, captions(item.state, seeded(item.id, n)))
        for item in many(90)
        for n in range(6)
    ]


def test_four_captions_lower_case_short_and_varied() -> None:
    texts = [text for _, four in _corpus() for text in four]
    assert all(text == text.lower() and 1 <= len(words(text)) <= 40 for text in texts)
    assert len(set(texts)) > 0.8 * len(texts)
    assert not any("  " in text or text.strip(", ") != text or "{" in text for text in texts)


def test_articles_fit_their_words() -> None:
    texts = " | ".join(text for _, four in _corpus() for text in four)
    assert " a accordion" not in texts
    assert " a upbeat" not in texts
    assert "a bagpipes" not in texts


def test_vocabulary_is_small_and_violin_is_usual() -> None:
    count = Counter(word for _, four in _corpus() for text in four for word in words(text))
    assert len(count) < 400
    for word in ("violin", "fiddle", "solo", "drums", "no", "without", "jig", "bpm", "6/8"):
        assert count[word] > 0, word
    assert count["violin"] > count["fiddle"]


def test_captions_name_no_other_lead_and_no_absent_drums() -> None:
    names = set(INSTRUMENTS) - {"recorder", "horn", "bagpipes", "glockenspiel", "organ"}
    for state, four in _corpus():
        for text in four:
            said = set(words(text)) & names
            assert said <= {state["lead"], state["chords"]}, (text, state)
            if not state["drums"] and "drum" in text:
                assert "no drums" in text or "without drums" in text
            if state["drums"]:
                assert "no drums" not in text
                assert "without drums" not in text
            if state["accompaniment"] != "none":
                assert not {"solo", "alone", "unaccompanied"} & set(words(text))


def test_lexicon_covers_the_arrangers_words() -> None:
    say = lexicon()["say"]
    assert set(INSTRUMENTS) <= set(say["lead"])
    assert set(TEMPI.values()) == set(say["tempo"])
    assert set(ACCOMPANISTS) == set(say["chords"])
    assert {one.family for one in INSTRUMENTS.values()} == set(say["family"])


def _sayable() -> set[str]:
    """Every word a caption can hold."""
    say = lexicon()["say"]
    groups = [
        say["solo"],
        say["bass"],
        say["drums"],
        say["no_drums"],
        say["band"],
        say["any_genre"],
    ]
    for name in ("lead", "family", "genre", "tempo", "mood", "chords"):
        groups += list(say[name].values())
    found = {word for group in groups for phrase in group for word in words(phrase)}
    frame = (
        "a an and with on the in for played playing time major minor dorian mixolydian flat sharp"
    )
    numbers = {str(round_bpm(3000 / (f * n))) for f in TEMPI for n in (2, 3)}
    return (found | numbers | set(frame.split()) | set("abcdefg") | {"bpm"}) - {"player"}


def test_synonyms_lead_from_unsaid_words_to_said_ones() -> None:
    said = _sayable()
    for word, known in synonyms().items():
        assert isinstance(word, str)
        assert isinstance(known, str)
        assert words(word) == [word], word
        assert known in said, (word, known)
        assert word not in said, word
    assert synonyms()["keyboards"] == "piano"
    assert synonyms()["bouncy"] == "lively"
    assert synonyms()["118"] in {"110", "130"}


def test_bpm_words_are_tens() -> None:
    assert [round_bpm(bpm) for bpm in (62, 83, 94, 125, 188)] == [60, 80, 90, 130, 190]
