"""What `generate` says on stderr: a live bar, a line or two a clip, a table of statistics."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.errors import UserError

if TYPE_CHECKING:
    from specgen.decoding.loop import Progress
    from specgen.engine import Engine
    from specgen.evaluation.runs import Made
    from specgen.jobs.manifest import Entry
    from specgen.jobs.worker import Outcome, Underway


def summary(clip: dict[str, Any], path: Path) -> str:
    """What is worth knowing about a clip (its sidecar), in one to four lines."""
    stats, timings = clip["stats"], clip["timings"]
    spent = timings["condition_seconds"] + timings["decode_seconds"] + timings["codec_seconds"]
    text = (
        f"{path}: {clip['duration_seconds']:.1f} s of audio, {spent:.1f} s of work "
        f"({timings['audio_seconds_per_second']:.2f} x real time), seed {clip['seed']}"
    )
    if stats["acceptance"] is not None and stats["tokens_per_pass"] is not None:
        per = " ".join(map(_percent, stats["acceptance_per_codebook"]))
        text += (
            f"\n  accepted {stats['acceptance']:.0%} of {stats['drafted']} drafted tokens "
            f"(by codebook {per}), {stats['tokens_per_pass']:.2f} tokens a verifier pass"
        )
    if not clip["lossless"]:
        text += "\n  LOSSY: this rule changes the distribution of the music"
    if clip["unknown_words"]:
        words = ", ".join(repr(word) for word in clip["unknown_words"])
        text += f"\n  warning: the model does not know {words}"
    return text


def loaded(engine: Engine) -> str:
    """What has been loaded, for --verbose."""
    import torch

    from specgen.devices import describe_device

    models = [("verifier", engine.verifier), ("drafter", engine.drafter)]
    lines = [
        f"specgen: preset {engine.preset.name} ({engine.preset.path}, "
        f"sha256 {engine.preset.sha256[:12]}) loaded in {engine.load_seconds:.1f} s",
        f"  on {describe_device(engine.device)}, {torch.get_num_threads()} CPU threads",
    ]
    lines += [
        f"  {role} {model.name}: {model.pattern.kind}, {model.lm.parameter_count() / 1e6:.1f}M "
        f"parameters, {str(model.lm.dtype).removeprefix('torch.')}, sha256 {model.sha256[:12]}"
        for role, model in models
        if model is not None
    ]
    lines.append(f"  {engine.settings.as_dict()}")
    return "\n".join(lines)


def print_table(clips: Sequence[dict[str, Any]]) -> None:
    """Statistics of clips (their sidecars with `path`) as a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("clip", overflow="fold")
    titles = (
        "rounds drafted accepted corrected bonus accept by-codebook tokens/pass decode-s x-real"
    )
    for title in titles.split():
        table.add_column(title, justify="right")
    for clip in clips:
        stats, timings = clip["stats"], clip["timings"]
        table.add_row(
            Path(clip["path"]).name,
            *(str(stats[name]) for name in ("rounds", "drafted", "accepted", "corrected", "bonus")),
            _percent(stats["acceptance"]),
            " ".join(map(_percent, stats["acceptance_per_codebook"])),
            "-" if stats["tokens_per_pass"] is None else f"{stats['tokens_per_pass']:.2f}",
            f"{timings['decode_seconds']:.2f}",
            f"{timings['audio_seconds_per_second']:.2f}",
        )
    Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140).print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


class Bar:
    """Progress on stderr: a live bar on a terminal, else only what is said.

    Args:
        frame_rate: frames a second of audio.
        frames_total: of all clips; batches come one after another.
    """

    def __init__(self, frame_rate: float, frames_total: int) -> None:
        self._frame_rate, self._total = frame_rate, frames_total
        self._before = 0  # frames of batches that are done
        self._update: Callable[[Progress], None] | None = None
        self._close: Callable[[], None] = lambda: None
        self._print: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _open(self) -> None:
        from rich import progress as rich_progress
        from rich.console import Console

        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.fields[frames]}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[pace]}"),
            rich_progress.TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False, markup=False, soft_wrap=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else it would be written to stderr too
        )
        task = bar.add_task("", total=self._total, frames=f"0/{self._total} frames", pace="")
        bar.start()
        self._close = bar.stop
        self._print = bar.console.print
        began = time.perf_counter()

        def update(progress: Progress) -> None:
            done = self._before + progress.frames_done
            spent = max(time.perf_counter() - began, 1e-9)
            acceptance = progress.stats.acceptance
            pace = f"{done / self._frame_rate / spent:.2f} x real time"
            if acceptance is not None:
                pace += f", accepted {acceptance:.0%}"
            frames = f"{done}/{self._total} frames"
            bar.update(task, completed=done, frames=frames, pace=pace)

        self._update = update

    def update(self, progress: Progress) -> None:
        """Show how far the present batch is."""
        if self._update is not None:
            self._update(progress)

    def finish(self, frames: int) -> None:
        """Count a batch of so many frames as over, made or failed."""
        self._before += frames

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._print(text)


