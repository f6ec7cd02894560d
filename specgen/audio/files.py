"""Writing clips: audio, tokens and sidecar, each whole or not at all, none over another file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from specgen.errors import UserError

STOPS = (signal.SIGINT, signal.SIGTERM)
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS"}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only once it is complete (temporary file, fsync, rename).

    Raises:
        OSError: the folder cannot be written.
    """
    with together(path) as (file,):
        yield file


@contextlib.contextmanager
def together(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Files that appear under their names, in this order, once all of them are complete.

    Raises:
        OSError: a folder cannot be written.
    """
    names: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            files: list[IO[bytes]] = []
            for path in paths:
                with _uninterrupted():  # a file is there before its name is known
                    handle, name = tempfile.mkstemp(
                        prefix=f".{path.name[:32]}.", suffix=".tmp", dir=path.parent
                    )
                    names.append(name)
                    files.append(stack.enter_context(os.fdopen(handle, "wb")))
            yield tuple(files)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        for name in names:
            os.chmod(name, 0o666 & ~mask)  # mkstemp makes private files
        _rename_all(names, paths)
    except BaseException:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        raise


def _rename_all(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Rename all or none: Ctrl-C waits for the last one, an error takes the others away."""
    placed: list[Path] = []
    with _uninterrupted():
        try:
            for name, path in zip(names, paths, strict=True):
                os.replace(name, path)
                placed.append(path)
        except OSError:
            for path in placed:
                path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C or SIGTERM within is acted on at the end. Only the main thread ever sees one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number)) for number in STOPS
    }
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        for number in caught[:1]:
            signal.raise_signal(number)


def companions(audio: Path) -> tuple[Path, Path]:
    """The token file and the sidecar that lie beside an audio file."""
    return audio.with_suffix(".npy"), audio.with_suffix(".json")


def check_target(audio: Path, *, overwrite: bool) -> None:
    """Refuse a target before any work is done; makes nothing that stays.

    Raises:
        UserError: the folder cannot be made or written, or a file is in the way.
    """
    folder = audio.parent
    try:
        while not folder.exists():  # the rest of the path is made when there is a clip to write
            folder = folder.parent
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".specgen-"):
            pass
        for path in (audio, *companions(audio)):
            path.exists()  # a name too long for the file system
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


@dataclass(frozen=True)
class ClipFiles:
    """A clip's three files as bytes, and its sidecar as recorded in one of them."""

    audio: bytes
    tokens: bytes
    sidecar: bytes
    record: dict[str, Any]


def encode_clip(
    audio: Path,
    wave: NDArray[np.float32],
    sample_rate: int,
    codes: NDArray[np.int16],
    sidecar: dict[str, Any],
) -> ClipFiles:
    """A clip's files in memory; arguments as for `write_clip`."""
    kind = audio.suffix.lstrip(".").lower()
    token_path, _ = companions(audio)
    full = {**sidecar, "tokens": token_path.name, "tokens_sha256": tokens_sha256(codes)}
    sound, tokens = io.BytesIO(), io.BytesIO()
    samples = np.clip(wave.T, -1.0, 1.0)
    soundfile.write(sound, samples, sample_rate, format=kind.upper(), subtype=FORMATS[kind])
    np.save(tokens, np.ascontiguousarray(codes, dtype="<i2"), allow_pickle=False)
    record = (json.dumps(full, indent=1, ensure_ascii=False) + "\n").encode()
    return ClipFiles(sound.getvalue(), tokens.getvalue(), record, full)


def write_files(audio: Path, files: ClipFiles) -> None:
    """Write a clip's three files, all or none.

    Raises:
        OSError: a file could not be written.
    """
    contents = (files.audio, files.tokens, files.sidecar)
    with together(audio, *companions(audio)) as opened:
        for file, content in zip(opened, contents, strict=True):
            file.write(content)


def write_clip(
    audio: Path,
    wave: NDArray[np.float32],
    sample_rate: int,
    codes: NDArray[np.int16],
    sidecar: dict[str, Any],
) -> dict[str, Any]:
    """Write a clip's three files, all or none; the folder is made if need be.

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
    audio.parent.mkdir(parents=True, exist_ok=True)
    files = encode_clip(audio, wave, sample_rate, codes, sidecar)
    write_files(audio, files)
    return files.record
