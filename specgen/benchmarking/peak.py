"""How much memory a stretch of work took at most, on a card or (Linux) in this process."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak resident set starts anew


class Peak:
    """What is held now, and the most that is held from now on.

    On a card what torch has allocated is counted, on a CPU the pages this process holds, so that
    there what others of its parts take or give back meanwhile counts too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be taken first
        self._before = _status("VmRSS")
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self._before = None

    def grown(self) -> int | None:
        """Bytes at most beyond what was held at the start; None where the system does not tell."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        most = _status("VmHWM")
        return None if most is None else max(0, most - self._before)


def _status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(name + ":"))
    return next((1024 * int(value) for value in found), None)
