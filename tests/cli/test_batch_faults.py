"""`specgen generate --prompts` when something goes wrong: disks, engines, signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from specgen.cli.app import run
from specgen.jobs import folder
from specgen.jobs.folder import locked
from specgen.jobs.worker import Worker
from tests.cli.jobs import lines, write


def test_a_full_disk_fails_the_row_and_not_the_job(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.audio import files

    real = files.write_files

    def full(path: Path, files: files.ClipFiles) -> None:
        if path.name == "air.wav":
            raise OSError(28, "No space left on device")
        real(path, files)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_files", full)
        assert run(job) == 1
    failed = [line for line in lines(tmp_path / "out") if line["status"] == "failed"]
    assert [line["id"] for line in failed] == ["air"]
    assert "No space left" in failed[0]["error"]
    assert run(job) == 0
    assert {line["status"] for line in lines(tmp_path / "out")} == {"done"}


def test_an_engine_that_fails_loses_one_row(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.engine import Engine

    real, batches = Engine.generate, []

    def fragile(self: Engine, requests: Iterable[Any], **options: Any) -> Any:
        requests = list(requests)
        batches.append((options["batch"], len(requests)))
        if options["batch"] > 2:
            raise RuntimeError("CUDA out of memory")
        for clip in real(self, requests, **options):
            if clip.request.id == "r3":
                raise RuntimeError("a fault of its own")
            yield clip

    monkeypatch.setattr(Engine, "generate", fragile)
    rows = [{"id": f"r{i}", "prompt": "a jig", "duration": 0.2} for i in range(6)]
    prompts = write(tmp_path / "p.jsonl", rows)
    job = ["generate", "--prompts", prompts, "--preset", tiny, "--out", str(tmp_path / "out")]
    assert run([*job, "--batch", "8"]) == 1
    bad = {line["id"]: line["error"] for line in lines(tmp_path / "out") if line["error"]}
    assert bad == {"r3": "cannot make it: RuntimeError: a fault of its own"}
    assert len(lines(tmp_path / "out")) == 6
    assert [batch for batch, _ in batches[:3]] == [8, 4, 2]
    assert all(batch <= 2 for batch, _ in batches[2:])  # memory that was short once stays short


def test_the_folder_that_goes_away_is_noticed(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    real = Worker._written

    def unmounted(self: Worker, *arguments: Any) -> Any:
        if not away.exists():
            out.rename(away)
            out.mkdir()
        return real(self, *arguments)

    monkeypatch.setattr(Worker, "_written", unmounted)
    assert run(job) == 1
    assert list(out.iterdir()) == []  # nothing is written below an empty mount point
    assert all("unmounted?" in line["error"] for line in lines(away))


def test_a_folder_that_goes_away_before_the_first_clip_is_told_in_a_line(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real = tmp_path / "out", folder.take

    def unmounted(path: Path, identity: dict[str, Any]) -> None:
        real(path, identity)
        out.rename(tmp_path / "away")

    monkeypatch.setattr(folder, "take", unmounted)
    assert run(job) == 2
    err = capsys.readouterr().err
    assert f"cannot write to {out}: No such file" in err and err.count("\n") == 1
    assert not out.exists()


def test_a_second_process_is_sent_away(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert run(job) == 2
    err = capsys.readouterr().err
    assert "is being worked on by process" in err and err.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def start(job: list[str], **options: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "specgen.cli.app", *job]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_goes_on(tiny: str, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "out"
    rows = [{"id": f"r{i}", "prompt": "a jig", "duration": 0.5} for i in range(12)]
    prompts = write(tmp_path / "p.jsonl", rows)
    job = ["generate", "--prompts", prompts, "--preset", tiny, "--out", str(out), "--batch", "1"]
    process = start(job)
    assert process.stdout is not None and process.stdout.readline().strip().endswith(".wav")
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "the same command goes on from here" in told and "Traceback" not in told
    made = lines(out)
    assert 0 < len(made) < 12 and not list(out.glob(".*.tmp"))
    for line in made:
        assert soundfile.info(str(out / line["path"])).frames == 8000
    if number == signal.SIGINT:
        return
    began = time.time()
    assert run(job) == 0
    assert len(lines(out)) == 12
    again = [line for line in made if (out / line["path"]).stat().st_mtime > began]
    assert not again
