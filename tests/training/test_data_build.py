"""The builder: recipe checks, splits, plan, assembling; rendering where fluidsynth is there."""

from __future__ import annotations

import ctypes.util
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgen.errors import UserError
from specgen.training.data import build as build_module
from specgen.training.data.arrange import ITEM_FRAMES, Event, Item, arrange
from specgen.training.data.build import (
    ITEM_SAMPLES,
    assemble,
    build_dataset,
    main,
    plan_items,
    read_recipe,
    split_tunes,
)
from specgen.training.data.render import SAMPLE_RATE, Synth, halve, level, to_pcm
from specgen.training.data.tunes import Score
from tests.training.test_data_arrange import make_tune

_SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
_CAN_RENDER = ctypes.util.find_library("fluidsynth") is not None and _SOUNDFONT.is_file()
needs_synth = pytest.mark.skipif(not _CAN_RENDER, reason="fluidsynth or FluidR3_GM not installed")


def _recipe(out: Path, **more: Any) -> dict[str, Any]:
    return {"seed": 1, "hours": 0.01, "out": str(out), "soundfont": str(_SOUNDFONT), **more}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tempo": 3}, "unknown key 'tempo'"),
        ({"seed": "x"}, "seed has the wrong type"),
        ({"workers": True}, "workers has the wrong type"),
        ({"hours": 0}, "hours must be above 0"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(_recipe(tmp_path) | change)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="hours, out, soundfont missing"):
        read_recipe({"seed": 1})


def test_a_missing_soundfont_names_its_package(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "data") | {"soundfont": str(tmp_path / "none.sf2")}
    with pytest.raises(UserError, match="apt-get install fluid-soundfont-gm"):
        build_dataset(recipe)
    assert not (tmp_path / "data").exists()


def test_a_missing_library_names_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    font = tmp_path / "a.sf2"
    font.write_bytes(b"")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match="apt-get install fluidsynth"):
        Synth(font)


