"""Making rows: what one process (or one Ray actor) does with the rows it is given."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen import audio
from specgen.checkpoints.native import file_sha256
from specgen.errors import UserError
from specgen.jobs.fingerprint import audio_sha256, fingerprint
from specgen.jobs.folder import Claims, check_there
from specgen.jobs.manifest import Entry
from specgen.jobs.options import Recipe
from specgen.jobs.rows import Row

if TYPE_CHECKING:
    from specgen.decoding.loop import Progress
    from specgen.engine import Clip, Engine, Request


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: `kept` was made before; `seconds` of audio; `record` is the sidecar of
    a row made now."""

    entry: Entry
    prompt: str
    seconds: float = 0.0
    kept: bool = False
    record: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Underway:
    """How far a row is that is being decoded, in seconds of audio."""

    id: str
    done: float
    seconds: float


_OFTEN = 0.2  # seconds between reports of what is under way

OnRound = Callable[[list[Underway]], None]
Made = tuple[Entry, dict[str, Any] | None]


class Worker:
    """Loads engines as recipes ask for them, one at a time, and makes rows."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._engine: Engine | None = None
        self._loaded: tuple[str, bool, str | None, str | None] | None = None
        self._claims = Claims(place.folder)
        self._most: int | None = None  # rows in flight that memory has been found to allow

    def engine(self, recipe: Recipe) -> Engine:
        """The engine of a recipe; the models stay loaded while only settings change.

        Raises:
            UserError: it cannot be loaded.
        """
        from specgen.engine import load

        settings = recipe.settings()
        models = (recipe.preset, recipe.draft, recipe.dtype, recipe.quantize)
        if self._engine is not None and self._loaded == models:
            return self._engine.with_settings(settings)
        self._engine = self._loaded = self._most = None
        self._engine = load(
            recipe.preset,
            device=self.place.device,
            dtype=recipe.dtype,
            draft=recipe.draft,
            settings=settings,
            threads=self.place.threads,
            quantize=recipe.quantize,
            compile=self.place.compile,
        )
        self._loaded = models
        return self._engine

    def settle(
        self,
        recipe: Recipe,
        tasks: Sequence[Task],
        recorded: Mapping[str, Entry],
        on_round: OnRound | None = None,
    ) -> Iterator[Outcome]:
        """What becomes of rows of one recipe: those that were made before are kept, the others are
        made. When the models cannot be loaded, every row fails for that reason.

        Args:
            recipe: of all these rows.
            tasks: the rows.
            recorded: what a manifest says of rows, by id.
            on_round: is told now and then what is being decoded.
        """
        prompts = {task.row.id: task.row.prompt for task in tasks}
        try:
            engine = self.engine(recipe)
        except (UserError, RuntimeError, MemoryError, OSError) as error:
            for task in tasks:
                entry = Entry(task.row.id, "failed", error=one_line(error))
                yield Outcome(entry, task.row.prompt)
            return
        rate = engine.codec.frame_rate
        plan = self.plan(engine, tasks, recorded)
        for entry in plan.failed:
            yield Outcome(entry, prompts[entry.id])
        for entry, length in plan.kept:
            yield Outcome(entry, prompts[entry.id], length / rate, kept=True)
        frames = {todo.request.id: todo.frames for todo in plan.todo}
        for entry, record in self.make(engine, plan.todo, on_round):
            yield Outcome(entry, prompts[entry.id], frames[entry.id] / rate, record=record)

    def plan(self, engine: Engine, tasks: Sequence[Task], recorded: Mapping[str, Entry]) -> Plan:
        """Sort rows into made, impossible and to do; the longest to do come first."""
        plan = Plan([], [], [])
        for task in tasks:
            entry = recorded.get(task.row.id)
            try:
                todo = self._todo(engine, task, entry)
                if entry is not None and self._holds(entry, todo):
                    plan.kept.append((entry, todo.frames))
                    continue
                self._check_free(todo)
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

    def _check_free(self, todo: Todo) -> None:
        """Refuse to write over a file that the job has not made.

        Raises:
            UserError: names the file.
        """
        sound = self.place.folder / todo.path
        for path in (sound, *audio.companions(sound)):
            if not todo.ours and path.exists() and sound.stem not in self._claims:
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

    def make(
        self,
        engine: Engine,
        todo: Sequence[Todo],
        on_round: OnRound | None = None,
    ) -> Iterator[Made]:
        """Make rows and write their files; a row that fails is told and leaves the others.

        Yields:
            A line for the manifest and the sidecar, or None for one that failed; in any order.
        """
        from specgen.engine import SITTING

        for first in range(0, len(todo), SITTING):
            yield from self._make(engine, todo[first : first + SITTING], on_round)

    def _make(
        self,
        engine: Engine,
        todo: Sequence[Todo],
        on_round: OnRound | None,
    ) -> Iterator[Made]:
        """When the engine fails, half as many rows are in flight, down to single ones, until the
        row is found that fails by itself."""
        waiting = {one.request.id: one for one in todo}
        limit = batch = self.batch(engine, todo)
        alone = 0  # rows to try one by one
        while waiting:
            part = list(waiting.values())[: 1 if alone else None]
            try:
                requests = (one.request for one in part)
                heard = on_round and _watching(part, engine.codec.frame_rate, on_round)
                clips = engine.generate(requests, batch=limit, in_order=False, on_round=heard)
                for clip in clips:
                    yield self._written(engine, waiting[clip.request.id], clip)
                    del waiting[clip.request.id]
            except (RuntimeError, MemoryError, UserError) as error:
                if isinstance(error, UserError) and (unfit := _unfit(engine, part)):
                    for one, reason in unfit:
                        del waiting[one.request.id]
                        yield _failed(one, reason), None
                    continue
                if is_memory(error):
                    self._most = max(1, limit // 2)
                    _release()
                if limit > 1:
                    limit //= 2
                elif len(part) > 1:
                    alone = max(batch, 4)
                else:
                    del waiting[part[0].request.id]
                    reason = f"cannot make it: {type(error).__name__}: {one_line(error)}"
                    yield _failed(part[0], reason), None
                    limit, alone = self.batch(engine, todo), 0
            else:
                alone = max(0, alone - 1)
                limit = limit if alone else self.batch(engine, todo)

    def batch(self, engine: Engine, todo: Sequence[Todo]) -> int:
        """How many rows to have in flight."""
        from specgen.jobs.memory import auto_batch

        longest = max(one.frames for one in todo)
        wanted = self.place.batch or auto_batch(engine, longest, self.place.workers)
        return min(wanted, self._most or wanted)

    def _written(self, engine: Engine, todo: Todo, clip: Clip) -> Made:
        folder = self.place.folder
        path = folder / todo.path
        codes = clip.codes.numpy().astype("<i2")
        record = {**engine.sidecar(clip), "fingerprint": todo.fingerprint}
        began = time.perf_counter()
        try:
            files = audio.encode_clip(path, clip.audio.numpy(), clip.sample_rate, codes, record)
            check_there(folder)
            self._check_free(todo)
            self._claims.add(path.stem)
            audio.write_files(path, files)
        except UserError as error:
            return _failed(todo, one_line(error)), None
        except OSError as error:
            return _failed(todo, f"cannot write {path}: {error.strerror or error}"), None
        spent = ("condition_seconds", "decode_seconds", "codec_seconds")
        seconds = sum(clip.timings.get(name, 0.0) for name in spent)
        entry = Entry(
            id=clip.request.id or "",
            status="done",
            fingerprint=todo.fingerprint,
            path=todo.path,
            sha256=sha256(files.audio),
            tokens_sha256=sha256(files.tokens),
            sidecar_sha256=sha256(files.sidecar),
            seconds=round(seconds + time.perf_counter() - began, 4),
        )
        return entry, files.record


def _watching(
    part: Sequence[Todo], frame_rate: float, on_round: OnRound
) -> Callable[[Progress], None]:
    """What the engine calls after every round, to pass on now and then."""
    told = 0.0

    def watch(progress: Progress) -> None:
        nonlocal told
        if time.perf_counter() - told < _OFTEN:
            return
        told = time.perf_counter()
        on_round(
            [
                Underway(str(one.request.id), settled.frames / frame_rate, one.frames / frame_rate)
                for index, settled in progress.running.items()
                for one in part[index : index + 1]
            ]
        )

    return watch


def sha256(content: bytes) -> str:
    """Hexadecimal sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def _unfit(engine: Engine, part: Sequence[Todo]) -> list[tuple[Todo, str]]:
    """Rows that were fit when they were planned and are not now, with the reason: a file that they
    continue has changed."""
    unfit = []
    for one in part:
        try:
            engine.check(one.request)
        except UserError as error:
            unfit.append((one, one_line(error)))
    return unfit


def one_line(error: BaseException) -> str:
    """An error's text as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device."""
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _release() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failed(todo: Todo, reason: str) -> Entry:
    return Entry(todo.request.id or "", "failed", todo.fingerprint, error=reason)
