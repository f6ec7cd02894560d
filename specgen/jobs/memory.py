"""How many rows fit into memory together: `--batch auto`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specgen.decoding.loop import capacity

if TYPE_CHECKING:
    from specgen.checkpoints.native import LMCheckpoint
    from specgen.engine import Engine

MOST = {"cpu": 16, "cuda": 64}  # beyond, a row more costs as much as it brings
_SHARE = 0.5  # of what is free: activations, the codec and other programs want some
_CONDITION = 64  # tokens of a long prompt


def row_bytes(engine: Engine, frames: int) -> int:
    """Bytes that one row of so many frames needs: its keys and values in both models."""
    sampling = engine.settings.sampling
    verifier = _cache_bytes(engine.verifier, frames, sampling.cfg != 1.0)
    if engine.drafter is None:
        return verifier
    guided = sampling.cfg != 1.0 and engine.settings.drafter_cfg
    return verifier + _cache_bytes(engine.drafter, frames, guided)


def _cache_bytes(model: LMCheckpoint, frames: int, guided: bool) -> int:
    config = model.lm.config
    places = capacity(model.pattern, frames) + (_CONDITION if config.condition_dim else 0)
    values = 2 * config.layers * config.kv_heads * config.head_dim * places
    return values * model.lm.dtype.itemsize * (2 if guided else 1)


def auto_batch(engine: Engine, frames: int) -> int:
    """Rows to decode together, the longest of `frames` frames; at least 1."""
    fit = int(_SHARE * free_bytes(engine.device)) // max(1, row_bytes(engine, frames))
    return max(1, min(MOST.get(engine.device.type, 16), fit))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU also within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
