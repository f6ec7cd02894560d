"""Comma lists and paths on a command line, read strictly."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from specgen import presets
from specgen.cli.job import Job, settings_of
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.evaluation.runs import Side

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
    return presets.parse_draft_frames(text, "--draft-frames")


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


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are ours to print."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> _Parser:
    parser = _Parser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("preset")
    parser.add_argument("--no-draft", action="store_true")
    parser.add_argument("--allow-biased", action="store_true")
    parser.add_argument("--no-drafter-cfg", dest="drafter_cfg", action="store_false", default=None)
    parser.add_argument("--dtype", choices=presets.DTYPES)
    parser.add_argument("--quantize")
    parser.add_argument("--rule")
    parser.add_argument("--lossy")
    parser.add_argument("--draft-frames")
    parser.add_argument("--draft-temperature")
    for name, kind in (("temperature", float), ("top-p", float), ("cfg", float), ("top-k", int)):
        parser.add_argument(f"--{name}", type=kind)
    return parser


@dataclass(frozen=True)
class Written:
    """A side as written, checked as far as that needs no model."""

    text: str
    job: Job
    changes: dict[str, Any]
    allow_biased: bool

    def side(self) -> Side:
        """The side. Imports torch."""
        from specgen.evaluation.runs import Side

        settings = settings_of(self.job, self.changes, allow_biased=self.allow_biased)
        job = self.job
        return Side(self.text, job.preset, settings, job.draft, job.dtype, job.quantize)


def read_side(text: str) -> Written:
    """A side such as `embedded`, `embedded --no-draft` or `embedded --rule keep`.

    Raises:
        UserError: no such preset, or an option that a side does not have.
    """
    try:
        given = vars(_parser().parse_args(shlex.split(text)))
    except (ValueError, argparse.ArgumentError) as error:
        raise UserError(
            f"side {text!r}: {error}; write it as 'embedded --no-draft', with options of "
            "specgen generate that change how clips are made"
        ) from None
    job = Job(presets.load_preset(given.pop("preset")), [], 0)
    job.draft = not given.pop("no_draft")
    job.dtype = given.pop("dtype")
    job.quantize = given.pop("quantize")
    presets.parse_quantize(job.quantize)
    allow = bool(given.pop("allow_biased"))
    return Written(" ".join(text.split()), job, given, allow)


def read_sides(texts: list[str]) -> list[Written]:
    """Two sides or more.

    Raises:
        UserError: fewer, or the same one twice.
    """
    made = [read_side(text) for text in texts]
    if len(made) < 2:
        raise UserError("give two sides or more: specgen compare embedded embedded-flatten")
    for i, side in enumerate(made):
        if side.text in (other.text for other in made[:i]):
            raise UserError(f"side {side.text!r} is given twice; leave one out")
    return made
