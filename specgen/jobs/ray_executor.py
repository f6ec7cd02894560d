"""Ray Data as a job's engine: one actor a GPU (or CPU), rows streamed through them.

Ray places the actors, restarts those that die and gives their rows to others. The actors write the
clips, so the job's folder must be on a file system that all machines share; the driver alone writes
the manifest.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from specgen.errors import UserError
from specgen.jobs.manifest import Entry
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Task
from specgen.jobs.rows import Row
from specgen.jobs.worker import Outcome, Worker

if TYPE_CHECKING:
    from specgen.jobs.job import Groups, Job, Outcomes, Watcher

# Rows that an actor takes at once, for each of its places in flight: fewer wait at the end of a
# block for its last row, more have to be made again when an actor dies.
_BLOCK = 2
_ROWS = 16  # places in flight, for sizing blocks, where memory decides later


@dataclass(frozen=True)
class Cluster:
    """An executor for `specgen.jobs.job.run`.

    Attributes:
        address: of a running cluster (`auto`, `host:port`, `ray://host:port`); None starts one on
            this machine and ends it with the job.
        actors: how many; None is one a GPU, without GPUs one a CPU.
    """

    address: str | None = None
    actors: int | None = None

    def __call__(
        self, job: Job, groups: Groups, recorded: Mapping[str, Entry], watcher: Watcher
    ) -> Outcomes:
        """Make rows on the cluster.

        Raises:
            UserError: Ray is not installed, or the cluster is not there.
        """
        items = [{"task": encode(r, t, recorded.get(t.row.id))} for r, ts in groups for t in ts]
        if not items:
            return
        ray = connect(self.address, self.actors)
        try:
            resources = ray.cluster_resources()
            gpus = 0 if job.place.device == "cpu" else int(resources.get("GPU", 0))
            size = self.actors or gpus or int(resources.get("CPU", 1))
            block = max(1, min((job.place.batch or _ROWS) * _BLOCK, -(-len(items) // size)))
            rows = ray.data.from_items(items, override_num_blocks=-(-len(items) // block))
            made = rows.map_batches(
                Maker,
                batch_size=block,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=1,
                num_gpus=1 if gpus else 0,
                fn_constructor_kwargs={"place": job.place},
            )
            for row in made.iter_rows():
                yield decode_outcome(row["outcome"])
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the Ray cluster failed: {reason}; the same command goes on from here"
            ) from None
        finally:
            ray.shutdown()


def connect(address: str | None, actors: int | None) -> Any:
    """Join a cluster, or start one here; returns the module `ray`.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError:
        raise UserError(
            "--engine ray needs Ray; install it with: pip install 'specgen[ray]'"
        ) from None
    ours = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address is None:
        processors = max(actors or 0, os.cpu_count() or 1)
        options |= {"num_cpus": processors, "include_dashboard": False}
        options |= {"object_store_memory": 200_000_000}  # rows are small; clips do not pass here
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {reason}") from None
    if ours is not None:
        signal.signal(signal.SIGTERM, ours)  # Ray puts its own in
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised as well
    return ray


class Maker:
    """What an actor runs."""

    def __init__(self, place: Place) -> None:
        self._worker = Worker(place)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        groups: dict[Recipe, list[Task]] = {}
        recorded: dict[str, Entry] = {}
        for text in batch["task"]:
            recipe, task, entry = decode(str(text))
            groups.setdefault(recipe, []).append(task)
            if entry is not None:
                recorded[entry.id] = entry
        outcomes = [
            encode_outcome(outcome)
            for recipe, tasks in groups.items()
            for outcome in self._worker.settle(recipe, tasks, recorded)
        ]
        return {"outcome": outcomes}


def encode(recipe: Recipe, task: Task, entry: Entry | None) -> str:
    """A row as text, with all that an actor needs to know of it."""
    parts: Sequence[Any] = (
        asdict(recipe),
        asdict(task.row),
        task.name,
        entry and asdict(entry),
    )
    return json.dumps(parts)


def decode(text: str) -> tuple[Recipe, Task, Entry | None]:
    """The inverse of `encode`."""
    recipe, row, name, entry = json.loads(text)
    recipe["changes"] = tuple((key, value) for key, value in recipe["changes"])
    return Recipe(**recipe), Task(Row(**row), name), None if entry is None else Entry(**entry)


def encode_outcome(outcome: Outcome) -> str:
    """An outcome as text."""
    return json.dumps(asdict(outcome))


def decode_outcome(text: str) -> Outcome:
    """The inverse of `encode_outcome`."""
    values = json.loads(text)
    return Outcome(**{**values, "entry": Entry(**values["entry"])})
