"""The picture of a run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specgen.benchmarking import plot
from specgen.benchmarking.rows import Document
from specgen.errors import UserError
from tests.benchmarking.test_tables import ALONE, PAIR


def document(*rows: object, synthetic: bool = False) -> Document:
    machine = {"processor": "Some CPU", "gpu": None}
    return Document(machine, {}, "abc", {}, {}, rows=list(rows), synthetic=synthetic)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    plot.check(path)
    plot.draw(document(ALONE, PAIR, synthetic=True), path)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_without_a_speedup_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row has a speed-up"):
        plot.draw(document(ALONE), tmp_path / "rows.png")


def test_a_missing_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="--plot needs matplotlib; pip install"):
        plot.check(tmp_path / "rows.png")


def test_names_hold_what_was_swept() -> None:
    assert plot.name(PAIR) == "pair\ncoupled, auto\n8 s, batch 1"
    assert plot.name(ALONE) == "flat\n8 s, batch 1"
    given = replace(PAIR, acceptance_given=[0.7] * 4, acceptance_source="x.json: a")
    assert "given acceptance 0.7 of x.json: a" in plot.name(given)
    given = replace(given, acceptance_given=[0.8, 0.7, 0.6, 0.5], acceptance_source="given")
    assert "given acceptance 0.8 0.7 0.6 0.5\n" in plot.name(given)
