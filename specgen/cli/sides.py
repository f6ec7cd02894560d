"""Sides of a comparison as a command line writes them: a preset, and options of `generate`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from specgen import config
from specgen.cli.job import Job, settings_of
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.evaluation.runs import Side


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
    parser.add_argument("--dtype", choices=config.DTYPES)
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
    job = Job(config.load_preset(given.pop("preset")), [], 0)
    job.draft = not given.pop("no_draft")
    job.dtype = given.pop("dtype")
    job.quantize = given.pop("quantize")
    config.parse_quantize(job.quantize)
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
