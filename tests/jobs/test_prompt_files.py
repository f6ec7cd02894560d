"""Prompt files: every format, and whatever else a file may hold."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.errors import UserError
from specgen.jobs.prompt_files import LINE_LIMIT, read_prompts
from specgen.jobs.rows import (
    COLUMNS,
    BadRow,
    Row,
    content_id,
    name_key,
    row_seed,
    rows_of,
    unsafe_name,
)


def rows(path: Path, kind: str = "auto", **options: int) -> list[Row | BadRow]:
    return list(rows_of(read_prompts(str(path), kind), 0, **options))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "p.txt", "\ufeffa jig in F#\r\n\n# not this\n  an air \n")
    made = rows(path)
    assert [(r.prompt, r.line) for r in made] == [("a jig in F#", 1), ("an air", 4)]
    assert all(isinstance(r, Row) and r.seed == row_seed(0, r.id) for r in made)


def test_jsonl_and_csv_say_the_same(tmp_path: Path) -> None:
    values = [
        {"id": "one", "prompt": "a jig, quick", "seed": 3, "duration": 1.5, "draft": False},
        {"id": "two", "prompt": 'an "air"', "cfg": 2, "draft_temperature": [1, 0.5]},
    ]
    lines = "".join(json.dumps(v) + "\n" for v in values)
    table = (
        "id,prompt,seed,duration,draft,cfg,draft_temperature\n"
        'one,"a jig, quick",3,1.5,no,,\n'
        'two,"an ""air""",,,,2,"1.0,0.5"\n'
    )
    one = rows(written(tmp_path, "p.jsonl", lines))
    two = rows(written(tmp_path, "p.csv", table))
    strip = [(r.id, r.prompt, r.seed, r.options) for r in one if isinstance(r, Row)]
    assert strip == [(r.id, r.prompt, r.seed, r.options) for r in two if isinstance(r, Row)]
    assert strip[0][2:] == (3, {"duration": 1.5, "draft": False})
    assert strip[1][3] == {"cfg": 2.0, "draft_temperature": "1.0,0.5"}


