"""Arranging: everything on the frame grid, within range, and as its description says."""

from __future__ import annotations

import pytest

from specgen.training.data.arrange import (
    BASS,
    CHORDS,
    DRUMS,
    INSTRUMENTS,
    ITEM_FRAMES,
    LEAD,
    PITCH_CLASSES,
    TEMPI,
    Item,
    arrange,
    chord_plan,
    heard_metre,
    melody_window,
)
from specgen.training.data.midi import Note
from specgen.training.data.tunes import Score, Tune

_METRES = {"jig": (6, 8), "reel": (4, 4), "slip jig": (9, 8), "waltz": (3, 4), "polka": (2, 4)}


def make_tune(genre: str = "jig", mode: str = "major", unit: int = 240, name: str = "a") -> Tune:
    """Sixteen bars of running notes up and down the scale of D."""
    metre = _METRES[genre]
    bar = 1920 * metre[0] // metre[1]
    steps = [0, 2, 4, 5, 7, 9, 11, 12, 11, 9, 7, 5, 4, 2]
    count = 16 * bar // unit
    notes = tuple(
        Note(unit * i, unit - 1, 74 + steps[i % len(steps)], 105 if unit * i % bar == 0 else 80)
        for i in range(count)
    )
    return Tune(Score(f"made-{name}", "Made", genre, metre, 2, mode, ""), notes, bar, 16)


def many(count: int = 60) -> list[Item]:
    kinds = [(genre, mode) for genre in _METRES for mode in ("major", "minor", "dorian")]
    return [arrange(make_tune(*kinds[i % len(kinds)], name=str(i)), 0, 5) for i in range(count)]


def test_arranging_is_a_function_of_tune_take_and_seed() -> None:
    tune = make_tune()
    assert arrange(tune, 0, 1) == arrange(tune, 0, 1)
    assert len({arrange(tune, take, 1).events for take in range(4)}) > 1
    assert arrange(tune, 0, 1).events != arrange(tune, 0, 2).events


def test_lead_onsets_fall_on_the_pulse_and_begin_at_once() -> None:
    for item in many():
        starts = [event.start for event in item.events if event.channel == LEAD]
        assert starts[0] == 0
        assert {start % item.state["pulse_frames"] for start in starts} == {0}


def test_all_events_lie_within_the_item_and_the_leads_range() -> None:
    for item in many():
        one = INSTRUMENTS[item.state["lead"]]
        for event in item.events:
            assert 0 <= event.start < ITEM_FRAMES
            assert event.length > 0
            assert event.start + event.length <= ITEM_FRAMES + 4  # drum hits last four frames
            assert 1 <= event.velocity <= 127
            if event.channel == LEAD:
                assert one.low <= event.pitch <= one.high


def test_the_lead_keeps_to_the_named_key() -> None:
    for item in many():
        if item.state["mode"] != "major":
            continue
        tonic = PITCH_CLASSES[item.state["key"]]
        scale = {(tonic + step) % 12 for step in (0, 2, 4, 5, 7, 9, 11)}
        assert {e.pitch % 12 for e in item.events if e.channel == LEAD} <= scale


def test_the_state_tells_which_parts_sound() -> None:
    seen = set()
    for item in many():
        channels = {event.channel for event in item.events}
        state = item.state
        assert (CHORDS in channels) == (state["accompaniment"] != "none") == bool(state["chords"])
        assert (BASS in channels) == state["bass"]
        assert (DRUMS in channels) == state["drums"]
        assert state["chords"] != state["lead"]
        seen.add((state["accompaniment"] != "none", state["bass"], state["drums"]))
    assert len(seen) == 4  # solo, + chords, + bass, + drums


def test_tempo_word_and_bpm_follow_from_the_pulse() -> None:
    for item in many():
        frames = item.state["pulse_frames"]
        assert item.state["tempo"] == TEMPI[frames]
        pulses = 3 if item.state["metre"] in ("6/8", "9/8") else 2
        assert item.state["bpm"] == round(3000 / (frames * pulses))


def test_a_two_four_in_sixteenths_is_heard_as_four_four() -> None:
    assert heard_metre(make_tune("polka", unit=120)).name == "4/4"
    assert heard_metre(make_tune("polka")).name == "2/4"
    assert heard_metre(make_tune("jig")) == ("6/8", 240, 720, 1440)


def test_melody_window_repeats_the_tune_until_the_item_is_full() -> None:
    tune = make_tune("polka")
    short = Tune(tune.score, tune.notes[:16], tune.bar, 4)
    notes = melody_window(short, 0, 240, 8)
    assert len(notes) == ITEM_FRAMES // 8
    assert [pitch for _, _, pitch in notes[:16]] == [pitch for _, _, pitch in notes[16:32]]
    assert sum(length for _, length, _ in notes) == ITEM_FRAMES
    assert notes[0][2] == short.notes[0].pitch
    later = melody_window(short, 2, 240, 8)
    assert later[0][:2] == (0, 8)
    assert later[0][2] == short.notes[8].pitch


@pytest.mark.parametrize(
    ("pitches", "root"), [((62, 66, 69), 2), ((67, 71, 74), 7), ((69, 73, 64), 9)]
)
def test_chords_follow_the_melody(pitches: tuple[int, ...], root: int) -> None:
    melody = [(i * 60, 60, pitches[i % 3]) for i in range(10)]
    plan = chord_plan(melody, 200, 2, "major")
    assert len(plan) == 3
    assert plan[0][0] in (2, root)  # an item prefers to open on the tonic
    assert [triad[0] for triad in plan[1:]] == [root, root]
