"""`specgen generate`: prompts in; audio, tokens and sidecars out."""

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen import presets
from specgen.cli import batch as batches
from specgen.cli import report
from specgen.cli.job import Job, check_sidecar, read_sidecar, settings_of
from specgen.cli.startup import uncollected
from specgen.cli.stream import check_stream, open_stream, sections_of
from specgen.cli.timings import Timings
from specgen.errors import UserError
from specgen.jobs.options import Recipe
from specgen.jobs.rows import slug

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from specgen.engine import Engine, Request

FORMATS = ("wav", "flac", "ogg")
JOB = "Jobs: many prompts from a file"


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to play; several prompts make one batch.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="A preset's name, or a YAML file.", show_default="embedded"
        ),
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Seconds.")] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="An audio file that every clip begins with; it counts.")
    ] = None,
    melody: Annotated[
        Path | None, typer.Option(help="An audio file whose melody is followed (melody models).")
    ] = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(help="SECONDS:PROMPT, what to play from there on; may be given again."),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(help="Write the audio while it is made, to a file or - (stdout); one clip."),
    ] = None,
    stream_format: Annotated[str, typer.Option(help="wav, or raw: 16-bit samples alone.")] = "wav",
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first clip; the next has seed + 1. Drawn if left out."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Clips a prompt.", show_default="1")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file for one clip, else a folder.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="wav, flac or ogg.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the preset's if left out.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Weights in 8 bits: drafter=int8 (or fp8), verifier=int8; a verifier is then "
            "another model."
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile leaf functions first: for long jobs on a card."),
    ] = False,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="The verifier alone.")] = False,
    rule: Annotated[str | None, typer.Option(help="coupled, mixed, keep or rejection.")] = None,
    allow_biased: Annotated[
        bool, typer.Option("--allow-biased", help="Accept a rule that changes the music.")
    ] = False,
    draft_frames: Annotated[
        str | None, typer.Option(help="1 to 12, a part such as 0.5, or auto.")
    ] = None,
    lossy: Annotated[
        str | None, typer.Option(help="Accept more, and change the music: typical:0.1, groups:0.9.")
    ] = None,
    draft_temperature: Annotated[
        str | None, typer.Option(help="One value a codebook: 1.0,0.3,0.5,0.7")
    ] = None,
    no_drafter_cfg: Annotated[
        bool, typer.Option("--no-drafter-cfg", help="Draft without guidance.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Best entries kept; 0 keeps all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of the best kept; 0 keeps all.")
    ] = None,
    cfg: Annotated[float | None, typer.Option(help="Guidance coefficient; 1 is none.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    batch: Annotated[
        str, typer.Option(help="Most clips decoded together, or auto: what memory allows.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    from_sidecar: Annotated[
        Path | None, typer.Option(help="Make the clip of this sidecar again.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="From a sidecar though preset or models changed.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="A table of statistics.")] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Say where the seconds went, from start to end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is loaded.")] = False,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="A file of prompts (text, JSONL, CSV; - is stdin): a job that can be resumed.",
            rich_help_panel=JOB,
        ),
    ] = None,
    prompts_format: Annotated[
        str, typer.Option(help="auto, text, jsonl, csv or tsv.", rich_help_panel=JOB)
    ] = "auto",
    name: Annotated[
        str,
        typer.Option(
            help="File names: {id}, {slug}, {seed} and {index} are filled in.", rich_help_panel=JOB
        ),
    ] = "{id}",
    shard: Annotated[
        str | None,
        typer.Option(
            help="Part i/n of the rows; in a Slurm array its own part.", rich_help_panel=JOB
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes that share the rows, or auto: one a core for small models on a CPU.",
            show_default="auto",
            rich_help_panel=JOB,
        ),
    ] = None,
    engine_name: Annotated[
        str, typer.Option("--engine", help="local, or ray for a cluster.", rich_help_panel=JOB)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster; left out: this machine.", rich_help_panel=JOB),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Ray actors; left out: one a GPU, or a CPU.", rich_help_panel=JOB),
    ] = None,
) -> None:
    """Make clips from prompts.

    Prints the path of each clip; its tokens (.npy) and its sidecar (.json) lie beside it. Several
    clips are decoded as one batch; clip i has seed + i, and what it is does not depend on the
    batch. With --prompts a whole file is made; the same command again makes what is missing.
    """
    laps = Timings()
    changes: dict[str, Any] = {
        "rule": rule,
        "lossy": lossy,
        "draft_frames": draft_frames,
        "draft_temperature": draft_temperature,
        "drafter_cfg": False if no_drafter_cfg else None,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg": cfg,
    }
    rows = None if batch == "auto" else _rows(batch)
    presets.parse_quantize(quantize)
    if prompt_file is not None:
        if prompts or from_sidecar is not None:
            raise UserError("--prompts takes the prompts from its file; leave the others out")
        if timings:
            raise UserError("--timings is for a call without --prompts; leave it out")
        if prompt_at or stream:
            raise UserError("--prompt-at and --stream are for one clip; leave out --prompts")
        options = batches.Options(
            prompts=prompt_file,
            prompts_format=prompts_format,
            recipe=Recipe(
                preset or "embedded",
                draft=not no_draft,
                dtype=dtype,
                changes=tuple(sorted((k, v) for k, v in changes.items() if v is not None)),
                allow_biased=allow_biased,
                quantize=quantize,
            ),
            seed=seed or 0,
            count=count or 1,
            duration=duration,
            name=name,
            out=out,
            format=format,
            shard=shard,
            batch=rows,
            device=device,
            threads=threads,
            overwrite=overwrite,
            engine=engine_name,
            address=address,
            actors=actors,
            compile=compile,
            continue_from=continue_from,
            melody=melody,
            workers=workers,
            stats=stats,
        )
        raise typer.Exit(batches.run_job(options, as_json=as_json, verbose=verbose))
    if workers is not None:
        raise UserError("--workers is for --prompts, which makes a file of prompts")
    if from_sidecar is not None:
        changes |= {"seed": seed, "count": count, "duration": duration}
        changes["prompt_at"] = prompt_at
        if prompts or any(value is not None for value in changes.values()):
            raise UserError(
                "--from-sidecar takes prompt, seed, duration and sampling from the file; "
                "leave them out"
            )
        job = read_sidecar(from_sidecar, preset, force=force)
    else:
        if not prompts:
            raise UserError("no prompt; say what to play, such as 'a slow air on the flute'")
        drawn = secrets.randbelow(2**31) if seed is None else seed
        loaded = presets.load_preset(preset or "embedded")
        job = Job(loaded, list(prompts), drawn, count or 1, duration)
        job.sections = sections_of(prompt_at or [])
    if no_draft:
        job.draft = False
    job.dtype = dtype or job.dtype
    job.quantize = quantize or job.quantize
    job.continue_from = continue_from or job.continue_from
    job.melody = melody or job.melody
    texts = [prompt for prompt in job.prompts for _ in range(job.count)]
    seeds = [job.seed + i for i in range(len(texts))]
    paths = target_paths(texts, seeds, out, format)
    if stream is not None:
        check_stream(stream, stream_format, len(texts), as_json=as_json)

    with uncollected():
        from specgen.audio import files  # soundfile and numpy: not for --help

    for path in paths:
        files.check_target(path, overwrite=overwrite)

    with uncollected():
        from specgen.engine import Request, load

    laps.lap("import")
    engine = load(
        job.preset,
        device=device,
        dtype=job.dtype,
        draft=job.draft,
        settings=settings_of(job, changes, allow_biased=allow_biased),
        threads=threads,
        quantize=job.quantize,
        compile=compile,
    )
    check_sidecar(job, engine)
    laps.lap("load")
    if engine.verifier.quantize != "none":
        print(
            f"specgen: note: the verifier's weights are {engine.verifier.quantize}: another model "
            "than its checkpoint, and clips follow that one",
            file=sys.stderr,
        )
    if verbose:
        print(report.loaded(engine), file=sys.stderr)
    requests = [
        engine.check(
            Request(text, one, job.duration, path.stem, job.continue_from, job.melody, job.sections)
        )
        for text, one, path in zip(texts, seeds, paths, strict=True)
    ]
    with open_stream(stream, stream_format, engine, overwrite=overwrite) as play:
        quiet = as_json or stream == "-"
        clips, failed = _make(engine, requests, paths, rows or 16, play, laps, quiet=quiet)
    if timings:
        laps.show()
    if stats and clips:
        report.print_table(clips)
    if as_json:
        print(json.dumps({"clips": clips, "failed": failed}, ensure_ascii=False))
    if job.sidecar is not None and clips:
        same = clips[0]["tokens_sha256"] == job.sidecar["tokens_sha256"]
        print(f"specgen: {'the same' if same else 'NOT the same'} tokens", file=sys.stderr)
        if not same and not force:
            raise typer.Exit(1)
    if failed:
        raise typer.Exit(1)


