"""Prompt files: plain text (a prompt a line), JSONL and CSV become values by column name.

Reading is by line, so a file may be longer than memory. What cannot be read of one line is that
line's error; only a file that says nothing at all (not there, an unknown CSV column) is refused.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from specgen.errors import UserError
from specgen.jobs.rows import COLUMNS

KINDS = ("auto", "text", "jsonl", "csv", "tsv")
LINE_LIMIT = 100_000  # characters; what is longer is no prompt
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}


@dataclass(frozen=True, slots=True)
class Raw:
    """One line of a prompt file: its number (from 1), and its values or what is wrong with it."""

    line: int
    values: dict[str, Any]
    error: str | None = None


def read_prompts(name: str, kind: str = "auto") -> Iterator[Raw]:
    """The lines of a prompt file.

    Args:
        name: a path; `-` is stdin.
        kind: `text`, `jsonl`, `csv`, `tsv`, or `auto`: by suffix, and for stdin by the first line.

    Raises:
        UserError: no such file, not a text file, an unknown kind or CSV column, no prompts.
    """
    if kind not in KINDS:
        raise UserError(f"--prompts-format {kind!r} is unknown; use {', '.join(KINDS)}")
    empty = True
    with _opened(name) as file:
        try:
            first = file.readline(LINE_LIMIT)
            kind = _kind(name, first) if kind == "auto" else kind
            lines = _lines(file, first)
            read = {"text": _text, "jsonl": _jsonl, "csv": _csv, "tsv": _tsv}[kind]
            for raw in read(lines, name):
                empty = False
                yield raw
        except OSError as error:
            raise UserError(
                f"cannot read prompts from {name}: {error.strerror or error}; check the path"
            ) from None
    if empty:
        raise UserError(f"{name} has no prompts; write one a line")


@contextlib.contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    """The file as text; bytes that are no UTF-8 become lone surrogates, which rows refuse."""
    try:
        handle = os.dup(sys.stdin.fileno()) if name == "-" else os.open(name, os.O_RDONLY)
    except io.UnsupportedOperation:  # stdin that is no file, in a test
        yield sys.stdin
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read prompts from {name}: {reason}; check the path") from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and name != "-"):
        os.close(handle)
        raise UserError(f"cannot read prompts from {name}: it is no file; check the path")
    with os.fdopen(handle, "rb") as file:
        start = file.peek(4)[:4] if stat.S_ISREG(mode) else b""
        if start.startswith((b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04", b"\x1f\x8b")):
            raise UserError(f"{name} is not UTF-8 text; save it as UTF-8 text, JSONL or CSV")
        with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            yield text


def _kind(name: str, first: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".json":
        raise UserError(f"{name}: write JSONL, one object a line, and name it .jsonl")
    if name == "-" and first.lstrip().startswith("{"):
        return "jsonl"
    return _SUFFIXES.get(suffix, "text")


def _lines(file: TextIO, first: str) -> Iterator[str]:
    """Lines, none longer than `LINE_LIMIT` and a bit; what is beyond is dropped."""
    line = first
    while line:
        while len(line) >= LINE_LIMIT and not line.endswith("\n"):
            rest = file.readline(LINE_LIMIT)
            if len(rest) < LINE_LIMIT or rest.endswith("\n"):
                line += "\n"
                break
        yield line
        line = file.readline(LINE_LIMIT)


def _text(lines: Iterator[str], name: str) -> Iterator[Raw]:
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield Raw(number, {"prompt": prompt})


def _jsonl(lines: Iterator[str], name: str) -> Iterator[Raw]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Raw(number, {}, f"not JSON: {str(error) or 'nested too deeply'}")
            continue
        if not isinstance(values, dict):
            yield Raw(number, {}, 'not a JSON object; write {"prompt": "..."}')
            continue
        unknown = [key for key in values if key not in COLUMNS]
        if unknown:
            yield Raw(number, values, _unknown(unknown[0]))
        else:
            yield Raw(number, values)


def _unknown(column: str) -> str:
    close = difflib.get_close_matches(column, COLUMNS, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown column {column[:80]!r}; {hint}there are: {', '.join(COLUMNS)}"


def _tsv(lines: Iterator[str], name: str) -> Iterator[Raw]:
    return _csv(lines, name, "\t")


def _csv(lines: Iterator[str], name: str, delimiter: str = ",") -> Iterator[Raw]:
    table = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(f"{name}: the header cannot be read: {error}") from None
            yield Raw(table.line_num, {}, f"not CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, name)
        elif len(cells) > len(header):
            yield Raw(table.line_num, {}, f"{len(cells)} cells, but {len(header)} columns")
        else:
            values = dict(zip(header, cells, strict=False))  # missing cells are not given
            yield Raw(table.line_num, {k: v for k, v in values.items() if v.strip()})


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    for column in header:
        if column not in COLUMNS:
            raise UserError(f"{name}: {_unknown(column)}")
        if header.count(column) > 1:
            raise UserError(f"{name}: column {column!r} is there twice; leave one")
    if "prompt" not in header:
        raise UserError(f"{name}: no column 'prompt'; the first line names the columns")
    return header
