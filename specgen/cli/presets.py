"""`specgen presets`: what there is, and what is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from specgen import config
from specgen.errors import UserError

app = typer.Typer(help="List presets, or show one.", invoke_without_command=True)


@app.callback()
def presets(context: typer.Context) -> None:
    """List the presets: who drafts for whom, by which rule, and whether the models are here."""
    if context.invoked_subcommand is None:
        _list()


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A preset's name or the path of a file.")],
) -> None:
    """Print a preset's resolved YAML."""
    preset = config.load_preset(name)
    typer.echo(f"# {preset.path}\n# sha256 {preset.sha256}\n{preset.yaml()}", nl=False)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("preset", "drafter", "verifier", "rule", "models", "description"):
        table.add_column(title, overflow="fold")
    for name in config.preset_names():
        preset = config.load_preset(name)
        node = preset.node
        table.add_row(
            name,
            _described(preset, node.drafter),
            _described(preset, node.verifier),
            node.speculation.rule if node.drafter else "-",
            "present" if _present(preset) else "missing",
            node.description,
        )
    Console().print(table)


def _described(preset: config.Preset, role: config.VerifierNode | None) -> str:
    if role is None:
        return "-"
    name = role.checkpoint.removeprefix("embedded:")
    try:
        from specgen.checkpoints.native import read_config

        return f"{name} ({read_config(preset.folder(role.checkpoint)).pattern['kind']})"
    except (UserError, KeyError):
        return name


def _present(preset: config.Preset) -> bool:
    node = preset.node
    references = [node.verifier.checkpoint, node.codec.checkpoint]
    if node.drafter:
        references.append(node.drafter.checkpoint)
    return all((preset.folder(r) / "model.safetensors").is_file() for r in references)
