"""Writing clips: audio, tokens and sidecar, each whole or not at all, none over another file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from specgen.errors import UserError

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS"}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only once it is complete (temporary file, fsync, rename).

    Raises:
        OSError: the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def companions(audio: Path) -> tuple[Path, Path]:
    """The token file and the sidecar that lie beside an audio file."""
    return audio.with_suffix(".npy"), audio.with_suffix(".json")


def check_target(audio: Path, *, overwrite: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        UserError: the folder cannot be made or written, or a file is in the way.
    """
    try:
        audio.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=audio.parent, prefix=".specgen-"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to {audio.parent}: {reason}; choose another place with --out"
        ) from None
    for path in (audio, *companions(audio)):
        if path.is_dir():
            raise UserError(f"{path} is a folder; choose another name with --out")
        if path.exists() and not overwrite:
            raise UserError(
                f"{path} exists; add --overwrite to replace it, or choose another --out"
            )


def tokens_sha256(codes: NDArray[np.int16]) -> str:
    """sha256 of the tokens' C-order little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype="<i2").tobytes()).hexdigest()


def write_clip(
    audio: Path,
    wave: NDArray[np.float32],
    sample_rate: int,
    codes: NDArray[np.int16],
    sidecar: dict[str, Any],
) -> dict[str, Any]:
    """Write a clip's three files; the sidecar comes last, so where it is, the others are.

    Args:
        audio: target; its suffix chooses the format.
        wave: `[channels, samples]` float32 in [-1, 1].
        codes: `[K, T]` tokens.
        sidecar: what to record; `tokens` and `tokens_sha256` are added.

    Returns:
        The sidecar as written.

    Raises:
        OSError: a file could not be written.
    """
    kind = audio.suffix.lstrip(".").lower()
    token_path, sidecar_path = companions(audio)
    with atomic(audio) as file:
        samples = np.clip(wave.T, -1.0, 1.0)
        soundfile.write(file, samples, sample_rate, format=kind.upper(), subtype=FORMATS[kind])
    with atomic(token_path) as file:
        np.save(file, np.ascontiguousarray(codes, dtype="<i2"), allow_pickle=False)
    full = {**sidecar, "tokens": token_path.name, "tokens_sha256": tokens_sha256(codes)}
    with atomic(sidecar_path) as file:
        file.write((json.dumps(full, indent=1, ensure_ascii=False) + "\n").encode())
    return full
