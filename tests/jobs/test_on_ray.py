"""Ray as a job's engine. What an actor does is tested without Ray; a cluster with an actor killed
in the middle is tried by tools/ray_test.py."""

import os
import sys
from pathlib import Path

import pytest

from specgen.cli.app import run
from specgen.jobs.folder import take
from specgen.jobs.manifest import Entry, read
from specgen.jobs.options import Recipe
from specgen.jobs.plan import Place, Task
from specgen.jobs.ray_executor import Maker, decode, decode_outcome, encode, encode_outcome
from specgen.jobs.rows import Row
from specgen.jobs.worker import Outcome

OPTIONS = {"duration": 0.3, "prompt_at": [[0.1, "an air"]]}
ENTRY = Entry("x", "done", "f", "x.wav", "1", "2", "3", None, 1.0)


def test_what_actors_are_told_and_say_reads_back() -> None:
    recipe = Recipe("embedded", False, "float32", (("cfg", 2.0), ("rule", "mixed")), True)
    task = Task(Row("x", "a jig", 7, 3, OPTIONS), "x")
    for entry in (None, ENTRY):
        assert decode(encode(recipe, task, entry)) == (recipe, task, entry)
    outcome = Outcome(ENTRY, "a jig", 0.3, True)
    assert decode_outcome(encode_outcome(outcome)) == outcome


def test_an_actor_makes_what_is_missing_and_keeps_the_rest(tiny: str, tmp_path: Path) -> None:
    take(tmp_path, {})
    recipes = [Recipe(tiny), Recipe(tiny, changes=(("temperature", 0.5),)), Recipe("nothing")]
    rows = [Row(f"r{i}", "a jig", i, i, {"duration": 0.2}) for i in range(3)]
    actor = Maker(Place(tmp_path, batch=2, device="cpu"))

    def told(entries: dict[str, Entry]) -> dict[str, Outcome]:
        pairs = zip(recipes, rows, strict=True)
        batch = [encode(recipe, Task(r, r.id), entries.get(r.id)) for recipe, r in pairs]
        made = [decode_outcome(text) for text in actor({"task": batch})["outcome"]]
        return {outcome.entry.id: outcome for outcome in made}

    first = told({})
    assert [first[f"r{i}"].entry.status for i in range(3)] == ["done", "done", "failed"]
    assert "unknown" in str(first["r2"].entry.error)
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["r0.wav", "r1.wav"]
    (tmp_path / "r1.npy").unlink()
    second = told({key: outcome.entry for key, outcome in first.items()})
    assert second["r0"].kept and second["r0"].entry == first["r0"].entry
    assert not second["r1"].kept and second["r1"].entry.sha256 == first["r1"].entry.sha256
    assert (tmp_path / "r1.npy").is_file()


def test_without_ray_the_command_to_install_it_is_told(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "p.txt").write_text("a jig\n")
    job = ["generate", "--prompts", str(tmp_path / "p.txt"), "--preset", tiny, "--engine", "ray"]
    assert run([*job, "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'specgen[ray]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("SPECGEN_TEST_RAY" not in os.environ, reason="set SPECGEN_TEST_RAY=1")
def test_a_cluster_makes_what_one_process_makes(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "p.txt").write_text("".join(f"a jig {i}\n" for i in range(6)))
    job = ["generate", "--prompts", str(tmp_path / "p.txt"), "--preset", tiny, "-d", "0.3"]
    assert run([*job, "--out", str(tmp_path / "local")]) == 0
    on_ray = [*job, "--out", str(tmp_path / "ray"), "--engine", "ray", "--actors", "2"]
    assert run(on_ray) == 0
    one, two = (read(tmp_path / name / "manifest.jsonl")[0] for name in ("local", "ray"))
    assert {k: (e.fingerprint, e.sha256) for k, e in one.items()} == {
        k: (e.fingerprint, e.sha256) for k, e in two.items()
    }
