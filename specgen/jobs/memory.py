"""How many rows fit into memory together: `--batch auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specgen.decoding.loop import capacity
from specgen.devices import free_bytes

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


def auto_batch(engine: Engine, frames: int, workers: int = 1) -> int:
    """Rows to decode together, the longest of `frames` frames, where so many processes share the
    memory; at least 1."""
    fit = int(_SHARE * free_bytes(engine.device) / workers) // max(1, row_bytes(engine, frames))
    return max(1, min(MOST.get(engine.device.type, 16), fit))
