"""What a row should take of a device's memory: weights, caches, noise."""

from __future__ import annotations

from specgen.benchmarking.bandwidth import position_bytes
from specgen.benchmarking.trials import Trial
from specgen.checkpoints.base import LMCheckpoint
from specgen.decoding.loop import capacity

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
