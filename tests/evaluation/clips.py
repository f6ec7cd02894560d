"""Clips made by formula, the same everywhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def chord(gain: float, rate: int = 16_000, seconds: int = 4) -> NDArray[Any]:
    """Four struck tones with vibrato at different rates, `[seconds * rate]` float32."""
    t = np.arange(seconds * rate) / rate
    wobble = 1 + 0.0005 * np.sin(2 * np.pi * 5 * t)
    parts = ((220, 2), (277.18, 1.5), (329.63, 1), (1760, 4))
    x = sum(np.sin(2 * np.pi * f * t * wobble) * np.exp(-((t * k) % 1) * 2) for f, k in parts)
    return np.asarray(gain * x / np.abs(x).max(), np.float32)
