"""How much memory a run took at most."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from specgen.benchmarking import memory as peak
from tests.benchmarking.conftest import Bench

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")


@linux
def test_what_was_held_for_a_moment_counts_and_what_was_there_does_not() -> None:
    there = torch.ones(2**25)  # 128 MiB
    watched = peak.Peak(CPU)
    moment = torch.ones(2**26)  # 256 MiB
    del moment
    grown = watched.grown()
    assert grown is not None and 250 * 2**20 < grown < 330 * 2**20
    assert there[0] == 1


def test_a_system_that_does_not_tell_is_taken_at_its_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(peak, "_STATUS", peak.Path("/nowhere/status"))
    assert peak.Peak(CPU).grown() is None


@linux
def test_rows_show_the_peak_beside_what_is_counted(run_bench: Bench) -> None:
    out = run_bench(
        *("--synthetic", "embedded-base:flatten", "-d", "1", "-r", "1", "--output", "json")
    )
    (row,) = json.loads(out)["rows"]
    assert row["memory_bytes"] > 5e6
    # Small beside what a process takes and gives back, so no more than the order is sure.
    assert row["memory_bytes"] / 3 < row["peak_memory_bytes"] < 60 * row["memory_bytes"]
