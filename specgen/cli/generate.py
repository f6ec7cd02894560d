"""`specgen generate`: prompts in; audio, tokens and sidecars out."""

from __future__ import annotations

import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen import config
from specgen.cli import report
from specgen.cli.job import Job, check_sidecar, read_sidecar, settings_of
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.engine import Engine, Request

FORMATS = ("wav", "flac", "ogg")


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to play; several prompts make one batch.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset's name, or a YAML file.", show_default="embedded")
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Seconds.")] = None,
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
    no_draft: Annotated[bool, typer.Option("--no-draft", help="The verifier alone.")] = False,
    rule: Annotated[str | None, typer.Option(help="coupled, mixed, keep or rejection.")] = None,
    allow_biased: Annotated[
        bool, typer.Option("--allow-biased", help="Accept a rule that changes the music.")
    ] = False,
    draft_frames: Annotated[str | None, typer.Option(help="1 to 12, or auto.")] = None,
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
    batch: Annotated[int, typer.Option(min=1, help="Most clips decoded together.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    from_sidecar: Annotated[
        Path | None, typer.Option(help="Make the clip of this sidecar again.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="From a sidecar though preset or models changed.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="A table of statistics.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is loaded.")] = False,
) -> None:
    """Make clips from prompts.

    Prints the path of each clip; its tokens (.npy) and its sidecar (.json) lie beside it. Several
    clips are decoded as one batch; clip i has seed + i, and what it is does not depend on the
    batch.
    """
    changes = {
        "rule": rule,
        "draft_frames": draft_frames,
        "draft_temperature": draft_temperature,
        "drafter_cfg": False if no_drafter_cfg else None,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg": cfg,
    }
    if from_sidecar is not None:
        changes |= {"seed": seed, "count": count, "duration": duration}
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
        loaded = config.load_preset(preset or "embedded")
        job = Job(loaded, list(prompts), drawn, count or 1, duration)
    if no_draft:
        job.draft = False
    job.dtype = dtype or job.dtype
    texts = [prompt for prompt in job.prompts for _ in range(job.count)]
    seeds = [job.seed + i for i in range(len(texts))]
    paths = target_paths(texts, seeds, out, format)

    from specgen import audio  # soundfile and numpy: not for --help

    for path in paths:
        audio.check_target(path, overwrite=overwrite)

    from specgen.engine import Request, load

    engine = load(
        job.preset,
        device=device,
        dtype=job.dtype,
        draft=job.draft,
        settings=settings_of(job, changes, allow_biased=allow_biased),
        threads=threads,
    )
    check_sidecar(job, engine)
    if verbose:
        print(report.loaded(engine), file=sys.stderr)
    requests = [
        engine.check(Request(text, one, job.duration, id=path.stem))
        for text, one, path in zip(texts, seeds, paths, strict=True)
    ]
    clips, failed = _make(engine, requests, paths, batch, quiet=as_json)
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


def _make(
    engine: Engine, requests: list[Request], paths: list[Path], batch: int, *, quiet: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make and write clips batch by batch; what fails is told and the rest goes on.

    Returns:
        Sidecars with `path`, and `{"id", "prompt", "error"}` of what failed.
    """
    from specgen import audio

    clips: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []

    def fail(request: Request, reason: str) -> None:
        bar.say(f"specgen: failed: {reason}")
        failed.append({"id": request.id, "prompt": request.prompt, "error": reason})

    frames = [engine.frames(request.duration or 0.0) for request in requests]
    with report.Bar(engine.codec.frame_rate, sum(frames)) as bar:
        for first in range(0, len(requests), batch):
            part = slice(first, first + batch)
            try:
                made = list(engine.generate(requests[part], batch=batch, on_round=bar.update))
            except (RuntimeError, MemoryError) as error:  # out of memory, a device that fell out
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                for request in requests[part]:
                    fail(request, f"cannot make {request.id}: {reason}")
                continue
            finally:
                bar.finish(sum(frames[part]))
            for clip, path in zip(made, paths[part], strict=True):
                codes = clip.codes.numpy().astype("<i2")
                wave, rate = clip.audio.numpy(), clip.sample_rate
                try:
                    sidecar = audio.write_clip(path, wave, rate, codes, engine.sidecar(clip))
                except OSError as error:
                    fail(clip.request, f"cannot write {path}: {error.strerror or error}")
                    continue
                clips.append({**sidecar, "path": str(path)})
                bar.say(report.summary(clip, path))
                if not quiet:
                    print(path, flush=True)
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
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "clip"
        names.append(f"{slug}-{seed}.{kind}")
    return [folder / name for name in names]
