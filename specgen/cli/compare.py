"""`specgen compare`: the same prompts and seeds on two sides or more, and what differs."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.cli.options import read_sides
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.evaluation.comparison import Plan
    from specgen.evaluation.runs import Made

MANY = 2_000  # clips a side from which the user is told how long that may take


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            help="Presets, each with options of generate: embedded 'embedded --rule keep'. "
            "The first is what the others are compared with."
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with one prompt a line, - is stdin; 24 of its own if left out."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Clips a prompt and side.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip.")] = 1,
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Seconds.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips decoded together.")] = 8,
    short_clips: Annotated[
        int, typer.Option(min=0, help="Very short clips for the test of every place; 0: none.")
    ] = 256,
    reference: Annotated[
        Path | None, typer.Option(help="A folder of recordings to measure distances to.")
    ] = None,
    embedder: Annotated[
        str,
        typer.Option(
            help="musicnn; clap, pann, passt or vggish with :WEIGHTS; package.module:factory."
        ),
    ] = "musicnn",
    no_quality: Annotated[
        bool, typer.Option("--no-quality", help="Compare tokens and speed only.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="A folder for the HTML report, results.json and the clips."),
    ] = None,
    players: Annotated[
        int, typer.Option(min=0, help="Prompts and seeds that the report has players for.")
    ] = 12,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that is there.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare presets or modes: identity, distribution, quality and speed.

    Every side makes the same prompts with the same seeds, in turn. Results go to stdout, progress
    to stderr. Exit code 1 if a promise is broken (tokens that must be identical are not, or a
    lossless side's statistics differ) or clips failed.
    """
    written = read_sides(sides)

    from specgen.evaluation.runs import read_prompts

    found = read_prompts(prompts)
    lines = found.lines[:limit]
    for note in found.notes:
        _say(note)
    if report is not None:
        check_folder(report, overwrite=overwrite)
    count = len(lines) * seeds
    if count > MANY:
        _say(f"{count:,} clips on each of {len(written)} sides; Ctrl-C keeps what is made")

    from specgen.evaluation.comparison import Plan

    plan = Plan(
        lines,
        seeds=seeds,
        first_seed=seed,
        duration=duration,
        batch=batch,
        device=device,
        threads=threads,
        short_clips=short_clips,
        embedder="" if no_quality else embedder,
    )
    outcome = _run([side.side() for side in written], plan, reference, report, players)
    document = outcome.document
    document["notes"] = [*found.notes, *document["notes"]]

    from specgen.evaluation.tables import passed
    from specgen.evaluation.text import render

    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(render(document, width))
    if outcome.interrupted:
        raise typer.Exit(130)
    if outcome.failures or not passed(document):
        raise typer.Exit(1)


def _run(
    sides: list[Any], plan: "Plan", reference: Path | None, report: Path | None, players: int
) -> Any:
    from functools import partial

    from specgen.evaluation.comparison import load_sides, run
    from specgen.evaluation.quality import read_recordings

    engines = load_sides(sides, plan)
    outcome = run(
        engines,
        plan,
        _say,
        recordings=None if reference is None else partial(read_recordings, reference),
        keep=None if report is None else partial(keep_clip, report),
    )
    if report is not None:
        from specgen.evaluation.page import write_comparison

        _say(f"report: {write_comparison(report, outcome, players)}")
    return outcome


def _say(text: str) -> None:
    print(f"specgen: {text}", file=sys.stderr, flush=True)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a report folder before any work is done.

    Raises:
        UserError: it is a file, is not empty, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--report {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"--report {folder} is not empty; add --overwrite, or choose another")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise UserError(f"--report: cannot write in {parent}; choose another folder")


def keep_clip(folder: Path, label: str, made: "Made") -> None:
    """Write a clip into the report's folder as soon as it is made."""
    from specgen.audio import files

    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    path = folder / "clips" / name / f"{made.request.id}.wav"
    codes = made.codes.astype("<i2")
    files.write_clip(path, made.wave[None], made.rate, codes, made.sidecar)
