"""Training recipes: a YAML file says what is trained (`kind`), and with which options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from specgen.checkpoints.files import load_yaml
from specgen.errors import UserError, command

KINDS = ("data", "codec", "lm")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """A recipe's kind and options.

    Args:
        path: the YAML file.
        overrides: `key=value` or `key.inner=value`, values in YAML.

    Raises:
        UserError: unreadable file, unknown kind, malformed override.
    """
    values = load_yaml(path)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"override {override!r} is not of the form key=value: mend it")
        _put(values, name.split("."), _value(text, override), override)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"{path}: kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    return kind, values


def _value(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r} has no readable value: mend it") from None
    if not isinstance(value, str):
        return value
    try:
        return float(value)  # YAML 1.1 reads 2e-3 as a word
    except ValueError:
        return value


def _put(values: dict[str, Any], names: Sequence[str], value: Any, override: str) -> None:
    for name in names[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {name} holds no options: mend it")
        values = inner
    values[names[-1]] = value


def run_recipe(path: Path, overrides: Sequence[str] = ()) -> None:
    """Run a recipe to its end: make the data set, train the codec, or train a language model.

    Raises:
        UserError: what is wrong with the recipe or its inputs.
    """
    kind, values = load_recipe(path, overrides)
    _runner(kind)(values)


def _runner(kind: str) -> Any:
    if kind == "data":
        from specgen.training.data.build import build_dataset

        return build_dataset
    if kind == "codec":
        from specgen.training.codec import train_codec

        return train_codec
    from specgen.training.lm import train_lm

    return train_lm


@command
def main(arguments: Sequence[str]) -> None:
    """`python -m specgen.training.recipes RECIPE [key=value ...]`."""
    if not arguments:
        raise UserError("name a recipe, as in: python -m specgen.training.recipes RECIPE.yaml")
    run_recipe(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
