"""What is to be done of a job's rows: which are made, which cannot be, and the rest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specgen.audio import files
from specgen.checkpoints.native import file_sha256
from specgen.errors import UserError, one_line
from specgen.jobs.folder import Claims
from specgen.jobs.manifest import Entry
from specgen.jobs.rows import Row

if TYPE_CHECKING:
    from specgen.engine import Engine, Request


@dataclass(frozen=True)
class Place:
    """How a worker makes and writes clips; the same for every row.

    Attributes:
        folder: the job's.
        kind: wav, flac or ogg.
        batch: rows in flight; None chooses by memory.
        device, threads: as for `specgen.load`.
        base: where relative paths of `continue_from` and `melody` start.
        duration: seconds of rows that do not say; None is the preset's.
        continue_from, melody: of rows that do not say.
        workers: processes that share this machine's memory and cores.
        overwrite: write over files that are not the job's.
        compile: as for `specgen.load`.
    """

    folder: Path
    kind: str = "wav"
    batch: int | None = None
    device: str = "auto"
    threads: int | None = None
    base: Path = Path()
    duration: float | None = None
    continue_from: str | None = None
    melody: str | None = None
    workers: int = 1
    overwrite: bool = False
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A row and the name of its files, without suffix."""

    row: Row
    name: str


