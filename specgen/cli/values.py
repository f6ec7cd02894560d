"""Comma lists and paths on a command line, read strictly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from specgen import config
from specgen.errors import UserError

T = TypeVar("T")


def values(option: str, text: str | None, read: Callable[[str], T]) -> tuple[T, ...]:
    """The parts of a comma list; () where the option was left out.

    Raises:
        UserError: a part that cannot be read.
    """
    if text is None:
        return ()
    try:
        return tuple(read(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} {text!r}: {error}") from None


def unique(found: Iterable[T]) -> tuple[T, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(found))


def frames(text: str) -> float | None:
    """A draft length; None for `auto`."""
    return config.parse_draft_frames(text, "--draft-frames")


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError(f"{text} is not 1 or more")
    return value


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """A reader of known words."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is unknown; use {', '.join(known)}")
        return text

    return read


def prompt_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file, one a line; `-` is stdin.

    Raises:
        UserError: it cannot be read or holds none.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}; check the path") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{path} has no prompts; write one a line")
    return lines


def check_results_file(path: Path, suffixes: Collection[str]) -> None:
    """Refuse a results file that could not be written, before an hour is spent.

    Raises:
        UserError: an unknown suffix or no such folder.
    """
    if path.suffix not in suffixes:
        raise UserError(f"--output-file {path} must end in one of {', '.join(suffixes)}")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--output-file: cannot write in {folder}; create it or choose another")


def replace_file(path: Path, text: str) -> None:
    """Write a text file; an older one stays until the new one is whole."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
