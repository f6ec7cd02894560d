"""`specgen train`: run a training recipe."""

from pathlib import Path
from typing import Annotated

import typer

from specgen import presets


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's path, or the name of one in presets/train.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value pairs that override the recipe.")
    ] = None,
) -> None:
    """Run a training recipe: the data set, the codec, or a language model."""
    from specgen.training.recipes import run_recipe

    path = Path(recipe)
    named = presets.presets_folder() / "train" / f"{recipe}.yaml"
    if not path.exists() and named.is_file():
        path = named
    run_recipe(path, overrides or [])
