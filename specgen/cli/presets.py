"""`specgen presets`: what there is, what is in it, and whether it works."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specgen import presets as preset_files
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.checkpoints.pairing import Side

app = typer.Typer(help="List presets, show one, or check one.", invoke_without_command=True)
_CARDS = (8, 16, 24)  # gigabytes of the cards that people have
_WIDE = 160  # columns that the whole list takes


@app.callback()
def presets(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the presets: who drafts for whom, by which rule, and whether the models are here."""
    if context.invoked_subcommand is not None:
        return
    rows = [_row(name) for name in preset_files.preset_names()]
    if as_json:
        print(json.dumps({"presets": rows}))
    else:
        _print_rows(rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A preset's name or the path of a file.")],
) -> None:
    """Print a preset's resolved YAML."""
    preset = preset_files.load_preset(name)
    typer.echo(f"# {preset.path}\n# sha256 {preset.sha256}\n{preset.yaml()}", nl=False)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A preset's name or the path of a file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Load a preset's models and say whether they can work together, and in how much memory.

    Models of the hub that are not here yet are fetched. Exit code 2 if they cannot.
    """
    from specgen.checkpoints import pairing

    preset = preset_files.load_preset(name)
    sides = pairing.inspect(preset)
    *models, codec = sides
    pairing.check_together([(m.role, m.name, m.codec) for m in models], codec.codec)
    if as_json:
        print(json.dumps(_document(preset, sides)))
        return
    _print_sides(sides)
    for line in _notes(preset, sides):
        print(line)


def _print_sides(sides: "Sequence[Side]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    titles = ("part", "name", "pattern", "reads", "Hz", "frames/s", "K", "card", "channels", "GB")
    for title in titles:
        table.add_column(title, overflow="fold")
    for side in sides:
        codec = side.codec
        table.add_row(
            side.role,
            side.name,
            side.pattern or "-",
            side.text or "-",
            str(codec.sample_rate),
            f"{codec.frame_rate:g}",
            str(codec.codebooks),
            str(codec.card),
            str(codec.channels),
            f"{side.weights / 1e9:.2f}",
        )
    Console().print(table)


def _notes(preset: preset_files.Preset, sides: "Sequence[Side]") -> list[str]:
    from specgen.checkpoints.pairing import STATES

    seconds, cfg = preset.node.duration.max, preset.node.sampling.cfg
    need = sum(side.bytes(seconds) for side in sides)
    cards = [card for card in _CARDS if need * 1.1 < card * 1e9]
    fits = f"fits into {cards[0]} GB" if cards else f"needs more than {_CARDS[-1]} GB"
    lines = [
        "they can work together",
        f"weights and one clip of {seconds:g} s take {need / 1e9:.1f} GB: {fits}",
    ]
    texts = {side.text for side in sides if side.text and side.text != STATES}
    if len(texts) > 1:
        lines.append(f"they read their prompts through different encoders: {', '.join(texts)}")
    lines += [
        f"{side.role} asks for guidance {side.guidance:g}, the preset has {cfg:g}"
        for side in sides
        if side.guidance is not None and side.guidance != cfg
    ]
    lines += [
        f"{side.role} was trained on pieces of {side.max_frames / side.codec.frame_rate:g} s"
        for side in sides
        if side.max_frames is not None and side.max_frames < seconds * side.codec.frame_rate - 0.5
    ]
    lines += [
        f"{role} {reference} is not pinned to a commit"
        for role, reference in preset.references.items()
        if reference.startswith("hub:") and not _pinned(reference)
    ]
    return lines


def _document(preset: preset_files.Preset, sides: "Sequence[Side]") -> dict[str, object]:
    seconds = preset.node.duration.max
    return {
        "preset": preset.reference,
        "together": True,
        "memory_bytes": sum(side.bytes(seconds) for side in sides),
        "memory_seconds": seconds,
        "parts": {
            side.role: {
                "name": side.name,
                "pattern": side.pattern,
                "text": side.text,
                "guidance": side.guidance,
                "sample_rate": side.codec.sample_rate,
                "frame_rate": side.codec.frame_rate,
                "codebooks": side.codec.codebooks,
                "card": side.codec.card,
                "channels": side.codec.channels,
                "codec_sha256": side.codec.fingerprint,
                "weight_bytes": side.weights,
            }
            for side in sides
        },
    }


def _row(name: str) -> dict[str, str | None]:
    preset = preset_files.load_preset(name)
    node = preset.node
    return {
        "preset": name,
        "drafter": _described(preset, node.drafter),
        "verifier": _described(preset, node.verifier),
        "rule": node.speculation.rule if node.drafter else None,
        "models": _present(preset),
        "description": node.description,
    }


def _print_rows(rows: Sequence[dict[str, str | None]]) -> None:
    """One line a preset where there is room; a narrow terminal gets what the names and the
    description tell."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a line a preset
    titles = list(rows[0])
    if console.width < _WIDE:
        titles = ["preset", "models", "description"]
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title != "description")
    for row in rows:
        table.add_row(*(row[title] or "-" for title in titles))
    console.print(table)


def _described(preset: preset_files.Preset, role: preset_files.VerifierNode | None) -> str | None:
    if role is None:
        return None
    name = role.checkpoint.removeprefix("embedded:")
    if name.startswith("hub:"):
        return name.removeprefix("hub:").partition("@")[0].rpartition("/")[2]
    try:
        from specgen.checkpoints.native import read_config

        return f"{name} ({read_config(preset.folder(role.checkpoint)).pattern['kind']})"
    except (UserError, KeyError):
        return name


def _present(preset: preset_files.Preset) -> str:
    """`present`, or which parts are not here."""
    missing = [role for role, ref in preset.references.items() if not _here(preset.locate(ref))]
    if not missing:
        return "present"
    return "missing" if len(missing) == len(preset.references) else f"no {', '.join(missing)}"


def _here(folder: Path | None) -> bool:
    from specgen.checkpoints.hub import complete

    return folder is not None and complete(folder)


def _pinned(reference: str) -> bool:
    from specgen.checkpoints.hub import Reference

    return Reference.parse(reference).pinned
