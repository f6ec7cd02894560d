"""Prompt files: one prompt a line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from specgen.errors import UserError

BUILT_IN = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class Prompts:
    """Prompts as read.

    Attributes:
        lines: in order, each once.
        notes: what was left out, for the user.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_prompts(path: Path | None = None) -> Prompts:
    """The prompts of a file (`-` is stdin), or the built-in 24, which no model was trained on.

    Empty lines and repeated prompts are left out and counted.

    Raises:
        UserError: no such file, bytes that are not UTF-8, no prompt.
    """
    path = path or BUILT_IN
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read prompts from {path}: {error.strerror}; check the path"
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line} is not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None
    given = [line.strip() for line in text.splitlines()]
    filled = [line for line in given if line]
    lines = tuple(dict.fromkeys(filled))
    if not lines:
        raise UserError(f"{path} has no prompts; write one a line")
    notes = []
    if len(given) > len(filled):
        notes.append(_count(len(given) - len(filled), "empty line") + " left out")
    if len(filled) > len(lines):
        notes.append(_count(len(filled) - len(lines), "repeated prompt") + " left out")
    return Prompts(lines, tuple(f"{path}: {note}" for note in notes))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
