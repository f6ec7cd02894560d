"""`specgen bench`: seconds, acceptance and speed-up of presets against their verifier alone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from specgen import config
from specgen.benchmarking.cases import DEFAULT_PRESETS, Sweep, expand
from specgen.benchmarking.tables import FORMATS, card, render
from specgen.errors import UserError

T = TypeVar("T")

SUFFIXES = {".txt": "table", ".md": "md", ".csv": "csv", ".json": "json", ".jsonl": "jsonl"}
# Held-out wordings: instrument, dance, key and tempo each vary.
PROMPTS = (
    "a lively jig in D major on the violin",
    "a slow air in G minor on the flute",
    "a reel in A major on the accordion with guitar chords",
    "a march in D major on the trumpet with drums",
    "a gentle waltz in E minor on the piano",
)


def bench(
    presets: Annotated[
        list[str] | None,
        typer.Argument(help="Presets by name or path; left out: the embedded models' table."),
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", "-d", help="Seconds of audio: 8 or 4,8,12.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Clips decoded together: 1 or 1,4.")] = "1",
    draft_frames: Annotated[
        str | None, typer.Option(help="Draft lengths: 1,2,4,8,auto; the preset's if left out.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help=f"Accept rules: {','.join(config.RULES)}.")
    ] = None,
    draft_temperature: Annotated[
        list[str] | None,
        typer.Option(help="One value a codebook: 1,0.3,0.5,0.7. Give it again for another row."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Timed runs.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before them.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first run's first clip.")] = 1,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt a line; - is stdin.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    allow_biased: Annotated[
        bool, typer.Option("--allow-biased", help="Measure rules that change the music too.")
    ] = False,
    output: Annotated[str, typer.Option(help="table, md, csv, json or jsonl.")] = "table",
    output_file: Annotated[
        Path | None,
        typer.Option(help="Write a second format here; .txt, .md, .csv, .json or .jsonl."),
    ] = None,
) -> None:
    """Measure presets: each verifier alone, and each pair against it in the same run.

    Sides take turns; every run decodes another prompt and seed, the same on every side. Results go
    to stdout, progress to stderr.
    """
    if output not in FORMATS:
        raise UserError(f"--output {output!r} is unknown; use {', '.join(FORMATS)}")
    if output_file is not None:
        _check_file(output_file)

    sweep = Sweep(
        durations=_unique(_values("--duration", duration, _positive)),
        batches=_unique(_values("--batch", batch, _count)),
        draft_frames=_unique(_values("--draft-frames", draft_frames, _frames)),
        rules=_unique(_values("--rule", rule, _rule)),
        temperatures=_unique(
            _values("--draft-temperature", v, _positive) for v in draft_temperature or []
        ),
    )
    cases = expand([config.load_preset(name) for name in presets or DEFAULT_PRESETS], sweep)
    lines = _read_prompts(prompts) if prompts is not None else PROMPTS

    from specgen.benchmarking.measure import Plan, measure

    plan = Plan(lines, seed, repeats, warmup, device, threads, allow_biased)
    document = measure(cases, plan, _say)
    if output not in ("table", "md"):
        print(card(document), file=sys.stderr)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(render(document, output, width=width))
    if output_file is not None:
        partial = output_file.with_name(output_file.name + ".tmp")
        partial.write_text(render(document, SUFFIXES[output_file.suffix]) + "\n", encoding="utf-8")
        os.replace(partial, output_file)


def _say(text: str) -> None:
    print(f"specgen: {text}", file=sys.stderr, flush=True)


def _values(option: str, text: str | None, read: Callable[[str], T]) -> tuple[T, ...]:
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


def _unique(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _frames(text: str) -> int | None:
    return config.parse_draft_frames(text, "--draft-frames")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{text} is not 1 or more")
    return value


def _rule(text: str) -> str:
    if text not in config.RULES:
        raise ValueError(f"{text!r} is unknown; use {', '.join(config.RULES)}")
    return text


def _read_prompts(path: Path) -> tuple[str, ...]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}; check the path") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{path} has no prompts; write one a line")
    return lines


def _check_file(path: Path) -> None:
    """Refuse a results file that could not be written, before an hour is spent.

    Raises:
        UserError: an unknown suffix or no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output-file {path} must end in one of {', '.join(SUFFIXES)}")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--output-file: cannot write in {folder}; create it or choose another")
