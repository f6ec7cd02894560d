"""What is to be done of a job's rows: which are made, which cannot be, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specgen import audio
from specgen.checkpoints.native import file_sha256
from specgen.errors import UserError, one_line
from specgen.jobs.fingerprint import audio_sha256, fingerprint
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
        for path in (sound, *audio.companions(sound)):
            if not todo.ours and path.exists() and sound.stem not in self.claims:
                raise UserError(
                    f"{path} is there and not this job's; move it away, or add --overwrite"
                )

    def _holds(self, entry: Entry, todo: Todo) -> bool:
        """Whether a row was made as it is asked for now, and its files are what was written."""
        if not entry.done or (entry.fingerprint, entry.path) != (todo.fingerprint, todo.path):
            return False
        sound = self.place.folder / todo.path
        tokens, sidecar = audio.companions(sound)
        wanted = {
            sound: entry.sha256,
            tokens: entry.tokens_sha256,
            sidecar: entry.sidecar_sha256,
        }
        try:
            return all(file_sha256(path) == known for path, known in wanted.items())
        except OSError:
            return False
