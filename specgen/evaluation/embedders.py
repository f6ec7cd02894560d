"""What turns a clip into a vector for the distances: musicnn, or what other packages bring."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.errors import UserError
from specgen.evaluation import musicnn
from specgen.evaluation.packages import (
    ClapEmbedder,
    PannEmbedder,
    PasstEmbedder,
    VggishEmbedder,
    import_package,
)


@runtime_checkable
class Embedder(Protocol):
    """One vector a clip."""

    @property
    def name(self) -> str: ...

    @property
    def sample_rate(self) -> int: ...

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        """`[N]` mono samples at `sample_rate` to `[D]`."""
        ...


class MusicnnEmbedder:
    """The penultimate layer of musicnn (200 units), and its tags. Ships with the program."""

    name = "musicnn"
    sample_rate = musicnn.SAMPLE_RATE

    def __init__(self) -> None:
        self._network = musicnn.load()

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        return self.analyse(wave)[0]

    def analyse(self, wave: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The embedding `[200]` and tag probabilities `[50]`."""
        hidden, tags = musicnn.analyse(self._network, torch.from_numpy(wave))
        return hidden.numpy(), tags.numpy()


PACKAGES: dict[str, Callable[[str], Embedder]] = {
    "clap": ClapEmbedder,
    "pann": PannEmbedder,
    "passt": PasstEmbedder,
    "vggish": VggishEmbedder,
}


def load_embedder(name: str) -> Embedder:
    """An embedder: `musicnn`, a name of `PACKAGES` with its weights, `package.module:factory`.

    Raises:
        UserError: unknown, not installed, or it does not behave as one.
    """
    head, _, rest = name.partition(":")
    made: Any
    if name == MusicnnEmbedder.name:
        made = MusicnnEmbedder()
    elif head in PACKAGES:
        made = PACKAGES[head](rest)
    elif rest:
        factory = getattr(import_package(head, name, head), rest, None)
        if factory is None:
            raise UserError(f"--embedder {name}: module {head} has no {rest}")
        made = factory()
    else:
        raise UserError(
            f"--embedder {name!r} is unknown; use musicnn, {', '.join(PACKAGES)}, or "
            "package.module:factory"
        )
    if not isinstance(made, Embedder):
        raise UserError(f"--embedder {name}: it needs name, sample_rate and embed(wave)")
    return made


def resample(wave: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """`[N]` samples at another rate (polyphase filter)."""
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    made: NDArray[np.float32] = resample_poly(wave, wanted // common, rate // common)
    return made.astype(np.float32)