def test_main_reports_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1\nhours: -1\nout: x\nsoundfont: y\n")
    assert main([str(path)]) == 2
    assert main([]) == 2
    assert main([str(tmp_path / "absent.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_like_tunes_share_a_split_and_shares_are_about_right() -> None:
    tunes = []
    for i in range(600):
        tune = make_tune(name=str(i))
        letters = "".join(chr(97 + int(digit)) for digit in str(i // 2))
        score = Score(f"made-{i}", f"The {letters}", "jig", (6, 8), 2, "major", "")
        lift = tuple(
            n._replace(pitch=60 + (i // 2 * (j + 3)) % 29) for j, n in enumerate(tune.notes)
        )
        tunes.append(type(tune)(score, lift, tune.bar, tune.bars))
    splits = split_tunes(tunes, 3)
    assert all(splits[f"made-{i}"] == splits[f"made-{i + 1}"] for i in range(0, 600, 2))
    shares = Counter(splits.values())
    assert 0.85 < shares["train"] / 600 < 0.99
    assert set(shares) == {"train", "valid", "test"}
    assert splits == split_tunes(tunes, 3)


def test_plan_takes_every_tune_once_before_any_twice_and_lifts_rare_genres() -> None:
    genres = ["reel"] * 90 + ["waltz"] * 10
    scores = [Score(f"s{i}", "", genre, (4, 4), 0, "major", "") for i, genre in enumerate(genres)]
    plan = plan_items(scores, 40, 9)
    assert len(set(plan)) == 40
    assert {take for _, take in plan} == {0}
    waltzes = sum(int(tune[1:]) >= 90 for tune, _ in plan)
    assert waltzes > 4  # their plain share would be four
    assert Counter(take for _, take in plan_items(scores, 130, 9)) == {0: 100, 1: 30}
    assert plan == plan_items(scores, 40, 9) != plan_items(scores, 40, 10)


def test_level_keeps_to_the_rms_or_the_peak() -> None:
    tone = np.sin(np.arange(16_000) * 0.3).astype(np.float32) * 3
    assert np.sqrt(np.mean(level(tone) ** 2)) == pytest.approx(0.1, rel=1e-3)
    click = np.zeros(16_000, np.float32)
    click[100] = 0.2
    assert np.abs(level(click)).max() == pytest.approx(0.95)
    assert not level(np.zeros(10, np.float32)).any()
    assert to_pcm(np.array([-1.0, 0.0, 1.0], np.float32)).tolist() == [-32767, 0, 32767]


def test_halve_keeps_time_and_stops_what_would_alias() -> None:
    click = np.zeros(3200, np.float32)
    click[1600] = 1.0
    assert int(np.argmax(halve(click))) == 800
    assert len(halve(click)) == 1600
    time = np.arange(32_000) / 32_000
    low, high = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (6_000, 9_000))
    assert np.abs(halve(low)[500:-500]).max() == pytest.approx(1.0, abs=0.01)
    assert np.abs(halve(high)[500:-500]).max() < 1e-3


def test_assemble_joins_shards_in_order(tmp_path: Path) -> None:
    shards = []
    for i in range(2):
        item = arrange(make_tune(name=str(i)), 0, 1)
        shard = tmp_path / "shards" / f"{i:04d}"
        shard.parent.mkdir(exist_ok=True)
        shard.with_suffix(".i16").write_bytes(np.full(ITEM_SAMPLES, i, "<i2").tobytes())
        row = {"id": item.id, "tune": item.tune, "state": item.state}
        shard.with_suffix(".jsonl").write_text(json.dumps(row) + "\n")
        shards.append(shard)
    recipe = read_recipe(_recipe(tmp_path / "out"))
    splits = {"made-0": "train", "made-1": "test"}
    assert assemble(shards, tmp_path / "out", splits, recipe) == 2
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()
    ]
    audio = np.fromfile(tmp_path / "out" / "audio.i16", "<i2")
    assert [row["split"] for row in rows] == ["train", "test"]
    for i, row in enumerate(rows):
        assert (audio[row["offset"] : row["offset"] + row["length"]] == i).all()
        assert len(row["captions"]) == 4
    assert not list((tmp_path / "out").glob("*.tmp"))


@needs_synth
def test_render_is_on_the_grid_at_level_and_leaves_nothing_behind() -> None:
    synth = Synth(_SOUNDFONT)
    state: dict[str, Any] = {}
    late = Item("a", "a", {0: "banjo"}, (Event(100, 20, 0, 62, 100),), state)
    full = Item("b", "b", {0: "organ"}, (Event(0, ITEM_FRAMES, 0, 60, 100),), state)
    first = synth.render(late)
    assert first.shape == (ITEM_SAMPLES,)
    assert first.dtype == np.dtype("<i2")
    onset = int(np.argmax(np.abs(first.astype(int)) > 0.02 * np.abs(first.astype(int)).max()))
    assert 0 <= onset - 100 * SAMPLE_RATE // 50 < 160
    loud = synth.render(full).astype(np.float64) / 32768
    assert np.sqrt(np.mean(loud**2)) == pytest.approx(0.1, rel=0.02)
    again = synth.render(late)
    assert np.abs(again.astype(int) - first.astype(int)).max() < 400
    assert np.abs(again[: 99 * 320]).max() <= 2
    synth.close()


@needs_synth
@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi (abcmidi) not installed")
def test_a_small_build_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus" / "ryansMammoth"
    corpus.mkdir(parents=True)
    bars = "|".join(["EFG ABc", "dcB AGF"] * 4)
    text = f"X: 1\nT: One\nR: jig\nM: 6/8\nL: 1/8\nK: D\n|: {bars} :|\n"
    (corpus / "One.abc").write_text(text)
    monkeypatch.setattr(build_module, "corpus_folder", lambda: tmp_path / "corpus")
    out, early = tmp_path / "data", tmp_path / "early"
    recipe = _recipe(out, workers=1, first_hours=0.01, first_out=str(early))
    build_dataset(recipe)
    names = ("audio.i16", "index.jsonl")
    whole = {name: (out / name).read_bytes() for name in names}
    assert len(whole["audio.i16"]) == 3 * ITEM_SAMPLES * 2
    assert {name: (early / name).read_bytes() for name in names} == whole
    times = {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.i16")}
    build_dataset(recipe)
    assert {name: (out / name).read_bytes() for name in names} == whole
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.i16")} == times
