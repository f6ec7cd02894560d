"""`specgen compare`, `report` and `verify` on tiny models, and every mistake they must name."""

import json
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.app import run
from specgen.cli.options import read_side
from specgen.engine import Engine
from specgen.errors import UserError
from specgen.evaluation.runs import read_prompts

QUICK = ["-d", "0.2", "--short-clips", "0", "--no-quality"]


@pytest.fixture(autouse=True)
def _quick_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power of one shift is simulated, not of six (tests/evaluation has them all)."""
    monkeypatch.setattr("specgen.evaluation.two_sample.SHIFTS", (0.4,))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("a jig\na slow air on the flute\n")
    return str(path)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["compare", *arguments, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *said: str) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("specgen: error: ")
    for word in said:
        assert word in err.splitlines()[-1]


def test_drafting_is_found_identical(
    tiny: str, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [tiny, f"{tiny} --no-draft", f"{tiny} --rule keep"]
    document = compared(capsys, *sides, "--prompts", prompts, "--seeds", "2", *QUICK)
    same, other = document["identity"]
    assert same["holds"] is True and same["clips_identical"] == same["clips"] == 4
    assert same["tokens"] == 4 * 4 * 10 and same["per_codebook"] == [1, 1, 1, 1]
    assert other["holds"] is None and not other["expected_identical"]
    assert other["clips_identical"] < 4 and other["first_differences"]
    assert document["distribution"][0]["p"] == 1
    drafts = [row["acceptance"] for row in document["sides"]]
    assert drafts[0] is not None and drafts[1] is None
    assert [row["rounds"] for row in document["speed"]] == [1, 1, 1]
    assert all(row["lossless"] for row in document["sides"])


def test_another_verifier_is_told_apart(
    tiny_folder: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other weights change the law: the test of very short clips must say so."""
    presets = [str(tiny_folder / f"{name}.yaml") for name in ("dual", "delay")]
    options = ["-d", "0.2", "--short-clips", "128", "--no-quality"]
    document = compared(capsys, *presets, "--prompts", prompts, *options)
    assert document["short"][0]["differs"]
    assert document["identity"][0]["expected_identical"] is False


def test_quality_has_intervals_and_report_has_everything(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"a jig on the {i}" for i in ("flute", "violin")) + "\n")
    out = tmp_path / "report"
    arguments = [tiny, f"{tiny} --rule keep", "--prompts", str(many), "--seeds", "5"]
    options = ["-d", "0.1", "--short-clips", "0", "--report", str(out), "--players", "3"]
    document = compared(capsys, *arguments, *options)
    row = document["quality"][1]["to_first"]
    for name in ("frechet", "kernel", "tag_kl", "spectrum_db"):
        low, high = row[name]["interval_95"]
        assert low <= row[name]["value"] <= high and row[name]["few_clips"]
    assert set(row["p"]) == {"frechet", "kernel", "tag_shift"}
    page = (out / "index.html").read_text()
    assert page.count("<audio") == 6
    assert "fewer than 50 clips" in page and 'src="http' not in page
    assert json.loads((out / "results.json").read_text())["identity"] == document["identity"]
    assert len(list(out.glob("clips/*/*.wav"))) == 20
    refused(capsys, ["compare", *arguments, *options], "not empty", "--overwrite")


