"""What turns a clip into a vector for the distances: musicnn, or what other packages bring."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from math import gcd
from pathlib import Path
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


_CLAP_WINDOW = 480_000  # samples; of a longer clip the package would take a part at random
PANN_FILE = "Cnn14_mAP%3D0.431.pth"  # as `frechet-audio-distance` spells it
VGGISH_CODE = ("harritaylor_torchvggish_master", "harritaylor_torchvggish_main")
VGGISH_FILE = "checkpoints/vggish-10086976.pth"
PASST_FILE = "checkpoints/passt-s-f128-p16-s10-ap.476-swa.pt"


class ClapEmbedder:
    """LAION's CLAP (Wu et al. 2023), 512 units, through `laion-clap`.

    Args:
        weights: a checkpoint of the plain (not fused) HTSAT-tiny model.
    """

    name = "clap"
    sample_rate = 48_000

    def __init__(self, weights: str = "") -> None:
        path = _given("clap", weights, "FILE.pt, such as 630k-audioset-best.pt")
        module = import_package("laion_clap", "clap", "laion-clap")
        _only_tensors("clap", path)
        with _loading("clap", path):
            self._model = module.CLAP_Module(enable_fusion=False, device="cpu")
            self._model.load_ckpt(str(path), verbose=False)

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        starts = range(0, max(len(wave) - _CLAP_WINDOW // 2, 1), _CLAP_WINDOW)
        rows = [wave[None, start : start + _CLAP_WINDOW] for start in starts]
        embed = self._model.get_audio_embedding_from_data
        return _mean([np.asarray(embed(x=row, use_tensor=False))[0] for row in rows])


class _FrechetPackage:
    """A model of `frechet-audio-distance`, which knows how to fetch and to call several."""

    name: str
    sample_rate: int

    def _load(self, folder: Path, files: list[Path]) -> None:
        module = import_package("frechet_audio_distance", self.name, "frechet-audio-distance")
        for file in files:
            _only_tensors(self.name, file)
        with _loading(self.name, folder):
            self._package = module.FrechetAudioDistance(
                ckpt_dir=str(folder), model_name=self.name, sample_rate=self.sample_rate
            )

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = self._package.get_embeddings([wave], sr=self.sample_rate)
        except ValueError:  # the package prints what went wrong and goes on with nothing
            raise UserError(
                f"--embedder {self.name} could not hear a clip of "
                f"{len(wave) / self.sample_rate:.2f} s; make clips of a second or more"
            ) from None
        return _mean(np.atleast_2d(found))


class VggishEmbedder(_FrechetPackage):
    """VGGish (Hershey et al. 2017), 128 units, mean over its patches of 0.96 s.

    Args:
        weights: a folder of torch.hub with `harritaylor/torchvggish` and its checkpoint.
    """

    name = "vggish"
    sample_rate = 16_000

    def __init__(self, weights: str = "") -> None:
        folder = _given("vggish", weights, f"FOLDER, a folder of torch.hub with {VGGISH_FILE}")
        if not any((folder / name).is_dir() for name in VGGISH_CODE):
            raise UserError(
                f"--embedder vggish: {folder} has no {VGGISH_CODE[0]}; unpack "
                "github.com/harritaylor/torchvggish there"
            )
        self._load(folder, [_file("vggish", folder, VGGISH_FILE)])


class PannEmbedder(_FrechetPackage):
    """PANN's Cnn14 (Kong et al. 2020), 2048 units.

    Args:
        weights: a folder with its checkpoint at 32 kHz.
    """

    name = "pann"
    sample_rate = 32_000

    def __init__(self, weights: str = "") -> None:
        folder = _given("pann", weights, f"FOLDER, a folder with {PANN_FILE}")
        self._load(folder, [_file("pann", folder, PANN_FILE)])


class PasstEmbedder:
    """PaSST (Koutini et al. 2022), 768 units, through `hear21passt`.

    Args:
        weights: a folder of torch.hub with its checkpoint.
    """

    name = "passt"
    sample_rate = 32_000

    def __init__(self, weights: str = "") -> None:
        folder = _given("passt", weights, f"FOLDER, a folder of torch.hub with {PASST_FILE}")
        path = _file("passt", folder, PASST_FILE)
        self._module = import_package("hear21passt.base", "passt", "hear21passt")
        _only_tensors("passt", path)
        before = torch.hub.get_dir()
        torch.hub.set_dir(str(folder))
        try:
            with _loading("passt", path):
                self._model = self._module.load_model(mode="embed_only").cpu()
        finally:
            torch.hub.set_dir(before)

    def embed(self, wave: NDArray[np.float32]) -> NDArray[Any]:
        audio = torch.from_numpy(np.ascontiguousarray(wave))[None]
        with contextlib.redirect_stdout(sys.stderr):
            found = self._module.get_scene_embeddings(audio, self._model)
        embedding: NDArray[Any] = found[0].cpu().numpy()
        return embedding


def import_package(module: str, name: str, package: str) -> Any:
    """A module that is not ours.

    Raises:
        UserError: it, or something it needs, is not installed or does not load.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--embedder {name} cannot be imported ({reason}); pip install {package}"
        ) from None


def _given(name: str, weights: str, what: str) -> Path:
    """Where the weights lie, as far as that is said and there."""
    if not weights:
        raise UserError(f"--embedder {name} needs its weights: --embedder {name}:{what}")
    path = Path(weights)
    if not path.exists():
        raise UserError(f"--embedder {name}: {path} does not exist; give {name}:{what}")
    return path


def _file(name: str, folder: Path, file: str) -> Path:
    path = folder / file
    if not path.is_file():
        raise UserError(f"--embedder {name}: {folder} has no {file}; fetch it there first")
    return path


def _only_tensors(name: str, path: Path) -> None:
    """Refuse a file of `torch.save` that holds more than tensors and plain values."""
    plain = [np.dtype, np.float64, np.ndarray, type(np.dtype(np.float64))]
    scalar: Any = np.float64(0).__reduce__()[0]  # checkpoints keep their epoch's loss as one
    try:
        with torch.serialization.safe_globals([*plain, scalar]):
            torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        # Whatever a damaged file makes torch raise, it is not to be given to the package.
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"--embedder {name}: {path} cannot be read as weights ({reason}); fetch it again"
        ) from None


@contextlib.contextmanager
def _loading(name: str, path: Path) -> Iterator[None]:
    """What a package says goes to stderr, what it raises becomes one line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(
            f"--embedder {name} cannot load {path} ({reason}); check weights and version"
        ) from None


def _mean(rows: Any) -> NDArray[Any]:
    embedding: NDArray[Any] = np.mean(rows, axis=0)
    return embedding


PACKAGES: dict[str, Callable[[str], Embedder]] = {
    "clap": ClapEmbedder,
    "pann": PannEmbedder,
    "passt": PasstEmbedder,
    "vggish": VggishEmbedder,
}
