"""Worker processes on this machine: each has models of its own and makes small portions of the
rows; the one that feeds them keeps lock and manifest.

A process that dies gives its rows back; one whose parent dies ends at once.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen import presets
from specgen.errors import UserError
from specgen.jobs.job import expected_seconds, local
from specgen.jobs.manifest import Entry
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Task
from specgen.jobs.worker import Outcome
from specgen.jobs.worker_process import serve

if TYPE_CHECKING:
    from specgen.jobs.job import Groups, Job, Outcomes, Watcher

_BATCH = 16  # rows of a portion, where memory decides how many are in flight
_WORTH = 60.0  # seconds of audio that pay for starting a process
_SMALL = 250_000_000  # bytes of checkpoints up to which one thread is fastest (docs/speed.md)
_WEIGHT = 1_500_000_000  # bytes that a process of such models wants, with its batch
_TRIES = 2  # processes that may die over one row
_PATIENCE = 10.0  # seconds that a process has to stop in


@dataclass
class Portion:
    """Rows of one recipe that a process takes at once; `deaths` of processes that had them."""

    recipe: Recipe
    tasks: list[Task]
    deaths: int = 0

    def without(self, settled: set[str]) -> list[Portion]:
        """What is left when a process died over it: halves, so that a row that kills is found."""
        left = [task for task in self.tasks if task.row.id not in settled]
        half = -(-len(left) // 2)
        parts = (left[:half], left[half:])
        return [Portion(self.recipe, part, self.deaths + 1) for part in parts if part]


@dataclass(frozen=True)
class Pool:
    """An executor for `specgen.jobs.job.run`.

    Attributes:
        workers: processes; None chooses. One is this process itself.
    """

    workers: int | None = None

    def __call__(
        self, job: Job, groups: Groups, recorded: Mapping[str, Entry], watcher: Watcher
    ) -> Outcomes:
        """Make rows in processes of their own.

        Raises:
            UserError: the models of the job's own recipe cannot be loaded, or no process lives.
        """
        rows = sum(len(tasks) for _, tasks in groups)
        workers = min(self.workers or auto_workers(job, groups), rows)
        if workers <= 1:
            yield from local(job, groups, recorded, watcher)
            return
        place = replace(job.place, workers=workers)
        queue = deque(portions(groups, recorded, place))
        workers_running = [WorkerHandle(place, job.recipe) for _ in range(workers)]
        try:
            while queue or any(worker.portion for worker in workers_running):
                for worker in workers_running:
                    if queue and worker.idle:
                        worker.give(queue.popleft(), recorded)
                for pipe in connection.wait([worker.pipe for worker in workers_running]):
                    worker = next(one for one in workers_running if one.pipe is pipe)
                    reported = worker.hear()
                    if isinstance(reported, Outcome):
                        yield reported
                    elif isinstance(reported, list):
                        watcher.underway(worker.number, reported)
                    elif isinstance(reported, Exception):
                        raise reported
                    elif not worker.alive:
                        workers_running.remove(worker)
                        watcher.underway(worker.number, [])
                        if worker.started:  # else another would not start either
                            workers_running.append(WorkerHandle(place, job.recipe))
                        elif not workers_running:
                            raise UserError(f"no worker process starts: {worker.death()}")
                        again, failed = _after_death(worker)
                        queue.extendleft(reversed(again))
                        yield from failed
        except BaseException:
            for worker in workers_running:
                worker.process.terminate()
            raise
        finally:
            for worker in workers_running:
                worker.end()


def _after_death(worker: WorkerHandle) -> tuple[list[Portion], list[Outcome]]:
    """The rows of a process that died: to try again, or failed if they are alone and it is not the
    first."""
    again = worker.portion.without(worker.settled) if worker.portion else []
    fatal = [part for part in again if len(part.tasks) == 1 and part.deaths >= _TRIES]
    reason = (
        f"the process that made it {worker.death()}, {_TRIES} times at least; too little memory?"
    )
    failed = [
        Outcome(Entry(task.row.id, "failed", error=reason), task.row.prompt)
        for part in fatal
        for task in part.tasks
    ]
    return [part for part in again if part not in fatal], failed


def portions(groups: Groups, recorded: Mapping[str, Entry], place: Place) -> Iterator[Portion]:
    """Rows in the order in which they are handed out, and how many at once.

    Those that are likely made already come first (they are only read), then the longest; portions
    grow smaller towards the end, so that all processes end together.
    """
    most = place.batch or _BATCH
    left = sum(len(tasks) for _, tasks in groups)
    for recipe, tasks in groups:
        usual = place.duration or _usual_seconds(recipe)
        rank = partial(_rank, usual, recorded)
        ordered = deque(sorted(tasks, key=rank))
        while ordered:
            size = min(most, len(ordered), -(-left // (2 * place.workers)))
            yield Portion(recipe, [ordered.popleft() for _ in range(size)])
            left -= size


def _rank(usual: float, recorded: Mapping[str, Entry], task: Task) -> tuple[bool, float]:
    made = task.row.id in recorded and recorded[task.row.id].done
    return not made, -float(task.row.options.get("duration") or usual)


def _usual_seconds(recipe: Recipe) -> float:
    try:
        return presets.load_preset(recipe.preset).node.duration.default
    except UserError:
        return 0.0  # its rows fail at once


def auto_workers(job: Job, groups: Groups) -> int:
    """Processes for a job: one for each core that may be used, where the models are so small that
    one thread is fastest, the work pays for their start and memory holds them; else one."""
    import torch

    from specgen.devices import free_bytes

    device = job.place.device
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return 1
    worth = int(expected_seconds(job.place, groups) / _WORTH)
    if worth <= 1 or any(_bytes(recipe) > _SMALL for recipe, _ in groups):
        return 1
    room = free_bytes(torch.device("cpu")) // _WEIGHT
    return max(1, min(cores() // (job.place.threads or 1), worth, int(room)))


def _bytes(recipe: Recipe) -> int:
    """Bytes of a recipe's checkpoints; none where they cannot be had (its rows fail at once)."""
    try:
        preset = presets.load_preset(recipe.preset)
        node = preset.node
        references = [node.verifier.checkpoint, node.codec.checkpoint]
        references += [node.drafter.checkpoint] if node.drafter else []
        folders = [preset.fetch(reference) for reference in references]
    except UserError:
        return 0
    files = (f for folder in folders for f in ([folder] if folder.is_file() else folder.iterdir()))
    return sum(file.stat().st_size for file in files if file.is_file())


