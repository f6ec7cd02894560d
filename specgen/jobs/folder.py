"""A job's folder: whose it is, who works in it, and what a killed process left there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.audio.files import atomic
from specgen.errors import UserError
from specgen.jobs.rows import Row, slug, unsafe_name

JOB_NAME = ".specgen-job.json"
LOCK_NAME = ".specgen.lock"
NAMES_NAME = ".specgen-names"
_LEFT_OVER = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp")  # as `audio.together` names them


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other specgen out of a folder.

    The lock is the kernel's (flock): it ends with the process, however that ends, so there is no
    stale one. The file says who holds it and stays where it is.

    Raises:
        UserError: another process works there, or the folder cannot be written.
    """
    path = folder / LOCK_NAME
    with usable(folder):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise UserError(
                f"{folder} is being worked on by {who}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            print(
                f"specgen: warning: the file system of {folder} has no locks: nothing keeps a "
                "second process out of it",
                file=sys.stderr,
            )
        with contextlib.suppress(OSError):  # a full disk does not unlock
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def belongs(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether a folder is some job's already: this one's, or with `overwrite` any.

    Raises:
        UserError: it is another job's.
    """
    try:
        before = json.loads((folder / JOB_NAME).read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RecursionError):
        before = {}
    if before != identity and not overwrite:
        raise UserError(
            f"{folder} holds another job ({_difference(before, identity)}); choose another --out, "
            "or add --overwrite to make this job's clips there and keep what is the same"
        )
    return True


def take(folder: Path, identity: dict[str, Any]) -> None:
    """Note whose the folder is.

    Raises:
        OSError: it cannot be written.
    """
    with atomic(folder / JOB_NAME) as file:
        file.write((json.dumps(identity, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Work on a folder before any clip is made; what cannot be done there ends the job.

    Raises:
        UserError: for any `OSError`, as when the folder is full, read-only, or gone meanwhile.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; choose another place with --out"
        ) from None


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if not before:
        return f"{JOB_NAME} cannot be read"
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    reported = [f"{key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in keys[:3]]
    return ", ".join(reported) or "of another version"


def check_there(folder: Path) -> None:
    """Notice that a folder went away under a running job, before anything is written beside it.

    Raises:
        OSError: the folder is no longer the job's, as after its file system was unmounted.
    """
    if not (folder / JOB_NAME).is_file():
        raise OSError(errno.ENOENT, f"{folder} is no longer the job's folder (unmounted?)")


def remove_left_overs(folder: Path) -> int:
    """Remove temporary files of a killed process; returns how many. The folder must be locked."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if _LEFT_OVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    count += 1
    return count


class Claims:
    """Names of the clips that a job has begun to write. Files under another name are somebody
    else's; a manifest alone does not tell, since a killed process may have written a clip and not
    its line.

    Every process appends to a file of its own: on a network file system two that append to one
    lose lines.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        """Note a name, before its files are written.

        Raises:
            OSError: it cannot be noted.
        """
        path = self._folder / f"{NAMES_NAME}.{socket.gethostname()}-{os.getpid()}"
        with path.open("a", encoding="utf-8") as file:
            file.write(name + "\n")
        self._names.add(name)

    def __contains__(self, name: str) -> bool:
        if name not in self._names:  # perhaps one of another process, which has ended since
            self._names |= claimed(self._folder)
        return name in self._names


def claimed(folder: Path) -> set[str]:
    """The names that any process of the job has noted."""
    names: set[str] = set()
    for path in folder.glob(f"{NAMES_NAME}*"):
        with contextlib.suppress(OSError):
            names.update(path.read_text(encoding="utf-8", errors="replace").splitlines())
    return names


def gather_claims(folder: Path) -> None:
    """Make one file of what former processes noted. The folder must be locked."""
    parts = list(folder.glob(f"{NAMES_NAME}.*"))
    if not parts:
        return
    names = claimed(folder)
    with contextlib.suppress(OSError):  # a full disk: they stay apart
        with atomic(folder / NAMES_NAME) as file:
            file.writelines(f"{name}\n".encode() for name in sorted(names))
        for part in parts:
            part.unlink()


FIELDS = ("id", "slug", "seed", "index")
_PARTS = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Template:
    """A file name without suffix, with `{id}`, `{slug}`, `{seed}` and `{index}` in it.

    `{index}` is the row's place in the prompt file, in six digits: it alone depends on order.

    Raises:
        UserError: an unknown field, or letters that no file name may have.
    """

    text: str = "{id}"

    def __post_init__(self) -> None:
        for field in _PARTS.findall(self.text):
            if field not in FIELDS:
                known = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise UserError(f"--name: {{{field}}} is unknown; use {known}")
        if not _PARTS.search(self.text):
            raise UserError(f"--name {self.text!r} is the same for every clip; put {{id}} into it")
        reason = unsafe_name(_PARTS.sub("0", self.text))
        if reason:
            raise UserError(f"--name: {reason}")

    def render(self, row: Row, index: int) -> str:
        """The name of a row's clip; `unsafe_name` tells whether it can be used."""
        values = {
            "id": row.id,
            "slug": slug(row.prompt),
            "seed": str(row.seed),
            "index": f"{index:06d}",
        }
        return _PARTS.sub(lambda match: values[match[1]], self.text)
