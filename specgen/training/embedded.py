"""Every embedded model from nothing: data, codec, tokens, language models, distillation.

    python -m specgen.training.embedded [RECIPES_FOLDER] [--jobs N]

Each stage keeps what it has finished, so an interrupted run goes on where it stopped. Recipes of
one line below may run side by side (`--jobs 2`, one core each); lines follow one another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from specgen.checkpoints.native import WEIGHTS_NAME
from specgen.errors import UserError, command
from specgen.training.recipes import load_recipe

RECIPES = Path(__file__).parents[2] / "presets" / "train"
FIRST = ("data", "codec")
CHAINS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("base-delay",), ("small-delay",)),
    (("base-flatten",),),
    (("base-delay-distilled",), ("small-delay-distilled",)),
    (("targets:base-flatten",),),
    (("base-delay-guided",),),
    (("targets:base-delay",),),
    (("small-delay-guided",),),
    (("targets:base-flatten-long",),),
    (("small-delay-long",),),
    (("samples:base-delay",),),
    (("targets:base-delay-own",),),
    (("feature-delay",),),
)


@dataclass(frozen=True)
class TargetRun:
    """Targets to write: the recipe whose model teaches, hours of them (a teacher in delay is four
    times quicker), frames of their crops; `own`: on the teacher's own clips, its states kept."""

    teacher: str
    hours: float
    frames: int
    own: bool = False


TARGETS = {
    "base-flatten": TargetRun("base-flatten", 2.5, 200),
    "base-delay": TargetRun("base-delay", 1.2, 200),
    "base-flatten-long": TargetRun("base-flatten", 0.5, 500),
    "base-delay-own": TargetRun("base-delay", 2.35, 600, own=True),
}


def run_alone(command: Sequence[str]) -> None:
    """Run a Python module in a process of its own, on one thread.

    Raises:
        UserError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode
    if code:
        raise UserError(f"`python -m {' '.join(command)}` ended with code {code}: see above")


def run_chain(folder: Path, names: Sequence[str]) -> None:
    """Run recipes one after the other; `targets:NAME` writes those of `TARGETS`, `samples:MODEL`
    lets an embedded model write music to learn from."""
    for name in names:
        print(f"embedded: {name}", file=sys.stderr, flush=True)
        if name.startswith("targets:"):
            write_targets(folder, name.removeprefix("targets:"))
            continue
        if name.startswith("samples:"):
            model = name.removeprefix("samples:")
            run_alone(["specgen.training.samples", f"embedded-{model}", own_tokens(model)])
            continue
        run_alone(["specgen.training.recipes", str(folder / f"{name}.yaml"), f"kind={_kind(name)}"])


def own_tokens(model: str) -> str:
    """Where a model's own clips go."""
    return f"runs/tokens-{model.removeprefix('base-')}"


def write_targets(folder: Path, name: str) -> None:
    """Write a teacher's guided distributions where the recipes look for them."""
    run = TARGETS[name]
    _, recipe = load_recipe(folder / f"{run.teacher}.yaml")
    tokens = own_tokens(run.teacher) if run.own else str(recipe.get("tokens", "runs/tokens"))
    out = f"runs/targets-{name.removeprefix('base-')}"
    command = ["specgen.training.targets", str(recipe["export"]), out, "--tokens", tokens]
    command += ["--hours", str(run.hours), "--frames", str(run.frames)]
    run_alone(command + ["--states"] * run.own)


def _kind(name: str) -> str:
    return name if name in FIRST else "lm"


def tokenize(folder: Path) -> None:
    """Turn the data set into the tokens of the codec, unless they are newer than the codec."""
    _, language = load_recipe(folder / "base-flatten.yaml")
    _, data = load_recipe(folder / "data.yaml", ["kind=data"])
    codec = Path(language.get("codec", "specgen/checkpoints/embedded/codec"))
    tokens = Path(language.get("tokens", "runs/tokens"))
    made, weights = tokens / "codes.npy", codec / WEIGHTS_NAME
    if made.is_file() and made.stat().st_mtime >= weights.stat().st_mtime:
        return
    run_alone(["specgen.training.codec", "tokenize", str(codec), str(data["out"]), str(tokens)])


def run_all(folder: Path, jobs: int) -> None:
    """Run every stage in order.

    Raises:
        UserError: a stage failed.
    """
    run_chain(folder, FIRST)
    tokenize(folder)
    for chains in CHAINS:
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(run_chain, folder, names) for names in chains]:
                done.result()


@command
def main(arguments: Sequence[str]) -> None:
    """The command line in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m specgen.training.embedded")
    parser.add_argument("folder", nargs="?", type=Path, default=RECIPES)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    run_all(options.folder, options.jobs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
