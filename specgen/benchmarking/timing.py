"""Timing sides against each other: warm-up, alternation, medians, and signs of a busy machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Key = TypeVar("Key")

OUTLIER = 3.5  # modified z-score (Iglewicz and Hoaglin 1993) from which a sample is an outlier
BUSY = 1.1  # wall time over process time from which one thread was not alone


@dataclass
class Samples:
    """Seconds of one side's runs, in the order they were taken.

    Attributes:
        wall: by the clock.
        cpu: of this process, all threads; what a busy machine cannot stretch much.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | list[float]]:
        """The `seconds` of a row: median, min, max, samples."""
        return {
            "median": statistics.median(self.wall),
            "min": min(self.wall),
            "max": max(self.wall),
            "samples": list(self.wall),
        }

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)


def alternate(
    sides: Mapping[Key, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    before: Callable[[Key, int], None] | None = None,
) -> dict[Key, Samples]:
    """Run every side in turn, `repeats` times round: a drift of the machine meets all alike.

    Every other round runs in reverse order, so that no side always follows the same neighbour.

    Args:
        sides: what to run.
        repeats: timed rounds.
        warmup: rounds before them, not timed.
        before: told the side and the round (negative while warming up) before each run.

    Raises:
        ValueError: nothing to repeat.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warm-up 0 or more: {repeats}, {warmup}")
    samples = {key: Samples() for key in sides}
    order = list(sides)
    for turn in range(-warmup, repeats):
        for key in order if turn % 2 == 0 else reversed(order):
            if before is not None:
                before(key, turn)
            cpu, wall = time.process_time(), time.perf_counter()
            sides[key]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                samples[key].wall.append(wall)
                samples[key].cpu.append(cpu)
    return samples


def ratio(reference: list[float], row: list[float]) -> tuple[float, float | None]:
    """How many times as long the reference takes as the row: the median over the rounds, and the
    standard error, None for a single round.

    Sides that take turns (`alternate`) meet the same clip and much the same machine in a round, so
    neither the clips nor a machine that slows down blur what lies between them.

    Raises:
        ValueError: they have not run equally often.
    """
    each = [one / other for one, other in zip(reference, row, strict=True)]
    value = statistics.median(each)
    return value, statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None


def outliers(values: list[float]) -> list[int]:
    """Places of samples far from the median, by the modified z-score; none if all agree."""
    middle = statistics.median(values)
    spread = statistics.median(abs(v - middle) for v in values)
    # A spread of nothing would make every second sample an outlier: 2 % is noise anywhere.
    scale = max(spread / 0.6745, 0.02 * middle)
    return [i for i, v in enumerate(values) if abs(v - middle) > OUTLIER * scale]


def far_off(label: str, samples: Samples) -> str | None:
    """A warning if some of a row's runs are outliers."""
    far = outliers(samples.wall)
    if not far:
        return None
    worst = max((samples.wall[i] for i in far), key=lambda v: abs(v - samples.median))
    return (
        f"{label}: {len(far)} of {len(samples.wall)} runs are outliers "
        f"({worst:.3f} s beside a median of {samples.median:.3f} s)"
    )


def busy(rows: Iterable[Samples], threads: int) -> str | None:
    """A warning if the clock ran well ahead of the process: something else had the processor.

    With several threads the two cannot be compared.
    """
    stretches = [row.median / row.cpu_median for row in rows] if threads == 1 else []
    if not stretches or max(stretches) <= BUSY:
        return None
    return (
        f"the machine was busy: the clock ran {min(stretches):.2f} to {max(stretches):.2f} times "
        "as long as the process; trust the speed-up in process time"
    )
