"""`specgen merge`: the manifests of shards as one."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of jobs.", metavar="DIR...")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder for manifest.jsonl, or a .jsonl file.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that manifest.")] = False,
) -> None:
    """Merge the manifests of jobs, such as the shards of one.

    The clips stay where they are; the merged manifest points to them. Exit code 1 if a row failed
    or a shard is missing.
    """
    from specgen.jobs.merge import merge as merge_folders

    merged = merge_folders(folders, out, overwrite=overwrite)
    text = f"specgen: {merged.done} clips"
    if merged.failed:
        text += f", {merged.failed} failed"
    if merged.dropped:
        text += f"; {merged.dropped} damaged or repeated lines left out"
    if merged.missing:
        shown = ", ".join(merged.missing[:8]) + (", ..." if len(merged.missing) > 8 else "")
        text += f"; missing shards: {shown}"
    print(text, file=sys.stderr)
    print(merged.path)
    if merged.failed or merged.missing:
        raise typer.Exit(1)