def test_stdin_may_be_text_or_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "a jig"}\n'))
    assert [r.prompt for r in rows_of(read_prompts("-"), 0)] == ["a jig"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a jig\nan air\n"))
    assert [r.prompt for r in rows_of(read_prompts("-"), 0)] == ["a jig", "an air"]


def test_ids_do_not_depend_on_order_and_tell_duplicates_apart(tmp_path: Path) -> None:
    lines = ["a jig", "an air", "a jig", "a jig"]
    there = rows(written(tmp_path, "a.txt", "\n".join(lines)))
    back = rows(written(tmp_path, "b.txt", "\n".join(reversed(lines))))
    assert {(r.id, r.seed) for r in there} == {(r.id, r.seed) for r in back}  # type: ignore[union-attr]
    assert len({r.id for r in there}) == 4
    null = rows(written(tmp_path, "c.jsonl", '{"id": null, "prompt": "a jig"}\n' * 2))
    assert [r.id for r in null] == [content_id("a jig", {}), content_id("a jig", {}) + "-2"]
    name = content_id("a jig", {})
    assert {f"{name}", f"{name}-2", f"{name}-3"} < {r.id for r in there}


def test_count_makes_each_row_again(tmp_path: Path) -> None:
    table = "id,prompt,seed\nx,a jig,5\ny,an air,\nx.2,taken,\n"
    made = rows(written(tmp_path, "p.csv", table), count=2)
    assert [r.id for r in made] == ["x.1", "x.2", "y.1", "y.2", "#4"]
    assert [r.seed for r in made[:2] if isinstance(r, Row)] == [5, 6]


BAD = [
    ("p.jsonl", "{", "not JSON"),
    ("p.jsonl", "[]", "not a JSON object"),
    ("p.jsonl", "[" * 100_000, "not JSON"),
    ("p.jsonl", '{"prompt": "x", "tempoo": 1}', "unknown column 'tempoo'"),
    ("p.jsonl", '{"prompt": ""}', "no prompt"),
    ("p.jsonl", '{"prompt": 3}', "prompt: 3 is not text"),
    ("p.jsonl", '{"prompt": "\\ud800"}', "prompt is not UTF-8"),
    ("p.jsonl", '{"prompt": "x", "seed": -1}', "seed"),
    ("p.jsonl", '{"prompt": "x", "seed": 1e400}', "seed"),
    ("p.jsonl", '{"prompt": "x", "duration": NaN}', "duration"),
    ("p.jsonl", '{"prompt": "x", "draft": "maybe"}', "neither true nor false"),
    ("p.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
    ("p.txt", b"a \xff jig", "not UTF-8"),
    ("p.txt", "x" * (3 * LINE_LIMIT), "characters"),
    ("p.csv", "id,prompt\na,b,c\n", "3 cells, but 2 columns"),
    ("p.csv", "id,prompt\n../../x,b\n", "file name"),
    ("p.csv", "id,prompt\n/etc/passwd,b\n", "file name"),
    ("p.csv", f"id,prompt\n{'x' * 300},b\n", "longer than"),
    ("p.csv", "id,prompt\nNUL,b\n", "device"),
    ("p.csv", "id,prompt\ncom1.wav,b\n", "device"),
    ("p.csv", "id,prompt\n.hidden,b\n", "file name"),
    ("p.csv", "id,prompt\nx\x00y,b\n", "file name"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[b[2] for b in BAD])
def test_a_bad_row_fails_by_itself(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (row,) = rows(written(tmp_path, name, content))
    assert isinstance(row, BadRow)
    assert message in row.error and "\n" not in row.error and len(row.error) < 600
    assert row.id.startswith("#") and unsafe_name(row.id) is not None  # no good row has such an id


def test_the_second_of_one_id_is_bad_whatever_its_case(tmp_path: Path) -> None:
    made = rows(written(tmp_path, "p.csv", "id,prompt\nAir,a\nair,b\nJIG,c\n"))
    assert [r.id for r in made] == ["Air", "#3", "JIG"]
    assert "line 2's already" in made[1].error  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "id,prompt,tempo\na,b,c\n", "unknown column 'tempo'"),
        ("p.csv", "id,prmpt\na,b\n", "did you mean prompt"),
        ("p.csv", "id,seed\na,1\n", "no column 'prompt'"),
        ("p.csv", "prompt,prompt\na,b\n", "twice"),
        ("p.txt", "\n# nothing\n", "no prompts"),
        ("p.json", "[]", "JSONL"),
        ("p.txt", b"\xff\xfea\x00", "UTF-8"),
    ],
)
def test_a_file_that_says_nothing_is_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rows(written(tmp_path, name, content))


@pytest.mark.parametrize("name", ["missing.txt", ".", "/dev/zero", "a\x00b"])
def test_what_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot read prompts"):
        rows(Path(name))


def test_every_column_is_read(tmp_path: Path) -> None:
    assert {"id", "prompt", "seed", "duration", "preset", "continue_from"} <= set(COLUMNS)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["text", "jsonl", "csv", "tsv"]))
def test_any_bytes_give_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "fuzz", content)
    try:
        made = rows(path, kind)
    except UserError as error:
        assert "\n" not in str(error) or kind in ("csv", "tsv")
        return
    good = [r for r in made if isinstance(r, Row)]
    assert len({name_key(r.id) for r in good}) == len(good)
    assert all(unsafe_name(r.id) is None for r in good)


NAMES = st.text(max_size=40) | st.sampled_from(["../../x", "/etc/x", "C:\\x", "nul", "a" * 300])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, st.text(max_size=20)), min_size=1, max_size=5))
def test_no_id_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = "".join(json.dumps({"id": i, "prompt": p}) + "\n" for i, p in pairs)
    made = rows(written(folder, "fuzz.jsonl", lines))
    assert len(made) == len(pairs)
    for row in made:
        if isinstance(row, Row):
            target = folder / f"{row.id}.wav"
            assert target.resolve().parent == folder.resolve()
            assert len(target.name.encode()) < 255
