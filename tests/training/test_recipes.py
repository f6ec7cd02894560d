"""Recipes: reading, overriding, dispatch, and the chain that trains everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specgen.checkpoints.files import from_plain
from specgen.errors import UserError
from specgen.training import embedded, recipes
from specgen.training.models import LMRecipe
from specgen.training.recipes import load_recipe

STAGES = [name for chains in embedded.CHAINS for names in chains for name in names]
LANGUAGE = [name for name in STAGES if ":" not in name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("kind: lm\nname: x\nlm: {dim: 8}\n")
    return path


def test_a_recipe_and_its_overrides(path: Path) -> None:
    kind, values = load_recipe(path, ["lm.dim=16", "learning_rate=2e-3", "init=null", "a.b=[1, 2]"])
    assert kind == "lm"
    assert values == {
        "name": "x",
        "lm": {"dim": 16},
        "learning_rate": 0.002,
        "init": None,
        "a": {"b": [1, 2]},
    }


@pytest.mark.parametrize("override", ["dim", "=3", "name.inner=3", "a=[1"])
def test_a_malformed_override(path: Path, override: str) -> None:
    with pytest.raises(UserError, match="override"):
        load_recipe(path, [override])


@pytest.mark.parametrize("text", ["name: x\n", "kind: opera\n", "- kind\n", "kind: [\n"])
def test_a_recipe_without_sense(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_a_recipe_runs_by_its_kind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, Any]] = []
    monkeypatch.setattr(recipes, "_runner", lambda kind: lambda values: ran.append((kind, values)))
    recipes.run_recipe(path, ["minutes=3"])
    assert ran == [("lm", {"name": "x", "lm": {"dim": 8}, "minutes": 3})]
    assert recipes.main([str(path), "kind=opera"]) == 2


@pytest.mark.parametrize("kind", recipes.KINDS)
def test_every_kind_has_a_runner(kind: str) -> None:
    assert callable(recipes._runner(kind))


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_projects_own_recipes(name: str) -> None:
    kind, values = load_recipe(embedded.RECIPES / f"{name}.yaml")
    recipe = from_plain(LMRecipe, values, name)
    assert kind == "lm" and recipe.name == name.removesuffix("-distilled").removesuffix(
        "-guided"
    ).removesuffix("-long")
    assert Path(recipe.export).name == recipe.name


def test_the_chain_runs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run(command: Sequence[str]) -> None:
        kind = command[0].removeprefix("specgen.training.")
        name = Path(command[1]).stem.removeprefix("embedded-")
        if kind == "targets":
            own = command[command.index("--tokens") + 1] == embedded.own_tokens(name)
            assert own == ("--states" in command) == command[2].endswith("-own")
            name += command[2].removeprefix(f"runs/targets-{name.removeprefix('base-')}")
        ran.append(name if kind == "recipes" else f"{kind}:{name}")

    monkeypatch.setattr(embedded, "run_alone", run)
    monkeypatch.setattr(embedded, "tokenize", lambda folder: ran.append("tokenize"))
    embedded.run_all(embedded.RECIPES, jobs=1)
    assert ran == ["data", "codec", "tokenize", *STAGES]


def test_a_failed_stage_ends_the_chain() -> None:
    with pytest.raises(UserError, match="code 2"):
        embedded.run_alone(["specgen.training.recipes"])
