"""The figure of training curves."""

from __future__ import annotations

import json
from pathlib import Path

from specgen.training import curves


def test_a_figure_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"seconds": 30.0, "loss": 6.0},
        {"seconds": 60.0, "loss": 5.0},
        {"seconds": 61.0, "held_out_mean_nats": 5.1, "unigram_nats": [6.0, 6.4]},
    ]
    log, out = tmp_path / "log.jsonl", tmp_path / "curves.png"
    log.write_text("\n".join(map(json.dumps, rows)))
    assert curves.main([str(out), f"tiny={log}"]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_wrong_arguments(tmp_path: Path) -> None:
    assert curves.main([str(tmp_path / "x.png")]) == 2
    assert curves.main([str(tmp_path / "x.png"), "a=/nowhere/log.jsonl"]) == 2
