"""Recorded passes: on a CUDA card a pass over few columns costs more in launches than in work.

A pass is recorded once for each (rows, columns, reach) as a CUDA graph over buffers that stay where
they are, and replayed with other columns in them. Reaches are rounded up to buckets, so that a
short sequence does not read a long cache and a long one needs few recordings.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from specgen.tensors import upload

SWITCH = "SPECGEN_GRAPHS"  # "off": no graphs; "dry": buffers and buckets, but nothing recorded

Call = Callable[[], Tensor]
# (columns [B, K, n], starts [B], reach) -> hidden states
Pass = Callable[[Tensor, Tensor, int], Tensor]


class Recorder(Protocol):
    """Turns a call on fixed buffers into one that repeats it; both return the same buffer."""

    def __call__(self, call: Call) -> Call: ...


def switched_off() -> bool:
    """Whether the environment says SPECGEN_GRAPHS=off: everything runs call by call."""
    return os.environ.get(SWITCH) == "off"


def recorder(device: torch.device) -> Recorder | None:
    """How passes on `device` are recorded; None: they are not, and run call by call.

    Graphs are on for CUDA unless the environment says SPECGEN_GRAPHS=off. With `dry` every device
    goes through the same buffers and buckets without recording: what a graph would compute, where
    it can be looked into.
    """
    if os.environ.get(SWITCH) == "dry":
        return lambda call: call
    return CudaRecorder(device) if device.type == "cuda" and not switched_off() else None


class CudaRecorder:
    """Records CUDA graphs in one memory pool.

    What one graph frees while it is recorded, the next may use; so a graph's result is good until
    the next replay of any, which is how a decode uses it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        collects = gc.isenabled()
        gc.disable()  # a collection may free device memory, which a recording forbids
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                result = call()
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        current.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def bucket(reach: int, capacity: int) -> int:
    """The reach that a pass is recorded with: at most a third more than asked for (from 128 on),
    a multiple of 64, and never beyond the cache."""
    size = 128
    while size < reach:
        size += max(64, size // 4 // 64 * 64)
    return min(size, capacity)


# Block sizes that are recorded. Smaller blocks are filled up to the next: what stands behind the
# columns that were asked for is overwritten before it is read, as after a rewind. Larger ones (the
# given start of a piece) run call by call.
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 24, 33, 50)


def recorded_width(columns: int) -> int | None:
    """The width that a block of so many columns is recorded with; None: it is not."""
    return next((width for width in WIDTHS if width >= columns), None)


class Recordings:
    """Calls by what they are for, recorded when they come for the second time.

    The first time a call runs as it is, which also sets up what libraries keep; the second time it
    is recorded, and from then on replayed.
    """

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._calls: dict[Hashable, Call | None] = {}

    def __call__(self, key: Hashable, call: Call) -> Tensor:
        """What `call` returns, good until anything else is replayed.

        Args:
            key: equal keys mean equal calls on equal buffers.
            call: a function of buffers that stay where they are, on the device alone.
        """
        if key not in self._calls:
            self._calls[key] = None
            return call()
        known = self._calls[key]
        if known is None:
            known = self._calls[key] = self._record(call)
        return known()

    def forget(self) -> None:
        """Nothing that was recorded holds any more (a buffer it reads has been replaced)."""
        self._calls.clear()


class GraphedPass:
    """A pass that records itself, by rows, columns and reach.

    Args:
        run: the pass, a function of tensors alone.
        recordings: where it is kept.
        codebooks: K.
        special: a token to fill buffers with.
        capacity: positions of the cache.
        device: where.
    """

    def __init__(
        self,
        run: Pass,
        recordings: Recordings,
        *,
        codebooks: int,
        special: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        self._run, self._recordings, self._device = run, recordings, device
        self._codebooks, self._special, self._capacity = codebooks, special, capacity
        self._inputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, columns: Tensor, starts: Sequence[int]) -> Tensor:
        """Run columns `[B, K, n]` from each row's position on.

        Returns:
            `[N, n', dim]` with n' >= n, good until the next call.
        """
        B, _, n = columns.shape
        width = recorded_width(n)
        if width is None or max(starts) + width > self._capacity:
            return self._run(columns, upload(starts, self._device), max(starts) + n)
        reach = bucket(max(starts) + width, self._capacity)
        tokens, places = self._buffers(B, width)
        tokens[..., :n] = columns
        places.copy_(upload(starts, self._device))
        return self._recordings((B, width, reach), lambda: self._run(tokens, places, reach))

    def _buffers(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """Columns and starts, where every recording for them reads them."""
        if (rows, width) not in self._inputs:
            tokens = torch.full((rows, self._codebooks, width), self._special, device=self._device)
            self._inputs[rows, width] = tokens, torch.zeros_like(tokens[:, 0, 0])
        return self._inputs[rows, width]
