"""The Slurm script and the Ray cluster file of docs/scale.md."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from specgen.cli.app import run

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def block(language: str) -> str:
    """The page's one block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_slurm_script_makes_every_row_once(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"r{i}", "prompt": "a jig", "duration": 0.1} for i in range(6)]
    prompts = tmp_path / "night.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # What Slurm would start is printed instead, and started here.
    script = 'srun() { printf "%s\\n" "$@"; }\n' + block("bash").replace("/64", "/2")
    for task in ("1", "2"):
        environment = {"SCRATCH": str(tmp_path), "SLURM_ARRAY_TASK_ID": task}
        done = subprocess.run(
            ["bash", "-eu", "-c", script], env=environment, capture_output=True, text=True
        )
        program, *arguments = done.stdout.splitlines()
        assert (program, done.stderr) == ("specgen", "")
        arguments[arguments.index("--preset") + 1] = tiny
        assert run(arguments) == 0
    shards = sorted(map(str, (tmp_path / "night").iterdir()))
    assert len(shards) == 2
    assert run(["merge", *shards, "--out", str(tmp_path / "night")]) == 0
    lines = (tmp_path / "night" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]
    capsys.readouterr()


def test_ray_accepts_the_cluster_file() -> None:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("Ray is not installed")
    validation = pytest.importorskip("jsonschema")
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(block("yaml"))
    validation.validate(cluster, schema)
    assert {"cluster_name", "provider", "auth", "head_start_ray_commands"} <= set(cluster)
