"""ABC reading, bar alignment and the MIDI reader, on text written here."""

from __future__ import annotations

import shutil

import pytest

from specgen.errors import UserError
from specgen.training.data import tunes as tunes_module
from specgen.training.data.midi import Note, read_notes
from specgen.training.data.tunes import align_bars, genre_of, parse_abc, parse_key, play

_SCALE = """
X: 1
T: UP AND DOWN -- JIG
T: Another Name
R: jig
M: 6/8
L: 1/8
K: Em
uE | ~EFG {a}ABc | "Em"dcB AGF | EFG ABc | dcB AG :|
|: E | EFG ABc | dcB AGF | EFG ABc | dcB AG :|
"""


def test_parse_abc_reads_the_header_and_strips_ornaments() -> None:
    (score,) = parse_abc("ryan", "UpAndDown", _SCALE)
    assert score.id == "ryan-UpAndDown-1"
    assert (score.title, score.genre, score.metre) == ("UP AND DOWN", "jig", (6, 8))
    assert (score.tonic, score.mode) == (4, "minor")
    assert "~" not in score.abc
    assert "{" not in score.abc
    assert "u" not in score.abc


@pytest.mark.parametrize("line", ["K: G", "M: 3/4", "V: 2", "abc [K:G] def |"])
def test_tunes_that_change_key_metre_or_voice_are_left_out(line: str) -> None:
    assert list(parse_abc("ryan", "x", _SCALE.rstrip() + "\n" + line + "\n")) == []


def test_fields_before_the_first_tune_are_defaults() -> None:
    text = "R: reel\nM: C|\nL: 1/8\n\nX:7\nT:A\nK:D\nABcd efga|\n\nX:8\nT:B\nM:2/4\nK:G\nABcd|\n"
    first, second = parse_abc("oneill", "f", text)
    assert (first.id, first.genre, first.metre) == ("oneill-7", "reel", (4, 4))
    assert (second.id, second.metre) == ("oneill-8", (2, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("G", (7, "major")),
        ("Bb", (10, "major")),
        ("E Minor", (4, "minor")),
        ("F#m", (6, "minor")),
        ("A Mixolydian", (9, "mixolydian")),
        ("Ador % comment", (9, "dorian")),
        ("Cb", (11, "major")),
        ("Bphr", None),
        ("none", None),
    ],
)
def test_parse_key(text: str, expected: tuple[int, str] | None) -> None:
    assert parse_key(text) == expected


@pytest.mark.parametrize(
    ("rhythm", "title", "metre", "chapter", "expected"),
    [
        ("Jig", "", (6, 8), "", "jig"),
        ("slip jig", "", (9, 8), "", "slip jig"),
        ("", "Lord Moira's Hornpipe", (4, 4), "", "hornpipe"),
        ("", "The Reel of Tullochgorum", (6, 8), "", "jig"),  # a reel is not in 6/8
        ("highland fling", "", (4, 4), "", "strathspey"),
        ("", "The Job of Journey Work", (2, 4), "", "polka"),
        ("", "Kitty", (3, 4), "air", "air"),
        ("", "Kitty", (3, 4), "", "waltz"),
    ],
)
def test_genre(
    rhythm: str, title: str, metre: tuple[int, int], chapter: str, expected: str
) -> None:
    assert genre_of(rhythm, title, metre, chapter) == expected


def _bars(starts: list[int]) -> list[Note]:
    return [
        Note(start + 240 * i, 239, 60 + i, 105 if i == 0 else 80)
        for start in starts
        for i in range(4)
    ]


def test_align_bars_drops_the_pickup_and_what_follows_an_irregular_bar() -> None:
    pickup = [Note(0, 239, 72, 105)]
    regular = _bars([240 + 960 * i for i in range(9)])
    shifted = _bars([240 + 960 * 9 + 480 + 960 * i for i in range(3)])
    cut = align_bars(pickup + regular + shifted, 960)
    assert cut is not None
    notes, bars = cut
    assert bars == 10  # nine and the bar in which the rhythm breaks
    assert notes[0] == Note(0, 239, 60, 105)
    assert {note.start % 960 for note in notes[:36] if note.velocity == 105} == {0}


def test_align_bars_wants_eight_bars() -> None:
    assert align_bars(_bars([960 * i for i in range(7)]), 960) is None


def test_read_notes_handles_running_status_and_zero_velocity_ends() -> None:
    events = bytes([0, 0x90, 60, 100, 0x83, 0x60, 60, 0, 0, 64, 80, 0x60, 0x80, 64, 0])
    meta = bytes([0, 0xFF, 0x2F, 0])
    body = events + meta
    data = b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 1, 0xE0])
    data += b"MTrk" + len(body).to_bytes(4, "big") + body
    assert read_notes(data) == (480, [Note(0, 480, 60, 100), Note(480, 96, 64, 80)])


def test_read_notes_refuses_other_files() -> None:
    with pytest.raises(ValueError, match="MIDI"):
        read_notes(b"RIFF....WAVEfmt ")


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi (abcmidi) not installed")
def test_play_gives_the_melody_with_repeats_from_the_first_bar_line() -> None:
    (tune,) = play(list(parse_abc("ryan", "UpAndDown", _SCALE)))
    assert (tune.bar, tune.bars) == (1440, 16)
    assert [note.pitch for note in tune.notes[:6]] == [64, 66, 67, 69, 71, 72]
    assert all(note.start % 240 == 0 for note in tune.notes)
    assert tune.notes[-1].start < tune.bars * tune.bar


def test_missing_abc2midi_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunes_module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install abcmidi"):
        play([])
