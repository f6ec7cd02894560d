"""A verifier's own clips as training tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specgen.engine import Engine, Request, load
from specgen.errors import UserError
from specgen.training.batches import TokenItems, read_rows
from specgen.training.samples import main, plan, write_samples

SECONDS = 0.12
ROWS = [
    {"split": split, "captions": [f"a {word} on the fiddle", f"fiddle {word}"]}
    for split, word in (
        ("train", "reel"),
        ("valid", "jig"),
        ("test", "air"),
        ("train", "polka"),
    )
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load("embedded-small-delay", threads=1)


def test_every_split_keeps_to_its_own_captions() -> None:
    requests = plan(ROWS, 9, SECONDS)
    assert len(requests) == 9 and len({request.id for request in requests}) == 9
    words = {"train": ("reel", "polka"), "valid": ("jig",), "test": ("air",)}
    for request in requests:
        split = str(request.id).split("-")[0]
        assert request.prompt.removesuffix(" on the fiddle").split()[-1] in words[split]
    prompts = [request.prompt for request in requests if str(request.id).startswith("train")]
    assert len(set(prompts)) == 4  # captions of an item take turns
    with pytest.raises(UserError, match="no test captions"):
        plan(ROWS[:2], 9, SECONDS)


def test_the_folder_holds_what_the_verifier_makes(engine: Engine, tmp_path: Path) -> None:
    requests = plan(ROWS, 6, SECONDS)
    write_samples(engine, requests, tmp_path, batch=4)
    rows = read_rows(tmp_path / "index.jsonl")
    assert [row["captions"] for row in rows] == [[request.prompt] for request in requests]
    alone = next(engine.generate([requests[2]]))
    assert torch.equal(TokenItems(tmp_path, "train").grid(2), alone.codes)
    assert torch.equal(
        TokenItems(tmp_path, "test").grid(0), next(engine.generate([requests[-1]])).codes
    )


def test_an_interrupted_run_goes_on(engine: Engine, tmp_path: Path) -> None:
    requests = plan(ROWS, 6, SECONDS)
    write_samples(engine, requests, tmp_path, batch=4)
    whole = np.load(tmp_path / "codes.npy").copy()
    index = tmp_path / "index.jsonl"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:4]) + "\n")
    held = np.lib.format.open_memmap(tmp_path / "codes.npy", mode="r+")
    held[4 * 6 :] = -1
    write_samples(engine, requests, tmp_path, batch=1)
    assert index.read_text().splitlines() == lines
    assert (np.load(tmp_path / "codes.npy") == whole).all()
    with pytest.raises(UserError, match="other clips"):
        write_samples(engine, [Request("a waltz", 1, SECONDS, "train-x")], tmp_path, batch=1)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions: Any = tmp_path / "index.jsonl"
    out = tmp_path / "out"
    options = ["--hours", str(3 * SECONDS / 3600), "--seconds", str(SECONDS), "--batch", "2"]
    command = ["embedded-small-delay", str(out), "--captions", str(captions), *options]
    assert main(command) == 2 and "cannot read" in capsys.readouterr().err
    captions.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    assert main(command) == 0
    assert [row["split"] for row in read_rows(out / "index.jsonl")] == ["train", "valid", "test"]
