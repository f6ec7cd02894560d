"""Arrangements to samples: libfluidsynth driven frame by frame, then decimated to 16 kHz.

The library is used directly (ctypes) rather than the command line: every note starts exactly on a
frame boundary, one loaded soundfont serves any number of items, and nothing of one item's tail
sounds in the next.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, upfirdn

from specgen.errors import UserError
from specgen.training.data.arrange import DRUMS, FRAME_RATE, ITEM_FRAMES, PROGRAMS, Event, Item

SAMPLE_RATE = 16_000
_RENDER_RATE = 32_000
_STEP = _RENDER_RATE // FRAME_RATE  # samples a frame: ten of fluidsynth's 64-sample blocks
_TARGET_RMS = 0.1  # -20 dBFS
_PEAK = 0.95
# Loudness against the lead, in dB; percussion is left at its own level.
_BALANCE = {0: 0.0, 1: -9.0, 2: -6.0}
_DRUM_VOLUME = 64

Audio = NDArray[np.float32]


def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("fluidsynth")
    if name is None:
        raise UserError("libfluidsynth was not found: apt-get install fluidsynth")
    lib = ctypes.CDLL(name)
    pointer, number, text, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_double
    for call, result, arguments in (
        ("new_fluid_settings", pointer, []),
        ("fluid_settings_setnum", number, [pointer, text, real]),
        ("fluid_settings_setint", number, [pointer, text, number]),
        ("new_fluid_synth", pointer, [pointer]),
        ("delete_fluid_synth", None, [pointer]),
        ("delete_fluid_settings", None, [pointer]),
        ("fluid_synth_sfload", number, [pointer, text, number]),
        ("fluid_synth_system_reset", number, [pointer]),
        ("fluid_synth_all_sounds_off", number, [pointer, number]),
        ("fluid_synth_program_change", number, [pointer, number, number]),
        ("fluid_synth_cc", number, [pointer, number, number, number]),
        ("fluid_synth_noteon", number, [pointer, number, number, number]),
        ("fluid_synth_noteoff", number, [pointer, number, number]),
        (
            "fluid_synth_write_float",
            number,
            [pointer, number, pointer, number, number, pointer, number, number],
        ),
    ):
        function = getattr(lib, call)
        function.restype, function.argtypes = result, arguments
    return lib


class Synth:
    """FluidSynth with a General MIDI soundfont, without reverb and chorus, at 32 kHz.

    Raises UserError when the library or the soundfont is missing.
    """

    def __init__(self, soundfont: Path) -> None:
        if not soundfont.is_file():
            raise UserError(f"no soundfont at {soundfont}: apt-get install fluid-soundfont-gm")
        self._lib = lib = _library()
        self._settings = lib.new_fluid_settings()
        lib.fluid_settings_setnum(self._settings, b"synth.sample-rate", float(_RENDER_RATE))
        lib.fluid_settings_setnum(self._settings, b"synth.gain", 0.5)
        lib.fluid_settings_setint(self._settings, b"synth.reverb.active", 0)
        lib.fluid_settings_setint(self._settings, b"synth.chorus.active", 0)
        self._synth = lib.new_fluid_synth(self._settings)
        if lib.fluid_synth_sfload(self._synth, str(soundfont).encode(), 1) < 0:
            raise UserError(f"fluidsynth cannot read {soundfont}: it must be a .sf2 soundfont")
        self._loudness = self._calibrate()

    def close(self) -> None:
        """Free the synthesiser."""
        self._lib.delete_fluid_synth(self._synth)
        self._lib.delete_fluid_settings(self._settings)

    def _calibrate(self) -> dict[str, float]:
        """RMS of each instrument on the same one-second phrase at full volume."""
        loudness: dict[str, float] = {}
        for name in PROGRAMS:
            low = 40 if name == "bass" else 67
            events = tuple(Event(10 * i, 9, 0, low + 2 * i, 96) for i in range(5))
            wave = self._play({0: name}, {0: 127}, events, 50)
            loudness[name] = float(np.sqrt(np.mean(wave**2)))
        return loudness

    def _volumes(self, programs: dict[int, str]) -> dict[int, int]:
        """Controller 7 a channel, so that parts sound at `_BALANCE` (its gain is (v/127)^2)."""
        wanted = {
            channel: 10 ** (_BALANCE[channel] / 20) / self._loudness[name]
            for channel, name in programs.items()
        }
        most = max(wanted.values())
        return {c: max(1, round(127 * (gain / most) ** 0.5)) for c, gain in wanted.items()}

    def _play(
        self,
        programs: dict[int, str],
        volumes: dict[int, int],
        events: tuple[Event, ...],
        frames: int,
    ) -> Audio:
        """Mono float samples at 32 kHz, `frames` long, from silence."""
        lib, synth = self._lib, self._synth
        lib.fluid_synth_system_reset(synth)
        lib.fluid_synth_all_sounds_off(synth, -1)  # the reset alone leaves voices sounding
        for channel, name in programs.items():
            lib.fluid_synth_program_change(synth, channel, PROGRAMS[name])
            lib.fluid_synth_cc(synth, channel, 7, volumes[channel])
        # Reset sets volume 100; the drum kit stays beside a lead that may have been turned down.
        lib.fluid_synth_cc(synth, DRUMS, 7, min(127, volumes[0] * _DRUM_VOLUME // 100))
        queue = [(e.start + e.length, 0, e) for e in events] + [(e.start, 1, e) for e in events]
        queue.sort(key=lambda entry: entry[:2])
        out = np.zeros((2, frames * _STEP), dtype=np.float32)
        at = 0
        for frame in range(frames):
            while at < len(queue) and queue[at][0] <= frame:
                _, on, event = queue[at]
                if on:
                    lib.fluid_synth_noteon(synth, event.channel, event.pitch, event.velocity)
                else:
                    lib.fluid_synth_noteoff(synth, event.channel, event.pitch)
                at += 1
            base = frame * _STEP
            left, right = out[0].ctypes.data, out[1].ctypes.data
            lib.fluid_synth_write_float(synth, _STEP, left, base, 1, right, base, 1)
        return np.asarray((out[0] + out[1]) / 2, dtype=np.float32)

    def render(self, item: Item) -> NDArray[np.int16]:
        """An item's 12 s at 16 kHz: -20 dBFS RMS, less where the peak would pass 0.95."""
        wave = self._play(item.programs, self._volumes(item.programs), item.events, ITEM_FRAMES)
        return to_pcm(level(halve(wave)))


def halve(wave: Audio) -> Audio:
    """Every second sample after a zero-phase low-pass (pass 7.2 kHz, stop 8 kHz at 32 kHz)."""
    taps = firwin(255, 7600, window=("kaiser", 8.0), fs=_RENDER_RATE)
    filtered = upfirdn(taps, np.concatenate([wave, np.zeros(127, wave.dtype)]), down=1)
    return np.asarray(filtered[127 : 127 + len(wave) : 2], dtype=np.float32)


def level(wave: Audio) -> Audio:
    """Scaled to -20 dBFS RMS, or to a peak of 0.95 where that is quieter; silence unchanged."""
    rms, peak = float(np.sqrt(np.mean(wave**2))), float(np.abs(wave).max(initial=0.0))
    if rms == 0.0:
        return wave
    return np.asarray(wave * min(_TARGET_RMS / rms, _PEAK / peak), dtype=np.float32)


def to_pcm(wave: Audio) -> NDArray[np.int16]:
    """Little-endian 16-bit samples of a wave within [-1, 1]."""
    return np.round(wave * 32767).astype("<i2")
