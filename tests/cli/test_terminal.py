"""What is seen on a terminal: a live bar on stderr; stdout is left alone."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest


def on_terminal(command: list[str], stdout: Path) -> tuple[int, str]:
    """Run a command whose stderr is a terminal; returns its exit code and what was drawn there."""
    ours, theirs = pty.openpty()
    with stdout.open("w") as file:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=theirs, env=environment)
        os.close(theirs)
        drawn = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            drawn += part
    os.close(ours)
    return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode(errors="replace"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_job_draws_how_far_it_is(tiny: str, tmp_path: Path, workers: str) -> None:
    # No two rows of a length: rows that end together would pass over "1/4 clips".
    rows = [{"id": f"r{i}", "prompt": "a jig", "duration": 1.0 + i} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "specgen.cli.app", "generate", "--preset", tiny]
    command += ["--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--batch", "2", "--workers", workers]
    code, drawn = on_terminal(command, tmp_path / "stdout")
    assert code == 0, drawn
    paths = (tmp_path / "stdout").read_text().split()
    assert sorted(Path(path).name for path in paths) == [f"r{i}.wav" for i in range(4)]
    assert "0/4 clips" in drawn and "1/4 clips" in drawn
    assert re.search(r"\d\.\d\d x real time, 0:\d\d:\d\d left +r\d \d+% +r\d \d+%", drawn)
    assert "4 clips made" in drawn


def test_a_clip_draws_how_far_it_is(tiny: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specgen.cli.app", "generate", "a jig", "--preset", tiny]
    command += ["-d", "2", "--out", str(tmp_path / "clip.wav")]
    code, drawn = on_terminal(command, tmp_path / "stdout")
    assert code == 0 and (tmp_path / "stdout").read_text().strip() == str(tmp_path / "clip.wav")
    assert re.search(r"\d+/100 frames", drawn) and "x real time" in drawn