def cores() -> int:
    """Physical cores that this process may use: its affinity and the container's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    siblings = {_read(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list", str(n))
                for n in allowed}  # fmt: skip
    count = len(siblings) or os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max", "max").partition(" ")
    if quota.isdigit() and period.isdigit():
        count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def _read(path: str, otherwise: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return otherwise


class WorkerHandle:
    """A worker process, seen from the one that feeds it.

    Attributes:
        portion: what it is making; `settled`: ids of those that are done or have failed.
        started: whether it has ever asked for work.
        alive: whether it still talks.
    """

    _numbers = itertools.count()

    def __init__(self, place: Place, own: Recipe) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.number = next(self._numbers)
        self.pipe, theirs = spawn.Pipe()
        self.portion: Portion | None = None
        self.settled: set[str] = set()
        self.started, self.alive = False, True
        self.process = spawn.Process(target=serve, args=(theirs,), daemon=True)
        with _without_interrupt():
            self.process.start()
        theirs.close()
        threads = place.threads or max(1, cores() // place.workers)
        with contextlib.suppress(OSError):  # that it has died is found out by `hear`
            self.pipe.send((place, own, threads))

    @property
    def idle(self) -> bool:
        return self.started and self.alive and self.portion is None

    def give(self, portion: Portion, recorded: Mapping[str, Entry]) -> None:
        """WorkerHandle out a portion."""
        ids = [task.row.id for task in portion.tasks]
        known = {one: recorded[one] for one in ids if one in recorded}
        self.portion, self.settled = portion, set()
        with contextlib.suppress(OSError):
            self.pipe.send((portion.recipe, portion.tasks, known))

    def hear(self) -> Any:
        """What it says: an outcome, a list of rows under way, an exception; None when it asks for
        work or is dead."""
        try:
            reported = self.pipe.recv()
        except (EOFError, OSError):
            self.alive = False
            return None
        if isinstance(reported, Outcome):
            self.settled.add(reported.entry.id)
        elif reported is None:
            self.portion, self.started = None, True
        return reported

    def death(self) -> str:
        """How it died."""
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    def end(self) -> None:
        """Let it go; it does not outlive this call."""
        self.pipe.close()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def _without_interrupt() -> Iterator[None]:
    """A process started within never sees Ctrl-C, which a terminal sends to all: its parent stops
    it. (A blocked signal stays blocked in a child.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
