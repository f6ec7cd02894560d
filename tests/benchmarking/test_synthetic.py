"""Synthetic pairs: the acceptance asked for, in the loop as it is, and SYNTHETIC wherever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.benchmarking.cases import Sweep, expand, synthetic_preset
from specgen.benchmarking.given import Given
from specgen.benchmarking.roofline import pass_bytes
from specgen.benchmarking.shapes import SHAPES, Pair, Shape
from specgen.benchmarking.synthetic import Wanted, choose, expected, load, overlap, random_model
from specgen.benchmarking.trials import Trial
from specgen.decoding.acceptance import Rule
from specgen.decoding.loop import Drafting, decode
from specgen.decoding.sampling import Sampling
from specgen.errors import UserError
from tests.benchmarking.conftest import Bench

GIVEN = (0.9, 0.8, 0.6, 0.3)


def counted(pair: str, rule: str, values: tuple[float, ...]) -> tuple[list[float], bool]:
    """Acceptance a codebook over 6 x 100 frames, and whether the tokens are the verifier's own."""
    preset = synthetic_preset(Pair.parse(pair))
    given = Given(values, "given")
    sweep = Sweep(durations=(2.0,), batches=(6,), acceptances=(given,), rules=(rule,))
    case = expand([preset], sweep)[-1]
    # Column 1 is another acceptance: the right one must be chosen.
    engine = load(preset, [Wanted((0.1,) * 4, rule), Wanted(values, rule)], device="cpu")
    trial = Trial(case, engine, Drafting(Rule(rule), steps=4), column=1)
    assert engine.drafter is not None
    choose(engine.drafter.lm, 1)
    lead, follow = trial.roles(["a"] * 6)
    options: dict[str, Any] = {
        "frames": [100] * 6,
        "seeds": list(range(6)),
        "sampling": Sampling(),
    }
    made = decode(lead, follow, drafting=trial.drafting, **options)
    drafted = [sum(s.drafted[k] for s in made.stats) for k in range(4)]
    accepted = [sum(s.accepted[k] for s in made.stats) for k in range(4)]
    alone = decode(trial.roles(["a"] * 6)[0], **options)
    same = all(torch.equal(a, b) for a, b in zip(made.codes, alone.codes, strict=True))
    return [a / d for a, d in zip(accepted, drafted, strict=True)], same


@pytest.mark.parametrize("rule", ["coupled", "mixed"])
def test_the_acceptance_is_the_one_given(rule: str) -> None:
    """600 judged guesses a codebook: three standard errors are 0.06, and tiny's 32 entries round an
    acceptance by at most 0.015."""
    found, same = counted("tiny:flatten,tiny:delay", rule, GIVEN)
    assert found == pytest.approx(GIVEN, abs=0.075)
    assert same == (rule == "coupled")


def test_certain_and_impossible_guesses() -> None:
    found, same = counted("tiny:delay,tiny:delay", "coupled", (1.0, 1.0, 1.0, 0.0))
    assert found == [1.0, 1.0, 1.0, 0.0] and same


@pytest.mark.parametrize("textbook", [False, True])
def test_sets_of_entries_are_shared_as_the_acceptance_asks(textbook: bool) -> None:
    for value in (0.0, 0.25, 0.7, 1.0):
        shared = overlap(value, 250, textbook=textbook)
        assert expected(shared, 250, textbook=textbook) == pytest.approx(value, abs=0.004)


def test_rows_files_and_card_say_synthetic(run_bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    document = json.loads(
        run_bench(
            "--synthetic", "tiny:flatten,tiny:delay", "--acceptance", "0.5", "-d", "0.2",
            "-r", "1", "--warmup", "0", "--output", "json", "--output-file", str(path),
            "--device", "cpu",
        )
    )  # fmt: skip
    assert document["synthetic"] and len(document["rows"]) == 3
    for row in document["rows"]:
        assert row["synthetic"] and "SYNTHETIC" in row["label"] and "SYNTHETIC" in row["verifier"]
    pair = document["rows"][-1]
    assert pair["acceptance_given"] == [0.5] * 4 and pair["acceptance_source"] == "given"
    assert pair["identical"] == 1.0 and pair["lossless"]
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and all("SYNTHETIC" in line for line in lines[1:])
    assert document["codec_seconds"] is None  # nothing was turned into sound
    table = run_bench(
        "--synthetic", "tiny", "-d", "0.1", "-r", "1", "--warmup", "0", "--device", "cpu"
    )
    assert table.startswith("SYNTHETIC: random weights")


def test_an_acceptance_is_taken_from_a_measured_row(tmp_path: Path) -> None:
    rows = [
        {"label": "a", "acceptance_per_codebook": None},
        {"label": "a", "acceptance_per_codebook": [0.8, 0.7, 0.6, None]},
        {"label": "made up", "acceptance_per_codebook": [0.5] * 4, "synthetic": True},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": rows}))
    given = Given.read(f"{path}:a", 4)
    assert given.values == (0.8, 0.7, 0.6, 0.0) and given.source == f"{path}: a"
    with pytest.raises(UserError, match="has no row 'b'"):
        Given.read(f"{path}:b", 4)
    with pytest.raises(UserError, match="synthetic"):
        Given.read(f"{path}:made up", 4)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="no row"):
        Given.read(f"{path}:a", 4)


@pytest.mark.parametrize("name", ["tiny", "embedded-small", "embedded-base"])
def test_a_shape_counts_what_a_model_of_it_holds(name: str) -> None:
    shape = Shape.parse(f"{name}:flatten")
    lm = random_model(shape, torch.device("cpu"), torch.float32, 0)
    assert shape.parameters == lm.parameter_count()
    norms = shape.config.layers * 6 * shape.config.dim + 2 * shape.config.dim
    assert pass_bytes(lm, 4) == pytest.approx(4 * (shape.read_parameters() + norms))
    assert pass_bytes(lm, 1) == pytest.approx(4 * (shape.read_parameters(0.25) + norms))
    for value in lm.parameters():
        assert torch.equal(value, value.half().float())  # as published checkpoints are


def test_musicgens_sizes() -> None:
    """As counted in the published checkpoints' decoders (conditioner apart), to 1 %."""
    millions = {name: Shape.parse(name).parameters / 1e6 for name in ("small", "medium", "large")}
    assert millions["small"] == pytest.approx(420, rel=0.01)
    assert millions["medium"] == pytest.approx(1837, rel=0.01)
    assert millions["large"] == pytest.approx(3255, rel=0.01)
    assert Shape.parse("3.3B").name == "large" and "tiny" in SHAPES
