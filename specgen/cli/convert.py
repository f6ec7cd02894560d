"""`specgen convert`: a checkpoint of any format into specgen's own."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder (audiocraft export, transformers, native), or hub:OWNER/NAME@REVISION.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float16, bfloat16 or float32; left out, float16 where that loses nothing."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")
    ] = False,
) -> None:
    """Write a checkpoint as safetensors and YAML, with its codec and text encoder.

    The result loads faster, holds no pickle, and needs no network.
    """
    from specgen.checkpoints import convert as checkpoints
    from specgen.checkpoints import registry

    checkpoints.check_target(target, overwrite=overwrite)
    folder = registry.locate(source, fetch=True)
    assert folder is not None
    made = checkpoints.convert(folder, target, dtype, overwrite=overwrite)
    what = ", ".join(made.parts)
    print(f"{what} in {made.dtype}, {made.size / 1e6:,.1f} MB", file=sys.stderr)
    print(made.folder)
