"""`--stream` and `--prompt-at` of `specgen generate`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from specgen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from specgen.engine import Engine, Request

STREAM_FORMATS = ("wav", "raw")


def sections_of(texts: list[str]) -> tuple[tuple[float, str], ...]:
    """`SECONDS:PROMPT` options as pairs.

    Raises:
        UserError: one of another form.
    """
    made = []
    for text in texts:
        at, colon, prompt = text.partition(":")
        try:
            seconds = float(at)
        except ValueError:
            seconds = -1.0
        if not colon or not 0 < seconds < float("inf"):
            raise UserError(f"--prompt-at needs SECONDS:PROMPT such as 30:'a reel', got {text!r}")
        made.append((seconds, prompt.strip()))
    return tuple(made)


def check_stream(target: str, kind: str, clips: int, *, as_json: bool) -> None:
    """Refuse what cannot be streamed.

    Raises:
        UserError: several clips, an unknown format, a terminal, or two things for stdout.
    """
    if kind not in STREAM_FORMATS:
        raise UserError(f"--stream-format {kind!r} is unknown; use {', '.join(STREAM_FORMATS)}")
    if clips > 1:
        raise UserError(f"--stream takes one clip, there are {clips}; leave out --count or prompts")
    if target != "-":
        return
    if as_json:
        raise UserError("--stream - and --json both write to stdout; give --stream a file")
    if sys.stdout.isatty():
        raise UserError("--stream - writes audio, not text; pipe it into a player: ... | aplay")


@contextlib.contextmanager
def open_stream(
    target: str | None, kind: str, engine: Engine, *, overwrite: bool
) -> Iterator[Callable[[Request, Tensor], None] | None]:
    """What to call with audio as it comes; None where nobody listens.

    Raises:
        UserError: a codec that decodes whole pieces only, or a file that cannot be written.
    """
    if target is None:
        yield None
        return
    from specgen.audio.streaming import WavStreamWriter
    from specgen.generation import stream_of

    stream_of(engine)  # refuses before anything is written
    with contextlib.ExitStack() as stack:
        file = cast(BinaryIO, sys.stdout.buffer)
        if target != "-":
            try:
                file = stack.enter_context(Path(target).open("wb" if overwrite else "xb"))
            except FileExistsError:
                raise UserError(f"{target} exists; choose another file or --overwrite") from None
            except OSError as error:
                raise UserError(f"cannot write {target}: {error.strerror}; check it") from None
        codec = engine.codec
        live = WavStreamWriter(file, codec.sample_rate, codec.channels, kind)
        try:
            yield lambda request, part: live.write(part)
            live.close()
        except BaseException:
            if target != "-":
                Path(target).unlink(missing_ok=True)  # no half of a clip is left
            raise
        if live.first_audio is not None:
            print(f"specgen: first audio after {live.first_audio:.2f} s", file=sys.stderr)
