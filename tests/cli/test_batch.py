"""`specgen generate --prompts` from the outside: jobs, resuming, refusals, shards."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgen.audio.files import tokens_sha256
from specgen.cli.app import run
from specgen.jobs.folder import locked
from specgen.jobs.worker import Worker
from tests.cli.jobs import PROMPTS, lines, results, write


def replaced(job: list[str], **options: str) -> list[str]:
    """The command with other values of options it has."""
    job = list(job)
    for name, value in options.items():
        job[job.index(f"--{name}") + 1] = value
    return job


def test_a_job_makes_every_row_and_then_none(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(job) == 0
    said, told = capsys.readouterr()
    assert set(said.split()) == {str(out / f"{row['id']}.wav") for row in PROMPTS}
    assert "5 clips made" in told and "x real time" in told
    for row in PROMPTS:
        sidecar = json.loads((out / f"{row['id']}.json").read_text())
        assert sidecar["prompt"] == row["prompt"] and sidecar["id"] == row["id"]
        assert sidecar["duration_seconds"] == pytest.approx(row["duration"])
        codes = np.load(out / f"{row['id']}.npy")
        assert tokens_sha256(codes) == sidecar["tokens_sha256"]
    assert json.loads((out / "air.json").read_text())["seed"] == 5
    assert json.loads((out / "warm.json").read_text())["sampling"]["temperature"] == 0.5
    assert json.loads((out / "alone.json").read_text())["checkpoints"]["drafter"] is None
    before = results(out)
    assert {line[0] for line in before.values()} == {"done"}
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert run(job) == 0
    said, told = capsys.readouterr()
    assert said == "" and "0 clips made, 5 kept" in told
    assert results(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}


def test_rows_depend_on_neither_batch_nor_order_nor_shard(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, "--batch", "1"]) == 0
    back = tmp_path / "back" / "p.jsonl"
    back.parent.mkdir()
    other = replaced(job, prompts=write(back, PROMPTS[::-1]), out=str(tmp_path / "back"))
    assert run([*other, "--batch", "3"]) == 0
    assert results(tmp_path / "out") == results(tmp_path / "back")
    parts = replaced(job, out=str(tmp_path / "parts"))
    for n in (1, 2, 3):
        assert run([*parts, "--shard", f"{n}/3"]) == 0
    folders = sorted(map(str, (tmp_path / "parts").iterdir()))
    assert [Path(f).name for f in folders] == [f"shard-00{n}-of-003" for n in (1, 2, 3)]
    whole = tmp_path / "whole"
    assert run(["merge", *folders, "--out", str(whole)]) == 0
    assert results(whole) == results(tmp_path / "out")
    assert all((whole / line["path"]).is_file() for line in lines(whole))
    capsys.readouterr()
    assert run(["merge", *folders[:2], "--out", str(tmp_path / "less.jsonl")]) == 1
    assert "missing shards: 3/3" in capsys.readouterr().err


def test_a_row_is_what_the_same_request_makes_alone(
    job: list[str], tiny: str, tmp_path: Path
) -> None:
    assert run(job) == 0
    alone = ["generate", "a slow air on the flute", "--seed", "5", "-d", "0.6", "--preset", tiny]
    assert run([*alone, "-o", str(tmp_path / "alone.wav")]) == 0
    one, two = (np.load(path) for path in (tmp_path / "alone.npy", tmp_path / "out" / "air.npy"))
    assert np.array_equal(one, two)
    assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / "out" / "air.wav").read_bytes()


def test_what_is_damaged_changed_or_gone_is_made_again(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(job) == 0
    before = results(out)
    (out / "jig.wav").write_bytes((out / "jig.wav").read_bytes()[:-1])
    (out / "air.npy").unlink()
    content = bytearray((out / "warm.json").read_bytes())
    content[30] ^= 1
    (out / "warm.json").write_bytes(content)
    with (out / "manifest.jsonl").open("ab") as file:
        file.write(b'{"id": "slow", "sta')
    (out / ".jig.wav.abcdefgh.tmp").touch()
    changed = [{**row, **({"seed": 9} if row["id"] == "slow" else {})} for row in PROMPTS]
    write(tmp_path / "p.jsonl", changed)
    capsys.readouterr()
    assert run(job) == 0
    said, told = capsys.readouterr()
    assert "4 clips made, 1 kept" in told and str(out / "alone.wav") not in said
    after = results(out)
    assert len(lines(out)) == 5 and not list(out.glob(".*.tmp"))
    assert {k for k in after if after[k][:3] != before[k][:3]} == {"slow"}


def test_a_folder_of_another_job_is_refused(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*job, "--seed", "1"]) == 0
    before = results(tmp_path / "out")
    for other in ([*job, "--seed", "2"], [*job, "--seed", "1", "--cfg", "4"]):
        assert run(other) == 2
        assert "holds another job" in capsys.readouterr().err
    assert results(tmp_path / "out") == before
    assert run([*job, "--seed", "2", "--overwrite"]) == 0
    after = results(tmp_path / "out")
    assert {k for k in after if after[k] == before[k]} == {"air"}  # its seed is its own


def test_files_in_the_way_are_not_overwritten(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "AIR.npy").write_text("mine")
    assert run(job) == 2
    assert "exists" in capsys.readouterr().err
    assert [p.name for p in out.glob("[!.]*")] == ["AIR.npy"]


def test_a_file_that_came_later_is_not_overwritten(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a row's name, in a folder that is the job's already: the row fails. What a killed
    process wrote and did not record is the job's."""
    out = tmp_path / "out"
    write(tmp_path / "p.jsonl", PROMPTS[:2])
    assert run(job) == 0
    (out / "warm.npy").write_text("mine")
    write(tmp_path / "p.jsonl", PROMPTS[1:3])
    (out / "air.json").unlink()
    (out / "manifest.jsonl").unlink()
    capsys.readouterr()
    assert run(job) == 1
    assert "warm.npy is there and not this job's; move it away" in capsys.readouterr().err
    assert (out / "warm.npy").read_text() == "mine" and not (out / "warm.wav").exists()
    assert (out / "air.json").is_file()
    assert run([*job, "--overwrite"]) == 0
    assert np.load(out / "warm.npy").shape[0] == 4
    assert [p.name for p in out.glob(".specgen-names.*")] != []
    assert run(job) == 0
    assert sorted((out / ".specgen-names").read_text().split()) == ["air", "jig", "warm"]


