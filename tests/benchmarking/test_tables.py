"""Every format says what the one schema holds."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from specgen.benchmarking.rows import Document, Row
from specgen.benchmarking.tables import FORMATS, automatic, card, render

# shared/design.md section 9: names that scripts rely on.
TOP = ("schema", "machine", "versions", "commit", "rows")
FIELDS = [
    "label", "drafter", "verifier", "drafter_pattern", "verifier_pattern", "batch",
    "duration_seconds", "draft_frames", "acceptance_rule", "synthetic", "lossless", "seconds",
    "audio_seconds_per_second", "tokens_per_second", "acceptance", "acceptance_per_codebook",
    "tokens_per_pass", "speedup", "speedup_reference", "peak_memory_bytes", "bandwidth_fraction",
]  # fmt: skip


def seconds(*samples: float) -> dict[str, object]:
    ordered = sorted(samples)
    return {
        "median": ordered[len(ordered) // 2],
        "min": ordered[0],
        "max": ordered[-1],
        "samples": list(samples),
    }


ALONE = Row(
    "flat", None, "base-flatten", None, "flatten", 1, 8.0, None, None, False, True,
    seconds(10.0, 9.0, 11.0), 0.8, 160.0, None, None, 1.0,
)  # fmt: skip
PAIR = Row(
    "pair", "small", "base-flatten", "delay", "flatten", 1, 8.0, "auto", "coupled", False, True,
    seconds(5.0, 5.1, 4.9), 1.6, 320.0, 0.62, [0.7, 0.6, 0.5, None], 3.5,
    speedup=2.0, speedup_reference="flat", speedup_error=0.05, identical=1.0,
    draft_temperatures=[1.0, 0.3, 0.5, 0.7],
)  # fmt: skip


@pytest.fixture
def document() -> Document:
    return Document(
        {"device": "cpu", "processor": "Some CPU", "cores": 2, "threads": 1, "load_average": 0.5},
        {"torch": "2.13", "specgen": None},
        "abc",
        {
            "small": {
                "parameters": 900_000,
                "bytes": 3_600_000,
                "pattern": "delay",
                "dtype": "float32",
            }
        },
        {"repeats": 3, "warmup": 1, "seed": 7, "prompts": ["a", "b"]},
        0.25,
        [replace(ALONE, condition_seconds=0.01), replace(PAIR)],
        ["pair: doubtful"],
    )


def test_json_has_the_names_scripts_rely_on(document: Document) -> None:
    read = json.loads(render(document, "json"))
    assert list(read)[:3] == ["schema", "machine", "versions"]
    assert set(TOP) <= set(read)
    for row in read["rows"]:
        assert set(FIELDS) <= set(row)
        assert list(row["seconds"]) == ["median", "min", "max", "samples"]
    alone, pair = read["rows"]
    for name in ("drafter", "draft_frames", "acceptance", "speedup", "peak_memory_bytes"):
        assert alone[name] is None  # not measured is null, never 0
    assert pair["acceptance_per_codebook"] == [0.7, 0.6, 0.5, None]
    assert pair["seconds"]["samples"] == [5.0, 5.1, 4.9]


def test_json_refuses_what_is_not_a_number(document: Document) -> None:
    document.rows[1].speedup = float("inf")
    with pytest.raises(ValueError, match="JSON"):
        render(document, "json")


def test_jsonl_lines_stand_alone(document: Document) -> None:
    lines = [json.loads(line) for line in render(document, "jsonl").splitlines()]
    assert [line["label"] for line in lines] == ["flat", "pair"]
    assert all(line["commit"] == "abc" and line["processor"] == "Some CPU" for line in lines)


def test_csv_spreads_nested_values(document: Document) -> None:
    alone, pair = csv.DictReader(io.StringIO(render(document, "csv")))
    assert pair["seconds_median"] == "5.0"
    assert pair["seconds_samples"] == "5.0 5.1 4.9"
    assert pair["acceptance_per_codebook"] == "0.7 0.6 0.5 "
    assert alone["speedup"] == ""


def test_markdown_and_table_show_the_same_cells(document: Document) -> None:
    markdown, table = render(document, "md"), render(document, "table")
    for text in (markdown, table):
        for expected in ("pair", "delay -> flatten", "5.000 ± 0.100", "2.00 ± 0.05", "62 %"):
            assert expected in text
        assert "100.0 %" in text and "1 0.3 0.5 0.7" in text
        assert "model small: 0.9 M parameters, 3.6 MB, delay, float32" in text
        assert "WARNING: pair: doubtful" in text
        assert "conditions up to 0.010 s, codec 0.250 s a clip" in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == 4


def test_a_narrow_table_folds_and_loses_nothing(document: Document) -> None:
    narrow = render(document, "table", width=90)
    assert "…" not in narrow
    assert max(map(len, narrow.split("\n\n")[1].splitlines())) <= 90


def test_one_run_has_no_spread(document: Document) -> None:
    document.rows = [replace(ALONE, seconds=seconds(10.0))]
    assert "10.000" in render(document, "md")
    assert "±" not in render(document, "md")


def test_lossy_and_synthetic_rows_say_so(document: Document) -> None:
    document.rows = [replace(PAIR, lossless=False, synthetic=True, identical=None)]
    text = render(document, "md")
    assert "NO" in text and "coupled SYNTHETIC" in text


def test_unknown_format() -> None:
    assert "xml" not in FORMATS
    with pytest.raises(ValueError, match="xml"):
        render(Document({}, {}, None, {}, {}), "xml")


def test_a_card_names_the_gpu(document: Document) -> None:
    document.machine["gpu"] = {"name": "Some GPU", "memory_bytes": 16_000_000_000}
    assert "Some GPU 16 GB" in card(document)
    document.machine["gpu"] |= {"cuda": "13.0", "driver": "580.159.04"}
    assert "Some GPU 16 GB, cuda 13.0, driver 580.159.04" in card(document)


def test_auto_is_held_against_the_best_fixed_length_of_its_own_setting() -> None:
    rows = [
        ALONE,
        replace(PAIR, draft_frames=1, seconds=seconds(5.5), cpu_seconds=[5.0]),
        replace(PAIR, draft_frames=4, seconds=seconds(5.0), cpu_seconds=[4.0]),
        replace(PAIR, draft_frames=2, seconds=seconds(1.0), batch=4),  # another setting
        replace(PAIR, seconds=seconds(5.1), cpu_seconds=[4.2]),
    ]
    (line,) = automatic(rows)
    assert "auto +2.0 % against the best fixed length, 4 frames (+5.0 % in process time)" in line
    assert automatic([ALONE, PAIR]) == []
