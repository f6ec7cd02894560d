"""What turns a clip into a vector for the distances: musicnn, or what other packages bring."""

from __future__ import annotations

import importlib
from math import gcd
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from specgen.errors import UserError
from specgen.evaluation import musicnn


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


class ClapEmbedder:
    """LAION's CLAP (Wu et al. 2023) through `laion-clap`; its weights must be on this machine."""

    name = "clap"
    sample_rate = 48_000

    def __init__(self, checkpoint: str | None = None) -> None:
        if checkpoint is None:
            raise UserError("--embedder clap needs its weights: --embedder clap:/path/to/file.pt")
        module = _import("laion_clap", "clap", "laion-clap")
        self._model = module.CLAP_Module(enable_fusion=False)
        try:
            self._model.load_ckpt(checkpoint, verbose=False)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot load CLAP weights {checkpoint}: {reason}") from None

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        found = self._model.get_audio_embedding_from_data(x=wave[None], use_tensor=False)
        embedding: NDArray[Any] = np.asarray(found)[0]
        return embedding


KNOWN: dict[str, Any] = {"musicnn": MusicnnEmbedder, "clap": ClapEmbedder}


def load_embedder(name: str) -> Embedder:
    """An embedder by name (`musicnn`, `clap:WEIGHTS`), or by `package.module:factory`.

    Raises:
        UserError: unknown, not installed, or it does not behave as one.
    """
    head, _, rest = name.partition(":")
    if head in KNOWN:
        made = KNOWN[head](rest) if rest else KNOWN[head]()
    elif rest:
        factory = getattr(_import(head, name, head), rest, None)
        if factory is None:
            raise UserError(f"--embedder {name}: module {head} has no {rest}")
        made = factory()
    else:
        raise UserError(
            f"--embedder {name!r} is unknown; use {', '.join(KNOWN)}, or package.module:factory"
        )
    if not isinstance(made, Embedder):
        raise UserError(f"--embedder {name}: it needs name, sample_rate and embed(wave)")
    return made


def _import(module: str, name: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--embedder {name} cannot be imported ({error}); pip install {package}"
        ) from None


def resample(wave: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """`[N]` samples at another rate (polyphase filter)."""
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    made: NDArray[np.float32] = resample_poly(wave, wanted // common, rate // common)
    return made.astype(np.float32)
