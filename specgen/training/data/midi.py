"""A reader of the small MIDI files abc2midi writes: note onsets, lengths, velocities, no more."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """One note: `start` and `length` in ticks, `pitch` 0..127, `velocity` 1..127."""

    start: int
    length: int
    pitch: int
    velocity: int


def _varlen(data: bytes, at: int) -> tuple[int, int]:
    """Read a variable-length quantity at `at`; return it and the position after it."""
    value = 0
    while True:
        byte = data[at]
        at += 1
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at


def _track_notes(data: bytes) -> list[Note]:
    """Notes of one track chunk's body, in order of their ends."""
    at = time = status = 0
    sounding: dict[tuple[int, int], tuple[int, int]] = {}
    notes: list[Note] = []
    while at < len(data):
        delta, at = _varlen(data, at)
        time += delta
        if data[at] >= 0x80:
            status = data[at]
            at += 1
        if status == 0xFF:  # meta event: type, length, body
            size, at = _varlen(data, at + 1)
            at += size
        elif status in (0xF0, 0xF7):
            size, at = _varlen(data, at)
            at += size
        elif status >> 4 in (0xC, 0xD):
            at += 1
        else:
            kind, channel = status >> 4, status & 0xF
            pitch, velocity = data[at], data[at + 1]
            at += 2
            if kind in (0x8, 0x9) and (channel, pitch) in sounding:
                start, loud = sounding.pop((channel, pitch))
                if time > start:
                    notes.append(Note(start, time - start, pitch, loud))
            if kind == 0x9 and velocity:
                sounding[channel, pitch] = (time, velocity)
    return notes


def read_notes(data: bytes) -> tuple[int, list[Note]]:
    """Ticks a quarter note, and all notes of all tracks sorted by start.

    Raises ValueError when `data` is no standard MIDI file.
    """
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("not a standard MIDI file")
    division = int.from_bytes(data[12:14], "big")
    at = 8 + int.from_bytes(data[4:8], "big")
    notes: list[Note] = []
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        if data[at : at + 4] == b"MTrk":
            notes += _track_notes(data[at + 8 : at + 8 + size])
        at += 8 + size
    return division, sorted(notes)
