"""A job: from a prompt file to clips and a manifest, resumable at any moment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from specgen import presets
from specgen.errors import UserError
from specgen.jobs import folder as folders
from specgen.jobs.folder import Template
from specgen.jobs.manifest import NAME, Entry, Manifest
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Shard, Task
from specgen.jobs.prompt_files import read_prompts
from specgen.jobs.rows import BadRow, Row, name_key, rows_of, unsafe_name
from specgen.jobs.worker import Outcome, Underway, Worker

IDENTITY_SCHEMA = 1


@dataclass(frozen=True)
class Job:
    """What `generate --prompts` was asked.

    Attributes:
        prompts, prompts_format: the file and how to read it.
        recipe: of rows that do not say otherwise.
        place: where and how clips are made; its folder is the job's, or for a shard below it.
        seed: of the job; rows hash theirs from it.
        count: clips a row.
        template: of file names.
        shard: which rows.
        overwrite: take over the folder of another job, or files in the way.
    """

    prompts: str
    recipe: Recipe
    place: Place
    prompts_format: str = "auto"
    seed: int = 0
    count: int = 1
    template: Template = field(default_factory=Template)
    shard: Shard = field(default_factory=Shard)
    overwrite: bool = False

    def identity(self) -> dict[str, Any]:
        """What makes two commands the same job; where and how fast they run does not."""
        preset = presets.load_preset(self.recipe.preset)
        return {
            "schema": IDENTITY_SCHEMA,
            "prompts": "stdin" if self.prompts == "-" else Path(self.prompts).name,
            "preset": preset.reference,
            "preset_sha256": preset.sha256,
            "draft": self.recipe.draft,
            "dtype": self.recipe.dtype,
            **({"quantize": self.recipe.quantize} if self.recipe.quantize else {}),
            "options": dict(self.recipe.changes),
            "duration": self.place.duration,
            "continue_from": self.place.continue_from,
            "melody": self.place.melody,
            "seed": self.seed,
            "count": self.count,
            "name": self.template.text,
            "format": self.place.kind,
            "shard": f"{self.shard.index}/{self.shard.count}",
        }


class Watcher(Protocol):
    """Is told how a job goes."""

    def begin(self, rows: int, seconds: float) -> None:
        """So many rows, about so many seconds of audio."""

    def underway(self, worker: int, rows: Sequence[Underway]) -> None:
        """What a worker is decoding, now and then."""

    def outcome(self, outcome: Outcome) -> None:
        """A row is settled."""


@dataclass
class Summary:
    """How a job ended.

    Attributes:
        manifest: its path.
        made, kept: clips made now, and found whole.
        failed: rows that failed, with their reason.
        audio_seconds, seconds: of the clips made now; spent on the whole job.
        unrecorded: rows whose line could not be written to the manifest: they will be made again.
    """

    manifest: Path
    made: int = 0
    kept: int = 0
    failed: list[Outcome] = field(default_factory=list)
    audio_seconds: float = 0.0
    seconds: float = 0.0
    unrecorded: int = 0

    @property
    def complete(self) -> bool:
        return not self.failed and not self.unrecorded


Groups = Sequence[tuple[Recipe, Sequence[Task]]]
Outcomes = Generator[Outcome, None, None]
Executor = Callable[[Job, Groups, Mapping[str, Entry], Watcher], Outcomes]


def run(job: Job, execute: Executor, watcher: Watcher) -> Summary:
    """Make a job's rows, but for those that are there already.

    Raises:
        UserError: nothing can be made: the prompt file, the options or the folder are unfit.
    """
    began = time.perf_counter()
    job.recipe.settings()
    identity = job.identity()
    tasks, bad = plan_rows(job)
    folder = job.place.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}; choose another place with --out"
        ) from None
    with folders.locked(folder):
        with folders.usable(folder):
            taken = folders.belongs(folder, identity, overwrite=job.overwrite)
            if not taken and not job.overwrite:
                _refuse_files(folder, tasks, job.place.kind)
            folders.take(folder, identity)
            folders.remove_left_overs(folder)
            folders.gather_claims(folder)
            manifest = Manifest(folder / NAME)
        summary = Summary(folder / NAME)
        asked = {task.row.id for task in tasks} | {row.id for row in bad}
        try:
            groups = grouped(job.recipe, tasks)
            watcher.begin(len(tasks) + len(bad), expected_seconds(job.place, groups))
            broken = (Outcome(Entry(b.id, "failed", error=b.error), b.prompt) for b in bad)
            _settle(broken, manifest, summary, watcher)
            recorded = dict(manifest.entries)
            # Closed here: what works for the job must have stopped when the lock is given up.
            with contextlib.closing(execute(job, groups, recorded, watcher)) as outcomes:
                _settle(outcomes, manifest, summary, watcher)
        finally:
            manifest.close(lambda entry: entry.done or entry.id in asked)
        summary.unrecorded = len(manifest.unwritten)
    summary.seconds = time.perf_counter() - began
    return summary


def _settle(
    outcomes: Iterable[Outcome], manifest: Manifest, summary: Summary, watcher: Watcher
) -> None:
    for outcome in outcomes:
        entry = outcome.entry
        if manifest.entries.get(entry.id) != entry:
            manifest.append(entry)
        if outcome.kept:
            summary.kept += 1
        elif entry.done:
            summary.made += 1
            summary.audio_seconds += outcome.seconds
        else:
            summary.failed.append(outcome)
        watcher.outcome(outcome)


def plan_rows(job: Job) -> tuple[list[Task], list[BadRow]]:
    """The rows of this shard, named, and those that cannot be made.

    Raises:
        UserError: the prompt file cannot be read, or the template gives two rows one name.
    """
    tasks: list[Task] = []
    bad: list[BadRow] = []
    names: dict[str, tuple[int, int]] = {}
    raws = read_prompts(job.prompts, job.prompts_format)
    for index, row in enumerate(rows_of(raws, job.seed, job.count), 1):
        named = row if isinstance(row, BadRow) else _named(row, index, job.template)
        if isinstance(named, BadRow):
            if job.shard.holds(named.id):
                bad.append(named)
            continue
        place = (index, named.row.line)
        before = names.setdefault(name_key(named.name), place)
        if before != place:
            raise UserError(
                f"--name {job.template.text}: lines {before[1]} and {place[1]} of {job.prompts} "
                f"would both be {named.name}.{job.place.kind}; put {{id}} into it"
            )
        if job.shard.holds(named.row.id):
            tasks.append(named)
    return tasks, bad


def _named(row: Row, index: int, template: Template) -> Task | BadRow:
    name = template.render(row, index)
    reason = unsafe_name(name)
    if reason:
        return BadRow(f"#{row.line}", row.prompt[:200], f"line {row.line}: {reason}")
    return Task(row, name)


def grouped(base: Recipe, tasks: Iterable[Task]) -> Groups:
    """Rows by recipe, the job's own first, recipes of the same models one after another."""
    groups: dict[Recipe, list[Task]] = {base: []}
    for task in tasks:
        groups.setdefault(base.varied(task.row.options), []).append(task)
    ordered = sorted(groups, key=lambda r: (r != base, r.preset, r.draft, str(r.dtype), str(r)))
    return [(recipe, groups[recipe]) for recipe in ordered if groups[recipe]]


