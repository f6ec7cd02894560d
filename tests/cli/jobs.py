"""Jobs for tests, and what became of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROMPTS = [
    {"id": "jig", "prompt": "a jig on the violin", "duration": 0.3},
    {"id": "air", "prompt": "a slow air on the flute", "duration": 0.6, "seed": 5},
    {"id": "warm", "prompt": "a jig on the flute", "duration": 0.2, "temperature": 0.5},
    {"id": "alone", "prompt": "a jig", "duration": 0.2, "draft": False},
    {"id": "slow", "prompt": "an air", "duration": 0.4},
]


def lines(path: Path) -> list[dict[str, Any]]:
    text = (path / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def results(path: Path) -> dict[str, tuple[Any, ...]]:
    keys = ("status", "fingerprint", "sha256", "tokens_sha256")
    return {line["id"]: tuple(line[key] for key in keys) for line in lines(path)}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
