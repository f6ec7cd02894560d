"""`--workers`: processes that share a job's rows. They are killed, and lose their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.app import run
from specgen.jobs.job import Job
from specgen.jobs.manifest import Entry, read
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Task
from specgen.jobs.process_pool import Pool, Portion, cores, portions
from specgen.jobs.rows import Row
from specgen.jobs.worker import Outcome
from specgen.presets import load_preset

ROWS = [
    *({"id": f"r{i}", "prompt": "a jig", "duration": 0.2 + 0.1 * (i % 4)} for i in range(10)),
    {"id": "alone", "prompt": "a slow air", "duration": 0.3, "draft": False},
    {"id": "bad", "prompt": "a jig", "duration": -1},
]


def job_of(tiny: str, folder: Path, rows: list[dict[str, Any]], *options: str) -> list[str]:
    prompts = folder / "p.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["generate", "--prompts", str(prompts), "--preset", tiny, *options]


def results(folder: Path) -> set[tuple[Any, ...]]:
    entries, dropped = read(folder / "manifest.jsonl")
    assert not dropped
    return {(e.id, e.status, e.fingerprint, e.path, e.sha256, e.error) for e in entries.values()}


def tasks(count: int, **options: Any) -> list[Task]:
    return [Task(Row(f"r{i}", "a jig", i, i, {**options}), f"r{i}") for i in range(count)]


def test_rows_do_not_depend_on_workers(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tiny, tmp_path, ROWS)
    assert run([*job, "--out", str(tmp_path / "one"), "--workers", "1"]) == 1
    said, _ = capsys.readouterr()
    shared = [*job, "--out", str(tmp_path / "two"), "--workers", "2", "--stats", "--batch", "4"]
    assert run(shared) == 1
    out, err = capsys.readouterr()
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert sorted(Path(p).name for p in out.split()) == sorted(Path(p).name for p in said.split())
    assert "11 clips made, 1 failed" in err and "tokens/pass" in err
    assert run(shared) == 1
    assert "0 clips made, 11 kept, 1 failed" in capsys.readouterr().err


def test_models_that_cannot_be_loaded_end_the_job(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tiny, tmp_path, ROWS[:4], "--draft-temperature", "1,1")
    assert run([*job, "--out", str(tmp_path / "out"), "--workers", "2"]) == 2
    err = capsys.readouterr().err
    assert "draft temperatures" in err and err.count("\n") == 1


def test_long_rows_go_first_and_portions_shrink() -> None:
    rows = [*tasks(30, duration=2.0), *tasks(4, duration=9.0)[:2]]
    made = {"r3": Entry("r3", "done"), "r4": Entry("r4", "failed")}
    place = Place(Path(), batch=8, duration=1.0, workers=2)
    parts = list(portions([(Recipe("nothing"), rows)], made, place))
    flat = [task for part in parts for task in part.tasks]
    assert sorted(map(id, flat)) == sorted(map(id, rows))
    assert [flat[0].row.id, flat[1].row.options["duration"]] == ["r3", 9.0]
    sizes = [len(part.tasks) for part in parts]
    assert sizes[0] == 8 and sizes[-3:] == [1, 1, 1] and sizes == sorted(sizes, reverse=True)


def test_rows_of_a_process_that_died_come_back_in_halves() -> None:
    part = Portion(Recipe("x"), tasks(5))
    halves = part.without({"r1"})
    assert [[t.row.id for t in half.tasks] for half in halves] == [["r0", "r2"], ["r3", "r4"]]
    assert [half.deaths for half in halves] == [1, 1]
    assert part.without({f"r{i}" for i in range(5)}) == []


def test_there_are_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


class Killer:
    """A watcher that kills the worker of a row whenever it sees the row begun."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act, self.outcomes = act, list[Outcome]()

    def begin(self, rows: int, seconds: float) -> None: ...

    def underway(self, worker: int, rows: Any) -> None:
        if rows:
            self.act(worker)

    def outcome(self, outcome: Outcome) -> None: ...


@pytest.mark.parametrize("times", [1, 99])
def test_a_killed_worker_loses_no_row(tiny: str, tmp_path: Path, times: int) -> None:
    """Killed once, its rows are made by another; killed whenever it works, they fail and say so."""
    import multiprocessing

    left = [times]

    def kill(worker: int) -> None:
        if left[0]:
            left[0] -= 1
            for process in multiprocessing.active_children():
                process.kill()

    load_preset(tiny)
    place = Place(tmp_path, duration=2.0, device="cpu", batch=2)
    (tmp_path / ".specgen-job.json").write_text("{}")
    rows = tasks(2 if times > 1 else 4)
    execute = Pool(2)(Job("", Recipe(tiny), place), [(Recipe(tiny), rows)], {}, Killer(kill))
    outcomes = list(execute)
    assert sorted(o.entry.id for o in outcomes) == [task.row.id for task in rows]
    if times == 1:
        assert all(o.entry.done for o in outcomes) and not left[0]
    else:
        errors = [str(o.entry.error) for o in outcomes]
        assert all("was killed by SIGKILL" in error for error in errors), errors
    assert not multiprocessing.active_children()


def start(job: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "specgen.cli.app", *job]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)  # type: ignore[call-overload,no-any-return]


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether processes have ended (one that nobody has asked about yet may be a zombie)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(state(pid) in (None, "Z") for pid in pids):
            return True
        time.sleep(0.05)
    return False


def state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_worker_outlives_its_job(tiny: str, tmp_path: Path, number: int, code: int) -> None:
    rows = [{"id": f"r{i}", "prompt": "a jig", "duration": 1.0} for i in range(40)]
    out = tmp_path / "out"
    process = start([*job_of(tiny, tmp_path, rows, "--out", str(out), "--workers", "2")])
    assert process.stdout is not None and process.stdout.readline().strip().endswith(".wav")
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    _, reported = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in reported, reported
    assert gone(workers)
    entries, _ = read(out / "manifest.jsonl")
    assert 0 < len(entries) < 40
    if number != signal.SIGKILL:
        assert "the same command goes on from here" in reported and not list(out.glob(".*.tmp"))


def test_workers_are_for_local_jobs(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, said in (
        (["--prompts", "x", "--workers", "0"], "--workers"),
        (["--prompts", "x", "--workers", "2", "--engine", "ray"], "--actors"),
        (["a jig", "--workers", "2"], "--prompts"),
    ):
        assert run(["generate", "--preset", tiny, *extra]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