def test_a_side_that_fails_half_way_keeps_what_is_done(
    tiny: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other side goes on, clips made are compared and kept, a line tells of each failure."""
    path = tmp_path / "six.txt"
    path.write_text("\n".join(f"a jig number {i}" for i in range(6)))
    real = Engine.generate
    calls = {"plain": 0}

    def failing(self: Engine, requests: Any, **options: Any) -> Any:
        if self.drafter is None:
            calls["plain"] += 1
            if calls["plain"] > 2:
                raise RuntimeError("out of memory\nwith details")
        return real(self, requests, **options)

    monkeypatch.setattr(Engine, "generate", failing)
    out = tmp_path / "kept"
    arguments = ["compare", tiny, f"{tiny} --no-draft", "--prompts", str(path), "--batch", "1"]
    assert run([*arguments, *QUICK, "--report", str(out), "--json"]) == 1
    printed, err = capsys.readouterr()
    document = json.loads(printed)
    assert [row["clips"] for row in document["sides"]] == [6, 2]
    assert document["identity"][0]["clips"] == 2 and document["identity"][0]["holds"]
    failures = [line for line in err.splitlines() if "failed" in line]
    assert len(failures) == 3 and "gave up, 2 clips not made" in failures[-1]
    assert "out of memory with details" in failures[0]
    assert len(list(out.glob("clips/*/*.wav"))) == 8 and (out / "index.html").is_file()


def test_interrupt_reports_what_is_done(
    tiny: str, prompts: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Engine.generate, []

    def stopping(self: Engine, requests: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(self, requests, **options)

    monkeypatch.setattr(Engine, "generate", stopping)
    sides = [tiny, f"{tiny} --no-draft"]
    document = compared(capsys, *sides, "--prompts", prompts, "--batch", "1", *QUICK, code=130)
    assert document["interrupted"] and document["identity"][0]["clips"] == 1


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa jig\n\n  a jig  \n \nan air\r\n", encoding="utf-8")
    found = read_prompts(path)
    assert found.lines == ("a jig", "an air")
    assert [note.split(": ")[1] for note in found.notes] == [
        "2 empty lines left out",
        "1 repeated prompt left out",
    ]
    path.write_text("\n".join(f"jig {i}" for i in range(10_000)))
    assert len(read_prompts(path).lines) == 10_000
    path.write_bytes(b"a jig\nan \xff air\n")
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        read_prompts(path)
    for content in ("", "\n \n"):
        path.write_text(content)
        with pytest.raises(UserError, match="no prompts"):
            read_prompts(path)
    with pytest.raises(UserError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")


def test_ten_thousand_prompts_are_announced_and_limited(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"jig {i}" for i in range(10_000)))
    sides = [tiny, f"{tiny} --no-draft", "--prompts", str(path)]
    document = compared(capsys, *sides, "--limit", "2", *QUICK)
    assert len(document["prompts"]) == 2


def test_prompt_files_on_the_command_line(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out is told in a line each, many clips are announced, bad bytes are refused."""
    path = tmp_path / "prompts.txt"
    path.write_text("a jig\n\na jig\nan air\n")
    monkeypatch.setattr("specgen.cli.compare.MANY", 1)
    sides = [tiny, f"{tiny} --no-draft"]
    assert run(["compare", *sides, "--prompts", str(path), *QUICK, "--json"]) == 0
    out, err = capsys.readouterr()
    said = [f"{path}: 1 empty line left out", f"{path}: 1 repeated prompt left out"]
    assert err.splitlines()[:3] == [
        *(f"specgen: {line}" for line in said),
        "specgen: 2 clips on each of 2 sides; Ctrl-C keeps what is made",
    ]
    assert json.loads(out)["notes"] == said
    path.write_bytes(b"a jig\nan \xff air\n")
    refused(capsys, ["compare", *sides, "--prompts", str(path)], "line 2 is not UTF-8")


def test_the_built_in_prompts_are_24_and_known() -> None:
    from specgen.checkpoints.native import embedded_folder, load_lm

    lines = read_prompts().lines
    assert len(lines) == 24
    words = load_lm(embedded_folder("base-flatten")).conditioner
    assert [word for line in lines for word in words.tokenize(line).unknown] == []


def test_sides_are_read_as_generate_reads_them(tiny: str) -> None:
    side = read_side(f"{tiny} --rule keep --draft-frames 3 --cfg 1 --dtype bfloat16").side()
    assert side.settings.rule == "keep" and side.settings.draft_frames == 3
    assert side.settings.sampling.cfg == 1 and side.dtype == "bfloat16" and side.draft
    assert not read_side(f"{tiny}   --no-draft").side().draft
    assert read_side(f"{tiny}   --no-draft").text == f"{tiny} --no-draft"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embedded"], ["two sides"]),
        (["embedded", "embedded"], ["twice"]),
        (["embedded", "embeded"], ["did you mean embedded"]),
        (["embedded", "embedded --bogus"], ["--bogus", "specgen generate"]),
        (["embedded", "embedded --rule 'keep"], ["quotation"]),
        (["embedded", "embedded --top-k many"], ["many"]),
        (["embedded", "embedded --rule lucky"], ["lucky"]),
        (["embedded", "embedded --no-draft", "--seeds", "0"], ["--seeds"]),
        (["embedded", "embedded --no-draft", "--prompts", "none.txt"], ["none.txt"]),
        (["embedded", "embedded --no-draft", "-d", "0"], ["positive"]),
        (["embedded", "embedded --no-draft", "--embedder", "nope"], ["nope", "musicnn"]),
        (["embedded", "embedded --no-draft", "--embedder", "clap"], ["clap", "weights"]),
        (["embedded", "embedded --no-draft", "--embedder", "pann:nowhere"], ["pann", "nowhere"]),
        (["embedded", "embedded --no-draft", "--embedder", "no.such:x"], ["no.such"]),
        (["embedded", "embedded --no-draft", "--reference", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    refused(capsys, ["compare", *arguments], *said)


def test_report_refuses_what_is_no_clip(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "clip.wav"
    assert run(["generate", "a jig", "--preset", tiny, "-d", "0.2", "--out", str(made)]) == 0
    capsys.readouterr()
    page, sidecar = str(tmp_path / "page.html"), made.with_suffix(".json")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    refused(capsys, ["report", str(bad), "--out", page], "not a specgen sidecar")
    refused(capsys, ["report", str(tmp_path / "no.json"), "--out", page], "cannot read")
    assert run(["report", str(sidecar), "--out", page]) == 0
    capsys.readouterr()
    refused(capsys, ["report", str(sidecar), "--out", page], "exists", "--overwrite")
    made.unlink()
    refused(capsys, ["report", str(sidecar), "--out", page, "--overwrite"], "no audio")
    made.with_suffix(".npy").write_bytes(b"\x93NUMPY")
    refused(capsys, ["report", str(sidecar), "--out", page, "--overwrite"], "not a specgen sidecar")


def test_verify_passes_what_is_right(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clips", "2", "-d", "0.2", "--short-clips", "48", "--json"]
    assert run(["verify", tiny, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and len(found["checks"]) == 10
    assert all(check["ok"] for check in found["checks"])


def test_verify_fails_a_loop_that_is_broken(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draw that keeps guesses unjudged in one pass of three: exit 1, and told as a fault."""
    from specgen.decoding.draws import Draws

    real, calls = Draws.judge, []

    def lazy(self: Draws, logits: Any, where: Any, guesses: Any, guessed: Any) -> Any:
        tokens = real(self, logits, where, guesses, guessed)
        calls.append(1)
        if len(calls) % 3 == 0 and any(guessed):
            at = [i for i, flag in enumerate(guessed) if flag]
            tokens[at] = guesses[at]
        return tokens

    monkeypatch.setattr(Draws, "judge", lazy)
    options = ["--clips", "2", "-d", "0.4", "--short-clips", "0"]
    assert run(["verify", tiny, *options]) == 1
    out = capsys.readouterr().out
    assert "BROKEN" in out and "NOT a rounding tie" in out and "BREAKS a promise" in out


def test_verify_needs_a_drafter(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["verify", "embedded-flatten"], "no drafter")
    refused(capsys, ["verify", "embedded", "--dtype", "float8"], "float8")


def test_lossy_clips_say_so_everywhere(
    tiny: str, tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sidecar, summary, table and report; and the sidecar makes the same tokens again."""
    made = tmp_path / "clip.wav"
    arguments = ["--preset", tiny, "-d", "0.2", "--seed", "3", "--lossy", "groups:0.2"]
    assert run(["generate", "a jig", *arguments, "--out", str(made)]) == 0
    assert "LOSSY" in capsys.readouterr().err
    sidecar = json.loads(made.with_suffix(".json").read_text())
    assert sidecar["lossless"] is False and sidecar["sampling"]["lossy"] == "groups:0.2"
    again = ["generate", "--from-sidecar", str(made.with_suffix(".json"))]
    assert run([*again, "--out", str(tmp_path / "again.wav")]) == 0
    assert "specgen: the same tokens" in capsys.readouterr().err

    modes = ("groups:0.2", "typical:0.1", "typical:0.5")
    sides = [tiny, *(f"{tiny} --lossy {mode}" for mode in modes)]
    out = tmp_path / "report"
    options = ["--prompts", prompts, "--seeds", "4", "-d", "0.2", "--short-clips", "0"]
    assert run(["compare", *sides, *options, "--report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("LOSSY") >= 4
    assert "in token statistics" in printed and "LOSSY by choice" in printed
    page = (out / "index.html").read_text()
    assert '<td class="lossy">LOSSY</td>' in page
    assert "Speed against distance" in page and "groups" in page
    document = json.loads((out / "results.json").read_text())
    assert [row["lossless"] for row in document["sides"]] == [True, False, False, False]
    assert [row["expected_identical"] for row in document["identity"]] == [False] * 3


def test_lossy_modes_that_cannot_be(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["generate", "a jig", "--preset", tiny, "-d", "0.2"]
    refused(capsys, [*start, "--lossy", "typical:2"], "typical:2", "between 0 and 1")
    refused(capsys, [*start, "--lossy", "near:0.5"], "near:0.5", "groups:0.9")
    refused(capsys, [*start, "--lossy", "groups:0.9", "--rule", "keep"], "--rule")