def test_a_file_system_without_locks_is_told(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path):
        assert "has no locks" in capsys.readouterr().err


def test_bad_rows_fail_by_themselves(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *PROMPTS[:2],
        {"id": "../../x", "prompt": "a jig"},
        {"id": "JIG", "prompt": "a jig"},
        {"id": "long", "prompt": "a jig", "duration": -1},
        {"id": "none", "prompt": "a jig", "preset": "nothing"},
        {"id": "hot", "prompt": "a jig", "temperature": -1},
        {"id": "gone", "prompt": "a jig", "continue_from": "gone.wav"},
        {"id": "endless", "prompt": "a jig", "continue_from": "/dev/zero"},
    ]
    prompts = write(tmp_path / "p.jsonl", rows)
    arguments = ["generate", "--prompts", prompts, "--preset", tiny, "--out", str(tmp_path / "o")]
    assert run([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {clip["id"] for clip in document["clips"]} == {"jig", "air"}
    assert all(Path(clip["path"]).is_file() for clip in document["clips"])
    reasons = {row["id"]: row["error"] for row in document["failed"]}
    assert set(reasons) == {"#3", "#4", "long", "none", "hot", "gone", "endless"}
    for name, word in {
        "#3": "file name",
        "#4": "line 1's already",
        "long": "positive",
        "none": "'nothing' is unknown",
        "hot": "temperature",
        "gone": "No such file",
        "endless": "not a regular file",
    }.items():
        assert word in reasons[name], reasons[name]
    assert "2 clips made, 7 failed" in err
    assert {p.name for p in tmp_path.iterdir()} == {"p.jsonl", "o"}
    assert {line["id"]: line["status"] for line in lines(tmp_path / "o")} == {
        "jig": "done",
        "air": "done",
        **dict.fromkeys(reasons, "failed"),
    }
    write(tmp_path / "p.jsonl", [*rows[:2], {"id": "long", "prompt": "a jig", "duration": 0.2}])
    assert run(arguments) == 0
    assert {line["id"] for line in lines(tmp_path / "o")} == {"jig", "air", "long"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shard", "3/2"], "--shard"),
        (["--name", "{nope}"], "{nope} is unknown"),
        (["--name", "{slug}"], "would both be"),
        (["--batch", "0"], "--batch"),
        (["--format", "mp3"], "mp3"),
        (["--engine", "slurm"], "--engine"),
        (["--actors", "2"], "--engine ray"),
        (["--temperature", "-1"], "temperature"),
        (["--prompts-format", "xml"], "xml"),
        (["a jig"], "leave the others out"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_job_that_cannot_be_is_refused(
    job: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "a jig"}, {"prompt": "A jig!"}])
    assert run([*job, *extra]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.wav"))


def test_many_rows_one_in_a_hundred_bad(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine and the files are stood in for: what is tested is the counting. With the real
    engine: tools/many_rows.py."""
    from specgen.jobs.manifest import Entry, Manifest

    def made(self: Worker, engine: object, todo: Any, on_round: object = None) -> Any:
        for one in todo:
            yield Entry(one.request.id, "done", one.fingerprint, one.path, "0", "0", "0"), None

    monkeypatch.setattr(Worker, "make", made)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    rows = (
        {"id": f"r{i}", "prompt": "a jig", "duration": -1 if i % 200 == 7 else 0.1}
        if i % 200 != 100
        else {"id": "../x", "prompt": "a jig"}
        for i in range(2_000)
    )
    prompts = write(tmp_path / "p.jsonl", rows)
    job = ["generate", "--prompts", prompts, "--preset", tiny, "--out", str(tmp_path / "out")]
    job += ["--workers", "1"]  # others would have engines that are real
    assert run(job) == 1
    assert "1980 clips made, 20 failed" in capsys.readouterr().err
    entries = Manifest(tmp_path / "out" / "manifest.jsonl").entries
    assert len(entries) == 2_000
    assert sum(entry.done for entry in entries.values()) == 1_980
