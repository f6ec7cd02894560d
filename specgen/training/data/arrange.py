"""Arranging a tune by rule: key, tempo on the frame grid, lead, chords, bass, drums.

All times are codec frames (20 ms). An eighth note (a sixteenth in tunes that run in sixteenths)
lasts a whole even number of frames, so that onsets fall on frame boundaries: one fewer thing for
a small language model to learn.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from specgen.training.data.tunes import Tune

FRAME_RATE = 50
ITEM_FRAMES = 600  # 12.0 s

LEAD, CHORDS, BASS, DRUMS = 0, 1, 2, 9  # MIDI channels; 9 is General MIDI's percussion


class Instrument(NamedTuple):
    """A General MIDI program (from 0), its family, lead range and how often it leads."""

    program: int
    family: str
    low: int
    high: int
    weight: float


INSTRUMENTS = {
    "violin": Instrument(40, "strings", 55, 91, 14),
    "cello": Instrument(42, "strings", 36, 67, 5),
    "flute": Instrument(73, "woodwind", 62, 93, 9),
    "recorder": Instrument(74, "woodwind", 65, 93, 5),
    "oboe": Instrument(68, "woodwind", 58, 86, 5),
    "clarinet": Instrument(71, "woodwind", 50, 84, 6),
    "trumpet": Instrument(56, "brass", 54, 82, 6),
    "horn": Instrument(60, "brass", 41, 72, 4),
    "guitar": Instrument(24, "plucked", 45, 79, 8),
    "harp": Instrument(46, "plucked", 52, 91, 6),
    "banjo": Instrument(105, "plucked", 48, 81, 5),
    "piano": Instrument(0, "keyboard", 55, 89, 10),
    "harpsichord": Instrument(6, "keyboard", 53, 86, 5),
    "organ": Instrument(19, "keyboard", 53, 86, 4),
    "marimba": Instrument(12, "mallet", 50, 84, 4),
    "glockenspiel": Instrument(9, "mallet", 67, 91, 3),
    "accordion": Instrument(21, "reed", 55, 88, 8),
    "bagpipes": Instrument(109, "reed", 57, 81, 5),
}
ACCOMPANISTS = {  # style: who may play it
    "chords": ("piano", "guitar", "accordion"),
    "strum": ("guitar", "banjo"),
    "arpeggio": ("harp", "guitar", "piano"),
    "pad": ("strings", "organ"),
    "drone": ("strings", "accordion"),
}
PROGRAMS = {name: one.program for name, one in INSTRUMENTS.items()} | {"strings": 48, "bass": 32}

# Frames an eighth note (or sixteenth, see `pulse_of`): the tempo word follows from it alone.
TEMPI = {8: "very fast", 10: "fast", 12: "medium", 14: "slow", 16: "very slow"}
_GENRE_TEMPI: dict[str, tuple[float, ...]] = {  # weights of 8, 10, 12, 14, 16
    "reel": (3, 4, 2, 0.5, 0.3),
    "jig": (2, 4, 3, 1, 0.3),
    "slip jig": (2, 4, 3, 1, 0.3),
    "hornpipe": (1, 3, 4, 1, 0.3),
    "polka": (2, 4, 3, 0.5, 0.2),
    "strathspey": (0.5, 2, 4, 2, 0.5),
    "march": (0.5, 2, 4, 2, 0.5),
    "waltz": (0, 1, 3, 4, 2),
    "minuet": (0, 1, 3, 4, 2),
    "air": (0, 0.5, 2, 4, 4),
}
_KEYS = {"C": 2.0, "D": 3.0, "E": 1.0, "F": 1.0, "G": 3.0, "A": 2.0, "B flat": 0.7}
_MINOR_KEYS = {"C": 0.7, "D": 2.0, "E": 3.0, "F sharp": 0.3, "G": 1.5, "A": 3.0, "B": 1.5}
PITCH_CLASSES = {
    "C": 0,
    "D": 2,
    "E": 4,
    "F": 5,
    "F sharp": 6,
    "G": 7,
    "A": 9,
    "B flat": 10,
    "B": 11,
}
_SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
# Chord degrees a mode may use, with a bias in units of "share of the bar's notes".
_CHORDS = {
    "major": {0: 0.25, 3: 0.15, 4: 0.15, 1: 0.0, 5: 0.0},
    "minor": {0: 0.25, 6: 0.12, 2: 0.05, 3: 0.1, 4: 0.1, 5: 0.05},
    "dorian": {0: 0.25, 6: 0.15, 3: 0.1, 2: 0.05},
    "mixolydian": {0: 0.25, 6: 0.15, 3: 0.12, 4: 0.0},
}


class Event(NamedTuple):
    """One note to be played: `start` and `length` in frames."""

    start: int
    length: int
    channel: int
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Item:
    """An arrangement of 12 s: programs a channel, events sorted by start, and its description."""

    id: str
    tune: str
    programs: dict[int, str]  # channel -> instrument name
    events: tuple[Event, ...]
    state: dict[str, Any]


def seeded(*parts: object) -> random.Random:
    """A generator that depends on `parts` only (Python's own hash is salted)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _compound(metre: tuple[int, int]) -> bool:
    return metre[1] == 8 and metre[0] % 3 == 0


def runs_in_sixteenths(tune: Tune) -> bool:
    """Whether more than a third of the notes are sixteenths or shorter."""
    return sum(note.length <= 130 for note in tune.notes) > 0.35 * len(tune.notes)


class Metre(NamedTuple):
    """A tune's heard metre: its name, and ticks of pulse, beat and bar."""

    name: str
    pulse: int
    beat: int
    bar: int


def heard_metre(tune: Tune) -> Metre:
    """How the metre sounds: a 2/4 written in sixteenths is heard as a 4/4 in eighths."""
    count, unit = tune.score.metre
    if (count, unit) in ((2, 4), (4, 4)) and runs_in_sixteenths(tune):
        return Metre("4/4", 120, 240, 960)
    beat = 720 if _compound((count, unit)) else 480
    return Metre(f"{count}/{unit}", 240, beat if tune.bar % beat == 0 else tune.bar, tune.bar)


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def melody_window(tune: Tune, first: int, pulse: int, frames: int) -> list[tuple[int, int, int]]:
    """(start, length, pitch) in frames, from bar `first`, the tune repeated until 12 s are full.

    `frames` a pulse. Onsets are rounded to frames (only triplets and graces need it).
    """
    period = tune.bars * tune.bar
    notes: list[tuple[int, int, int]] = []
    lap = -first * tune.bar
    while lap * frames < ITEM_FRAMES * pulse:
        for note in tune.notes:
            start = round((lap + note.start) * frames / pulse)
            end = round((lap + note.start + note.length + 1) * frames / pulse)
            if 0 <= start < ITEM_FRAMES and end > start and lap + note.start >= 0:
                notes.append((start, min(end, ITEM_FRAMES) - start, note.pitch))
        lap += period
    return notes


def chord_plan(
    melody: list[tuple[int, int, int]], span: int, tonic: int, mode: str
) -> list[tuple[int, ...]]:
    """A triad (three pitch classes, root first) for each `span` of frames of the 12 s.

    The triad of the mode that covers most of the melody's sounding time, biased to the tonic.
    """
    scale = _SCALES[mode]
    triads = {d: tuple((tonic + scale[(d + i) % 7]) % 12 for i in (0, 2, 4)) for d in _CHORDS[mode]}
    if mode == "minor":  # the dominant of minor is major
        root, _, fifth = triads[4]
        triads[4] = (root, (root + 4) % 12, fifth)
    plan: list[tuple[int, ...]] = []
    for left in range(0, ITEM_FRAMES, span):
        weight = [0.0] * 12
        for start, length, pitch in melody:
            shared = min(start + length, left + span) - max(start, left)
            if shared > 0:
                weight[pitch % 12] += shared * (1.5 if start == left else 1.0)
        total = sum(weight) or 1.0

        def score(degree: int, weight: list[float] = weight, total: float = total) -> float:
            return sum(weight[pc] for pc in triads[degree]) / total + _CHORDS[mode][degree]

        best = 0 if left == 0 and score(0) > 0.5 else max(triads, key=score)
        plan.append(triads[best])
    return plan


def _near(pitch_class: int, low: int) -> int:
    """The lowest pitch of a class at or above `low`."""
    return low + (pitch_class - low) % 12


def _accompany(
    style: str, plan: list[tuple[int, ...]], span: int, beat: int, pulse: int, tonic: int
) -> list[Event]:
    """Events of the chord channel; `span`, `beat` and `pulse` in frames."""
    events: list[Event] = []

    def add(start: int, length: int, pitches: list[int], velocity: int) -> None:
        if start < ITEM_FRAMES:
            cut = min(length, ITEM_FRAMES - start)
            events.extend(Event(start, cut, CHORDS, pitch, velocity) for pitch in pitches)

    for i, triad in enumerate(plan):
        left, right = i * span, (i + 1) * span
        voicing = sorted(_near(pc, 52) for pc in triad)
        root = _near(triad[0], 43)
        if style == "pad":
            add(left, span, voicing, 70)
        elif style == "drone":
            if i == 0:
                add(0, ITEM_FRAMES, [_near(tonic, 43), _near((tonic + 7) % 12, 43)], 70)
        elif style == "arpeggio":
            tones = [root, *(root + (pc - triad[0]) % 12 for pc in triad[1:]), root + 12]
            order = [0, 1, 2, 3, 2, 1] if beat == 3 * pulse else [0, 1, 2, 1]
            for n, start in enumerate(range(left, right, pulse)):
                add(start, pulse, [tones[order[n % len(order)]]], 76 if n == 0 else 66)
        elif style == "strum":
            for n, start in enumerate(range(left, right, beat)):
                add(start, beat, [root, *voicing], 80 if n == 0 else 66)
        else:  # chords: the root on the beat, the chord after it ("oom-pah")
            after = 2 * pulse if beat == 3 * pulse else beat // 2
            for start in range(left, right, beat):
                add(start, after, [root], 76)
                add(start + after, beat - after, voicing, 64)
    return events


def _bass(plan: list[tuple[int, ...]], span: int, beat: int) -> list[Event]:
    """Root on the first beat, fifth half a bar later (where a bar has an even number of beats)."""
    events: list[Event] = []
    beats = max(span // beat, 1)
    for i, triad in enumerate(plan):
        hits = {0: triad[0], beats // 2: triad[2]} if beats % 2 == 0 else {0: triad[0]}
        hold = span // len(hits)
        for n, pc in hits.items():
            start = i * span + n * beat
            if start < ITEM_FRAMES:
                cut = min(hold, ITEM_FRAMES - start)
                events.append(Event(start, cut, BASS, _near(pc, 33), 84 if n == 0 else 76))
    return events


def _drums(span: int, beat: int, pulse: int) -> list[Event]:
    """Kick on the bar, snare on the off beats, closed hi-hat on every pulse."""
    events: list[Event] = []
    beats = max(span // beat, 1)
    for left in range(0, ITEM_FRAMES, span):
        for n in range(beats):
            kick = n == 0 or (beats == 4 and n == 2)
            events.append(Event(left + n * beat, 4, DRUMS, 36 if kick else 38, 96 if kick else 80))
        events += [Event(at, 4, DRUMS, 42, 60) for at in range(left, left + span, pulse)]
    return [event for event in events if event.start < ITEM_FRAMES]


def _fit(melody: list[tuple[int, int, int]], one: Instrument) -> list[tuple[int, int, int]]:
    """The melody moved by octaves into the lead's range; stray notes folded one by one."""
    pitches = sorted(pitch for _, _, pitch in melody)
    middle = (pitches[0] + pitches[-1]) / 2
    octave = 12 * round(((one.low + one.high) / 2 - middle) / 12)
    folded: list[tuple[int, int, int]] = []
    for start, length, pitch in melody:
        pitch += octave
        while pitch < one.low:
            pitch += 12
        while pitch > one.high:
            pitch -= 12
        folded.append((start, length, pitch))
    return folded


def _mood(mode: str, frames: int) -> str:
    bright = mode in ("major", "mixolydian")
    if frames <= 10:
        return "lively" if bright else "fiery"
    if frames <= 12:
        return "cheerful" if bright else "wistful"
    return "gentle" if bright else "sad"


def arrange(tune: Tune, take: int, seed: int) -> Item:
    """The `take`-th arrangement of a tune: wholly determined by (tune, take, seed)."""
    score = tune.score
    rng = seeded("arrange", seed, score.id, take)
    metre = heard_metre(tune)
    pulse_ticks = metre.pulse
    frames = int(_weighted(rng, dict(zip(map(str, TEMPI), _GENRE_TEMPI[score.genre], strict=True))))
    if pulse_ticks == 240 and runs_in_sixteenths(tune):
        frames = max(frames, 12)  # sixteenths of four frames would blur
    lead = _weighted(rng, {name: one.weight for name, one in INSTRUMENTS.items()})
    keys = _KEYS if score.mode in ("major", "mixolydian") else _MINOR_KEYS
    names = {number: name for name, number in PITCH_CLASSES.items()}
    key = names.get(score.tonic, "")
    if key not in keys or rng.random() < 0.5:
        key = _weighted(rng, keys)
    shift = (PITCH_CLASSES[key] - score.tonic + 6) % 12 - 6
    tonic = PITCH_CLASSES[key]

    section = 8 if tune.bars >= 16 else 4
    first = section * rng.randrange(max(tune.bars // section, 1))
    melody = melody_window(tune, first, pulse_ticks, frames)
    if not melody:
        melody = melody_window(tune, first := 0, pulse_ticks, frames)
    melody = [(start, length, pitch + shift) for start, length, pitch in melody]
    melody = _fit(melody, INSTRUMENTS[lead])

    bar, beat = metre.bar * frames // pulse_ticks, metre.beat * frames // pulse_ticks
    draw = rng.random()
    layers = 0 if draw < 0.4 else 1 if draw < 0.7 else 2 if draw < 0.85 else 3
    programs = {LEAD: lead}
    events = [
        Event(start, max(length - 1, 1) if length > 3 else length, LEAD, pitch, velocity)
        for start, length, pitch in melody
        for velocity in (108 if start % bar == 0 else 96 if start % beat == 0 else 88,)
    ]
    state: dict[str, Any] = {"accompaniment": "none", "chords": None, "bass": False, "drums": False}
    if layers:
        style = rng.choices(list(ACCOMPANISTS), (4, 4, 3, 1.5, 1.5))[0]
        if layers > 1 and style == "drone":
            style = "strum"
        player = rng.choice([name for name in ACCOMPANISTS[style] if name != lead])
        plan = chord_plan(melody, bar, tonic, score.mode)
        programs[CHORDS] = player
        events += _accompany(style, plan, bar, beat, frames, tonic)
        state |= {"accompaniment": style, "chords": player}
        if layers > 1:
            programs[BASS] = "bass"
            events += _bass(plan, bar, beat)
            state["bass"] = True
        if layers > 2:
            events += _drums(bar, beat, frames)
            state["drums"] = True
    item = f"{score.id}-{take}"
    state = {
        "title": score.title,
        "genre": score.genre,
        "metre": metre.name,
        "key": key,
        "mode": score.mode,
        "lead": lead,
        "family": INSTRUMENTS[lead].family,
        "tempo": TEMPI[frames],
        "mood": _mood(score.mode, frames),
        "bpm": round(60 * FRAME_RATE / beat),
        "pulse_frames": frames,
        "first_bar": first,
        **state,
    }
    return Item(item, score.id, programs, tuple(sorted(events)), state)
