"""`specgen bench`: seconds, acceptance and speed-up of presets against their verifier alone."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specgen import presets as preset_files
from specgen.cli.options import (
    check_results_file,
    count,
    frames,
    one_of,
    positive,
    prompt_lines,
    replace_file,
    unique,
    values,
)
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.benchmarking.given import Given
    from specgen.benchmarking.rows import Document
    from specgen.benchmarking.shapes import Pair

PEERS = ("audiocraft", "transformers")
ROOFLINE_SECONDS = 10.0  # of audio, where --duration is left out
SUFFIXES = {".txt": "table", ".md": "md", ".csv": "csv", ".json": "json", ".jsonl": "jsonl"}
# Held-out wordings: instrument, dance, key and tempo each vary.
PROMPTS = (
    "a lively jig in D major on the violin",
    "a slow air in G minor on the flute",
    "a reel in A major on the accordion with guitar chords",
    "a march in D major on the trumpet with drums",
    "a gentle waltz in E minor on the piano",
)


def bench(
    presets: Annotated[
        list[str] | None,
        typer.Argument(help="Presets by name or path; left out: the embedded models' table."),
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", "-d", help="Seconds of audio: 8 or 4,8,12.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Clips decoded together: 1 or 1,4.")] = "1",
    draft_frames: Annotated[
        str | None, typer.Option(help="Draft lengths: 1,2,4,8,auto; the preset's if left out.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help=f"Accept rules: {','.join(preset_files.RULES)}.")
    ] = None,
    draft_temperature: Annotated[
        list[str] | None,
        typer.Option(help="One value a codebook: 1,0.3,0.5,0.7. Give it again for another row."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, help="Timed runs.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before them.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first run's first clip.")] = 1,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt a line; - is stdin.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help=f"Of all models: {', '.join(preset_files.DTYPES)}.")
    ] = None,
    quantize: Annotated[
        list[str] | None,
        typer.Option(help="Weights in 8 bits: drafter=int8. Give it again for another row."),
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE[,DRAFTER]",
            help="Random weights of a named shape, such as large:flatten,small:delay (repeatable).",
        ),
    ] = None,
    acceptance: Annotated[
        list[str] | None,
        typer.Option(help="Of synthetic pairs: 0.7, or one value a codebook (repeatable)."),
    ] = None,
    acceptance_from: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.json:ROW", help="Take it from a measured row (repeatable)."),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help=f"Other packages to take turns with: {','.join(PEERS)}.")
    ] = None,
    named_card: Annotated[
        str | None,
        typer.Option(
            "--card",
            "--roofline",
            help="Predict what a card could do at best (A4000, H200, ...); measure nothing.",
        ),
    ] = None,
    allow_biased: Annotated[
        bool, typer.Option("--allow-biased", help="Measure rules that change the music too.")
    ] = False,
    output: Annotated[str, typer.Option(help="table, md, csv, json or jsonl.")] = "table",
    output_file: Annotated[
        Path | None,
        typer.Option(help="Write a second format here; .txt, .md, .csv, .json or .jsonl."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw speed-up and acceptance here; .png or .svg.")
    ] = None,
) -> None:
    """Measure presets: each verifier alone, and each pair against it in the same run.

    Sides take turns; every run decodes another prompt and seed, the same on every side. Results go
    to stdout, progress to stderr.
    """
    # Here and not above: they take a tenth of the time in which `specgen --help` answers.
    from specgen.benchmarking import plot as picture
    from specgen.benchmarking.cases import (
        DEFAULT_PRESETS,
        Sweep,
        expand,
        quantized,
        synthetic_preset,
    )
    from specgen.benchmarking.shapes import Pair
    from specgen.benchmarking.tables import FORMATS, card, findings, render, static_card

    if output not in FORMATS:
        raise UserError(f"--output {output!r} is unknown; use {', '.join(FORMATS)}")
    if output_file is not None:
        check_results_file(output_file, SUFFIXES)
    if plot is not None:
        picture.check(plot)
    if dtype is not None and dtype not in preset_files.DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; use {', '.join(preset_files.DTYPES)}")

    pairs = [Pair.parse(text) for text in synthetic or []]
    given = _given(acceptance or [], acceptance_from or [], pairs)
    durations = unique(values("--duration", duration, positive))
    batches = unique(values("--batch", batch, count))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if named_card is not None:
        _roofline(named_card, pairs, given, durations, batches, output, output_file, width)
        return

    if given and not pairs:
        raise UserError("--acceptance is for synthetic pairs; add --synthetic SHAPE,DRAFTER")
    if not given and any(pair.drafter for pair in pairs):
        raise UserError(
            "a synthetic pair needs an acceptance, which random weights do not have; add "
            "--acceptance 0.7 or --acceptance-from FILE.json:ROW"
        )

    sweep = Sweep(
        durations=durations,
        batches=batches,
        draft_frames=unique(values("--draft-frames", draft_frames, frames)),
        rules=unique(values("--rule", rule, one_of(preset_files.RULES))),
        temperatures=unique(
            values("--draft-temperature", v, positive) for v in draft_temperature or []
        ),
        acceptances=given,
        peers=unique(values("--peer", peer, one_of(PEERS))),
    )
    names = presets or ([] if pairs else DEFAULT_PRESETS)
    chosen = [preset_files.load_preset(name) for name in names]
    chosen = quantized([*chosen, *map(synthetic_preset, pairs)], quantize or [])
    cases = expand(chosen, sweep)
    lines = prompt_lines(prompts) if prompts is not None else PROMPTS

    from specgen.benchmarking.runner import Plan, measure

    readable = output in ("table", "md")

    def start(document: "Document") -> None:
        where = sys.stdout if readable else sys.stderr
        print(static_card(document, output), file=where, flush=True)

    plan = Plan(lines, seed, repeats, warmup, device, dtype, threads, allow_biased)
    document = measure(cases, plan, _say, start)
    if readable:
        print(findings(document, output, width=width))
    else:
        print(card(document), file=sys.stderr)
        print(render(document, output))
    if output_file is not None:
        replace_file(output_file, render(document, SUFFIXES[output_file.suffix]) + "\n")
    if plot is not None:
        picture.draw(document, plot)


def _given(
    acceptance: Sequence[str], acceptance_from: Sequence[str], pairs: "Sequence[Pair]"
) -> "tuple[Given, ...]":
    """The acceptances of synthetic pairs, which all write as many codebooks.

    Raises:
        UserError: what cannot be read.
    """
    from specgen.benchmarking.given import Given

    K = pairs[0].verifier.config.codebooks if pairs else 4
    return unique(
        [
            *(Given.parse(text, K) for text in acceptance),
            *(Given.read(text, K) for text in acceptance_from),
        ]
    )


def _say(text: str) -> None:
    print(f"specgen: {text}", file=sys.stderr, flush=True)


def _roofline(
    name: str,
    pairs: "Sequence[Pair]",
    given: "Sequence[Given]",
    durations: Sequence[float],
    batches: Sequence[int],
    output: str,
    output_file: Path | None,
    width: int | None,
) -> None:
    """Print (and write) what a card could do.

    Raises:
        UserError: an unknown card or a format that a roofline has not.
    """
    from specgen.benchmarking import cards
    from specgen.benchmarking.shapes import Pair

    forms = {output} | ({SUFFIXES[output_file.suffix]} if output_file is not None else set())
    wrong = forms - {"table", "md", "json"}
    if wrong:
        raise UserError(f"--card prints table, md or json, not {wrong.pop()}; choose one of these")
    wanted = cards.find(name)
    chances = [one.values for one in given] or [(cards.UNSTATED,) * 4]
    shapes = pairs or [Pair.parse(text) for text in cards.REFERENCE]

    def text(form: str, columns: int | None = None) -> str:
        parts = [
            cards.report(
                wanted,
                shapes,
                chances,
                seconds=seconds,
                batch=size,
                form=form,
                width=columns,
            )
            for seconds in durations or (ROOFLINE_SECONDS,)
            for size in batches
        ]
        if form == "json":
            return parts[0] if len(parts) == 1 else "[" + ",\n".join(parts) + "]"
        return "\n\n".join(parts)

    print(text(output, width))
    if output_file is not None:
        replace_file(output_file, text(SUFFIXES[output_file.suffix]) + "\n")
