"""`specgen bench` on tiny random models."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.benchmarking.cases import Sweep, expand
from specgen.benchmarking.runner import identical
from specgen.checkpoints import hub
from specgen.errors import UserError
from specgen.presets import load_preset
from tests.benchmarking.conftest import Bench

# The tiny models know few words.
PROMPTS = "a jig on the violin\na slow air on the flute\n"
QUICK = ("--repeats", "2", "-d", "0.4")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return str(path)


def measured(run_bench: Bench, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run_bench(*arguments, "--output", "json"))
    return document


def test_a_pair_is_measured_against_its_verifier_alone(
    run_bench: Bench, tiny: str, prompts: str
) -> None:
    document = measured(run_bench, tiny, *QUICK, "--prompts", prompts, "--seed", "3")
    alone, drafter, pair = document["rows"]
    assert drafter["label"] == "dual, drafter alone" and drafter["verifier"] == "drafter"
    assert (drafter["drafter"], drafter["speedup"], drafter["acceptance"]) == (None, None, None)
    assert (alone["drafter"], alone["speedup"], alone["acceptance"]) == (None, None, None)
    assert alone["tokens_per_pass"] == 1.0
    assert (pair["drafter"], pair["verifier"]) == ("drafter", "flatten")
    assert (pair["drafter_pattern"], pair["verifier_pattern"]) == ("delay", "flatten")
    assert pair["speedup_reference"] == alone["label"]
    rounds = zip(alone["seconds"]["samples"], pair["seconds"]["samples"], strict=True)
    assert pair["speedup"] == pytest.approx(statistics.median(one / other for one, other in rounds))
    assert pair["speedup_error"] > 0
    assert pair["identical"] == 1.0 and pair["lossless"]
    assert pair["draft_frames"] == 2 and pair["acceptance_rule"] == "coupled"
    assert pair["draft_temperatures"] == [1.0] * 4
    for row in document["rows"]:
        median = row["seconds"]["median"]
        assert len(row["seconds"]["samples"]) == len(row["cpu_seconds"]) == 2
        assert row["audio_seconds_per_second"] == pytest.approx(0.4 / median)
        assert row["tokens_per_second"] == pytest.approx(4 * 20 / median)
        made = row["stats"]["drafted"] + row["stats"]["bonus"]
        assert made == 2 * 4 * 20  # timed runs only
        assert row["moved_bytes"] > 0 and row["bandwidth_fraction"] == pytest.approx(
            row["moved_bytes"] / median / document["copy_bytes_per_second"]
        )
        assert row["package"] == "specgen" and not row["synthetic"]
    predicted = pair["predicted"]
    assert predicted["relative_error"] == pytest.approx(
        predicted["seconds"] / pair["seconds"]["median"] - 1
    )
    assert predicted["acceptance_per_codebook"] == pair["acceptance_per_codebook"]
    sizes = list(map(int, predicted["verify_pass_seconds"]))
    assert sizes[:2] == [1, 9]  # two frames of four, and a bonus
    assert len(sizes) == 3 and 9 < sizes[2] <= 12  # what is guessed of the frame behind them
    assert alone["predicted"] is None and drafter["predicted"] is None
    assert pair["acceptance"] == pair["stats"]["accepted"] / pair["stats"]["drafted"]
    assert document["settings"]["prompts"] == PROMPTS.splitlines()
    assert document["models"]["flatten"]["parameters"] > 0
    assert document["codec_seconds"] > 0


def test_sweeps_multiply_and_share_the_verifier(run_bench: Bench, tiny: str, prompts: str) -> None:
    document = measured(
        run_bench, tiny, "--prompts", prompts, "-r", "1", "--warmup", "0", "-d", "0.2,0.3",
        "--batch", "1,2", "--draft-frames", "1,auto", "--rule", "coupled,mixed",
    )  # fmt: skip
    rows = document["rows"]
    assert len(rows) == 2 * 2 * (2 + 2 * 2)
    pairs = [row for row in rows if row["drafter"]]
    assert {row["draft_frames"] for row in pairs} == {1, "auto"}
    for row in pairs:
        assert row["lossless"]
        assert (row["identical"] is None) == (row["acceptance_rule"] == "mixed")
        assert row["speedup_error"] is None  # one run: no error to state
    assert all(row["identical"] == 1.0 for row in pairs if row["identical"] is not None)
    assert {(row["duration_seconds"], row["batch"]) for row in rows} == {
        (0.2, 1), (0.2, 2), (0.3, 1), (0.3, 2),
    }  # fmt: skip


def test_presets_of_one_verifier_share_its_row(tiny_folder: Path) -> None:
    dual, delay = (load_preset(str(tiny_folder / f"{n}.yaml")) for n in ("dual", "delay"))
    cases = expand([dual, delay, dual], Sweep(draft_frames=(1, 2)))
    assert [case.draft is None for case in cases] == [True] * 3 + [False] * 4
    assert [case.drafter_alone for case in cases] == [False] * 2 + [True] + [False] * 4
    assert cases[0].label == "dual, verifier alone"
    assert [case.draft.frames for case in cases if case.draft] == [1, 2, 1, 2]


def test_temperatures_sweep(run_bench: Bench, tiny: str, prompts: str) -> None:
    document = measured(
        run_bench, tiny, *QUICK, "--prompts", prompts,
        "--draft-temperature", "1,1,1,1", "--draft-temperature", "1,0.3,0.5,0.7",
    )  # fmt: skip
    _, _, plain, sharp = document["rows"]
    assert plain["draft_temperatures"] == [1.0] * 4
    assert sharp["draft_temperatures"] == [1.0, 0.3, 0.5, 0.7]
    assert plain["stats"]["accepted"] != sharp["stats"]["accepted"]
    assert sharp["identical"] == 1.0


def test_a_biased_rule_is_measured_only_when_asked_for(
    run_bench: Bench, tiny: str, prompts: str
) -> None:
    arguments = (tiny, *QUICK, "--prompts", prompts, "--rule", "rejection")
    with pytest.raises(UserError, match="allow-biased"):
        run_bench(*arguments)
    _, _, pair = measured(run_bench, *arguments, "--allow-biased")["rows"]
    assert pair["lossless"] is False and pair["identical"] is None


def test_a_second_format_goes_to_a_file(
    run_bench: Bench, tiny: str, prompts: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    out = run_bench(
        tiny, *QUICK, "--prompts", prompts, "--output", "md", "--output-file", str(path)
    )
    assert out.startswith("- device: cpu") and "| dual" not in out.splitlines()[0]
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == 3 and float(rows[2]["speedup"]) > 0
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonesuch"], "unknown"),
        (["--output", "xml"], "--output 'xml'"),
        (["-d", "soon"], "--duration 'soon'"),
        (["-d", "0"], "not a positive"),
        (["-d", "1000"], "beyond"),
        (["--batch", "0"], "--batch"),
        (["--draft-frames", "1,99"], "--draft-frames"),
        (["--rule", "wishful"], "wishful"),
        (["--draft-temperature", "1,2"], "4 are needed"),
        (["--draft-temperature", "1,-2,1,1"], "not a positive"),
        (["--prompts", "/nonesuch"], "cannot read prompts"),
        (["--output-file", "/nonesuch/rows.json"], "cannot write"),
        (["--output-file", "rows.xml"], "must end in"),
        (["--plot", "rows.pdf"], "must end in"),
        (["--plot", "/nonesuch/rows.png"], "cannot write"),
        (["--dtype", "float128"], "--dtype 'float128'"),
        (["--peer", "fairseq"], "--peer 'fairseq'"),
        (["--peer", "transformers"], "transformers cannot hold flatten"),
        (["--acceptance", "0.7"], "add --synthetic"),
        (["--synthetic", "huge"], "shape 'huge' is unknown"),
        (["--synthetic", "tiny:sideways"], "pattern 'sideways'"),
        (["--synthetic", "tiny,tiny,tiny"], "at most one drafter"),
        (["--synthetic", "large,tiny", "--acceptance", "0.5"], "shapes of one codec"),
        (["--synthetic", "tiny,tiny"], "needs an acceptance"),
        (["--synthetic", "tiny,tiny", "--acceptance", "1.5"], "between 0 and 1"),
        (["--synthetic", "tiny,tiny", "--acceptance", "high"], "no number"),
        (["--synthetic", "tiny,tiny", "--acceptance", "0.5,0.5"], "one value, or 4"),
        (["--synthetic", "tiny,tiny", "--acceptance-from", "rows.json"], "FILE.json:ROW"),
        (["--synthetic", "tiny,tiny", "--acceptance-from", "/no.json:a"], "cannot read /no.json"),
        (["--card", "A5"], "card 'A5' is unknown"),
        (["--card", "A4000", "--output", "csv"], "table, md or json"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_input_is_one_line(
    run_bench: Bench, tiny: str, arguments: list[str], said: str
) -> None:
    preset = [] if arguments == ["nonesuch"] else [tiny]
    with pytest.raises(UserError, match=said) as caught:
        run_bench(*preset, *arguments)
    assert "\n" not in str(caught.value)


def test_the_share_of_identical_tokens() -> None:
    grid = torch.arange(8).view(2, 4)
    other = grid.clone()
    other[0, :2] = 99
    assert identical([[grid], [grid]], [[grid], [other]]) == 14 / 16


def test_importing_the_command_loads_no_torch() -> None:
    code = "import sys, specgen.cli.bench; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_hub_preset_that_is_not_here_yet(
    run_bench: Bench,
    tiny_folder: Path,
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its models are fetched when they are loaded; where they cannot be had, one line says so."""
    fetched: dict[str, Path] = {}

    def cached(reference: hub.Reference) -> Path | None:
        return fetched.get(reference.repository)

    def fetch(reference: hub.Reference) -> Path:
        if reference.repository == "nobody/gone":
            raise UserError("nobody/gone is not on the hub")
        return fetched.setdefault(
            reference.repository, tiny_folder / reference.repository.partition("/")[2]
        )

    monkeypatch.setattr(hub, "cached", cached)
    monkeypatch.setattr(hub, "fetch", fetch)
    text = (tiny_folder / "dual.yaml").read_text()
    for name in ("flatten", "drafter", "codec"):
        text = text.replace(f"checkpoint: {name}", f'checkpoint: "hub:someone/{name}"')
    here, gone = tmp_path / "far.yaml", tmp_path / "gone.yaml"
    here.write_text(text)
    gone.write_text(text.replace("someone/flatten", "nobody/gone"))

    document = measured(run_bench, str(here), *QUICK, "--prompts", prompts)
    assert [row["label"] for row in document["rows"]] == [
        "far, verifier alone",
        "far, drafter alone",
        "far",
    ]
    assert document["rows"][2]["speedup"] > 0
    assert set(fetched) == {"someone/flatten", "someone/drafter", "someone/codec"}
    with pytest.raises(UserError, match="not on the hub"):
        run_bench(str(gone), *QUICK, "--prompts", prompts)
