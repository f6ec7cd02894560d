"""What the two halves of a round cost, on a device that works while the host goes on."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class Stopwatch:
    """Times two laps, from its making to `mark` and from there to `laps`.

    On a CUDA card the host has queued a draft long before it is done, so the card's own events are
    read. They lie behind the round's synchronisation, so nothing more is waited for but the last
    few copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """Here the first lap ends."""
        if self._stream is None:
            self._times.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._events.append(self._stream.record_event(event))

    def laps(self) -> tuple[float, float]:
        """Seconds of both laps; the second ends now."""
        self.mark()
        if self._stream is None:
            first, second = (b - a for a, b in pairwise(self._times))
        else:
            self._events[-1].synchronize()
            first, second = (a.elapsed_time(b) / 1e3 for a, b in pairwise(self._events))
        return first, second
