"""`make bench-gpu`, every piece of it, on a CPU with tiny models."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from specgen.benchmarking.shapes import Pair
from tests.benchmarking.conftest import Bench

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: importlib.import_module(name) for name in ("gpu", "midsize", "capped", "summary")}


def test_a_pair_is_trained_and_measured_and_all_of_it_summed_up(
    scripts: dict[str, ModuleType], run_bench: Bench, tmp_path: Path
) -> None:
    gpu, midsize, capped = (scripts[name] for name in ("gpu", "midsize", "capped"))
    run = gpu.Run("cpu", tmp_path, tmp_path / "work", gpu.TINY)

    record = midsize.run("cpu", run.work, midsize.SCALES["tiny"], 2, 0.4, 0.5)
    gpu.write(tmp_path / "gpu-training.json", record)
    assert set(record["models"]) == {"midsize-flatten", "midsize-delay"}
    for one in record["models"].values():
        assert one["steps"] >= 1 and 0 < one["held_out_nats"] < 20
    assert record["tokens"]["clips"] == 2 and record["tokens"]["frames"] == 20

    for name in ("trained", "synthetic", "graphs", "batch"):
        (command,) = gpu.STEPS[name].commands(run)
        assert command[1:4] == ["-m", "specgen.cli.app", "bench"]
        run_bench(*command[4:])
        document = json.loads((tmp_path / gpu.STEPS[name].writes).read_text())
        assert document["synthetic"] == (name != "trained")
        assert any(row["speedup"] for row in document["rows"]) == (name != "graphs")
        assert gpu.ready(tmp_path / gpu.STEPS[name].writes)
    trained = json.loads((tmp_path / "gpu-trained.json").read_text())["rows"]
    assert {row["acceptance_rule"] for row in trained} == {None, "coupled", "mixed"}

    found = capped.measure(Pair.parse(gpu.TINY.memory), [0.2, 0.4], "cpu")
    gpu.write(tmp_path / "gpu-memory.json", found)
    short, long = found["pieces"]
    assert short["fits"] and long["fits"] and long["peak_bytes"] is None
    assert 0 < short["predicted_bytes"] < long["predicted_bytes"]

    page = scripts["summary"].page(tmp_path)
    assert "## Full size\n\n**SYNTHETIC**" in page and "| midsize |" in page
    assert "## Beside other packages\n\nUNMEASURED" in page  # its file is not there
    assert "- SYNTHETIC tiny:flatten, 0.2 s, batch 1: " in page  # with graphs and without
    assert "On a CPU: there are no graphs" in page
    assert "## Memory\n\nUNMEASURED" in page  # a CPU has no peak to show
    found["cap_bytes"], short["peak_bytes"] = 16e9, 14.5e9
    gpu.write(tmp_path / "gpu-memory.json", found)
    assert "caches for 0.2 s: fits under 16 GB; peak 14.50 GB" in scripts["summary"].page(tmp_path)


def test_the_peers_step_names_what_is_installed(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    gpu = scripts["gpu"]
    (command,) = gpu.STEPS["peers"].commands(gpu.Run("cpu", tmp_path, tmp_path, gpu.TINY))
    assert command[command.index("--peer") + 1] == ",".join(gpu._peers())


def test_budgets_fit_the_whole_and_steps_are_known(scripts: dict[str, ModuleType]) -> None:
    gpu = scripts["gpu"]
    assert sum(step.budget for step in gpu.STEPS.values()) <= gpu.TOTAL_SECONDS == 540.0
    assert len({step.writes for step in gpu.STEPS.values()}) == len(gpu.STEPS)


def test_a_step_that_outlives_its_budget_is_stopped_and_noted(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = scripts["gpu"]
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setitem(gpu.STEPS, "batch", gpu.Step("gpu-batch.json", 0.3, lambda _: [sleeper]))
    run = gpu.Run("cpu", tmp_path, tmp_path, gpu.TINY)
    began = time.monotonic()
    assert not gpu.perform("batch", run, gpu.packages(tmp_path))
    assert time.monotonic() - began < 20
    assert "budget" in json.loads((tmp_path / "gpu-batch.json").read_text())["failed"]
    assert not gpu.ready(tmp_path / "gpu-batch.json")  # so the next call runs it again


def test_a_second_call_passes_over_what_is_done(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    call = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--size", "tiny", *out]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*call, *more], capture_output=True, text=True, timeout=120)

    first = run("--steps", "memory,summary")
    assert first.returncode == 0 and "memory: done" in first.stdout, first.stderr
    assert (tmp_path / "gpu.md").is_file()
    second = run("--steps", "memory,batch", "--seconds", "1")
    assert "gpu-memory.json is there" in second.stdout
    assert "batch: no time left" in second.stdout and second.returncode == 1
    assert run("--steps", "nonesuch").returncode == 2


def test_tests_are_counted(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5">'
        '<testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>'
        '<testcase classname="a" name="z"><skipped/></testcase></testsuite></testsuites>'
    )
    scripts["gpu"].count_tests(report, tmp_path)
    found = json.loads((tmp_path / "gpu-tests.json").read_text())
    assert (found["tests"], found["failures"], found["skipped"]) == (3, 1, 1)
    assert found["not_passed"] == ["a::y"] and found["seconds"] == 2.5


def test_a_switch_without_effect_is_said_to_be_one(scripts: dict[str, ModuleType]) -> None:
    def document(seconds: float) -> dict[str, object]:
        row = {"verifier": "v", "duration_seconds": 1.0, "batch": 1, "drafter": None}
        rows = [{**row, "package": "specgen", "seconds": {"median": seconds}}]
        return {"machine": {"device": "cuda"}, "rows": rows}

    graphs = scripts["summary"].graphs
    assert "3.00 times" in "\n".join(graphs(document(1.0), document(3.0)))
    assert "changes nothing" not in "\n".join(graphs(document(1.0), document(3.0)))
    assert "changes nothing" in "\n".join(graphs(document(1.0), document(1.01)))
    assert "UNMEASURED: stopped" in "\n".join(graphs(document(1.0), {"failed": "stopped"}))


def test_a_step_has_its_own_environment(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    gpu = scripts["gpu"]
    run = gpu.Run("cpu", tmp_path, tmp_path / "work", gpu.TINY)
    write = f"import os; open({str(tmp_path / 'seen.json')!r}, 'w').write('{{}}' if os.environ"
    write += ".get('SPECGEN_GRAPHS') == 'off' and 'PATH' in os.environ else '')"
    step = gpu.Step("seen.json", 20.0, lambda _: [[sys.executable, "-c", write]])
    gpu.STEPS["one"] = replace(step, environment=gpu.STEPS["graphs"].environment)
    try:
        assert gpu.perform("one", run, dict(os.environ))
    finally:
        del gpu.STEPS["one"]
