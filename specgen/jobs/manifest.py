"""The manifest: a JSON line a row that is done or has failed, written so that a crash costs none.

Each line carries a checksum of itself. A line that was torn by a crash, or damaged later, is
dropped when the file is read, and its row counts as not made. Of two lines of one id the later
holds; a job that ends in any orderly way leaves one line an id.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from specgen.audio.files import atomic

NAME = "manifest.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the manifest.

    Attributes:
        id: of the row; `#` and the line for a row that could not be read.
        status: `done` or `failed`.
        fingerprint: hash of everything that decides the result (docs/formats.md).
        path: of the audio, relative to the manifest's folder.
        sha256: of the audio file.
        tokens_sha256, sidecar_sha256: of the two files beside it.
        error: why it failed.
        seconds: from the row's start to its files.
    """

    id: str
    status: str
    fingerprint: str | None = None
    path: str | None = None
    sha256: str | None = None
    tokens_sha256: str | None = None
    sidecar_sha256: str | None = None
    error: str | None = None
    seconds: float | None = None

    @property
    def done(self) -> bool:
        return self.status == "done"


_FIELDS = {field.name for field in fields(Entry)}


def encode(entry: Entry) -> bytes:
    """The line of an entry, newline and checksum included."""
    values = asdict(entry)
    text = json.dumps({**values, "check": _check(values)}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def decode(line: bytes) -> Entry | None:
    """The entry of a line; None if it was torn or damaged."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or set(values) != {*_FIELDS, "check"}:
            return None
        if values.pop("check") != _check(values):
            return None
    except (ValueError, RecursionError):
        return None
    return Entry(**values)


def _check(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: Path) -> tuple[dict[str, Entry], int]:
    """Entries by id, and how many lines were torn, damaged or superseded.

    Raises:
        OSError: it cannot be read.
    """
    entries: dict[str, Entry] = {}
    count = 0
    with path.open("rb") as file:
        for line in file:
            count += 1
            entry = decode(line)
            if entry is not None:
                entries[entry.id] = entry
    return entries, count - len(entries)


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Write a manifest anew, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic(path) as file:
        file.writelines(encode(entry) for entry in entries)


class Manifest:
    """A job's manifest while the job runs. Only one process writes it (`folder.locked`).

    Args:
        path: the file; made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries, self.dropped = read(path) if path.exists() else ({}, 0)
        if self.dropped:  # a torn last line must not run into the next one
            write(path, self.entries.values())
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._size = os.fstat(self._handle).st_size
        self.unwritten: list[Entry] = []

    def append(self, entry: Entry) -> None:
        """Add a line and wait until it is on the disk.

        When it cannot be written (a full disk) it is kept in `unwritten` and tried again with the
        next one.
        """
        self.entries[entry.id] = entry
        self.unwritten.append(entry)
        while self.unwritten and self._written(self.unwritten[0]):
            del self.unwritten[0]

    def _written(self, entry: Entry) -> bool:
        line = encode(entry)
        try:
            try:
                written = os.write(self._handle, line)
            except OSError:
                written = 0
            if written < len(line):
                os.ftruncate(self._handle, self._size)  # half a line would spoil the next
                return False
            os.fsync(self._handle)
        except OSError:
            return False
        self._size += len(line)
        return True

    def close(self, keep: Callable[[Entry], bool] = lambda entry: True) -> None:
        """Close it, with one line an id, and only those to keep."""
        os.close(self._handle)
        entries = {e.id: e for e in self.entries.values() if keep(e)}
        try:
            on_disk, dropped = read(self._path)
            if dropped or on_disk != entries:
                write(self._path, entries.values())
                self.unwritten.clear()
        except OSError:
            pass  # what was appended holds
