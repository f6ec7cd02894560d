"""Rows: what a prompt file asks for, one clip each, checked value by value. Loads no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specgen.jobs.prompt_files import Raw

PROMPT_LIMIT = 10_000  # characters
SEED_BITS = 48  # a JSON reader that holds numbers as doubles keeps them

# Names that Windows gives to devices; a folder of clips may end up there.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)
_NAME = re.compile(r"[\w][\w .,+=@()-]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One clip to make.

    Attributes:
        id: unique in its job, whatever the case of its letters.
        prompt: the text.
        seed: given, or a hash of the job's seed and the id.
        line: where the prompt file says so.
        options: the other columns, as far as they were given.
    """

    id: str
    prompt: str
    seed: int
    line: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be made; its id is `#` and the line, which no good row can have."""

    id: str
    prompt: str
    error: str


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value.strip()


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)):
        raise ValueError(f"{value!r} is not a whole number")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    try:
        return int(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)):
        raise ValueError(f"{value!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return number


def _seed(value: Any) -> int:
    seed = _whole(value)
    if not 0 <= seed < 2**63:
        raise ValueError(f"{str(seed)[:40]} does not lie between 0 and 2^63 - 1")
    return seed


def _yes_no(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    word = str(value).strip().lower()
    if word not in words:
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return words[word]


def _id(value: Any) -> str:
    """An id that may be part of a file name. Numbers are fine in JSON too."""
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    reason = unsafe_name(name, 120)
    if reason:
        raise ValueError(reason)
    return name


def _listed(value: Any) -> str:
    """`1,0.3,0.5` as text or as a list, as the command line writes it."""
    if isinstance(value, list):
        return ",".join(repr(_number(item)) for item in value)
    return str(_number(value)) if isinstance(value, (int, float)) else _text(value)


def _sections(value: Any) -> list[tuple[float, str]]:
    """`[[30, "a reel"], ...]` or `{"30": "a reel", ...}`, in a CSV file as such a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('write [[30, "a reel"]]: pairs of seconds and prompt') from None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or any(
        not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs
    ):
        raise ValueError('write [[30, "a reel"]]: pairs of seconds and prompt')
    return [(_number(at), _text(text)) for at, text in pairs]


_READERS: dict[str, Callable[[Any], Any]] = {
    "id": _id,
    "prompt": _text,
    "seed": _seed,
    "duration": _number,
    "preset": _text,
    "cfg": _number,
    "temperature": _number,
    "top_k": _whole,
    "top_p": _number,
    "rule": _text,
    "draft": _yes_no,
    "draft_frames": lambda value: str(value).strip(),
    "draft_temperature": _listed,
    "drafter_cfg": _yes_no,
    "dtype": _text,
    "continue_from": _text,
    "melody": _text,
    "prompt_at": _sections,
    "lossy": _text,
}
COLUMNS = tuple(_READERS)


def unsafe_name(name: str, limit: int = 200) -> str | None:
    """Why a text cannot be (part of) a file name on every system; None if it can."""
    shown = repr(name if len(name) <= 60 else name[:60] + "...")
    if not name:
        return "the name is empty"
    if len(name.encode("utf-8", "replace")) > limit:
        return f"{shown} is longer than {limit} bytes"
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        return (
            f"{shown} cannot be part of a file name; use letters, digits, spaces and . _ - + = @ "
            ", ( ), a letter or digit first, no point or space last"
        )
    if _DEVICES.fullmatch(name):
        return f"{shown} is a device on some systems; choose another name"
    return None


def name_key(name: str) -> str:
    """What file systems that ignore case, or normalise letters, take for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKD", name).casefold())


def slug(prompt: str, limit: int = 48) -> str:
    """A prompt as a short file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:limit].strip("-") or "clip"


def row_seed(base: int, row_id: str) -> int:
    """The seed of a row that gives none: the first 48 bits of sha256("seed/" base "/" id).

    It depends on neither the order of the rows nor the shard.
    """
    digest = hashlib.sha256(f"seed/{base}/{row_id}".encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8], "big")


def content_id(prompt: str, options: dict[str, Any]) -> str:
    """The id of a row that gives none: its prompt's slug and 48 bits of a hash of its content."""
    content = json.dumps({**options, "prompt": prompt}, sort_keys=True)
    return f"{slug(prompt, 32)}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def rows_of(raws: Iterable[Raw], base_seed: int, count: int = 1) -> Iterator[Row | BadRow]:
    """Check lines and number what is the same.

    Rows without an id that say the same are told apart by `-2`, `-3`, ...; being the same, it does
    not matter which is which. The second row of a given id is bad. With `count`, each row is made
    that often: ids `x.1`, `x.2`, given seeds s, s + 1.
    """
    seen: dict[str, int] = {}
    for raw in raws:
        row = _row(raw, base_seed)
        if isinstance(row, BadRow):
            yield row
            continue
        if raw.values.get("id") is None:
            row = replace(row, id=_free(row.id, seen))
        copies = [row.id] if count == 1 else [f"{row.id}.{n}" for n in range(1, count + 1)]
        taken = next((one for one in (row.id, *copies) if name_key(one) in seen), None)
        if taken is not None:
            yield bad(raw, f"id {taken!r} is line {seen[name_key(taken)]}'s already")
            continue
        given = raw.values.get("seed") is not None
        for n, one in enumerate(copies):
            seed = row.seed + n if given else row_seed(base_seed, one)
            yield replace(row, id=one, seed=seed)
        seen.update((name_key(one), row.line) for one in (row.id, *copies))


def _free(name: str, seen: Container[str]) -> str:
    numbered = (f"{name}-{n}" for n in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if name_key(one) not in seen)


def _row(raw: Raw, base_seed: int) -> Row | BadRow:
    if raw.error is not None:
        return bad(raw, raw.error)
    values: dict[str, Any] = {}
    for column, value in raw.values.items():
        if value is None:
            continue
        try:
            values[column] = _READERS[column](value)
            str(values[column]).encode()
        except UnicodeEncodeError:
            return bad(raw, f"{column} is not UTF-8 text")
        except (ValueError, RecursionError) as error:
            return bad(raw, f"{column}: {error}")
    prompt = values.pop("prompt", "")
    if not prompt:
        return bad(raw, "no prompt; say what to play")
    if len(prompt) > PROMPT_LIMIT:
        return bad(raw, f"the prompt has {len(prompt)} characters; at most {PROMPT_LIMIT} are read")
    given = values.pop("id", None)
    row_id = content_id(prompt, values) if given is None else given
    seed = values.pop("seed", None)
    seed = row_seed(base_seed, row_id) if seed is None else seed
    return Row(row_id, prompt, seed, raw.line, values)


def bad(raw: Raw, error: str) -> BadRow:
    """The bad row of a line; its error is one line of text that any encoding can write."""
    prompt = raw.values.get("prompt")
    text = _printable(prompt, 200) if prompt else ""
    return BadRow(f"#{raw.line}", text, f"line {raw.line}: {_printable(error, 500)}")


def _printable(value: Any, limit: int) -> str:
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
