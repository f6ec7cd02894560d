"""Making rows: what one process (or one Ray actor) does with the rows it is given."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specgen.audio import files
from specgen.decoding.loop import capacity
from specgen.devices import free_bytes
from specgen.errors import UserError, one_line
from specgen.jobs.folder import Claims, check_there
from specgen.jobs.manifest import Entry
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Planner, Task, Todo

if TYPE_CHECKING:
    from specgen.checkpoints.native import LMCheckpoint
    from specgen.decoding.loop import Progress
    from specgen.engine import Clip, Engine


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
        self._planner = Planner(place, self._claims)
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
            on_round: is reported now and then what is being decoded.
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
        plan = self._planner.plan(engine, tasks, recorded)
        for entry in plan.failed:
            yield Outcome(entry, prompts[entry.id])
        for entry, length in plan.kept:
            yield Outcome(entry, prompts[entry.id], length / rate, kept=True)
        frames = {todo.request.id: todo.frames for todo in plan.todo}
        for entry, record in self.make(engine, plan.todo, on_round):
            yield Outcome(entry, prompts[entry.id], frames[entry.id] / rate, record=record)

    def make(
        self,
        engine: Engine,
        todo: Sequence[Todo],
        on_round: OnRound | None = None,
    ) -> Iterator[Made]:
        """Make rows and write their files; a row that fails is reported and leaves the others.

        Yields:
            A line for the manifest and the sidecar, or None for one that failed; in any order.
        """
        from specgen.engine import MAX_REQUESTS_A_RUN

        for first in range(0, len(todo), MAX_REQUESTS_A_RUN):
            yield from self._make(engine, todo[first : first + MAX_REQUESTS_A_RUN], on_round)

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
        from specgen.jobs.worker import auto_batch

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
            encoded = files.encode_clip(path, clip.audio.numpy(), clip.sample_rate, codes, record)
            check_there(folder)
            self._planner.check_free(todo)
            self._claims.add(path.stem)
            files.write_files(path, encoded)
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
            sha256=sha256(encoded.audio),
            tokens_sha256=sha256(encoded.tokens),
            sidecar_sha256=sha256(encoded.sidecar),
            seconds=round(seconds + time.perf_counter() - began, 4),
        )
        return entry, encoded.record


def _watching(
    part: Sequence[Todo], frame_rate: float, on_round: OnRound
) -> Callable[[Progress], None]:
    """What the engine calls after every round, to pass on now and then."""
    reported = 0.0

    def watch(progress: Progress) -> None:
        nonlocal reported
        if time.perf_counter() - reported < _OFTEN:
            return
        reported = time.perf_counter()
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


MOST = {"cpu": 16, "cuda": 64}  # beyond, a row more costs as much as it brings
_SHARE = 0.5  # of what is free: activations, the codec and other programs want some
_CONDITION = 64  # tokens of a long prompt


def row_bytes(engine: Engine, frames: int) -> int:
    """Bytes that one row of so many frames needs: its keys and values in both models."""
    sampling = engine.settings.sampling
    verifier = _cache_bytes(engine.verifier, frames, sampling.cfg != 1.0)
    if engine.drafter is None:
        return verifier
    guided = sampling.cfg != 1.0 and engine.settings.drafter_cfg
    return verifier + _cache_bytes(engine.drafter, frames, guided)


def _cache_bytes(model: LMCheckpoint, frames: int, guided: bool) -> int:
    config = model.lm.config
    places = capacity(model.pattern, frames) + (_CONDITION if config.condition_dim else 0)
    values = 2 * config.layers * config.kv_heads * config.head_dim * places
    return values * model.lm.dtype.itemsize * (2 if guided else 1)


def auto_batch(engine: Engine, frames: int, workers: int = 1) -> int:
    """Rows to decode together, the longest of `frames` frames, where so many processes share the
    memory; at least 1."""
    fit = int(_SHARE * free_bytes(engine.device) / workers) // max(1, row_bytes(engine, frames))
    return max(1, min(MOST.get(engine.device.type, 16), fit))