def expected_seconds(place: Place, groups: Groups) -> float:
    """Seconds of audio that rows ask for, as far as that is known without their models."""
    total = 0.0
    for recipe, tasks in groups:
        try:
            usual = place.duration or presets.load_preset(recipe.preset).node.duration.default
        except UserError:
            continue
        total += sum(max(0.0, task.row.options.get("duration", usual)) for task in tasks)
    return total


def _refuse_files(folder: Path, tasks: Sequence[Task], kind: str) -> None:
    """A folder that is no job's yet may hold other things, but none in the way."""
    there = {name_key(name) for name in os.listdir(folder)}
    for task in tasks:
        for suffix in (kind, "npy", "json"):
            if name_key(f"{task.name}.{suffix}") in there:
                raise UserError(
                    f"{folder / task.name}.{suffix} exists; add --overwrite to replace it, or "
                    "choose another --out"
                )
    if NAME in there:
        raise UserError(f"{folder / NAME} is not this job's; choose another --out")


def local(job: Job, groups: Groups, recorded: Mapping[str, Entry], watcher: Watcher) -> Outcomes:
    """Make rows in this process.

    Raises:
        UserError: the models of the job's own recipe cannot be loaded.
    """
    worker = Worker(job.place)
    for recipe, tasks in groups:
        if recipe == job.recipe:
            worker.engine(recipe)
        yield from worker.settle(recipe, tasks, recorded, partial(watcher.underway, 0))
