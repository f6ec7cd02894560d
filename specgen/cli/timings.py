"""Where the seconds of a command went (`--timings`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specgen.requests import Clip


def process_age() -> float | None:
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22, starttime
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):
        return None


class Timings:
    """Laps of a command, named as they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        age = process_age()
        if age is not None:
            self.seconds["start"] = age

    def lap(self, name: str) -> None:
        """What has run since the last lap was `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def made(self, clips: Sequence[Clip]) -> None:
        """What has run since the last lap were these clips, decoded as one batch."""
        before = self.seconds.get("decode", 0.0)
        self.lap("decode")
        condition = max((clip.timings["condition_seconds"] for clip in clips), default=0.0)
        codec = sum(clip.timings["codec_seconds"] for clip in clips)
        decode = max(before, self.seconds["decode"] - condition - codec)
        self.seconds["decode"] = decode
        for name, value in (("condition", condition), ("codec", codec)):
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def show(self) -> None:
        """One line on stderr."""
        order = ("start", "import", "load", "condition", "decode", "codec", "write")
        parts = [f"{name} {self.seconds[name]:.2f}" for name in order if name in self.seconds]
        outside = sum(value for name, value in self.seconds.items() if name != "decode")
        print(
            f"specgen: seconds: {', '.join(parts)}; {outside:.2f} outside decoding",
            file=sys.stderr,
        )
