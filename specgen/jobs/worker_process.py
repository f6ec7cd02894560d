"""What a worker process of `specgen.jobs.process_pool` runs.

This module loads next to nothing: the watch over the parent must stand before torch is imported,
which takes seconds on a busy machine.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from types import FrameType

from specgen.errors import UserError


def serve(pipe: Connection) -> None:
    """Make the portions that come through a pipe until there are no more.

    The first thing that comes is the place, the job's own recipe and how many threads to use. What
    goes back is None for "give me work", a list of rows under way, an outcome, or an exception.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        place, own, threads = pipe.recv()

        import torch

        from specgen.errors import one_line
        from specgen.jobs.worker import Worker

        torch.set_num_threads(threads)
        worker = Worker(place)
        while True:
            pipe.send(None)
            recipe, tasks, recorded = pipe.recv()
            try:
                if recipe == own:
                    worker.engine(recipe)
                for outcome in worker.settle(recipe, tasks, recorded, pipe.send):
                    pipe.send(outcome)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except UserError as error:
                pipe.send(error)
            except Exception as error:  # a fault of ours: told as one, where it can be seen
                pipe.send(RuntimeError(f"in a worker: {type(error).__name__}: {one_line(error)}"))


def _end_with_parent() -> None:
    """Leave nothing behind that works on when the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
