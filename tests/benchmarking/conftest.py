"""Runs `specgen bench` in this process, errors and all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from specgen.benchmarking import roofline as bandwidth
from specgen.cli.bench import bench

Bench = Callable[..., str]


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is over at once: its figure does not matter here."""
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", 2**20)


@pytest.fixture
def run_bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """A function of arguments that returns what went to stdout; errors are raised."""
    app = typer.Typer()
    app.command()(bench)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        typer.main.get_command(app).main(list(arguments), "bench", standalone_mode=False)
        return capsys.readouterr().out

    return run