@dataclass(frozen=True, slots=True)
class Todo:
    """A row that has to be made; files under its name are the job's `ours`."""

    request: Request
    path: str
    fingerprint: str
    frames: int
    ours: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done of some rows: `kept` are made already (with their frames), `failed`
    cannot be made."""

    kept: list[tuple[Entry, int]]
    failed: list[Entry]
    todo: list[Todo]


class Planner:
    """Looks at what rows ask for and at what lies in the job's folder.

    Args:
        place: how clips are made and written.
        claims: names of files that are the job's own.
    """

    def __init__(self, place: Place, claims: Claims) -> None:
        self.place = place
        self.claims = claims

    def plan(self, engine: Engine, tasks: Sequence[Task], recorded: Mapping[str, Entry]) -> Plan:
        """Sort rows of one recipe into made, impossible and to do; the longest to do come first.

        Args:
            engine: of the recipe.
            tasks: the rows.
            recorded: what a manifest says of rows, by id.
        """
        plan = Plan([], [], [])
        for task in tasks:
            entry = recorded.get(task.row.id)
            try:
                todo = self._todo(engine, task, entry)
                if entry is not None and self._holds(entry, todo):
                    plan.kept.append((entry, todo.frames))
                    continue
                self.check_free(todo)
                plan.todo.append(todo)
            except (UserError, OSError) as error:
                plan.failed.append(Entry(task.row.id, "failed", error=one_line(error)))
        plan.todo.sort(key=lambda todo: -todo.frames)
        return plan

    def _todo(self, engine: Engine, task: Task, entry: Entry | None) -> Todo:
        from specgen.engine import Request

        row, place = task.row, self.place
        sources = {
            "continue_from": row.options.get("continue_from", place.continue_from),
            "melody": row.options.get("melody", place.melody),
        }
        files = {name: place.base / path for name, path in sources.items() if path is not None}
        heard = {name: audio_sha256(path) for name, path in files.items()}
        request = Request(
            row.prompt,
            row.seed,
            row.options.get("duration", place.duration),
            row.id,
            sections=tuple((at, text) for at, text in row.options.get("prompt_at", ())),
            **files,
        )
        request = engine.check(request)
        path = f"{task.name}.{place.kind}"
        return Todo(
            request,
            path,
            fingerprint(engine, request, heard),
            engine.frames(request.duration or 0.0),
            ours=place.overwrite or (entry is not None and entry.path == path),
        )

    def check_free(self, todo: Todo) -> None:
        """Refuse to write over a file that the job has not made.

        Raises:
            UserError: names the file.
        """
        sound = self.place.folder / todo.path
        for path in (sound, *files.companions(sound)):
            if not todo.ours and path.exists() and sound.stem not in self.claims:
                raise UserError(
                    f"{path} is there and not this job's; move it away, or add --overwrite"
                )

    def _holds(self, entry: Entry, todo: Todo) -> bool:
        """Whether a row was made as it is asked for now, and its files are what was written."""
        if not entry.done or (entry.fingerprint, entry.path) != (todo.fingerprint, todo.path):
            return False
        sound = self.place.folder / todo.path
        tokens, sidecar = files.companions(sound)
        wanted = {
            sound: entry.sha256,
            tokens: entry.tokens_sha256,
            sidecar: entry.sidecar_sha256,
        }
        try:
            return all(file_sha256(path) == known for path, known in wanted.items())
        except OSError:
            return False


SCHEMA = 1  # rises when a new version makes other clips from the same values


def fingerprint(engine: Engine, request: Request, heard: Mapping[str, str]) -> str:
    """Hash of what decides a clip.

    Args:
        engine: its preset, checkpoints, settings, dtypes and quantisation count, its device does
            not.
        request: checked; its prompts, seed and length in frames count, its id does not.
        heard: sha256 of the audio files that it begins with or follows; their paths do not count.
    """
    drafter = engine.drafter
    kinds = [model.quantize for model in (engine.verifier, drafter) if model]
    values: dict[str, object] = {
        "schema": SCHEMA,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": engine.frames(request.duration or 0.0),
        "sections": [[at, prompt] for at, prompt in request.sections],
        "heard": dict(heard),
        "preset": engine.preset.sha256,
        "verifier": engine.verifier.sha256,
        "drafter": None if drafter is None else drafter.sha256,
        "codec": engine.codec_sha256,
        "dtypes": [str(model.lm.dtype) for model in (engine.verifier, drafter) if model],
        "sampling": engine.settings.as_dict(),
    }
    if set(kinds) != {"none"}:
        values["quantize"] = kinds  # left out where it says nothing, as before there was the key
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def audio_sha256(path: Path) -> str:
    """sha256 of an audio file that a row names.

    Raises:
        UserError: it is no regular file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; give an audio file")
        return file_sha256(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; check the path") from None


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 1.

    A row belongs to a shard by a hash of its id, so rows may be added, taken away or put into
    another order without moving the rest.
    """

    index: int = 1
    count: int = 1

    def holds(self, row_id: str) -> bool:
        """Whether the row of this id is made here."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(f"shard/{row_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    @property
    def folder(self) -> str:
        """The name of the folder for this shard's clips, below the job's."""
        width = max(3, len(str(self.count)))
        return f"shard-{self.index:0{width}d}-of-{self.count:0{width}d}"


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard of `--shard i/n`, or of the Slurm array task that this process is, or all.

    A Slurm array may start anywhere and have a step; one that is a list of single tasks does not
    say how many shards there are, so it needs `--shard`.

    Raises:
        UserError: not `i/n`, or i beyond n.
    """
    if text is None:
        return _of_slurm(environment)
    match = re.fullmatch(r"\s*(\d{1,7})\s*/\s*(\d{1,7})\s*", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UserError(f"--shard must be i/n with 1 <= i <= n, such as 2/8, got {text!r}")
    return Shard(index, count)


def _of_slurm(environment: Mapping[str, str]) -> Shard:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if any(name not in environment for name in names):
        return Shard()
    try:
        task, count = (int(environment[name]) for name in names)
        low = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        index, rest = divmod(task - low, step)
    except (ValueError, ZeroDivisionError):
        raise UserError("the SLURM_ARRAY_TASK_* variables make no sense; give --shard") from None
    if rest or not 0 <= index < count:
        raise UserError(
            f"this Slurm array does not number its {count} tasks in a row; give --shard i/n"
        )
    return Shard(index + 1, count)