class JobBar:
    """How a job goes: paths on stdout, what fails on stderr, and on a terminal a live bar.

    A `specgen.jobs.job.Watcher`.

    Args:
        folder: the job's.
        paths: print the path of each clip made, as it is made.
        verbose: print a summary of each clip made.
        stats: gather the sidecars of clips made.

    Attributes:
        made: clips so far.
        entries: of the clips made or kept, for --json (gathered without `paths` only).
        records: sidecars of the clips made, with `path` (gathered with `stats` only).
    """

    def __init__(
        self, folder: Path, *, paths: bool, verbose: bool = False, stats: bool = False
    ) -> None:
        self._folder, self._paths, self._verbose, self._stats = folder, paths, verbose, stats
        self.made = 0
        self.entries: list[Entry] = []
        self.records: list[dict[str, Any]] = []
        self._failed = self._kept = self._rows = 0
        self._total = self._done = 0.0  # seconds of audio
        self._underway: dict[int, list[Underway]] = {}  # by worker
        self._began = 0.0
        self._redraw: Callable[[str, float, bool], None] | None = None
        self._close: Callable[[], None] = lambda: None
        self._print: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> JobBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, rows: int, seconds: float) -> None:
        self._rows, self._total, self._began = rows, seconds, time.perf_counter()
        if not sys.stderr.isatty():
            return
        from rich import progress as rich_progress
        from rich.console import Console

        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=20),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("{task.fields[left]}"),
            console=Console(stderr=True, highlight=False, markup=False, soft_wrap=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else it would be written to stderr too
        )
        task = bar.add_task("", total=1.0, left="")
        bar.start()
        self._close = bar.stop
        self._print = bar.console.print

        def redraw(running: str, seconds: float, now: bool) -> None:
            share = seconds / self._total if self._total else 0.0
            bar.update(
                task,
                completed=min(share, 1.0),
                description=self._counts(),
                left=f"{self._left(seconds)} {running}".strip(),
                refresh=now,
            )

        self._redraw = redraw
        self._show()

    def underway(self, worker: int, rows: Sequence[Underway]) -> None:
        if not self._underway:
            self._began = time.perf_counter()  # loading models is no pace
        self._underway[worker] = list(rows)
        self._show()

    def outcome(self, outcome: Outcome) -> None:
        entry = outcome.entry
        for worker, rows in self._underway.items():
            self._underway[worker] = [row for row in rows if row.id != entry.id]
        if not entry.done:
            self._failed += 1
            self._print(f"specgen: failed: {entry.id}: {entry.error}")
        else:
            self._kept += outcome.kept
            self.made += not outcome.kept
            if outcome.kept:
                self._total -= outcome.seconds
            else:
                self._done += outcome.seconds
            if not self._paths:
                self.entries.append(entry)
        path = self._folder / str(entry.path)
        if outcome.record is not None and self._verbose:
            self._print(summary(outcome.record, path))
        if outcome.record is not None and self._stats:
            self.records.append({**outcome.record, "path": str(path)})
        if self._paths and entry.done and not outcome.kept:
            print(path, flush=True)
        self._show(now=True)  # or a clip that ends soon after another would pass over its count

    def _show(self, *, now: bool = False) -> None:
        if self._redraw is None:
            return
        rows = [row for rows in self._underway.values() for row in rows]
        running = [f"{row.id} {min(1.0, row.done / row.seconds):.0%}" for row in rows]
        shown = "  ".join(running[:3]) + (f"  +{len(running) - 3}" if running[3:] else "")
        self._redraw(shown, self._done + sum(row.done for row in rows), now)

    def _counts(self) -> str:
        text = f"{self.made + self._kept}/{self._rows} clips"
        return text + (f", {self._failed} failed" if self._failed else "")

    def _left(self, seconds: float) -> str:
        """The pace, and the time that the rest takes at it."""
        if seconds <= 0:
            return ""
        pace = seconds / max(time.perf_counter() - self._began, 1e-9)
        left = max(0.0, self._total - seconds) / pace
        hours, rest = divmod(round(left), 3600)
        return f"{pace:.2f} x real time, {hours}:{rest // 60:02d}:{rest % 60:02d} left"


SUFFIXES = (".wav", ".flac", ".ogg")


def report(
    sidecars: Annotated[
        list[Path], typer.Argument(help="Sidecars (.json), beside their audio and tokens.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
) -> None:
    """Write one HTML page with players, spectrograms and token maps of clips.

    Clips of one prompt and seed stand side by side, with what differs marked. Prints the path.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; add --overwrite to replace it, or choose another --out")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: {out.parent} is no folder; choose another --out")

    from specgen.audio import files
    from specgen.evaluation.page import clips_page

    clips = [(path.stem, read_clip(path)) for path in sidecars]
    page = clips_page(clips, "specgen clips" if len(clips) > 1 else clips[0][1].request.prompt)
    with files.atomic(out) as file:
        file.write(page.encode())
    print(out)


def read_clip(path: Path) -> Made:
    """A clip from its sidecar and what lies beside it.

    Raises:
        UserError: no sidecar, or its audio or tokens are missing, damaged or another clip's.
    """
    import numpy as np
    import soundfile

    from specgen.audio import files
    from specgen.engine import Request
    from specgen.evaluation.runs import Made

    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        codes = np.load(path.parent / Path(sidecar["tokens"]).name, allow_pickle=False)
        request = Request(sidecar["prompt"], int(sidecar["seed"]), id=path.stem)
        stats, timings = sidecar["stats"], sidecar["timings"]
        _ = stats["acceptance"], stats["acceptance_per_codebook"], stats["tokens_per_pass"]
        _ = timings["audio_seconds_per_second"], sidecar["lossless"]
        wanted = sidecar["tokens_sha256"]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a specgen sidecar ({error!r}); give the .json of a clip"
        ) from None
    if codes.ndim != 2 or files.tokens_sha256(codes) != wanted:
        raise UserError(f"{path}: the tokens beside it are not this clip's; make the clip again")
    sound = next((p for s in SUFFIXES if (p := path.with_suffix(s)).is_file()), None)
    if sound is None:
        raise UserError(f"{path}: there is no audio beside it ({', '.join(SUFFIXES)})")
    try:
        wave, rate = soundfile.read(sound, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot read {sound}: {error}") from None
    return Made(request, codes.astype(np.int64), wave.mean(axis=1), rate, sidecar)
