"""`specgen generate` from the outside: files, sidecars, JSON, exit codes, signals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from specgen.audio.files import tokens_sha256
from specgen.checkpoints.native import embedded_folder
from specgen.cli.app import run

SPECGEN = [sys.executable, "-m", "specgen.cli.app"]
needs_embedded = pytest.mark.skipif(
    not (embedded_folder("base-flatten") / "model.safetensors").is_file(),
    reason="the embedded models are not trained yet",
)


def specgen(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SPECGEN, *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["generate", "--help"], ["presets"], ["generate", "x", "--preset", "none"]],
    ids=" ".join,
)
def test_help_lists_and_errors_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, specgen; from specgen.cli.app import run; "
        f"run({arguments}); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.endswith("False\n"), answer.stderr
    assert len(answer.stdout + answer.stderr) > 60


def test_a_clip_and_what_lies_beside_it(tiny: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "clip.wav"
    done = specgen(
        "generate",
        "a jig on the violin",
        "--seed",
        "7",
        "-d",
        "0.6",
        "--preset",
        tiny,
        "-o",
        str(target),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n"
    assert "seed 7" in done.stderr and "x real time" in done.stderr
    assert sorted(p.name for p in target.parent.iterdir()) == ["clip.json", "clip.npy", "clip.wav"]
    wave, rate = soundfile.read(target)
    assert rate == 16000 and wave.shape == (int(0.6 * 16000),)
    codes = np.load(target.with_suffix(".npy"))
    assert codes.shape == (4, 30) and codes.dtype == np.int16
    sidecar = json.loads(target.with_suffix(".json").read_text())
    needed = (
        "prompt seed preset preset_sha256 checkpoints sampling duration_seconds sample_rate device "
        "dtype versions lossless tokens tokens_sha256 stats timings"
    )
    assert set(needed.split()) <= set(sidecar)
    assert sidecar["tokens"] == "clip.npy"
    assert sidecar["tokens_sha256"] == hashlib.sha256(codes.astype("<i2").tobytes()).hexdigest()
    assert set(sidecar["timings"]) == {
        "load_seconds",
        "condition_seconds",
        "decode_seconds",
        "codec_seconds",
        "audio_seconds_per_second",
    }
    stats = sidecar["stats"]
    assert stats["drafted"] == stats["accepted"] + stats["corrected"]
    assert stats["drafted"] + stats["bonus"] == codes.size
    assert len(stats["acceptance_per_codebook"]) == 4


def test_json_holds_all_clips(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a jig", "a slow air", "--count", "2", "--seed", "3", "-d", "0.2"]
    assert run([*arguments, "--preset", tiny, "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == []
    assert [clip["seed"] for clip in document["clips"]] == [3, 4, 5, 6]
    assert all(Path(clip["path"]).is_file() for clip in document["clips"])


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_other_formats(tiny: str, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"clip.{kind}"
    assert run(["generate", "a jig", "-d", "0.4", "--preset", tiny, "-o", str(target)]) == 0
    wave, rate = soundfile.read(target)
    assert rate == 16000 and len(wave) == 6400


def test_the_drawn_seed_makes_the_clip_again(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "a jig", "-d", "0.3", "--preset", tiny, "--json"]
    assert run([*common, "-o", str(tmp_path / "one.wav")]) == 0
    first = json.loads(capsys.readouterr().out)["clips"][0]
    again = [*common, "--seed", str(first["seed"]), "--no-draft", "-o", str(tmp_path / "two.wav")]
    assert run(again) == 0
    second = json.loads(capsys.readouterr().out)["clips"][0]
    assert first["tokens_sha256"] == second["tokens_sha256"]
    assert second["stats"]["acceptance"] is None and second["checkpoints"]["drafter"] is None


def test_from_sidecar(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["generate", "a jig", "-d", "0.3", "--seed", "5", "--top-k", "7", "--preset", tiny]
    assert run([*made, "-o", str(tmp_path / "one.wav")]) == 0
    sidecar = tmp_path / "one.json"
    assert run(["generate", "--from-sidecar", str(sidecar), "-o", str(tmp_path / "two.wav")]) == 0
    assert "the same tokens" in capsys.readouterr().err
    one, two = (np.load(tmp_path / f"{name}.npy") for name in ("one", "two"))
    assert np.array_equal(one, two)
    values = json.loads(sidecar.read_text())
    values["checkpoints"]["verifier"] = "0" * 64
    sidecar.write_text(json.dumps(values))
    assert run(["generate", "--from-sidecar", str(sidecar), "-o", str(tmp_path / "3.wav")]) == 2
    assert "verifier" in capsys.readouterr().err and not (tmp_path / "3.wav").exists()


def test_a_changed_preset_is_refused_unless_forced(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = Path(tiny).parent / "mine.yaml"
    preset.write_text(Path(tiny).read_text())
    made = ["generate", "a jig", "-d", "0.3", "--seed", "5", "--preset", str(preset)]
    assert run([*made, "-o", str(tmp_path / "one.wav")]) == 0
    preset.write_text(Path(tiny).read_text().replace("draft_frames: 2", "draft_frames: 3"))
    again = ["generate", "--from-sidecar", str(tmp_path / "one.json")]
    capsys.readouterr()
    assert run([*again, "-o", str(tmp_path / "two.wav")]) == 2
    assert "sha256 differs" in capsys.readouterr().err and not (tmp_path / "two.wav").exists()
    assert run([*again, "-o", str(tmp_path / "two.wav"), "--force"]) == 0
    err = capsys.readouterr().err
    assert "warning: preset" in err and "the same tokens" in err
    moved = [*again, "--preset", tiny, "-o", str(tmp_path / "three.wav")]
    assert run(moved) == 0  # the same values in another file


def test_other_tokens_than_the_sidecars_are_told(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["generate", "a jig", "-d", "0.3", "--seed", "5", "--preset", tiny]
    assert run([*made, "-o", str(tmp_path / "one.wav")]) == 0
    sidecar = tmp_path / "one.json"
    values = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**values, "tokens_sha256": "0" * 64}))
    again = ["generate", "--from-sidecar", str(sidecar), "-o", str(tmp_path / "two.wav")]
    assert run(again) == 1
    assert "NOT the same tokens" in capsys.readouterr().err


def test_stats_and_verbose_go_to_stderr(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a jig", "-d", "0.2", "--seed", "1", "--preset", tiny]
    target = tmp_path / "clip.wav"
    assert run([*arguments, "-o", str(target), "--stats", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert "by-codebook" in err and "tokens/pass" in err
    assert "drafter drafter: delay" in err and "verifier flatten: flatten" in err


def test_timings_name_every_part_of_a_call(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a jig", "a reel", "-d", "0.2", "--seed", "1", "--preset", tiny]
    assert run([*arguments, "-o", str(tmp_path), "--batch", "1", "--timings"]) == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("specgen: seconds"))
    parts, _, total = line.removeprefix("specgen: seconds: ").partition("; ")
    seconds = {name: float(value) for name, value in (p.split() for p in parts.split(", "))}
    assert list(seconds)[-6:] == ["import", "load", "condition", "decode", "codec", "write"]
    assert all(value >= 0 for value in seconds.values()) and seconds["decode"] > 0
    outside = float(total.split()[0])
    rest = sum(value for name, value in seconds.items() if name != "decode")
    assert outside == pytest.approx(rest, abs=0.04)  # each is rounded


def test_a_batch_that_fails_leaves_the_others(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specgen.engine import Engine

    real = Engine.generate

    def tight(self: Engine, requests: list[object], **options: object) -> object:
        if requests[0].seed == 2:  # type: ignore[attr-defined]
            raise RuntimeError("CUDA out of memory")
        return real(self, requests, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "generate", tight)
    arguments = ["generate", "a jig", "--count", "3", "--batch", "1", "-d", "0.2", "--seed", "1"]
    assert run([*arguments, "--preset", tiny, "--out", str(tmp_path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [clip["seed"] for clip in document["clips"]] == [1, 3]
    assert [row["id"] for row in document["failed"]] == ["a-jig-2"]
    assert "out of memory" in document["failed"][0]["error"]
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["a-jig-1.wav", "a-jig-3.wav"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"preset": "embedded"}', "\x00\x01"])
def test_what_is_no_sidecar_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert run(["generate", "--from-sidecar", str(path)]) == 2
    assert "not a specgen sidecar" in capsys.readouterr().err


def test_overwrite(tiny: str, tmp_path: Path) -> None:
    target = tmp_path / "clip.wav"
    target.write_text("old")
    arguments = [
        "generate",
        "a jig",
        "-d",
        "0.2",
        "--preset",
        tiny,
        "-o",
        str(target),
        "--overwrite",
    ]
    assert run(arguments) == 0
    assert soundfile.info(str(target)).frames == 3200


def test_an_unknown_word_is_named(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a jig on the zither", "-d", "0.2", "--preset", tiny]
    assert run([*arguments, "-o", str(tmp_path / "clip.wav")]) == 0
    assert "zither" in capsys.readouterr().err


def test_a_clip_that_cannot_be_written_fails_alone(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specgen.audio import files

    real = files.write_clip

    def full_disk(path: Path, *rest: object) -> dict[str, object]:
        if "air" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_clip", full_disk)
    arguments = [
        "generate",
        "a jig",
        "an air",
        "-d",
        "0.2",
        "--seed",
        "1",
        "--preset",
        tiny,
        "--json",
    ]
    assert run([*arguments, "--out", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [clip["prompt"] for clip in document["clips"]] == ["a jig"]
    assert [row["prompt"] for row in document["failed"]] == ["an air"]
    assert "No space left" in document["failed"][0]["error"]


def test_interrupt_leaves_nothing_half_written(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # 60 clips one at a time take long enough to be interrupted after the first
    arguments = ["generate", "a jig", "--count", "60", "--batch", "1", "-d", "2", "--preset", tiny]
    job = subprocess.Popen(
        [*SPECGEN, *arguments, "--seed", "1", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert job.stdout is not None and job.stdout.readline().strip().endswith(".wav")
    time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "Traceback" not in err
    names = [p.name for p in out.iterdir()]
    assert not [name for name in names if name.startswith(".")]
    finished = {Path(name).stem for name in names if name.endswith(".json")}
    assert finished
    for stem in finished:
        sidecar = json.loads((out / f"{stem}.json").read_text())
        assert tokens_sha256(np.load(out / f"{stem}.npy")) == sidecar["tokens_sha256"]
        assert soundfile.info(str(out / f"{stem}.wav")).frames == 32000


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    listed = capsys.readouterr().out
    assert "small-delay" in listed and "base-flatten" in listed
    assert run(["presets", "show", "embedded"]) == 0
    assert "checkpoint: embedded:base-flatten" in capsys.readouterr().out
    assert run(["presets", "show", "nothing"]) == 2


@needs_embedded
@pytest.mark.parametrize("preset", ["embedded", "embedded-dual", "embedded-delay"])
def test_embedded_tokens_are_the_verifiers_own(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "a lively jig in D major on the violin", "--seed", "7", "-d", "2"]
    hashes = set()
    for i, extra in enumerate(
        (["--no-draft"], ["--draft-frames", "1"], ["--draft-frames", "3"], [])
    ):
        target = str(tmp_path / f"{i}.wav")
        assert (
            run([*common, "--preset", preset, "--rule", "coupled", *extra, "--json", "-o", target])
            == 0
        )
        hashes.add(json.loads(capsys.readouterr().out)["clips"][0]["tokens_sha256"])
    assert len(hashes) == 1
