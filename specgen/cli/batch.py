"""`specgen generate --prompts`: the command line's side of a job."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from specgen.cli import report
from specgen.errors import UserError
from specgen.jobs.folder import Template
from specgen.jobs.options import Recipe
from specgen.jobs.plan import parse_shard

if TYPE_CHECKING:
    from specgen.jobs.job import Job, Summary

FORMATS = ("wav", "flac", "ogg")
ENGINES = ("local", "ray")


class Terminated(BaseException):
    """SIGTERM."""


@dataclass(frozen=True)
class Options:
    """A job as the command line gives it."""

    prompts: str
    prompts_format: str
    recipe: Recipe
    seed: int
    count: int
    duration: float | None
    name: str
    out: Path | None
    format: str | None
    shard: str | None
    batch: int | None
    device: str
    threads: int | None
    overwrite: bool
    engine: str
    address: str | None
    actors: int | None
    continue_from: Path | None = None
    melody: Path | None = None
    workers: str | None = None
    stats: bool = False
    compile: bool = False


def run_job(options: Options, *, as_json: bool, verbose: bool) -> int:
    """Run a job and say how it ended; returns the exit code.

    0 every row is made; 1 some failed; 130 and 143 after Ctrl-C and SIGTERM: the same command
    goes on from there.

    Raises:
        UserError: nothing can be made.
    """
    template = Template(options.name)
    kind = options.format or "wav"
    if kind not in FORMATS:
        raise UserError(f"format {kind!r} is unknown; use {', '.join(FORMATS)}")
    if options.engine not in ENGINES:
        raise UserError(f"--engine {options.engine!r} is unknown; use {', '.join(ENGINES)}")
    if options.engine == "local" and (options.address or options.actors):
        raise UserError("--address and --actors are for --engine ray; add it or leave them out")
    if options.engine == "ray" and options.workers is not None:
        raise UserError("--workers is for --engine local; with Ray give --actors")
    workers = _workers(options.workers or "auto")
    if options.out is None:
        raise UserError("a job needs a folder of its own; give it with --out")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; a job needs a folder of its own")
    shard = parse_shard(options.shard)
    folder = options.out if shard.count == 1 else options.out / shard.folder

    from specgen.jobs.job import Job
    from specgen.jobs.plan import Place

    base = Path() if options.prompts == "-" else Path(options.prompts).parent
    job = Job(
        prompts=options.prompts,
        recipe=options.recipe,
        place=Place(
            folder.absolute(),
            kind,
            options.batch,
            options.device,
            options.threads,
            base.absolute(),
            options.duration,
            _absolute(options.continue_from),
            _absolute(options.melody),
            overwrite=options.overwrite,
            compile=options.compile,
        ),
        prompts_format=options.prompts_format,
        seed=options.seed,
        count=options.count,
        template=template,
        shard=shard,
        overwrite=options.overwrite,
    )
    if shard.count > 1:
        print(f"specgen: shard {shard.index} of {shard.count}, in {folder}", file=sys.stderr)
    began = time.perf_counter()
    bar = report.JobBar(folder, paths=not as_json, verbose=verbose, stats=options.stats)
    try:
        with _sigterm_raises(), bar:
            summary = _execute(job, options, workers, bar)
    except Terminated:
        print(f"specgen: terminated; {_go_on(bar)}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"specgen: interrupted; {_go_on(bar)}", file=sys.stderr)
        return 130
    print(told(replace(summary, seconds=time.perf_counter() - began)), file=sys.stderr)
    if bar.records:
        report.print_table(bar.records)
    if as_json:
        print(json.dumps(document(summary, bar), ensure_ascii=False))
    return 0 if summary.complete else 1


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    workers = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= workers <= 1024:
        raise UserError(f"--workers must be auto or a whole number from 1 to 1024, got {text!r}")
    return workers


def _execute(job: Job, options: Options, workers: int | None, bar: report.JobBar) -> Summary:
    from specgen.jobs.job import run
    from specgen.jobs.process_pool import Pool
    from specgen.jobs.ray_executor import Cluster

    if options.engine == "local":
        return run(job, Pool(workers), bar)
    return run(job, Cluster(options.address, options.actors), bar)


def _go_on(bar: report.JobBar) -> str:
    return f"{bar.made} clips made; the same command goes on from here"


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def told(summary: Summary) -> str:
    """How a job ended, in a line or two."""
    text = f"specgen: {summary.made} clips made"
    if summary.kept:
        text += f", {summary.kept} kept"
    if summary.failed:
        text += f", {len(summary.failed)} failed"
    if summary.made:
        pace = summary.audio_seconds / max(summary.seconds, 1e-9)
        text += (
            f"; {summary.audio_seconds:.1f} s of audio in {summary.seconds:.1f} s "
            f"({pace:.2f} x real time)"
        )
    text += f"; {summary.manifest}"
    if summary.unrecorded:
        text += (
            f"\nspecgen: {summary.unrecorded} rows could not be recorded there and will be made "
            "again; is the disk full?"
        )
    return text


def document(summary: Summary, bar: report.JobBar) -> dict[str, object]:
    """What --json prints."""
    return {
        "manifest": str(summary.manifest),
        "made": summary.made,
        "kept": summary.kept,
        "clips": [
            {**asdict(entry), "path": str(summary.manifest.parent / str(entry.path))}
            for entry in bar.entries
        ],
        "failed": [
            {"id": o.entry.id, "prompt": o.prompt, "error": o.entry.error} for o in summary.failed
        ],
    }