def _rows(text: str) -> int:
    rows = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= rows <= 4096:
        raise UserError(f"--batch must be auto or a whole number from 1 to 4096, got {text!r}")
    return rows


def _make(
    engine: "Engine",
    requests: "list[Request]",
    paths: list[Path],
    batch: int,
    play: "Callable[[Request, Tensor], None] | None",
    laps: Timings,
    *,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make and write clips batch by batch; what fails is told and the rest goes on.

    Returns:
        Sidecars with `path`, and `{"id", "prompt", "error"}` of what failed.
    """
    from specgen.audio import files

    clips: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []

    def fail(request: "Request", reason: str) -> None:
        bar.say(f"specgen: failed: {reason}")
        failed.append({"id": request.id, "prompt": request.prompt, "error": reason})

    frames = [engine.frames(request.duration or 0.0) for request in requests]
    with report.Bar(engine.codec.frame_rate, sum(frames)) as bar:
        for first in range(0, len(requests), batch):
            part = slice(first, first + batch)
            try:
                asked = requests[part]
                made = list(engine.generate(asked, batch=batch, on_round=bar.update, on_audio=play))
            except (RuntimeError, MemoryError) as error:  # out of memory, a device that fell out
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                for request in requests[part]:
                    fail(request, f"cannot make {request.id}: {reason}")
                continue
            finally:
                bar.finish(sum(frames[part]))
            laps.made(made)
            for clip, path in zip(made, paths[part], strict=True):
                codes = clip.codes.numpy().astype("<i2")
                wave, rate = clip.audio.numpy(), clip.sample_rate
                try:
                    sidecar = files.write_clip(path, wave, rate, codes, engine.sidecar(clip))
                except OSError as error:
                    fail(clip.request, f"cannot write {path}: {error.strerror or error}")
                    continue
                clips.append({**sidecar, "path": str(path)})
                bar.say(report.summary(sidecar, path))
                if not quiet:
                    print(path, flush=True)
            laps.lap("write")
    return clips, failed


def target_paths(
    prompts: list[str], seeds: list[int], out: Path | None, kind: str | None
) -> list[Path]:
    """Where each clip goes.

    Raises:
        UserError: an unknown format, or a file name for several clips.
    """
    suffix = "" if out is None or out.is_dir() else out.suffix.lstrip(".").lower()
    kind = kind or (suffix if suffix in FORMATS else "wav")
    if kind not in FORMATS:
        raise UserError(f"format {kind!r} is unknown; use {', '.join(FORMATS)}")
    if suffix:
        if suffix != kind:
            raise UserError(f"--out {out} does not end in .{kind}; rename it or change --format")
        if len(prompts) > 1:
            raise UserError(
                f"--out {out} is one file, but there are {len(prompts)} clips; give a folder"
            )
        assert out is not None
        return [out]
    folder = out or Path()
    names: list[str] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        names.append(f"{slug(prompt)}-{seed}.{kind}")
    return [folder / name for name in names]
