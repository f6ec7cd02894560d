"""Alternation, ratios and doubts, with a clock that is not real."""

from __future__ import annotations

import math
import time

import pytest

from specgen.benchmarking.timing import Samples, alternate, busy, far_off, outliers, ratio


def test_sides_take_turns_and_warm_up_is_not_counted() -> None:
    ran: list[str] = []
    told: list[tuple[str, int]] = []
    samples = alternate(
        {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")},
        repeats=3,
        warmup=1,
        before=lambda side, turn: told.append((side, turn)),
    )
    assert "".join(ran) == "baabbaab"  # every other round is reversed
    assert told[0] == ("b", -1)
    assert [turn for side, turn in told if side == "a"] == [-1, 0, 1, 2]
    assert [len(samples[side].wall) for side in "ab"] == [3, 3]
    assert [len(samples[side].cpu) for side in "ab"] == [3, 3]


def test_each_sample_is_its_own_sides_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: now / 2)
    samples = alternate(
        {"slow": lambda: spend(4.0), "fast": lambda: spend(1.0)},
        repeats=2,
        before=lambda *_: spend(100.0),
    )
    assert samples["slow"].wall == [4.0, 4.0]
    assert samples["fast"].cpu == [0.5, 0.5]
    assert samples["fast"].summary() == {"median": 1.0, "min": 1.0, "max": 1.0, "samples": [1, 1]}


def test_nothing_to_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats"):
        alternate({}, repeats=0)


def test_ratio_is_the_median_of_the_rounds_with_its_error() -> None:
    value, error = ratio([10.0, 12.0, 11.0], [5.0, 5.0, 100.0])
    assert value == 2.0
    mean = (2.0 + 2.4 + 0.11) / 3
    spread = sum((one - mean) ** 2 for one in (2.0, 2.4, 0.11)) / 2
    assert error == pytest.approx(math.sqrt(spread / 3))
    assert ratio([3.0], [1.0]) == (3.0, None)
    with pytest.raises(ValueError, match="shorter"):
        ratio([3.0, 3.0], [1.0])


def test_a_machine_that_slows_down_leaves_the_ratio_alone() -> None:
    """Nor do clips of different lengths: a round's sides meet the same."""
    reference = [2.0, 3.0, 5.0, 9.0]
    assert ratio(reference, [seconds / 1.5 for seconds in reference]) == (1.5, pytest.approx(0.0))


def test_outliers_are_found_and_agreement_is_left_alone() -> None:
    assert outliers([1.0, 1.01, 0.99, 1.0, 3.0]) == [4]
    assert outliers([1.0, 1.0, 1.0, 1.001]) == []
    assert outliers([1.0]) == []


def test_an_outlier_is_named() -> None:
    spiky = Samples([1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0])
    said = far_off("x", spiky)
    assert said is not None and "x: 1 of 4 runs are outliers (9.000 s" in said
    assert far_off("x", Samples([1.0, 1.0], [1.0, 1.0])) is None


def test_a_busy_machine_is_named_once() -> None:
    quiet = Samples([1.0, 1.0, 1.0], [0.98, 0.99, 1.0])
    slowed = Samples([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    said = busy([quiet, slowed], threads=1)
    assert said is not None and "1.01 to 2.00 times" in said
    assert busy([quiet], threads=1) is None
    assert busy([slowed], threads=2) is None  # process time counts every thread
