"""The manifest, the folder and the lock: what a crash may leave is read or repaired."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.errors import UserError
from specgen.jobs.folder import Template, belongs, check_there, locked, remove_left_overs, take
from specgen.jobs.manifest import Entry, Manifest, decode, encode, read
from specgen.jobs.merge import merge
from specgen.jobs.plan import Shard, parse_shard
from specgen.jobs.rows import Row

DONE = Entry("a", "done", "f", "a.wav", "1", "2", "3", None, 1.5)
FAILED = Entry("é", "failed", error="no\u2028room")


def test_a_line_reads_back() -> None:
    for entry in (DONE, FAILED):
        line = encode(entry)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert decode(line) == entry
    assert {"id", "status", "fingerprint", "path", "sha256", "error", "seconds"} <= set(
        json.loads(encode(DONE))
    )


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(place: int, flip: int) -> None:
    line = bytearray(encode(DONE)[:-1])
    line[place % len(line)] ^= flip
    assert decode(bytes(line)) in (None, DONE)  # DONE: what was flipped was blank


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_none(content: bytes) -> None:
    assert decode(content) is None


def test_a_torn_end_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(encode(FAILED) + encode(DONE) + encode(DONE)[:40])
    manifest = Manifest(path)
    assert manifest.dropped == 1 and set(manifest.entries) == {"a", "é"}
    later = Entry("é", "done", "f", "e.wav", "1", "2", "3", None, 1.0)
    manifest.append(later)
    assert [decode(line) for line in path.read_bytes().splitlines()] == [FAILED, DONE, later]
    manifest.close()
    assert read(path) == ({"é": later, "a": DONE}, 0)


def test_what_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.jsonl"
    manifest = Manifest(path)
    manifest.append(FAILED)
    real = os.write

    def half(handle: int, content: bytes) -> int:
        real(handle, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        manifest.append(DONE)
        patch.setattr(os, "write", lambda handle, content: real(handle, content[:10]))
        manifest.append(Entry("b", "failed"))
    assert [e.id for e in manifest.unwritten] == ["a", "b"]
    assert read(path) == ({"é": FAILED}, 0)
    manifest.append(Entry("c", "failed"))
    assert not manifest.unwritten and list(read(path)[0]) == ["é", "a", "b", "c"]
    manifest.close(lambda entry: entry.done)
    assert list(read(path)[0]) == ["a"]


def test_one_process_a_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=f"worked on by process {os.getpid()} on"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # a lock that was held once does not stay
        pass


def test_a_folder_is_one_jobs(tmp_path: Path) -> None:
    ours = {"schema": 1, "seed": 3}
    assert not belongs(tmp_path, ours, overwrite=False)
    with pytest.raises(OSError, match="no longer"):
        check_there(tmp_path)
    take(tmp_path, ours)
    check_there(tmp_path)
    assert belongs(tmp_path, ours, overwrite=False)
    with pytest.raises(UserError, match="seed: 3 there, 4 here"):
        belongs(tmp_path, {**ours, "seed": 4}, overwrite=False)
    assert belongs(tmp_path, {**ours, "seed": 4}, overwrite=True)
    (tmp_path / ".specgen-job.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        belongs(tmp_path, ours, overwrite=False)


def test_only_left_overs_are_removed(tmp_path: Path) -> None:
    for name in (".a.wav.abc12_z9.tmp", ".a.tmp", "a.wav", ".a.wav.abc12_z9.tmpx"):
        (tmp_path / name).touch()
    assert remove_left_overs(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".a.tmp", ".a.wav.abc12_z9.tmpx", "a.wav"]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, {}, Shard(1, 1)),
        ("2/3", {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "10"}, Shard(2, 3)),
        (None, {"ID": "0", "COUNT": "4", "MIN": "0"}, Shard(1, 4)),
        (None, {"ID": "4", "COUNT": "4", "MIN": "1"}, Shard(4, 4)),
        (None, {"ID": "20", "COUNT": "3", "MIN": "10", "STEP": "5"}, Shard(3, 3)),
        (None, {"ID": "9", "COUNT": "2", "MIN": "1", "STEP": "1"}, "--shard"),
        (None, {"ID": "x", "COUNT": "2"}, "--shard"),
        ("0/3", {}, "--shard"),
        ("4/3", {}, "--shard"),
        ("1", {}, "--shard"),
    ],
)
def test_shards_from_option_or_slurm(
    text: str | None, environment: dict[str, str], expected: Shard | str
) -> None:
    named = {k if "_" in k else f"SLURM_ARRAY_TASK_{k}": v for k, v in environment.items()}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            parse_shard(text, named)
    else:
        assert parse_shard(text, named) == expected


def test_every_row_is_in_one_shard() -> None:
    ids = [f"row-{i}" for i in range(3000)]
    parts = [[i for i in ids if Shard(n, 3).holds(i)] for n in (1, 2, 3)]
    assert sorted(i for part in parts for i in part) == sorted(ids)
    assert all(850 < len(part) < 1150 for part in parts)  # 5.8 sigma around 1000


@pytest.mark.parametrize("text", ["{nope}", "{}", "same", "../{id}", "a/{id}", "{id", "{id!r}"])
def test_a_template_that_cannot_name_files_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--name"):
        Template(text)


def test_a_template_is_filled_in() -> None:
    row = Row("x", "A Jig, in D!", 7, 1, {})
    assert Template("{index}-{slug}_{seed}({id})").render(row, 12) == "000012-a-jig-in-d_7(x)"


def test_manifests_merge(tmp_path: Path) -> None:
    def job(name: str, *entries: Entry) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.jsonl").write_bytes(b"".join(map(encode, entries)) + b"torn")
        shard = {"shard": f"{name}/3"}
        (folder / ".specgen-job.json").write_text(json.dumps(shard))
        return folder

    one = job("1", DONE, FAILED)
    two = job("2", Entry("é", "done", "g", "é.wav", "4", "5", "6", None, 1.0))
    merged = merge([one, two], tmp_path / "all")
    assert (merged.done, merged.failed, merged.missing) == (2, 0, ("3/3",))
    entries, _ = read(tmp_path / "all" / "manifest.jsonl")
    assert [entries[key].path for key in ("a", "é")] == ["../1/a.wav", "../2/é.wav"]
    with pytest.raises(UserError, match="exists"):
        merge([one, two], tmp_path / "all")
    other = job("3", Entry("a", "done", "h", "a.wav", "9", "2", "3", None, 1.0))
    with pytest.raises(UserError, match="not parts of one job"):
        merge([one, other], tmp_path / "all2")
    with pytest.raises(UserError, match="cannot read"):
        merge([tmp_path / "none"], tmp_path / "all3")
