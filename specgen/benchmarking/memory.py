"""What a row should take of a device's memory: weights, caches, noise."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specgen.benchmarking.roofline import position_bytes
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.loop import capacity

if TYPE_CHECKING:
    from specgen.benchmarking.trials import Trial

_NOISE_BLOCK = 64  # frames of noise made at a time (specgen.decoding.noise)


def row_bytes(trial: Trial) -> int:
    """Bytes of both models' weights and caches, of the noise of the grids, and, of a trial that
    has been prepared, of what cross-attention reads.

    What a pass holds in passing is left out: it is small beside these. A CUDA context (some hundred
    MB) is not torch's and is left out too.
    """
    models = [m for m in (trial.lead, trial.follow) if m is not None]
    weights = {id(m.lm): m.lm.weight_bytes() for m in models}
    caches = sum(_cache(trial, m) for m in models)
    return sum(weights.values()) + caches + trial.cross_bytes + _noise(trial)


def _cache(trial: Trial, model: LMCheckpoint) -> int:
    positions = capacity(model.pattern, trial.frames) * trial.sequences(model)
    return position_bytes(model.lm) * positions


def _noise(trial: Trial) -> int:
    config = trial.lead.lm.config
    blocks = -(-trial.frames // _NOISE_BLOCK)
    fields = 1 if trial.case.draft is None or trial.case.draft.rule == "coupled" else 3
    grid = blocks * _NOISE_BLOCK * config.codebooks * config.card
    return 4 * fields * trial.case.batch * grid


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
