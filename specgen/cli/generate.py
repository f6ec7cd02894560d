"""`specgen generate`: prompts in; audio, tokens and sidecars out."""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen import config
from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.decoding.loop import Progress
    from specgen.engine import Clip, Engine
    from specgen.settings import Settings

FORMATS = ("wav", "flac", "ogg")


@dataclass
class Job:
    """What to make, as far as it is known before a model is loaded."""

    preset: config.Preset
    prompts: list[str]
    seed: int
    count: int
    duration: float | None
    draft: bool = True
    dtype: str | None = None
    sidecar: dict[str, Any] | None = None  # to make again


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to play; several prompts make one batch.")
    ] = None,
    preset: Annotated[str, typer.Option(help="A preset's name, or a YAML file.")] = "embedded",
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Seconds.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first clip; the next has seed + 1. Drawn if left out."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Clips a prompt.")] = 1,
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
) -> None:
    """Make clips from prompts.

    Prints the path of each clip; its tokens (.npy) and its sidecar (.json) lie beside it.
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
        if prompts or any(value is not None for value in changes.values()):
            raise UserError(
                "--from-sidecar takes prompt and sampling from the file; leave them out"
            )
        job = _read_sidecar(from_sidecar)
    else:
        if not prompts:
            raise UserError("no prompt; say what to play, such as 'a slow air on the flute'")
        drawn = secrets.randbelow(2**31) if seed is None else seed
        job = Job(config.load_preset(preset), list(prompts), drawn, count, duration)
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

    settings = _settings(job, changes, allow_biased=allow_biased)
    engine = load(
        job.preset,
        device=device,
        dtype=job.dtype,
        draft=job.draft,
        settings=settings,
        threads=threads,
    )
    _check_sidecar(job, engine)
    requests = [
        Request(text, one, job.duration, id=path.stem)
        for text, one, path in zip(texts, seeds, paths, strict=True)
    ]
    clips: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    with _Bar(engine.codec.frame_rate) as bar:
        made = engine.generate(requests, batch=batch, on_round=bar.update)
        for clip, path in zip(made, paths, strict=True):
            try:
                sidecar = audio.write_clip(
                    path,
                    clip.audio.numpy(),
                    clip.sample_rate,
                    clip.codes.numpy().astype("<i2"),
                    engine.sidecar(clip),
                )
            except OSError as error:
                reason = f"cannot write {path}: {error.strerror or error}"
                print(f"specgen: failed: {reason}", file=sys.stderr)
                failed.append({"id": path.stem, "prompt": clip.request.prompt, "error": reason})
                continue
            clips.append({**sidecar, "path": str(path)})
            bar.say(_summary(clip, path))
            if not as_json:
                print(path, flush=True)
    if as_json:
        print(json.dumps({"clips": clips, "failed": failed}, ensure_ascii=False))
    if job.sidecar is not None and clips:
        same = clips[0]["tokens_sha256"] == job.sidecar["tokens_sha256"]
        print(f"specgen: {'the same' if same else 'NOT the same'} tokens", file=sys.stderr)
        if not same:
            raise typer.Exit(1)
    if failed:
        raise typer.Exit(1)


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


def _settings(job: Job, changes: dict[str, Any], *, allow_biased: bool) -> Settings:
    """The preset's settings (or the sidecar's) with what the command line changes."""
    from specgen.settings import Settings

    if job.sidecar is not None:
        settings = Settings.from_dict(job.sidecar["sampling"])
        return replace(settings, allow_biased=allow_biased or not job.sidecar["lossless"])
    settings = Settings.of(job.preset)
    given = {key: value for key, value in changes.items() if value is not None}
    sampling = {k: given[k] for k in ("temperature", "top_k", "top_p", "cfg") if k in given}
    settings = replace(
        settings, sampling=replace(settings.sampling, **sampling), allow_biased=allow_biased
    )
    if "rule" in given:
        if given["rule"] not in config.RULES:
            known = ", ".join(config.RULES)
            raise UserError(f"--rule {given['rule']!r} is unknown; use one of {known}")
        settings = replace(settings, rule=given["rule"])
    if "draft_frames" in given:
        frames = config.parse_draft_frames(given["draft_frames"], "--draft-frames")
        settings = replace(settings, draft_frames=frames)
    if "draft_temperature" in given:
        settings = replace(settings, draft_temperatures=_numbers(given["draft_temperature"]))
    if "drafter_cfg" in given:
        settings = replace(settings, drafter_cfg=False)
    return settings


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not 0 < value < float("inf") for value in values):
        raise UserError(
            f"--draft-temperature needs positive numbers such as 1,0.3,0.5,0.7, got {text!r}"
        )
    return values


def _read_sidecar(path: Path) -> Job:
    """The job that a sidecar records.

    Raises:
        UserError: no sidecar, or one that does not say enough.
    """
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        preset = config.load_preset(sidecar["preset"])
        job = Job(
            preset,
            [sidecar["prompt"]],
            int(sidecar["seed"]),
            1,
            float(sidecar["duration_seconds"]),
            draft=sidecar["checkpoints"]["drafter"] is not None,
            dtype=sidecar["dtype"]["verifier"],
            sidecar=sidecar,
        )
        needed = sidecar["tokens_sha256"], sidecar["sampling"], sidecar["lossless"]
        assert needed
    except OSError as error:
        raise UserError(f"cannot read sidecar {path}: {error.strerror}; check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a specgen sidecar ({error!r}); give the .json of a clip"
        ) from None
    if preset.sha256 != sidecar.get("preset_sha256"):
        print(
            f"specgen: preset {preset.name} has changed since; sampling is the file's",
            file=sys.stderr,
        )
    return job


def _check_sidecar(job: Job, engine: Engine) -> None:
    """Refuse to make a clip again with other models.

    Raises:
        UserError: names the model that changed.
    """
    if job.sidecar is None:
        return
    here = {
        "verifier": engine.verifier.sha256,
        "drafter": engine.drafter.sha256 if engine.drafter else None,
        "codec": engine.codec_sha256,
    }
    for role in ("verifier", "codec", "drafter"):
        if here[role] is not None and here[role] != job.sidecar["checkpoints"].get(role):
            raise UserError(
                f"the {role} is not the one that made this clip (sha256 differs); "
                "bring back the old checkpoint, or make a new clip"
            )


def _summary(clip: Clip, path: Path) -> str:
    stats, timings = clip.stats, clip.timings
    spent = timings["condition_seconds"] + timings["decode_seconds"] + timings["codec_seconds"]
    text = (
        f"{path}: {clip.seconds:.1f} s of audio, {spent:.1f} s of work "
        f"({timings['audio_seconds_per_second']:.2f} x real time), seed {clip.request.seed}"
    )
    if stats.acceptance is not None and stats.tokens_per_pass is not None:
        per = " ".join("-" if a is None else f"{a:.0%}" for a in stats.acceptance_per_codebook)
        text += (
            f"\n  accepted {stats.acceptance:.0%} of {sum(stats.drafted)} drafted tokens "
            f"(by codebook {per}), {stats.tokens_per_pass:.2f} tokens a verifier pass"
        )
    if not clip.lossless:
        text += "\n  LOSSY: this rule changes the distribution of the music"
    if clip.unknown_words:
        words = ", ".join(repr(word) for word in clip.unknown_words)
        text += f"\n  warning: the model does not know {words}"
    return text


class _Bar:
    """Progress on stderr: a live bar on a terminal, else only the summaries."""

    def __init__(self, frame_rate: float) -> None:
        self._frame_rate = frame_rate

    def __enter__(self) -> _Bar:
        self._update: Callable[[Progress], None] | None = None
        self._close: Callable[[], None] = lambda: None
        self._print: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        import time

        from rich import progress as rich_progress
        from rich.console import Console

        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.fields[frames]}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[pace]}"),
            rich_progress.TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        task = bar.add_task("", total=None, frames="loading", pace="")
        bar.start()
        self._close = bar.stop
        self._print = bar.console.print
        began = time.perf_counter()

        def update(progress: Progress) -> None:
            spent = time.perf_counter() - began
            acceptance = progress.stats.acceptance
            pace = f"{progress.frames_done / self._frame_rate / spent:.2f} x real time"
            if acceptance is not None:
                pace += f", accepted {acceptance:.0%}"
            bar.update(
                task,
                total=progress.frames_total,
                completed=progress.frames_done,
                frames=f"{progress.frames_done}/{progress.frames_total} frames",
                pace=pace,
            )

        self._update = update

    def update(self, progress: Progress) -> None:
        if self._update is not None:
            self._update(progress)

    def say(self, text: str) -> None:
        self._print(text)
