"""Manifests of shards become one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specgen.errors import UserError
from specgen.jobs.folder import JOB_NAME
from specgen.jobs.manifest import NAME, Entry, read, write


@dataclass(frozen=True)
class Merged:
    """What a merge found.

    Attributes:
        path: of the manifest written.
        done, failed: rows.
        dropped: torn or damaged lines that were left out.
        missing: shards that no folder was given for, as `i/n`.
    """

    path: Path
    done: int
    failed: int
    dropped: int
    missing: tuple[str, ...]


def merge(folders: Sequence[Path], out: Path, *, overwrite: bool = False) -> Merged:
    """Write one manifest of several jobs, its paths relative to its own folder, sorted by id.

    A row that one job has done and another has not is done. The clips stay where they are.

    Args:
        folders: of jobs.
        out: a folder, or the file to write.
        overwrite: replace that file.

    Raises:
        UserError: no manifest in a folder, two different clips of one id, or `out` in the way.
    """
    target = out if out.suffix == ".jsonl" else out / NAME
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; add --overwrite to replace it, or choose another --out")
    merged: dict[str, Entry] = {}
    dropped = 0
    for folder in folders:
        try:
            entries, damaged = read(folder / NAME)
        except OSError as error:
            raise UserError(
                f"cannot read {folder / NAME}: {error.strerror}; give the folders of jobs"
            ) from None
        dropped += damaged
        for entry in entries.values():
            moved = replace(entry, path=_moved(entry.path, folder, target.parent))
            merged[entry.id] = _one(merged.get(entry.id), moved)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, (merged[key] for key in sorted(merged)))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another --out") from None
    done = sum(entry.done for entry in merged.values())
    return Merged(target, done, len(merged) - done, dropped, _missing(folders))


def _moved(path: str | None, old: Path, new: Path) -> str | None:
    return None if path is None else os.path.relpath(old / path, new)


def _one(before: Entry | None, entry: Entry) -> Entry:
    if before is None or not before.done:
        return entry
    if entry.done and (entry.fingerprint, entry.sha256) != (before.fingerprint, before.sha256):
        raise UserError(
            f"id {entry.id!r} is {before.path} and, different, {entry.path}; these are not parts "
            "of one job"
        )
    return before


def _missing(folders: Sequence[Path]) -> tuple[str, ...]:
    """Shards that are not among the folders, going by what their jobs say."""
    seen: dict[int, set[int]] = {}
    for folder in folders:
        try:
            index, count = json.loads((folder / JOB_NAME).read_text())["shard"].split("/")
            seen.setdefault(int(count), set()).add(int(index))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return tuple(
        f"{index}/{count}"
        for count, there in sorted(seen.items())
        for index in range(1, min(count, 100_000) + 1)
        if index not in there
    )
